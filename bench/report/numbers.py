"""Frames as CSV: full precision, missing left empty, and no cell that a spreadsheet would run as a formula."""

from __future__ import annotations

import pandas as pd

from bench.report.escape import csv_cell


def to_csv(frame: pd.DataFrame) -> str:
    """The frame with a line of column names, Unix line ends, `.` decimals; unknown values are empty."""
    safe = frame.rename(columns=lambda name: str(csv_cell(str(name))))
    texts = [str(name) for name in safe if not pd.api.types.is_numeric_dtype(safe[name])]
    safe = safe.assign(**{name: safe[name].map(csv_cell, na_action="ignore") for name in texts})
    written: str = safe.to_csv(index=False, lineterminator="\n", na_rep="")
    return written
