"""How far to trust the numbers: what was not kept, failures with their reasons."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import case_label, last_attempts
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
    named = contents.summary.set_index(["case_key", "environment_key", "protocol_key", "code_key"])
    rows = []
    grouped = bad.groupby(["case_key", "environment_key", "protocol_key", "code_key", "status"], sort=False)
    order = {key: number for number, key in enumerate(named.index)}
    for key, group in sorted(grouped, key=lambda item: (order[item[0][:4]], item[0][4])):
        case = named.loc[key[:4]]
        reason = listed(dict.fromkeys(group["reason"].dropna()), 2) if group["reason"].notna().any() else "unknown"
        phases = listed(dict.fromkeys(group["phase"].dropna()), 3) if group["phase"].notna().any() else "unknown"
        rows.append([case_label(case, axes), str(key[4]), f"{len(group)} of {case['runs_planned']}", phases, reason])
    head = ["case", "status", "runs", "during", "reason"]
    shown = rows[:_MAX_FAILURES]
    more = len(rows) - len(shown)
    table = Table(head, shown, frozenset({2}), "Cases that did not end well.", ["warning"] * len(shown))
    return [table, Paragraph(f"{more} more are in the whole table.")] if more > 0 else [table]


SECTION = Section(order=20, title="Validity", build=build)
