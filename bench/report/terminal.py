"""The summary that a sweep ends with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.analysis import (
    best_cases,
    case_label,
    estimator_errors,
    last_attempts,
    summarise_cases,
    unit_label,
    validity,
)
from bench.analysis.headline import error_summary_words, rate_words
from bench.analysis.labels import varying_axes
from bench.records import Status
from bench.report.escape import plain
from bench.report.words import bytes_cell, listed

_MODELS = 3
_FAILURES = 2
_WIDTH = 200


def summary_lines(frame: pd.DataFrame, report_path: Path | None) -> list[str]:
    """At most ten lines for the terminal: what ran, what failed and why, how fast, how well estimated, where it is.

    Args:
        frame: From `bench.load`.
        report_path: The page to open, printed as it is given; `None` where no report was made.
    """
    summary = summarise_cases(frame)
    lines = [_ran(frame, summary), *_failures(frame, summary), *_speeds(summary), *_estimates(summary)]
    lines.append(_validity(frame))
    last = [] if report_path is None else [f"Report: {plain(report_path, 1000)}"]
    return [*(plain(line, _WIDTH) for line in lines[:9]), *last]


def _ran(frame: pd.DataFrame, summary: pd.DataFrame) -> str:
    runs = last_attempts(frame)
    counts = runs["status"].value_counts()
    planned = int((runs["status"] != Status.SKIPPED).sum())
    skipped = int((summary["status"] == Status.SKIPPED).sum())
    cases = int((summary["status"] != Status.SKIPPED).sum())
    words = f"{int(counts.get(Status.OK, 0))}/{planned} runs ok, {cases} cases"
    words += f" ({skipped} skipped)" if skipped else ""
    return f"{words}, on {listed(dict.fromkeys(summary['machine']), 3)}"


def _failures(frame: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """Counts by status, and the first reason of each of the commonest."""
    runs = last_attempts(frame)
    bad = runs[~runs["status"].isin([Status.OK, Status.SKIPPED])]
    counts = bad["status"].value_counts()
    names = sorted(counts.index, key=lambda name: (-counts[name], str(name)))
    axes = varying_axes(summary)
    known = {row["case_key"]: row for row in summary.to_dict("records")}
    lines = []
    for name in names[:_FAILURES]:
        first = bad[bad["status"] == name].iloc[0]
        case = known[first["case_key"]]
        reason = first["reason"] if pd.notna(first["reason"]) else "reason unknown"
        lines.append(f"{name} {counts[name]}: {case_label(case, axes)}: {reason}")
    if len(names) > _FAILURES:
        lines[-1] += f" (and {', '.join(f'{name} {counts[name]}' for name in names[_FAILURES:])})"
    return lines


def _speeds(summary: pd.DataFrame) -> list[str]:
    best = best_cases(summary)
    several = summary["machine"].nunique() > 1
    lines = []
    for row in best.head(_MODELS).to_dict("records"):
        where = f" on {row['machine']}" if several else ""
        lines.append(
            f"{unit_label(row)}{where}: {rate_words(row)} at batch {row['batch_size']}, "
            f"peak {bytes_cell(row['peak_allocated_bytes'])}"
        )
    if len(best) > _MODELS:
        lines[-1] += f" ({len(best) - _MODELS} more in the report)"
    return lines


def _estimates(summary: pd.DataFrame) -> list[str]:
    parts = [
        f"the {row['name']} {error_summary_words(row)}"
        for row in estimator_errors(summary).to_dict("records") if row["name"] in ("formula", "trace")
    ]  # fmt: skip
    return [f"Peak memory: {'; '.join(parts)}"] if parts else []


def _validity(frame: pd.DataFrame) -> str:
    findings = validity(frame)
    grave = [finding.code for finding in findings if finding.grave]
    notes = [finding.code for finding in findings if not finding.grave]
    words = f"Validity: {', '.join(grave) or 'nothing against the numbers'}"
    return f"{words}; scope: {', '.join(notes)}" if notes else words
