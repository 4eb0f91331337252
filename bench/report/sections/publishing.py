"""What stands against publishing the numbers, rule by rule, with the cases that it is about."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis.findings import Finding
from bench.analysis.publishable import named_cases
from bench.report.blocks import Block, Bullets, Code, Fold, Paragraph, Words
from bench.report.contents import Contents, Section

_MAX_CASES = 8


def build(contents: Contents) -> Sequence[Block]:
    """Every objection with its cases; one sentence where there is none."""
    verdict = contents.fitness
    if verdict.publishable:
        return [
            Paragraph(
                (
                    "Nothing stands against publishing these numbers. ",
                    Code("bench check"),
                    " holds them and the figures against the Parquet files again.",
                )
            )
        ]
    count = len(verdict.objections)
    title = f"{count} rule{'s' if count > 1 else ''} of publication {'were' if count > 1 else 'was'} not kept"
    return [Fold(title, [Bullets([_item(finding, contents) for finding in verdict.objections])])]


def _item(finding: Finding, contents: Contents) -> Words:
    """The sentence, its code, and the cases where they are not all."""
    cases = [case["case"] for case in named_cases(finding, contents.frame, contents.summary)]
    some = 0 < len(cases) < len(contents.summary)
    return (finding.text, " ", Code(finding.code), *([f" In: {'; '.join(_some(cases))}."] if some else []))


def _some(cases: list[str]) -> list[str]:
    """The first cases, and how many more there are."""
    return cases if len(cases) <= _MAX_CASES else [*cases[:_MAX_CASES], f"{len(cases) - _MAX_CASES} more"]


SECTION = Section(order=25, title="Fit to publish?", build=build)
