"""`bench reproduce`: results of others measured again, and an answer for each case."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import ResultsType, Share, json_option, models_option
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.sweep.reproducing import Reproduction


@click.command()
@click.argument("results", type=ResultsType(), metavar="BUNDLE|FOLDER|ADDRESS")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the new results and their report [reports/NAME-reproduced].",
)
@click.option("--check-only", is_flag=True, help="Only say what differs from here; run nothing.")
@click.option("--device", metavar="auto|cpu|cuda|cuda:N", help="Where to run, one device [as the results did].")
@models_option
@click.option(
    "--only",
    multiple=True,
    metavar="FIELD=PATTERN",
    help="Only matching runs of the results, as in 'model=resnet*'. Repeatable.",
)
@click.option("--across", multiple=True, metavar="FIELD", help="An axis or a flag that may differ here. Repeatable.")
@click.option("--margin", type=Share(), default="1%", show_default=True, help="Smallest change that counts.")
@click.option(
    "--confidence",
    type=Share(),
    default="95%",
    show_default=True,
    help="Confidence of the intervals, and of no false answer on speed among all cases.",
)
@click.option("--no-report", is_flag=True, help="Do not render a report of the new results.")
@json_option
def reproduce(
    results: Path | str,
    out: Path | None,
    check_only: bool,
    device: str | None,
    only: tuple[str, ...],
    across: tuple[str, ...],
    margin: float,
    confidence: float,
    no_report: bool,
    as_json: bool,
) -> None:
    """Measure results again, and say of each case whether it agrees.

    Says what differs from here (code, versions, device, driver, settings), runs the same cases with the same protocol
    and number of processes, and answers same, different or unclear: speed by the statistics of bench compare, memory to
    the byte where device, libraries and code are the same. Finished runs are kept; the same command resumes. Nothing
    that comes with the results is run: models of somebody's own file need that file, named with --models.

    \b
    Examples:
      bench reproduce mine.zip
      bench reproduce mine.zip --check-only
      bench reproduce reports/mine --only 'model=resnet*' --out reports/again
      bench reproduce https://example.org/mine.zip --json
      bench reproduce mine.zip --models own.py --margin 3%

    \b
    Exit codes: 0 nothing is different, 2 wrong usage or results that cannot be reproduced here, 3 a case is different,
    130 interrupted.
    """
    from bench.cli.root import echo_json
    from bench.errors import EXIT_REGRESSION
    from bench.sweep.reproducing import ReproduceOptions
    from bench.sweep.reproducing import reproduce as reproduce_results
    from bench.terminal import Progress

    options = ReproduceOptions(out, device, only, across, margin, confidence, check_only, report=not no_report)
    with Progress(quiet=as_json) as progress:
        found = reproduce_results(results, options, progress)
    if as_json:
        echo_json(_as_value(found))
    else:
        _print(found)
    if found.counts["different"]:
        raise SystemExit(EXIT_REGRESSION)


def _as_value(found: Reproduction) -> dict[str, Any]:
    from dataclasses import asdict

    from bench.cli.comparison_text import known_values

    rows = [] if found.comparison is None else found.comparison.cases.to_dict("records")
    return {
        "reproduces": asdict(found.original),
        "differences": [item._asdict() for item in found.differences],
        "not_planned": dict(found.not_planned),
        "out": found.out and str(found.out),
        "counts": found.counts,
        "cases": [
            {
                "case_key": case.case_key,
                "label": case.label,
                "answer": case.answer,
                "reason": case.reason,
                "metrics": {name: {"answer": word, "reason": why} for name, (word, why) in case.metrics.items()},
            }
            for case in found.cases
        ],
        "comparison": [known_values(row) for row in rows],
        "notes": [] if found.comparison is None else found.comparison.notes,
    }


_COLOURS = {"same": "green", "different": "red", "unclear": "yellow"}


def _print(found: Reproduction) -> None:
    from bench.cli.comparison_text import print_differences

    name = found.original.name
    print_differences(name, "here", found.differences)
    for key, reason in found.not_planned.items():
        click.echo(printable(f"not planned here: {key}: {reason}"))
    if found.out is None:
        click.echo(printable(f"nothing was run; without --check-only, bench reproduce measures {name} again"))
        return
    for case in found.cases:
        word = click.style(f"{case.answer:<9}", fg=_COLOURS[case.answer], bold=True)
        click.echo(f"{word} {printable(f'{case.label}: {case.reason}')}")
    for note in found.comparison.notes if found.comparison else ():
        click.echo(printable(f"note: {note}"))
    told = ", ".join(f"{count} {word}" for word, count in found.counts.items())
    click.echo(printable(f"{name} ({found.original.key}): {told}; the new results are in {found.out}"))


GROUP = "Publish"
COMMANDS = (reproduce,)
