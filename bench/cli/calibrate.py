"""`bench calibrate`: fit the estimates to this machine, and say how exact they and its measurements are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.cli.options import device_option, json_option, read_config, set_option
from bench.terminal import printable

FEWEST_MINUTES = 0.1


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path), metavar="[CONFIG]")
@set_option
@device_option
@click.option(
    "--minutes",
    type=click.FloatRange(FEWEST_MINUTES, 600),
    default=10.0,
    show_default=True,
    help="What all of it may take.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 100),
    default=10,
    show_default=True,
    help="Fresh processes per case, where the time allows.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for results and report [reports/calibration-DEVICE].",
)
@click.option("--keep/--no-keep", default=True, show_default=True, help="Let this account's estimates use it.")
@json_option
def calibrate(
    config: Path | None,
    overrides: tuple[str, ...],
    device: str,
    minutes: float,
    repeats: int,
    out: Path | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Calibrate the estimates on this machine's GPU or CPU.

    Measures what the device reaches, then some twenty training steps in fresh processes, as a sweep does, and on a GPU
    records the allocator. Fits the rates of the speed estimate to them and writes a device file. Estimates on this
    machine use it from then on; elsewhere, name it with --calibration FILE.

    The report has the errors of memory and speed before and after, with each case left out of the fit in turn, the
    noise floor, and the settings that a sweep should use. The same command resumes after an interruption. CONFIG names
    steps of your own in place of the twenty.

    \b
    Examples:
      bench calibrate
      bench calibrate --minutes 3 --json
      bench calibrate --device cuda:1 --out reports/calibration-second
      bench calibrate configs/default.toml --device cpu --no-keep

    \b
    Exit codes: 0 calibrated, 1 a case failed or too few were measured, 2 wrong usage or configuration, 130 interrupted.
    """
    from bench.cli.root import echo_json
    from bench.errors import EXIT_FAILED_CASES
    from bench.report.calibration import summary_lines
    from bench.sweep.calibrating import CalibrateOptions, calibrate_machine
    from bench.terminal import Progress

    if config is None and overrides:
        raise click.UsageError("--set changes a value of CONFIG: name one")
    steps = None if config is None else read_config(config, overrides)
    options = CalibrateOptions(out=out, device=device, minutes=minutes, repeats=repeats, config=steps, keep=keep)
    with Progress(quiet=as_json) as progress:
        found = calibrate_machine(options, progress)
    files = {"folder": str(found.folder), "kept": str(found.kept) if found.kept else None}
    if as_json:
        content: dict[str, Any] = {**files, **found.content}
        echo_json(content)
    else:
        for line in summary_lines(found.content):
            click.echo(printable(line))
        click.echo(printable(f"report: {found.folder / 'calibration.md'}"))
        if found.kept:
            click.echo(printable(f"estimates on this machine use {found.kept}"))
    if found.failed:
        raise SystemExit(EXIT_FAILED_CASES)


GROUP = "Measure"
COMMANDS = (calibrate,)
