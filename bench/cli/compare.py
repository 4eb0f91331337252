"""`bench compare`: what changed between results, and whether it is more than noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import ResultsType, Share, json_option

if TYPE_CHECKING:
    import pandas as pd

    from bench.comparison import Comparison


@click.command()
@click.argument("results", nargs=-1, required=True, type=ResultsType(), metavar="BASELINE CANDIDATE...")
@click.option("--baseline", metavar="NAME", help="The results that the others are compared with [the first].")
@click.option(
    "--across",
    multiple=True,
    metavar="FIELD[=BASELINE,CANDIDATE]",
    help="Compare two values of an axis (precision, model, ...) or of a flag (compiled, ...). Repeatable.",
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
    help="samples_per_s, median_step_time_s, peak_allocated_bytes, peak_requested_bytes, peak_reserved_bytes, "
    "cold_peak_allocated_bytes, device_used_bytes, host_rss_peak_bytes or joules_per_sample [throughput and peak "
    "memory]. Repeatable.",
)
@click.option(
    "--processes",
    type=int,
    metavar="N",
    help="Use only the first N processes of each case, for sweeps with measure.target_interval: the smallest number "
    "that every case had (5, or measure.repeats if larger), chosen before looking. Failed ones are not replaced.",
)
@click.option("--margin", type=Share(), default="1%", show_default=True, help="Smallest change that counts.")
@click.option(
    "--confidence",
    type=Share(),
    default="95%",
    show_default=True,
    help="Confidence of the intervals, and of having no false verdict among all cases.",
)
@click.option(
    "--price",
    "prices",
    multiple=True,
    metavar="NAME=PER_HOUR",
    help="Cost per hour of the machine behind results NAME. Repeatable.",
)
@click.option("--worst-first", is_flag=True, help="List the largest regressions first.")
@json_option
def compare(
    results: tuple[Path | str, ...],
    baseline: str | None,
    across: tuple[str, ...],
    only: tuple[str, ...],
    metrics: tuple[str, ...],
    processes: int | None,
    margin: float,
    confidence: float,
    prices: tuple[str, ...],
    worst_first: bool,
    as_json: bool,
) -> None:
    """Compare two or more results, case by case.

    Prints what else differs between the sides, then the ratio of each case with its interval. A case counts as faster
    or slower only if its ratio exceeds the margin and chance is excluded across all cases; memory as less or more by
    the same rule. One process per side never gives a verdict. Where a GPU's clocks were read, speeds are compared in
    cycles as well: the lines "clocks" say whether clocks can explain a difference. docs/statistics.md explains each
    number.

    \b
    Examples:
      bench compare reports/before reports/after
      bench compare reports/a100 reports/h100 reports/l4 --baseline h100 --price h100=2.5 --price l4=0.7
      bench compare reports/gpu --across precision=float32,bf16 --only 'model=resnet*'
      bench compare reports/main reports/branch --margin 2% --worst-first --json
      bench compare reports/adaptive-a reports/adaptive-b --processes 5

    \b
    Exit codes: 0 no regression, 2 wrong usage or sides that cannot be compared, 3 a regression: something is slower,
    takes more memory or no longer runs.
    """
    from bench.api import compare as compare_results
    from bench.api import planned_runs_of
    from bench.cli.comparison_text import as_value, print_comparisons
    from bench.cli.root import echo_json
    from bench.comparison import find_costs, first_processes
    from bench.errors import EXIT_REGRESSION

    loaded = [first_processes(planned_runs_of(path), processes) for path in results]
    sides = _sides(across, loaded)
    frames = dict(zip(names := _named(results, sides), loaded * (len(names) // len(loaded)), strict=True))
    first = _chosen(baseline or next(iter(frames)), frames, "--baseline")
    hourly = _prices(prices, frames)
    frames = _selected(frames, first, only, sides)
    fields = [item.partition("=")[0] for item in across]
    made: dict[str, Comparison] = {}
    for name, frame in frames.items():
        if name != first:
            with _naming(name, many=len(frames) > 2):
                made[name] = compare_results(
                    frames[first],
                    frame,
                    margin=margin,
                    confidence=confidence,
                    across=fields,
                    metrics=metrics or None,
                    processes=processes,
                )
    costs = find_costs(frames, hourly, fields)
    if as_json:
        echo_json(as_value(first, made, costs, worst_first=worst_first))
    else:
        print_comparisons(first, made, costs, worst_first=worst_first)
    if any(len(comparison.regressions) for comparison in made.values()):
        raise SystemExit(EXIT_REGRESSION)


def _sides(across: tuple[str, ...], loaded: list[pd.DataFrame]) -> list[tuple[str, str, str]]:
    """Field, baseline's value and candidate's value of each `--across` that gives values."""
    from bench.comparison import split_values

    found = []
    for item in across:
        field, equals, values = item.partition("=")
        if not equals:
            continue
        halves = split_values(loaded, field, values)
        if halves is None:
            raise click.UsageError(f'--across: "{item}" needs the values of two sides: {field}=BASELINE,CANDIDATE')
        found.append((field, *halves))
    return found


def _named(results: tuple[Path | str, ...], sides: list[tuple[str, str, str]]) -> list[str]:
    """The results by the names of their folders (`.` and `..` too), or as they were given where those are equal.

    With values to compare, one folder is both sides, and the values name them.
    """
    if len(results) == 1:
        if not sides:
            raise click.UsageError(
                "give two results, or one and the values to compare: --across precision=float32,bf16"
            )
        _, *values = zip(*sides, strict=True)
        return [", ".join(side) for side in values]
    from bench.bundles import results_name
    from bench.store import DATA_FOLDER

    paths = [Path(results_name(path)) if isinstance(path, str) else path for path in results]
    places = [path if path.name not in ("", "..", DATA_FOLDER) else path.resolve() for path in paths]
    names = [place.parent.name if place.name == DATA_FOLDER else place.name for place in places]
    told_apart = names if len(set(names)) == len(names) else [str(path) for path in results]
    if len(set(told_apart)) < len(results):
        raise click.UsageError(f"{results[0]} is given twice; compare two different results")
    return told_apart


def _chosen(name: str, frames: dict[str, pd.DataFrame], option: str) -> str:
    """A name of one of the results."""
    from bench.errors import nearest, nearest_sentence

    if name not in frames:
        near = nearest_sentence(nearest(name, frames))
        raise click.UsageError(f'{option}: no results are called "{name}". {near}Available: {", ".join(frames)}')
    return name


def _prices(given: tuple[str, ...], frames: dict[str, pd.DataFrame]) -> dict[str, float]:
    """What an hour costs, by name."""
    found = {}
    for item in given:
        name, equals, amount = item.rpartition("=")
        try:
            price = float(amount)
        except ValueError:
            price = -1.0
        if not equals or not 0 < price < float("inf"):
            raise click.UsageError(f'--price: "{item}" is not a valid price; write NAME=PER_HOUR, as in h100=2.5')
        found[_chosen(name, frames, "--price")] = price
    return found


def _selected(
    frames: dict[str, pd.DataFrame], first: str, only: tuple[str, ...], sides: list[tuple[str, str, str]]
) -> dict[str, pd.DataFrame]:
    """The runs that --only leaves, and on each side those with its value of an axis compared across."""
    from bench.comparison import select_runs

    chosen = {name: [*only] for name in frames}
    for field, *values in sides:
        if len(frames) != 2:
            raise click.UsageError(
                f"--across {field}={','.join(values)}: gives the values of two sides; compare exactly two results"
            )
        for name in frames:
            chosen[name].append(f"{field}={values[0 if name == first else 1]}")
    selected = {}
    for name, frame in frames.items():
        with _naming(name, many=True):
            selected[name] = select_runs(frame, chosen[name])
    return selected


@contextlib.contextmanager
def _naming(name: str, *, many: bool) -> Iterator[None]:
    """Say in a refusal which of several results it is about."""
    from bench.errors import BenchError

    try:
        yield
    except BenchError as error:
        raise BenchError(f"{name}: {error}") if many else error from error


GROUP = "Publish"
COMMANDS = (compare,)
