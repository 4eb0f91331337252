"""A figure as it leaves the module that drew it, and the numbers beside it as CSV."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.report.escape import csv_cell

if TYPE_CHECKING:  # a report whose figures are kept needs `to_csv`, and no matplotlib
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_SALT = "stepbench"
"""Of the ids in an SVG, which would differ each time otherwise."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn figure with everything that goes beside it.

    Attributes:
        name: Of its files: `figures/<name>.png` and `.csv`.
        title: The question that it answers.
        caption: How to read it, and what it leaves to the CSV.
        alt: What it shows, with the main numbers, for those who do not see it.
        figure: The figure, in the light colours of `bench.report.theme`.
        numbers: Exactly the numbers drawn; rows that did not fit have `drawn` false.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    numbers: pd.DataFrame


def to_csv(frame: pd.DataFrame) -> str:
    """The frame with a line of column names, Unix line ends, `.` decimals; unknown values are empty.

    Numbers have full precision, and no cell begins like a formula, which a spreadsheet would run.
    """
    safe = frame.rename(columns=lambda name: str(csv_cell(str(name))))
    texts = [str(name) for name in safe if not pd.api.types.is_numeric_dtype(safe[name])]
    safe = safe.assign(**{name: safe[name].map(csv_cell, na_action="ignore") for name in texts})
    written: str = safe.to_csv(index=False, lineterminator="\n", na_rep="")
    return written


def render_drawing(drawing: Drawing, suffix: str) -> bytes:
    """The picture as a file of one of `SUFFIXES`; equal pictures give equal bytes."""
    import matplotlib as mpl

    from bench.report import theme

    if suffix == ".png":
        return theme.save(drawing.figure)
    buffer = io.BytesIO()
    # Neither format may hold the time at which it was written.
    metadata: dict[str, Any] = {"Date": None} if suffix == ".svg" else {"CreationDate": None}
    with theme.style(), mpl.rc_context({"svg.hashsalt": _SALT}):
        drawing.figure.savefig(buffer, format=suffix.removeprefix("."), metadata=metadata)
    return buffer.getvalue()
