"""Every figure, in its order."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.blocks import Block, Paragraph, Picture
from bench.report.contents import Contents
from bench.report.kinds import Section


def build(contents: Contents) -> Sequence[Block]:
    """The figures that the results have something for."""
    if not contents.drawings:
        return [Paragraph("There is nothing to draw: no run measured anything.")]
    return [Picture(drawing) for drawing in contents.drawings.values()]


SECTION = Section(order=40, title="Figures", build=build)
