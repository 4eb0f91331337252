"""The figures but the first, which stands on the first page."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.blocks import Block, Paragraph
from bench.report.contents import Contents, Section


def build(contents: Contents) -> Sequence[Block]:
    """Nothing where the first is the only one; a sentence where the results have nothing to show in any."""
    if contents.headline is None:
        return [Paragraph("There is nothing to draw: no run measured anything.")]
    return list(contents.pictures.values())[1:]


SECTION = Section(order=15, title="Figures", build=build)
