"""`bench estimate`: memory and speed of a training step on a GPU that need not be present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.axes import batch_size_option, read_cases, with_axes, workspaces_option
from bench.cli.explaining import explain_difference
from bench.cli.options import config_argument, device_file_option, json_option, read_config, set_option
from bench.cli.timeline import check_single, check_target, print_timeline, write_timeline
from bench.errors import EXIT_FAILED_CASES, BenchError
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.records import Case, Estimate

_MEMORY = (
    ("formula", "formula_bytes"),
    ("trace: allocated", "trace_peak_allocated_bytes"),
    ("trace: reserved", "trace_peak_reserved_bytes"),
    ("trace: requested", "trace_peak_requested_bytes"),
    ("device (nvidia-smi)", "estimated_device_bytes"),
)


@click.command()
@config_argument
@set_option
@with_axes
@batch_size_option
@click.option(
    "--device", "devices", multiple=True, help="Device, by name or file (bench list devices) [h200]. Repeatable."
)
@device_file_option
@click.option(
    "--explain-difference",
    "recording",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="RECORDING",
    help="Compare a recording (bench record) with the estimate of its case, operator by operator.",
)
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Plot memory over the step of one case on one device (.png, .svg or .pdf); writes its numbers to FILE.csv.",
)
@workspaces_option
@json_option
def estimate(
    config: Path | None,
    overrides: tuple[str, ...],
    devices: tuple[str, ...],
    device_files: dict[str, Device],
    recording: Path | None,
    timeline: Path | None,
    workspaces: str,
    as_json: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Estimate memory and speed on a GPU, without the GPU.

    Options for axes and devices can be repeated; every combination is estimated.

    \b
    Examples:
      bench estimate --model resnet50 --optimizer adam --batch-size 64 --precision bf16 --device h200
      bench estimate --model vit_b_16 --batch-size 32 --batch-size 256 --device rtx4090 --json
      bench estimate configs/gpu.toml --device a100_80gb --json
      bench estimate --model resnet50 --optimizer adam --device h200 --timeline resnet50.png
      bench estimate --explain-difference recordings/nvidia-h200/FILE.parquet
    """
    from bench.devices import load_device

    if recording is not None:
        if config is not None or overrides or devices or device_files or timeline is not None or any(axes.values()):
            raise click.UsageError(
                "--explain-difference takes the case and the device from the file; remove the other options"
            )
        explain_difference(recording, workspaces=workspaces == "on", as_json=as_json)
        return
    named = {name: load_device(name) for name in devices or (() if device_files else ("h200",))} | device_files
    if timeline is not None:
        check_target(timeline)
    cases = read_cases(config, overrides, axes)
    if timeline is not None:
        check_single(cases, list(named))
    rows = _rows(cases, named, workspaces == "on", _switches(config, overrides))
    undrawn: BenchError | None = None
    if timeline is not None:
        try:
            rows[0]["timeline"] = write_timeline(
                cases[0], next(iter(named.values())), timeline, workspaces=workspaces == "on"
            )
        except BenchError as error:  # print the estimates first
            undrawn = error
    _print_rows(rows, cases, named, as_json=as_json)
    if undrawn is not None:
        raise undrawn
    if any(_is_refused(row, named[row["device"]]) for row in rows):
        click.get_current_context().exit(EXIT_FAILED_CASES)


def _print_rows(rows: list[dict[str, Any]], cases: list[Case], named: Mapping[str, Device], *, as_json: bool) -> None:
    from bench.cli.root import echo_json
    from bench.records import name_cases

    if as_json:
        echo_json(rows)
        return
    names = name_cases(cases, ("precision", "memory_format", "image_size"))
    titles = [f"{names[case]} on {device}" for device in named for case in cases]
    for row, title in zip(rows, titles, strict=True):
        click.echo(click.style(printable(title), bold=True))
        _print_estimate(row, named[row["device"]])
        if "timeline" in row:
            print_timeline(row["timeline"])


def _is_refused(row: dict[str, Any], device: Device) -> bool:
    """Whether a GPU was requested and the case could not be traced."""
    return row["trace_peak_allocated_bytes"] is None and device.kind == "cuda"


def _switches(config: Path | None, overrides: tuple[str, ...]) -> list[str]:
    """The switches of a configuration's protocol that no estimator models."""
    from bench.records import UNMODELLED

    protocol = None if config is None else read_config(config, overrides).protocol
    return [name for name in UNMODELLED if getattr(protocol, name, False)]


def _rows(
    cases: list[Case], devices: Mapping[str, Device], workspaces: bool, switches: Sequence[str]
) -> list[dict[str, Any]]:
    """Each case on each device: its axes, the device as given, and the fields of its `Estimate`."""
    from dataclasses import asdict

    from bench import catalog
    from bench.records import join_notes, left_out

    rows: list[dict[str, Any]] = []
    for name, device in devices.items():
        for case, made in zip(cases, _estimates(cases, device, workspaces), strict=True):
            fields = {key: value for key, value in asdict(made).items() if key != "case_key"}
            traced = made.trace_peak_allocated_bytes is not None
            about = catalog.model_note(case.model)
            fields["estimate_note"] = join_notes(
                made.estimate_note, *left_out(switches, traced=traced), about and f"{case.model}: {about}"
            )
            rows.append({**case.axes, "device": name, "case_key": case.key, **fields, "estimate_device": name})
    return rows


def _estimates(cases: list[Case], device: Device, workspaces: bool) -> list[Estimate]:
    """Estimates in the order of `cases`, with a bar meanwhile."""
    from bench.client import estimates_in_order
    from bench.launchers import LocalLauncher
    from bench.terminal import Progress

    with Progress() as progress:
        progress.start(len(cases), scope=str(device))
        return estimates_in_order(
            LocalLauncher(),
            cases,
            device,
            workspaces=workspaces,
            say=progress.say,
            heard=lambda lost: progress.advance(),
        )


def _print_estimate(row: dict[str, Any], device: Device) -> None:
    from bench.records import FORMULA_PARTS, TRACE_PARTS
    from bench.units import format_bytes, format_rate, format_seconds

    if _is_refused(row, device) and row["formula_bytes"] is None:
        click.echo(printable(f"  no estimate: {row['estimate_note']}"))
        return
    for label, column in _MEMORY:
        click.echo(f"  {label:<20} {format_bytes(row[column]):>10}")
    parts = [
        (name, row[f"formula_{name}_bytes"] if name in FORMULA_PARTS else None, row[f"trace_{name}_bytes"])
        for name in TRACE_PARTS
    ]
    click.echo(f"  {'where it goes':<20} {'formula':>10} {'trace':>10}")
    for name, formula, trace in parts:
        click.echo(f"    {name.replace('_', ' '):<18} {format_bytes(formula):>10} {format_bytes(trace):>10}")
    if row["estimated_device_bytes"] is not None:
        _print_verdict(row, device)
    speed = format_rate(row["estimated_samples_per_s"], "samples")
    click.echo(f"  speed                {speed} ({format_seconds(row['estimated_step_time_s'])} per step)")
    if row["estimated_speed_basis"]:
        click.echo(printable(f"    {row['estimated_speed_basis']}"))
    if row["trace_peak_allocated_bytes"] is None and not _is_refused(row, device):
        click.echo("  note: trace and speed are estimated for GPUs only; see bench list devices")
    if row["estimate_note"]:
        click.echo(printable(f"  note: {row['estimate_note']}"))


def _print_verdict(row: dict[str, Any], device: Device) -> None:
    """The memory the driver will report, its range and basis, and whether it fits on the device."""
    from bench.units import format_bytes

    names = ("estimated_device_bytes", "estimated_device_low_bytes", "estimated_device_high_bytes")
    point, low, high = (row[name] for name in names)
    memory = device.memory_bytes
    words = f"{row['estimated_fit'] or 'device'}: "
    words += format_bytes(point) + (f" ({format_bytes(low)} to {format_bytes(high)})" if low is not None else "")
    words += f" of {format_bytes(memory)}" if memory else ""
    click.echo(printable(f"  {words}; {row['estimated_device_basis']}"))


GROUP = "Estimate"
COMMANDS = (estimate,)
