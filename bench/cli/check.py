"""`bench check`: is it publishable?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import ResultsType, json_option
from bench.terminal import printable

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis import Finding, Findings
    from bench.store import Loaded

_CASES_SHOWN = 10


@click.command()
@click.argument("results", type=ResultsType(), metavar="RESULTS|REPORT")
@click.option(
    "--data", multiple=True, type=ResultsType(), help="Results behind a report that is stored elsewhere. Repeatable."
)
@click.option("--baseline", metavar="NAME", help="The baseline that the report was rendered with, if one was given.")
@click.option(
    "--interval",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="FRACTION",
    help="Largest half-width of an interval: 0.01 is ±1 % [the sweep's target, else ±1 % on a GPU, ±5 % on a CPU].",
)
@click.option("--all", "show_all", is_flag=True, help="List every case, however many.")
@json_option
def check(
    results: Path | str,
    data: tuple[Path | str, ...],
    baseline: str | None,
    interval: float | None,
    show_all: bool,
    as_json: bool,
) -> None:
    """Check whether results and their report can be published.

    Lists every case that is noisy, throttled, shared its device, failed, has too few processes or did not converge;
    numbers that cannot be right; settings that are not disclosed; and every figure and number of the report that does
    not match the data. RESULTS is a folder written by bench sweep, its report, a bundle, or an
    address of one.

    \b
    Examples:
      bench check reports/mine
      bench check reports/mine/index.html --json
      bench check reports/both --data reports/host-a --data reports/host-b
      bench check mine.zip --interval 0.02

    Exit codes: 0 publishable, 4 not publishable, 2 unreadable.
    """
    from bench.analysis import damaged_parts, judge, summarise_cases, told_reproductions
    from bench.bundles import open_results
    from bench.cli.root import echo_json
    from bench.errors import EXIT_NOT_PUBLISHABLE
    from bench.store import planned_runs, read_results

    given = results if isinstance(results, str) else _folder(results)
    with open_results([given, *data]) as opened:
        folder = _folder(opened[0])
        loaded = read_results(*(opened[1:] or [folder]))
        frame = planned_runs(loaded)
        summary = summarise_cases(frame)
        findings = judge(loaded.frame, interval, summary).joined(damaged_parts(loaded))
        findings = findings.joined(told_reproductions(loaded.notes))
        findings = findings.joined(_report_findings(folder, loaded, baseline))
    if as_json:
        echo_json(_as_json(findings, summary) | {"runs": len(frame)})
    else:
        _print(findings, summary, results, show_all)
    if not findings.publishable:
        raise SystemExit(EXIT_NOT_PUBLISHABLE)


def _folder(path: Path) -> Path:
    """The report's folder, given the folder itself, its page or its data."""
    from bench.store import DATA_FOLDER

    return path.parent if path.name in (DATA_FOLDER, "report.md", "index.html", "table.csv") else path


def _report_findings(folder: Path, loaded: Loaded, baseline: str | None) -> list[Finding]:
    """Where the report in the folder, if there is one, does not match its data."""
    from bench.report.checking import REPORT_FILES, check_report

    if not any((folder / name).is_file() for name in REPORT_FILES):
        return []
    return check_report(folder, loaded, baseline)


def _as_json(findings: Findings, summary: pd.DataFrame) -> dict[str, Any]:
    from bench.analysis import CaseNames

    names = CaseNames(summary)
    told = [
        {
            "code": finding.code,
            "blocks": finding.blocks,
            "weakens": str(finding.weakens),
            "text": finding.text,
            "remedy": finding.remedy,
            "run_keys": finding.run_keys,
            "cases": names.of(finding),
            **({"formerly": finding.rule.formerly} if finding.rule.formerly else {}),
        }
        for finding in findings
    ]
    return {"publishable": findings.publishable, "cases": len(summary), "findings": told}


def _print(findings: Findings, summary: pd.DataFrame, results: Path | str, show_all: bool) -> None:
    """What forbids publishing with its cases and remedy, what a reader is told in any case, and the verdict last."""
    from bench.analysis import CaseNames
    from bench.units import counted

    names = CaseNames(summary)
    for finding in findings:
        colour, word = ("red", "FAIL") if finding.blocks else ("cyan", "note")
        click.echo(f"{click.style(word, fg=colour, bold=True)} {printable(f'{finding.code}: {finding.text}')}")
        if not finding.blocks:
            continue
        cases = names.of(finding)
        shown = cases if show_all else cases[:_CASES_SHOWN]
        for case in shown:
            keys = f"  runs {', '.join(case['run_keys'])}" if case["run_keys"] else ""
            click.echo(printable(f"       {case['case']}{keys}"))
        if len(cases) > len(shown):
            click.echo(f"       and {len(cases) - len(shown)} more; --all lists them")
        click.echo(f"     {click.style('fix', bold=True)} {finding.remedy}")
    count = len(findings.blocking)
    verdict = "publishable" if findings.publishable else f"not publishable: {counted(count, 'problem')}"
    click.echo(printable(f"{results}: {verdict}"))


GROUP = "Publish"
COMMANDS = (check,)
