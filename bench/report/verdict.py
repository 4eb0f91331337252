"""How findings are shown: the verdict of the first page, a line for each finding, and what folds behind the lines."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import CaseNames, Finding
from bench.report.blocks import Block, Bullets, Code, Fold, Notice, Words
from bench.report.contents import Contents
from bench.report.words import listed

_MAX_CASES = 8


def verdict_notice(contents: Contents) -> Notice:
    """One line for the first page: publishable or not, and what forbids it."""
    check, blocking = Code("bench check"), contents.findings.blocking
    if not blocking:
        return Notice("good", ("Publishable: every rule of ", check, " was kept."))
    codes = listed((finding.code.replace("_", " ") for finding in blocking), 8)
    return Notice("warning", (f"Not publishable: {codes}. ", check, " names every run."))


def show_findings(findings: Sequence[Finding], contents: Contents) -> list[Block]:
    """A line for each finding; folded behind them what to do about it, and its cases where they are not all."""
    if not findings:
        return []
    names = CaseNames(contents.summary)
    lines: list[Words] = [(finding.text, " ", Code(finding.code)) for finding in findings]
    details = [_details(finding, names, len(contents.summary)) for finding in findings]
    return [Bullets(lines), Fold("What to do, and which cases", [Bullets(details)])]


def _details(finding: Finding, names: CaseNames, planned: int) -> Words:
    cases = [case["case"] for case in names.of(finding)]
    shown = cases if len(cases) <= _MAX_CASES else [*cases[:_MAX_CASES], f"{len(cases) - _MAX_CASES} more"]
    where = f" In: {'; '.join(shown)}." if 0 < len(cases) < planned else ""
    return (Code(finding.code), f" {finding.remedy}{where}")
