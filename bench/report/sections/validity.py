"""How far to trust the numbers: what was not kept, failures with their reasons."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.analysis import GROUP, case_label, last_attempts
from bench.analysis.labels import varying_axes
from bench.records import Status
from bench.report.blocks import Block, Code, Notice, Paragraph, Table
from bench.report.contents import Contents
from bench.report.kinds import Section
from bench.report.words import listed

_MAX_FAILURES = 15


def build(contents: Contents) -> Sequence[Block]:
    """Findings, and the cases that did not end well."""
    blocks: list[Block] = []
    if not any(finding.grave for finding in contents.findings):
        blocks.append(Notice("good", "Nothing was found against the numbers themselves."))
    for finding in contents.findings:
        blocks.append(Notice("warning" if finding.grave else "note", (finding.text, " ", Code(finding.code))))
    return [*blocks, *_failures(contents)]


def _failures(contents: Contents) -> list[Block]:
    """One line a case and status that is neither well nor planned away."""
    runs = last_attempts(contents.frame)
    bad = runs[~runs["status"].isin([Status.OK, Status.SKIPPED, Status.INTERRUPTED, Status.THROTTLED])]
    if bad.empty:
        return []
    axes = varying_axes(contents.summary)
    cases = {tuple(row[name] for name in GROUP): row for row in contents.summary.to_dict("records")}
    order = {key: number for number, key in enumerate(cases)}
    grouped = dict(iter(bad.groupby([*GROUP, "status"], sort=False)))
    rows = []
    for *group, status in sorted(grouped, key=lambda key: (order[key[:-1]], key[-1]))[:_MAX_FAILURES]:
        runs = grouped[(*group, status)]
        case = cases[tuple(group)]
        rows.append([
            case_label(case, axes), str(status), f"{len(runs)} of {case['runs_planned']}", _words(runs["phase"]),
            _words(runs["reason"]),
        ])  # fmt: skip
    head = ["case", "status", "runs", "during", "reason"]
    table = Table(head, rows, frozenset({2}), "Cases that did not end well.", ["warning"] * len(rows))
    more = len(grouped) - len(rows)
    return [table, Paragraph(f"{more} more are in the whole table.")] if more > 0 else [table]


def _words(values: pd.Series) -> str:
    """The distinct values that are known."""
    return listed(dict.fromkeys(values.dropna()), 2) if values.notna().any() else "unknown"


SECTION = Section(order=20, title="Validity", build=build)
