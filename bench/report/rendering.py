"""Blocks written down: as GitHub's Markdown, and as one HTML page that needs nothing beside it.

Markdown has relative images, no HTML but the folds, and nothing from results unescaped. The page has its images inside,
no scripts, and asks for nothing.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from bench.report import blocks as b
from bench.report.blocks import Block, Inline, Words
from bench.report.escape import markdown, markdown_code, markdown_fence, markdown_start, plain, verbatim

_LONG = 4000
"""Sentences of ours may be longer than the texts from results inside them."""

_ALERTS = {"warning": "WARNING", "note": "NOTE", "good": "TIP"}


def render_markdown(title: str, sections: Iterable[tuple[str, Sequence[Block]]]) -> str:
    """The whole report as Markdown.

    Args:
        title: Of the report.
        sections: Heading and blocks of each; the first has no heading.
    """
    parts = [f"# {markdown(title)}"]
    for heading, blocks in sections:
        parts += [f"## {markdown(heading)}"] if heading else []
        parts += [_block(block) for block in blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case b.Answer(words):
            return f"**{_strong(words)}**"
        case b.Paragraph(words):
            return markdown_start(_words(words))
        case b.Notice(level, words):
            return f"> [!{_ALERTS[level]}]\n> {markdown_start(_words(words))}"
        case b.Bullets(items):
            return "\n".join(f"- {markdown_start(_words(item))}" for item in items)
        case b.Heading(text):
            return f"### {markdown(text)}"
        case b.Listing(text, language):
            return markdown_fence(text, language)
        case b.Table():
            return _table(block)
        case b.Picture(name, title, caption, alt, headed):
            head = f"### {markdown(title)}\n\n" if headed else ""
            image = f"![{markdown(alt, _LONG)}](figures/{name}.png)"
            below = f"{markdown_start(markdown(caption, _LONG))} ([numbers](figures/{name}.csv))"
            return f"{head}{image}\n\n{below}"
        case b.Fold(title, blocks):
            inside = "\n\n".join(_block(item) for item in blocks)
            return f"<details>\n<summary>{markdown(title)}</summary>\n\n{inside}\n\n</details>"


def _table(table: b.Table) -> str:
    ruler = ["---:" if place in table.numeric else "---" for place in range(len(table.head))]
    lines = [
        _row([markdown(title) for title in table.head]),
        _row(ruler),
        *(_row([_words(cell, in_table=True) for cell in row]) for row in table.rows),
    ]
    caption = f"{markdown_start(markdown(table.caption, _LONG))}\n\n" if table.caption else ""
    return caption + "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell or ' ' for cell in cells)} |"


def _words(words: Words, *, in_table: bool = False) -> str:
    parts: tuple[Inline, ...] = (words,) if isinstance(words, str) else words
    return "".join(_inline(part, in_table) for part in parts)


def _inline(part: Inline, in_table: bool) -> str:
    match part:
        case b.Strong(text):
            return f"**{markdown(text.rstrip())}**{' ' if text.endswith(' ') else ''}"
        case b.Code(text):
            return markdown_code(text, in_table=in_table)
        case b.Link(text, target):
            return f"[{markdown(text)}]({target})"
        case str():
            return _edges(part)


def _edges(text: str) -> str:
    """Escaped text that keeps a space at its ends, so that parts of a sentence stay apart."""
    body = markdown(text, _LONG)
    return f"{' ' if text[:1] == ' ' and body else ''}{body}{' ' if text[-1:] == ' ' else ''}"


def _strong(words: Words) -> str:
    parts: tuple[Inline, ...] = (words,) if isinstance(words, str) else words
    return "".join(markdown(part if isinstance(part, str) else part.text, _LONG) for part in parts).strip()


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
