"""The answer in a sentence, and the best case of each model."""

from __future__ import annotations

import math

import pandas as pd

from bench.analysis.estimates import estimator_errors
from bench.analysis.labels import CaseLabels, Row
from bench.records import Status
from bench.units import MISSING, format_frac, format_rate

_UNIT = ["machine", "dataset", "model"]
_NAMED = 3
"""How many models the sentence names; the table below it has all."""


def best_cases(summary: pd.DataFrame) -> pd.DataFrame:
    """The case with the highest throughput for each machine, data set and model that has one.

    Args:
        summary: From `summarise_cases`.

    Returns:
        Rows of `summary` in its order, with `cases` (how many the model has), `largest_batch_ok` (the largest batch
        size of any of its cases that ran) and `smallest_batch_oom` (the smallest that ran out of memory, or null).
    """
    groups = summary.groupby(_UNIT, sort=False, dropna=False)
    rows = []
    for _, group in groups:
        timed = group[group["samples_per_s"].notna()]
        if timed.empty:
            continue
        ran_out = group.loc[group["status"] == Status.OOM, "batch_size"]
        rows.append(
            {
                **timed.iloc[int(timed["samples_per_s"].to_numpy().argmax())].to_dict(),
                "cases": len(group),
                "largest_batch_ok": timed["batch_size"].max(),
                "smallest_batch_oom": ran_out.min() if len(ran_out) else None,
            }
        )
    return pd.DataFrame(rows, columns=[*summary.columns, "cases", "largest_batch_ok", "smallest_batch_oom"])


def rate_words(row: Row, *, said: bool = False) -> str:
    """Throughput with its interval: `12,300 samples/s (95 % interval 12,100 to 12,500)`.

    Args:
        row: Of a summary.
        said: Whether the reader knows already what the range is; it is then given without words.
    """
    rate = format_rate(row["samples_per_s"], "samples")
    if rate == MISSING:
        return MISSING
    if math.isnan(row["samples_per_s_low"]):
        return f"{rate} (one process: screening, no interval)"
    low, high = (format_rate(row[f"samples_per_s_{end}"]) for end in ("low", "high"))
    return f"{rate} ({'' if said else '95 % interval '}{low} to {high})"


def headline(summary: pd.DataFrame) -> str:
    """The answer with its interval: how fast each model trains at best, and how far off the memory estimates are.

    Text from results is in it as it stands: escape it where it is printed.
    """
    machines = " and ".join(dict.fromkeys(summary["machine"]))
    best = best_cases(summary)
    if best.empty:
        return f"On {machines}, none of the {len(summary)} planned cases has a measured speed."
    units = best.sort_values("samples_per_s", ascending=False, kind="stable").drop_duplicates(["dataset", "model"])
    units = units.loc[[index for index in best.index if index in units.index]]
    several = best["machine"].nunique() > 1
    labels, parts = CaseLabels(summary), []
    for number, row in enumerate(units.head(_NAMED).to_dict("records")):
        where = f" on {row['machine']}" if several else ""
        rate = rate_words(row, said=number > 0)
        parts.append(f"{labels.unit(row)} trains at up to {rate}{where} at {labels.setting(row)}")
    left = len(units) - _NAMED
    more = f" ({left} more {'model is' if left == 1 else 'models are'} in the table below)" if left > 0 else ""
    return f"On {machines}, {'; '.join(parts)}{more}. {_estimate_sentence(summary)}".strip()


def _estimate_sentence(summary: pd.DataFrame) -> str:
    """How far the memory estimates are off, the formula's and the trace's where there."""
    parts = [
        f"the {row['name']} {error_summary_words(row)}"
        for row in estimator_errors(summary).to_dict("records")
        if row["name"] in ("formula", "trace")
    ]
    return f"Against the measured peak of memory, {'; '.join(parts)}." if parts else ""


def error_summary_words(row: Row) -> str:
    """A row of `estimator_errors`: `is off by 12.3 % in the median (worst -45.6 %, 28 cases)`."""
    cases = f"{row['n']} case{'s' if row['n'] != 1 else ''}"
    if row["share_exact"] == 1:
        return f"is exact in {'all ' if row['n'] > 1 else ''}{cases}"
    return f"is off by {row['median_abs'] * 100:.3g} % in the median (worst {format_frac(row['worst'])}, {cases})"
