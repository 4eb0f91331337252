"""Whether the report is fit to be published, as its first page says it and as `bench check` names it."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis.findings import Finding
from bench.report.blocks import Block, Code, Notice
from bench.report.contents import Contents
from bench.report.words import listed


def verdict_notice(contents: Contents) -> list[Block]:
    """One line for the first page: publishable or not, and what forbids it."""
    verdict = contents.fitness
    if verdict.publishable:
        return [Notice("good", ("Publishable: every rule of ", Code("bench check"), " was kept."))]
    return [
        Notice(
            "warning",
            (f"Not publishable: {listed(_short(verdict.objections), 8)}. ", Code("bench check"), " names every run."),
        )
    ]


def _short(findings: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.code.replace("_", " ") for finding in findings))
