"""Whether intervals became as narrow as the sweep was asked to make them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.analysis.findings import Finding, counted, finding_of
from bench.records import Group, Status, columns
from bench.stats import geometric_interval

_GROUP = ("case_key", *columns(Group))

NOT_CONVERGED = "not_converged"
"""The finding's code, and the flag of its cases in a summary."""


def not_converged(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Cases whose repeats, or the time for them, were spent before the interval was narrow enough.

    Cases without any measured speed have findings of their own. `runs` are the last attempts of `frame`, whose column
    `target_interval` is what was asked for; nothing was where it is null.
    """
    asked = _asked(runs)
    if asked.empty:
        return None
    widths = _half_widths(asked)
    wide = widths[widths["wide"]]
    if wide.empty:
        return None
    keys = set(wide.index)
    targets = " and ".join(f"±{target * 100:g} %" for target in sorted(set(widths["target"])))
    fewest, most = int(wide["processes"].min()), int(wide["processes"].max())
    after = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return finding_of(
        NOT_CONVERGED,
        True,
        f"The interval of throughput did not come within the {targets} asked for in "
        f"{counted(len(wide), len(widths), 'case')}, after {after} processes: the repeats or the time allowed were "
        "spent, or the sweep ended first. More of either, or a quieter machine, narrows it.",
        asked[[key in keys for key in zip(*(asked[name] for name in _GROUP), strict=True)]],
    )


def flag_unconverged(summary: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    """The column `flags` of a summary with `not_converged` added to the cases that are.

    Args:
        summary: One row a case, with the columns that tell cases apart and `flags`.
        runs: The last attempts behind it.
    """
    asked = _asked(runs)
    if asked.empty:
        return summary["flags"]
    widths = _half_widths(asked)
    wide = set(widths.index[widths["wide"]])
    keys = zip(*(summary[name] for name in _GROUP), strict=True)
    return pd.Series(
        [
            ", ".join(sorted(filter(None, (*flags.split(", "), NOT_CONVERGED)))) if key in wide else flags
            for key, flags in zip(keys, summary["flags"], strict=True)
        ],
        index=summary.index,
        dtype=object,
    )


def _asked(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a speed of cases whose width was asked for: those that ended `ok`, or throttled ones without."""
    if "target_interval" not in runs or runs["target_interval"].isna().all():
        return runs.iloc[:0]
    timed = runs[runs["target_interval"].notna() & (runs["samples_per_s"] > 0)]
    timed = timed[timed["status"].isin([Status.OK, Status.THROTTLED])]
    fine = (timed["status"] == Status.OK).groupby([timed[name] for name in _GROUP], dropna=False).transform("any")
    return timed[(timed["status"] == Status.OK) | ~fine]


def _half_widths(timed: pd.DataFrame) -> pd.DataFrame:
    """For each case: `target`, `processes`, and `wide`, whether its interval is wider than that; one process is."""
    groups = timed.groupby(list(_GROUP), dropna=False, sort=False)
    widths = groups["samples_per_s"].agg(lambda rates: _half_width(rates.tolist()))
    found = pd.DataFrame(
        {"target": groups["target_interval"].first(), "processes": groups.size(), "half_width": widths}
    )
    return found.assign(wide=found["half_width"] > found["target"])


def _half_width(rates: list[float]) -> float:
    width = geometric_interval(rates).half_width_frac
    return np.inf if width is None else width
