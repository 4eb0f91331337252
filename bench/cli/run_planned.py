"""`bench run-planned`: the runs of a stored order that a launcher gives to one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import check_devices, json_option

if TYPE_CHECKING:
    from bench.launchers import LocalLauncher
    from bench.sweep.unit import Order
    from bench.terminal import Progress


@click.command("run-planned", hidden=True)
@click.argument("order", type=click.Path(path_type=Path))
@click.argument("indices", nargs=-1, type=click.IntRange(0), metavar="INDEX...")
@click.option("--attempt", type=click.IntRange(0), help="Which attempt [the first without a part].")
@click.option(
    "--device",
    metavar="cpu|cuda:N|MIG-...",
    callback=check_devices,
    help="The device, where more than one GPU is visible.",
)
@click.option("--estimates", is_flag=True, help="Store the estimates of the order for this device too.")
@click.option(
    "--follow",
    is_flag=True,
    help="Read lines INDEX ATTEMPT from standard input, and answer each with a JSON object, until that ends.",
)
@json_option
def run_planned(
    order: Path,
    indices: tuple[int, ...],
    attempt: int | None,
    device: str | None,
    estimates: bool,
    follow: bool,
    as_json: bool,
) -> None:
    """Do runs of an order on this machine: each in a fresh process, on one GPU that no other process uses.

    ORDER is the file that bench plan --out wrote, or its folder; INDEX is the position of a run in it. For launchers:
    Slurm, Ray and others start this command anywhere, any number of times. A run that is finished or that another
    process does is left alone. It ends with the process that started it.

    \b
    Examples:
      bench plan configs/gpu.toml --out /shared/gpu --device cuda
      bench run-planned /shared/gpu 17
      bench run-planned /shared/gpu 17 18 19 --json

    \b
    Exit codes: 0 every run is finished, 75 the device or a run is taken: try again, 2 wrong usage, 130 interrupted.
    """
    from dataclasses import asdict

    from bench.cli.root import echo_json
    from bench.errors import BusyError
    from bench.forks import die_with_parent
    from bench.launchers import LocalLauncher, interrupt_on_terminate
    from bench.sweep.chunk import EXIT_TRY_AGAIN
    from bench.sweep.unit import Came, Result, find_order, open_unit, read_order
    from bench.terminal import Progress

    if follow == bool(indices):
        raise click.UsageError("name the runs, by INDEX... or with --follow; not both")
    die_with_parent()
    launcher = LocalLauncher()
    if follow:
        with Progress(bar=False) as progress:
            _follow(read_order(find_order(order), launcher), launcher, progress, device, estimates=estimates)
        return
    results: list[Result] = []
    with interrupt_on_terminate(), Progress(quiet=as_json, bar=False) as progress:
        found = read_order(find_order(order), launcher)
        try:
            with open_unit(found, launcher, progress, device=device) as unit:
                if estimates:
                    unit.estimate()
                for index in indices:
                    results.append(unit.run(index, attempt))
        except BusyError as error:
            results += [Result(Came.BUSY, reason=str(error))] * (len(indices) - len(results))
    if as_json:
        echo_json([{"index": index, **asdict(result)} for index, result in zip(indices, results, strict=True)])
    else:
        for index, result in zip(indices, results, strict=True):
            said = " ".join(filter(None, (result.came, result.status, result.reason)))
            click.echo(f"{index}: {said}")
    if any(result.came in (Came.BUSY, Came.CLAIMED) for result in results):
        raise SystemExit(EXIT_TRY_AGAIN)


def _follow(order: Order, launcher: LocalLauncher, progress: Progress, device: str | None, *, estimates: bool) -> None:
    """Do the runs that standard input names, one a line."""
    from dataclasses import asdict

    from bench.errors import BusyError
    from bench.sweep.chunk import EXIT_TRY_AGAIN
    from bench.sweep.unit import open_unit

    try:
        with open_unit(order, launcher, progress, device=device) as unit:
            if estimates:
                unit.estimate()
            for line in sys.stdin:
                index, attempt = map(int, line.split())
                click.echo(json.dumps({"index": index, **asdict(unit.run(index, attempt))}))
    except BusyError as error:
        progress.say(str(error))
        raise SystemExit(EXIT_TRY_AGAIN) from error


GROUP = "Measure"
COMMANDS = (run_planned,)
