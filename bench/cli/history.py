"""`bench history`: each case over results of different dates and versions, and where its level changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import ResultsType, Share, json_option
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.comparison import History


@click.command()
@click.argument("results", nargs=-1, required=True, type=ResultsType(), metavar="RESULTS...")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the page, its Markdown and figures."
)
@click.option(
    "--only",
    multiple=True,
    metavar="FIELD=PATTERN",
    help="Only matching runs, as in 'model=resnet*'. Any axis or field of machine, versions or protocol. Repeatable.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="A metric of bench compare, such as joules_per_sample [throughput and peak memory]. Repeatable.",
)
@click.option("--margin", type=Share(), default="1%", show_default=True, help="Smallest change that counts.")
@click.option(
    "--confidence",
    type=Share(),
    default="95%",
    show_default=True,
    help="Confidence of the intervals, and of having no false change among all cases of a metric.",
)
@json_option
def history(
    results: tuple[Path | str, ...],
    out: Path | None,
    only: tuple[str, ...],
    metrics: tuple[str, ...],
    margin: float,
    confidence: float,
    as_json: bool,
) -> None:
    """Follow each case over results of different dates or versions.

    RESULTS are folders, folders of folders, bundles, and addresses of any of these, in any order: their runs say when
    they ran. Each case is a line for each model of device. Where its level changes by more than results and processes
    differ by chance, the change is listed with what else differs between its two sides. That needs 5 results of 2 or
    more processes each, or results that were interleaved, as nox -s versions makes them. docs/history.md explains the
    numbers.

    \b
    Examples:
      bench history reports/nightly --out reports/history
      bench history reports/2026-10 https://example.org/2026-11.zip reports/2026-12 --json
      bench history reports/nightly --only 'model=resnet*' --metric samples_per_s --margin 2%

    \b
    Exit codes: 0 no new regression, 2 wrong usage or no results, 3 the newest result is a regression: a case is slower
    or takes more memory than before, or no longer runs.
    """
    from bench.api import history as follow
    from bench.cli.root import echo_json
    from bench.errors import EXIT_REGRESSION
    from bench.store import DATA_FOLDER

    if out is not None and any(any(place.glob("plan-*.parquet")) for place in (out, out / DATA_FOLDER)):
        raise click.UsageError(f"{out}: holds results, whose report would be replaced; name another folder with --out")
    found = follow(*results, margin=margin, confidence=confidence, only=only, metrics=metrics or None)
    page = None
    if out is not None:
        from bench.report.history import render_history

        page = render_history(found, out)
    if as_json:
        echo_json(_as_value(found))
    else:
        _print(found)
        if page is not None:
            click.echo(printable(f"page: {page}"))
    if found.regressed:
        raise SystemExit(EXIT_REGRESSION)


def _as_value(found: History) -> dict[str, Any]:
    """All of it with plain numbers, and null for what is unknown."""
    import dataclasses

    import pandas as pd

    def plain(row: dict[Any, Any]) -> dict[str, Any]:
        known = {str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}
        return {
            name: None if pd.api.types.is_scalar(value) and pd.isna(value) else value for name, value in known.items()
        }

    changes = []
    for change in found.changes:
        fields = {field.name: getattr(change, field.name) for field in dataclasses.fields(change)}
        changes.append(plain({**fields, "differences": [item._asdict() for item in change.differences]}))
    return {
        "margin": found.margin,
        "confidence": found.confidence,
        "regressed": found.regressed,
        "results": [item._asdict() for item in found.results],
        "points": [plain(row) for row in found.points.to_dict("records")],
        "changes": changes,
        "broken": [
            {**item._asdict(), "differences": [each._asdict() for each in item.differences]} for item in found.broken
        ],
        "notes": found.notes,
    }


def _print(found: History) -> None:
    """The outcome, the changes with what differs, and the results."""
    from bench.comparison import METRICS, difference_words, verdict_words

    click.echo(click.style(printable(found.headline), bold=True))
    for place in range(len(found.results)):
        version = found.results[place].torch_version or "unknown"
        click.echo(printable(f"  {place + 1:>3}  {found.words(place)}, torch {version}"))
    for change in found.changes:
        metric, verdict = METRICS[change.metric], verdict_words(change.metric, change.verdict)
        sides = " → ".join(found.results[place].name for place in (change.before_result, change.after_result))
        numbers = f"{metric.show(change.before)} → {metric.show(change.after)}"
        interval = f"{change.ratio:.4f} ({change.low:.4f} to {change.high:.4f})"
        line = f"{change.label}: {metric.label} {numbers}, {interval}, {verdict}, between {sides}"
        click.echo(click.style(printable(line), fg="red" if change.regression else None))
        for words in difference_words(change.differences) or ["nothing that is recorded differs"]:
            click.echo(printable(f"    {words}"))
    for item in found.broken:
        click.echo(
            click.style(printable(f"{item.label}: {item.status} in {found.results[item.after_result].name}"), fg="red")
        )
    for note in found.notes:
        click.echo(printable(f"note: {note}"))


GROUP = "Publish"
COMMANDS = (history,)
