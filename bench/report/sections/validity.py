"""How far to trust the numbers: what was not kept, failures with their reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.analysis import GROUP, CaseLabels, Weakens, in_reading_order, last_attempts
from bench.analysis.reasons import group_reasons, more_reasons, tally_names
from bench.records import Status
from bench.report.blocks import Block, Notice, Paragraph, Table
from bench.report.contents import Contents, Section
from bench.report.verdict import show_findings
from bench.report.words import listed

_MAX_FAILURES = 15
_MAX_REASONS = 12


def build(contents: Contents) -> Sequence[Block]:
    """What weakens the numbers, what bounds them, and the cases that did not end well."""
    weak, notes = (contents.findings.weakening(what) for what in (Weakens.READING, Weakens.NOTHING))
    blocks: list[Block] = [
        Notice("warning", "These weaken the numbers:")
        if weak
        else Notice("good", "No problems found with the numbers."),
        *show_findings(weak, contents),
        *([Paragraph("These say what the numbers are about:")] if notes else []),
        *show_findings(notes, contents),
    ]
    return [*blocks, *_failures(contents)]


def _failures(contents: Contents) -> list[Block]:
    """One line a case and status that is neither well nor planned away."""
    runs = last_attempts(contents.frame)
    bad = runs[~runs["status"].isin([Status.OK, Status.SKIPPED, Status.INTERRUPTED, Status.THROTTLED])]
    if bad.empty:
        return []
    labels = CaseLabels(contents.summary)
    cases = {tuple(row[name] for name in GROUP): row for row in contents.summary.to_dict("records")}
    order = {key: number for number, key in enumerate(cases)}
    grouped: dict[Any, Any] = bad.groupby([*GROUP, "status"], sort=False).indices
    reasons = _reasons(in_reading_order(bad, contents.summary), {key: labels.case(row) for key, row in cases.items()})
    rows = []
    for *group, status in sorted(grouped, key=lambda key: (order[key[:-1]], key[-1]))[:_MAX_FAILURES]:
        runs = bad.iloc[grouped[(*group, status)]]
        case = cases[tuple(group)]
        rows.append(
            [
                labels.case(case),
                str(status),
                f"{len(runs)} of {case['runs_planned']}",
                _words(runs["phase"]),
                _words(runs["reason"]),
            ]
        )
    head = ["case", "status", "runs", "during", "reason"]
    table = Table(head, rows, frozenset({2}), "Cases that did not end well.", ["warning"] * len(rows))
    more = len(grouped) - len(rows)
    return [*reasons, table, *([Paragraph(f"{more} more are in the whole table.")] if more > 0 else [])]


def _reasons(bad: pd.DataFrame, names: Mapping[tuple[str, ...], str]) -> list[Block]:
    """Why runs did not end well: a line for each status and reason, with how many and a case; where there are several.

    Args:
        bad: The runs.
        names: Of cases, by what `GROUP` says of them.
    """
    found = [
        (reason, status, bad[bad["status"] == status].iloc[list(reason.places)])
        for status in tally_names(bad["status"])
        for reason in group_reasons(bad.loc[bad["status"] == status, "reason"])
    ]
    if len(found) < 2:
        return []
    rows = []
    for reason, status, runs in found[:_MAX_REASONS]:
        cases = [names[key] for key in dict.fromkeys(runs[list(GROUP)].itertuples(index=False, name=None))]
        rows.append([str(status), str(len(runs)), str(len(cases)), reason.text, cases[0]])
    head = ["status", "runs", "cases", "reason", "for example"]
    caption = "Why runs did not end well; reasons that differ in amounts, addresses and paths only are one."
    more = more_reasons(len(found) - len(rows), "table.csv")
    return [
        Table(head, rows, frozenset({1, 2}), " ".join([caption, *(f"{text[0].upper()}{text[1:]}." for text in more)]))
    ]


def _words(values: pd.Series) -> str:
    """The distinct values that are known."""
    return listed(dict.fromkeys(values.dropna()), 2) if values.notna().any() else "unknown"


SECTION = Section(order=20, title="Validity", build=build)
