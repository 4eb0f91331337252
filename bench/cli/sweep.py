"""`bench sweep`: run a configuration, keep every run, then render a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import (
    calibration_option,
    config_argument,
    device_file_option,
    devices_option,
    json_option,
    launcher_option,
    memory_option,
    models_option,
    read_config,
    set_option,
)
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.devices.calibration import Calibrations


def _read_parallel(context: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    from bench.config.values import read_parallel

    try:
        return None if value is None else read_parallel(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@config_argument
@set_option
@models_option
@devices_option
@click.option("--per-device", is_flag=True, help="Each device runs the whole plan, to compare equal cards.")
@click.option(
    "--parallel",
    metavar="auto|N",
    callback=_read_parallel,
    help="Runs at one time on several devices; auto measures how much neighbours disturb. [auto]",
)
@launcher_option("Where runs go: this host or a cluster. Overrides launcher.kind.")
@click.option(
    "--address",
    metavar="auto|ray://HOST:PORT",
    help="Of the Ray cluster [a new one on this host]; overrides launcher.address.",
)
@click.option("--wait", is_flag=True, help="On Slurm: stay until every job has ended, then render the report.")
@click.option(
    "--status",
    "status_of",
    type=click.Path(path_type=Path, file_okay=False),
    help="Show how far the sweep on a cluster is that writes to this folder, and start nothing.",
)
@device_file_option
@calibration_option
@memory_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the report and its data [reports/NAME]."
)
@click.option("--repeats", type=click.IntRange(1), help="Fresh processes per case; overrides the configuration.")
@click.option(
    "--retry",
    metavar="STATUS,...",
    help="Run finished cases with these statuses again: ok, oom, timeout, crashed, failed, nan_loss, throttled, "
    "separated by commas.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would run (same as bench plan).")
@click.option(
    "--in-process",
    is_flag=True,
    help="Run the one case in this very process, for a debugger: no time limit, no report, never publishable.",
)
@click.option("--no-report", is_flag=True, help="Do not render the report; bench report does it later.")
@json_option
def sweep(
    config: Path | None,
    overrides: tuple[str, ...],
    devices: str | None,
    per_device: bool,
    parallel: int | str | None,
    launcher: str | None,
    address: str | None,
    wait: bool,
    status_of: Path | None,
    device_files: dict[str, Device],
    calibrations: Calibrations,
    memory_bytes: int | None,
    out: Path | None,
    repeats: int | None,
    retry: str | None,
    dry_run: bool,
    in_process: bool,
    no_report: bool,
    as_json: bool,
) -> None:
    """Run every case of a configuration, then render a report.

    Each run is a fresh process. Finished runs are kept even if the sweep is interrupted; the same command resumes it.
    Estimates use the properties that the GPU reports, and take rated peaks and the measured size of a CUDA context from
    its device file: one of bench list devices, or a --device-file.

    \b
    Examples:
      bench sweep
      bench sweep configs/gpu.toml --device cuda:1
      bench sweep configs/gpu.toml --device all
      bench sweep configs/gpu.toml --device cuda:0,cuda:2 --parallel 1
      bench sweep configs/gpu.toml --device all --per-device
      bench sweep --set 'grid.batch_size=[64]' --repeats 5 --out reports/trial
      bench sweep --retry timeout,crashed
      bench sweep --device-file mine.toml
      bench sweep configs/gpu.toml --launcher slurm --set launcher.partition=gpu --set launcher.gres=gpu:h100:1
      bench sweep --status reports/gpu
      bench sweep configs/gpu.toml --launcher ray --address auto
      bench sweep configs/gpu.toml --memory 24GiB --out reports/gpu-24
      python -m pdb -m bench sweep my.toml --in-process

    \b
    Exit codes: 0 success, 1 some cases failed, 2 wrong usage or configuration, 130 interrupted.
    """
    from bench.cli.plan import kind_of, print_plan
    from bench.cli.root import echo_json
    from bench.errors import EXIT_FAILED_CASES
    from bench.sweep import RETRIED, SweepOptions, parse_statuses, run_sweep
    from bench.terminal import Progress

    if status_of is not None:
        _show_status(status_of, as_json=as_json)
        return
    if in_process and (repeats is not None or retry is not None):
        raise click.UsageError("--in-process runs its case once, each time: leave --repeats and --retry out")
    given = {"measure.repeats": repeats, "launcher.kind": launcher, "launcher.address": address}
    overrides = (*overrides, *(f"{name}={value}" for name, value in given.items() if value is not None))
    checked = read_config(config, overrides, memory_bytes)
    statuses = parse_statuses(retry)
    if dry_run:
        print_plan(checked, kind_of(devices or "auto", checked), as_json=as_json)
        return
    options = SweepOptions(
        out=out or Path("reports") / (f"{checked.name}-in-process" if in_process else checked.name),
        device=devices,
        per_device=per_device or None,
        parallel=parallel,
        retry=RETRIED if in_process else statuses,
        report=not no_report and not in_process,
        device_files=tuple(device_files.values()),
        in_process=in_process,
        calibrations=calibrations,
    )
    with Progress(quiet=as_json, bar=not in_process) as progress:  # a bar would disturb the debugger's prompt
        if checked.launcher.kind == "local":
            outcome = run_sweep(checked, options, progress)
        else:
            from bench.sweep.clusters import run_on_cluster

            outcome = run_on_cluster(checked, options, progress, wait=wait)
    if as_json:
        echo_json({"counts": outcome.counts, "report": outcome.report, "data": outcome.data})
    else:
        for line in outcome.summary:
            click.echo(printable(line))
    if outcome.failed:
        raise SystemExit(EXIT_FAILED_CASES)


def _show_status(folder: Path, *, as_json: bool) -> None:
    from dataclasses import asdict

    from bench.cli.root import echo_json
    from bench.sweep.clusters import read_status, status_lines

    status = read_status(folder)
    if as_json:
        echo_json(asdict(status))
        return
    for line in status_lines(status):
        click.echo(printable(line))


GROUP = "Measure"
COMMANDS = (sweep,)
