"""Blocks as one HTML page that needs nothing beside it: images inside, no scripts, no requests."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from bench.report.blocks import Block
from bench.report.escape import plain, verbatim


@dataclass(frozen=True, slots=True)
class Image:
    """A figure as PNG, on light and on dark paper."""

    light: bytes
    dark: bytes

    @staticmethod
    def _address(png: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"

    @property
    def light_address(self) -> str:
        """The light one as a data address."""
        return self._address(self.light)

    @property
    def dark_address(self) -> str:
        """The dark one as a data address."""
        return self._address(self.dark)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels (from the PNG's header; drawn at 150 dpi, shown at 96)."""
        width, height = (int.from_bytes(self.light[start : start + 4], "big") for start in (16, 20))
        return round(width * 96 / 150), round(height * 96 / 150)


def render_html(
    title: str, sections: Iterable[tuple[str, Sequence[Block]]], images: Mapping[str, Image], version: str
) -> str:
    """The whole page; every text is escaped by the template.

    Args:
        title: Of the report.
        sections: Heading and blocks of each; the first has no heading.
        images: The figures by name.
        version: Of the package, for the foot.
    """
    page = _template().render(title=title, sections=list(sections), images=images, version=version)
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text("utf-8")),
    )
    environment.filters["plain"] = plain
    environment.filters["verbatim"] = verbatim
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template("page.html.j2")
