"""The summary that a sweep ends with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.analysis import (
    GROUP,
    CaseLabels,
    Weakens,
    best_cases,
    estimator_errors,
    in_reading_order,
    judge,
    last_attempts,
    summarise_cases,
)
from bench.analysis.headline import error_summary_words, rate_words
from bench.analysis.reasons import group_reasons, more_reasons, tally_names
from bench.records import Status
from bench.report.escape import plain
from bench.report.words import bytes_cell, listed

_LINES = 10
_MODELS = 3
_WIDTH = 200
_REASON_WIDTH = 120
"""A reason gets at least so many characters, however long the name of its case is."""


def summary_lines(frame: pd.DataFrame, report_path: Path | None) -> list[str]:
    """At most ten lines for the terminal: what ran, what failed and why, how fast, how well estimated, where it is.

    Args:
        frame: From `bench.load`.
        report_path: The page to open, printed as it is given; `None` where no report was made.
    """
    summary = summarise_cases(frame)
    labels = CaseLabels(summary)
    found = _failures(frame, summary, labels)
    where = "Validity in the report" if report_path is not None else "bench report"
    end = [*_estimates(summary), _validity(frame, summary)]
    last = [] if report_path is None else [f"Report: {plain(report_path, 1000)}"]
    speeds = _speeds(summary, labels, _MODELS if len(found) < _MODELS else 1)
    room = _LINES - 1 - len(speeds) - len(end) - 1
    if len(found) > room:
        left = more_reasons(len(found) - room + 1, where)
        found = [*found[: room - 1], *left]
    lines = [plain(_ran(frame, summary), _WIDTH), *found, *(plain(line, _WIDTH) for line in (*speeds, *end))]
    return [*lines, *last]


def _ran(frame: pd.DataFrame, summary: pd.DataFrame) -> str:
    runs = last_attempts(frame)
    counts = runs["status"].value_counts()
    planned = int((runs["status"] != Status.SKIPPED).sum())
    skipped = int((summary["status"] == Status.SKIPPED).sum())
    cases = int((summary["status"] != Status.SKIPPED).sum())
    words = f"{int(counts.get(Status.OK, 0))}/{planned} runs ok, {cases} cases"
    words += f" ({skipped} skipped)" if skipped else ""
    return f"{words}, on {listed(dict.fromkeys(summary['machine']), 3)}"


def _failures(frame: pd.DataFrame, summary: pd.DataFrame, labels: CaseLabels) -> list[str]:
    """A line for each status and reason: how many runs, a case, and the reason; what was planned away comes last."""
    runs = last_attempts(frame)
    cases = {tuple(row[name] for name in GROUP): labels.case(row) for row in summary.to_dict("records")}
    bad = in_reading_order(runs[runs["status"] != Status.OK], summary)
    names = tally_names(bad["status"])
    lines = []
    for status in sorted(names, key=lambda name: (name == Status.SKIPPED, names.index(name))):
        alike = bad[bad["status"] == status]
        for reason in group_reasons(alike["reason"]):
            meant = alike.iloc[list(reason.places)][list(GROUP)].itertuples(index=False, name=None)
            named = [cases[key] for key in dict.fromkeys(meant)]
            more = len(named) - 1
            others = f" and {more} more case{'s' if more > 1 else ''}" if more else ""
            head = plain(f"{status} {reason.count}: {named[0]}{others}:", 1000)
            lines.append(f"{head} {plain(reason.text, max(_WIDTH - len(head), _REASON_WIDTH))}")
    return lines


def _speeds(summary: pd.DataFrame, labels: CaseLabels, most: int) -> list[str]:
    best = best_cases(summary)
    several = summary["machine"].nunique() > 1
    lines = []
    for row in best.head(most).to_dict("records"):
        where = f" on {row['machine']}" if several else ""
        lines.append(
            f"{labels.unit(row)}{where}: {rate_words(row)} at {labels.setting(row)}, "
            f"peak {bytes_cell(row['peak_allocated_bytes'])}"
        )
    if len(best) > most:
        lines[-1] += f" ({len(best) - most} more in the report)"
    return lines


def _estimates(summary: pd.DataFrame) -> list[str]:
    parts = [
        f"the {row['name']} {error_summary_words(row)}"
        for row in estimator_errors(summary).to_dict("records")
        if row["name"] in ("formula", "trace")
    ]
    return [f"Peak memory: {'; '.join(parts)}"] if parts else []


def _validity(frame: pd.DataFrame, summary: pd.DataFrame) -> str:
    found = judge(frame, summary=summary)
    weak, unfit, notes = (", ".join(finding.code for finding in found.weakening(what)) for what in Weakens)
    words = [f"Validity: {weak or 'no problems found'}", f"unfit to publish: {unfit}" if unfit else ""]
    return "; ".join(filter(None, (*words, f"scope: {notes}" if notes else "")))
