"""Each estimator beside the measurement that it is an estimate of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.stats import summarise_errors


@dataclass(frozen=True, slots=True)
class Comparison:
    """An estimate and what it is compared with.

    Attributes:
        name: Of the estimator; the summary's column is `<name>_relative_error`.
        estimate: The estimate's column.
        measured: The measurement's column, in the same unit.
        title: The estimator for people.
        against: The measurement for people.
    """

    name: str
    estimate: str
    measured: str
    title: str
    against: str

    @property
    def column(self) -> str:
        """The summary's column of signed relative errors."""
        return f"{self.name}_relative_error"


COMPARISONS = (
    Comparison("formula", "formula_bytes", "peak_allocated_bytes", "formula", "peak allocated"),
    Comparison("trace", "trace_peak_allocated_bytes", "peak_allocated_bytes", "trace, allocated", "peak allocated"),
    Comparison(
        "trace_reserved", "trace_peak_reserved_bytes", "peak_reserved_bytes", "trace, reserved", "peak reserved"
    ),
    Comparison("device", "estimated_device_bytes", "device_used_bytes", "device", "device memory used"),
    Comparison("speed", "estimated_samples_per_s", "samples_per_s", "speed (roofline)", "samples per second"),
)


def relative_errors(frame: pd.DataFrame, comparison: Comparison) -> np.ndarray:
    """`(estimate - measured) / measured` for each row, signed, shape `(rows,)`; NaN where either is unknown or 0."""
    estimate = frame[comparison.estimate].to_numpy(dtype=float, na_value=np.nan)
    measured = frame[comparison.measured].to_numpy(dtype=float, na_value=np.nan)
    known = ~(np.isnan(estimate) | np.isnan(measured)) & (measured > 0)
    return np.where(known, (estimate - measured) / np.where(known, measured, 1.0), np.nan)


def estimator_errors(summary: pd.DataFrame) -> pd.DataFrame:
    """How far each estimator is off over all cases that have both numbers; an estimator without any has no row.

    Args:
        summary: From `summarise_cases`.

    Returns:
        One row an estimator, in the order of `COMPARISONS`: `name`, `title`, `against`, and the fields of
        `bench.stats.ErrorSummary` as fractions.
    """
    rows = []
    for comparison in COMPARISONS:
        errors = summary[comparison.column].to_numpy(dtype=float)
        found = summarise_errors(errors[~np.isnan(errors)])
        if found is not None:
            rows.append({
                "name": comparison.name, "title": comparison.title, "against": comparison.against, "n": found.n,
                "median_abs": found.median_abs, "p90_abs": found.p90_abs, "worst": found.worst, "bias": found.bias,
                "share_exact": found.share_exact,
            })  # fmt: skip
    names = ["name", "title", "against", "n", "median_abs", "p90_abs", "worst", "bias", "share_exact"]
    return pd.DataFrame(rows, columns=names)
