"""`bench check`: is it publishable?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import json_option
from bench.terminal import printable

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis import Finding
    from bench.analysis.publishable import Fitness
    from bench.store import Loaded

_CASES_SHOWN = 10


@click.command()
@click.argument("results", type=click.Path(path_type=Path), metavar="RESULTS|REPORT")
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Results behind a report that is stored elsewhere. Repeatable.",
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
    results: Path, data: tuple[Path, ...], baseline: str | None, interval: float | None, show_all: bool, as_json: bool
) -> None:
    """Check whether results and their report can be published.

    Lists every case that is noisy, throttled, shared its device, failed, has too few processes or did not converge;
    numbers that cannot be right; settings that are not disclosed; and every figure and number of the report that does
    not match the data. RESULTS is a folder written by bench sweep, its report, or a bundle.

    \b
    Examples:
      bench check reports/mine
      bench check reports/mine/index.html --json
      bench check reports/both --data reports/host-a --data reports/host-b
      bench check mine.zip --interval 0.02

    Exit codes: 0 publishable, 4 not publishable, 2 unreadable.
    """
    from bench.bundles import open_results
    from bench.cli.root import echo_json
    from bench.errors import EXIT_NOT_PUBLISHABLE
    from bench.store import read_results

    with open_results([_folder(results), *data]) as opened:
        folder = _folder(opened[0])
        loaded = read_results(*(opened[1:] or [folder]))
        frame, fitness = _judge(loaded, interval)
        fitness = fitness.joined(_report_findings(folder, loaded, baseline))
    if as_json:
        echo_json(_as_json(fitness, frame))
    else:
        _print(fitness, frame, results, show_all)
    if not fitness.publishable:
        raise SystemExit(EXIT_NOT_PUBLISHABLE)


def _folder(path: Path) -> Path:
    """The report's folder, given the folder itself, its page or its data."""
    from bench.store import DATA_FOLDER

    return path.parent if path.name in (DATA_FOLDER, "report.md", "index.html", "table.csv") else path


def _judge(loaded: Loaded, interval: float | None) -> tuple[pd.DataFrame, Fitness]:
    """The planned runs, and the verdict on them and on parts that cannot be read."""
    from bench.analysis import damaged_parts, earlier_plans
    from bench.analysis.publishable import judge
    from bench.store import planned_runs

    frame = planned_runs(loaded)
    return frame, judge(frame, interval).joined([*damaged_parts(loaded), *earlier_plans(loaded.frame)])


def _report_findings(folder: Path, loaded: Loaded, baseline: str | None) -> list[Finding]:
    """Where the report in the folder, if there is one, does not match its data."""
    from bench.report.checking import REPORT_FILES, check_report

    if not any((folder / name).is_file() for name in REPORT_FILES):
        return []
    return check_report(folder, loaded, baseline)


def _as_json(fitness: Fitness, frame: pd.DataFrame) -> dict[str, Any]:
    from bench.analysis import summarise_cases
    from bench.analysis.publishable import named_cases

    summary = summarise_cases(frame)
    findings = [
        {
            "code": finding.code,
            "blocks": finding.grave,
            "text": finding.text,
            "run_keys": list(finding.run_keys),
            "cases": named_cases(finding, frame, summary),
        }
        for finding in fitness.findings
    ]
    return {"publishable": fitness.publishable, "cases": len(summary), "runs": len(frame), "findings": findings}


def _print(fitness: Fitness, frame: pd.DataFrame, results: Path, show_all: bool) -> None:
    """What prevents publication with its cases, then what readers should know, and the verdict last."""
    from bench.analysis import summarise_cases
    from bench.analysis.publishable import named_cases
    from bench.units import counted

    summary = summarise_cases(frame)
    for finding in fitness.findings:
        colour, word = ("red", "FAIL") if finding.grave else ("cyan", "note")
        click.echo(f"{click.style(f'{word:<4}', fg=colour, bold=True)} {printable(f'{finding.code}: {finding.text}')}")
        cases = named_cases(finding, frame, summary) if finding.grave else []
        shown = cases if show_all else cases[:_CASES_SHOWN]
        for case in shown:
            keys = f"  runs {', '.join(case['run_keys'])}" if case["run_keys"] else ""
            click.echo(printable(f"       {case['case']}{keys}"))
        if len(cases) > len(shown):
            click.echo(f"       and {len(cases) - len(shown)} more; --all lists them")
    count = len(fitness.objections)
    verdict = "publishable" if fitness.publishable else f"not publishable: {counted(count, 'problem')}"
    click.echo(printable(f"{results}: {verdict}"))


GROUP = "Publish"
COMMANDS = (check,)
