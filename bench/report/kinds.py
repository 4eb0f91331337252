"""What a file of `figures/` and of `sections/` defines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.report.blocks import Block
from bench.report.contents import Contents
from bench.report.drawing import Drawing


@dataclass(frozen=True, slots=True)
class FigureKind:
    """A kind of figure.

    Attributes:
        order: Its place among the figures.
        draw: The drawing, or `None` where the results have nothing to show in it.
    """

    order: int
    draw: Callable[[Contents], Drawing | None]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the report.

    Attributes:
        order: Its place: 10 answer, 20 validity, 30 disclosures, 40 figures, 50 table, 60 limits, 70 how to reproduce.
        title: Its heading; empty for the first, which stands under the report's title.
        build: What it says; nothing leaves the section out.
    """

    order: int
    title: str
    build: Callable[[Contents], Sequence[Block]]
