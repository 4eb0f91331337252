"""`bench estimate`: memory and speed of a training step on a GPU that need not be present.

As numbers; with `--timeline` as a figure of memory over one step, its numbers as CSV and the largest tensors; with
`--explain-difference` as a recording compared with the trace of its case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.axes import batch_size_option, read_cases, with_axes, workspaces_option
from bench.cli.drawing import check_target, numbers_path, write_drawing
from bench.cli.options import (
    calibration_option,
    complete_devices,
    config_argument,
    device_file_option,
    json_option,
    memory_limit,
    memory_option,
    read_config,
    set_option,
)
from bench.errors import EXIT_FAILED_CASES, BenchError
from bench.terminal import printable
from bench.units import counted

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.devices.calibration import Calibrations
    from bench.estimators.timeline import Timeline
    from bench.records import Case, Estimate


MOST_PRINTED = 10


def explain_difference(path: Path, *, workspaces: bool, as_json: bool) -> None:
    """Compare a recording with the trace, in a separate process, and print the result.

    Args:
        path: The recording.
        workspaces: Whether to count cuDNN's workspaces in the trace.
        as_json: Whether to print JSON.

    Raises:
        StoreError: The file is not a recording.
        BenchError: The comparison is refused, or its process died.
    """
    from bench.cli.root import echo_json
    from bench.client import difference_in_child
    from bench.launchers import LocalLauncher

    found = difference_in_child(LocalLauncher(), path, most=MOST_PRINTED, workspaces=workspaces)
    if as_json:
        echo_json({"recording": str(path), **found})
        return
    for line in explanation_lines(found):
        click.echo(printable(line))


def explanation_lines(found: dict[str, Any]) -> list[str]:
    """The fields of an `estimators.difference.Explanation` as readable lines."""
    lines = [f"{found['case']} on {found['gpu_name']}, torch {found['torch_version']}, ended {found['status']}"]
    check = found["replay"]
    lines.append(
        f"  replay of the recording: exact at {counted(check['marks'], 'mark')}"
        if check["exact"]
        else f"  replay of the recording: NOT exact; {check['parting']}"
    )
    lines.append(f"  {'peak, in bytes':<16} {'recorded':>18} {'trace':>18} {'trace - recorded':>18}")
    for name in ("requested", "allocated", "reserved"):
        recorded, trace = found["recorded"][f"{name}_bytes"], (found["trace"] or {}).get(f"{name}_bytes")
        beside = f"{trace:>18,} {trace - recorded:>+18,}" if trace is not None else f"{'none':>18}"
        lines.append(f"  {name:<16} {recorded:>18,} {beside}")
    lines += _difference_lines(found) if found["differences"] is not None else []
    return [*lines, *(f"  note: {note}" for note in found["notes"])]


def _difference_lines(found: dict[str, Any]) -> list[str]:
    counts = f"{found['recorded_allocations']:,} allocations recorded, {found['traced_allocations']:,} traced"
    if not found["differences"]:
        return [f"  {counts}: no differences"]
    lines = [f"  {counts}; {found['differences']:,} differ. In order, by operator:"]
    for number, parting in enumerate(found["partings"], start=1):
        both = (("recorded_bytes", "recorded"), ("trace_bytes", "traced"))
        sides = [f"{parting[key]:,} B {word}" for key, word in both if parting[key] is not None]
        lines.append(
            f"  {number}. {_place(parting)}: {parting['operator']}: {parting['kind']}, {', '.join(sides)}"
            f"{_times(parting['count'])}"
        )
        if len(parting["operators"]) > 1:
            lines.append(f"     one of {', '.join(parting['operators'])}")
        effects = (f"{name} {parting[f'effect_{name}_bytes']:+,} B" for name in ("requested", "allocated", "reserved"))
        lines.append(f"     fixing it changes the trace's peaks: {', '.join(effects)}")
        if parting["stack"]:
            lines.append(f"     at {' < '.join(parting['stack'].splitlines()[:4])}")
    return lines


def _times(count: int) -> str:
    return "" if count == 1 else f", {count:,} times"


def _place(parting: dict[str, Any]) -> str:
    return "setup" if parting["step"] == 0 else f"step {parting['step']}, {parting['phase']}"


def check_single(cases: Sequence[Case], devices: Sequence[str]) -> None:
    """Check that there is one case and one device. Raises BenchError."""
    from bench.errors import BenchError

    if len(cases) != 1 or len(devices) != 1:
        raise BenchError(
            f"--timeline plots one case on one device; these axes give {counted(len(cases), 'case')} on "
            f"{counted(len(devices), 'device')}. Give each axis and --device once"
        )


def write_timeline(case: Case, device: Device, target: Path, *, workspaces: bool) -> dict[str, Any]:
    """Trace the case in a separate process, and write its figure to `target` and the numbers next to it.

    Args:
        case: The case; its input path does not matter.
        device: A GPU.
        target: A file that `check_target` has passed.
        workspaces: Whether to count cuDNN's workspaces.

    Returns:
        What `--json` prints: the files, the step, and the peak with its tensors, in bytes.

    Raises:
        BenchError: The case cannot be traced on that device, or a file cannot be written.
    """
    from bench.client import timeline_in_child
    from bench.errors import BenchError
    from bench.launchers import LocalLauncher
    from bench.report.timeline import draw_timeline

    try:
        timeline = timeline_in_child(LocalLauncher(), case, device, workspaces=workspaces)
    except BenchError as error:
        raise BenchError(f"--timeline: {error}") from error
    drawing = draw_timeline(timeline, _words(case), device.name)
    write_drawing(drawing, target, "--timeline")
    return _describe(timeline, target, drawing.alt)


def _words(case: Case) -> str:
    """The case, for the title of the figure."""
    words = [f"{case.model} on {case.dataset}", str(case.optimizer), f"batch {case.batch_size}", case.precision]
    words += ["channels last"] if case.memory_format == "channels_last" else []
    return ", ".join(words + ([f"{case.image_size} px"] if case.image_size else []))


def _describe(timeline: Timeline, target: Path, alt: str) -> dict[str, Any]:
    return {
        "picture": str(target),
        "numbers": str(numbers_path(target)),
        "alt": alt,
        "step": timeline.step,
        "events": timeline.event_count,
        "phases": dict(timeline.phases),
        "peak_event": timeline.peak_event,
        "peak_allocated_bytes": timeline.peak_allocated_bytes,
        "peak_reserved_bytes": timeline.peak_reserved_bytes,
        "tensors": [
            {
                "category": tensor.category,
                "name": tensor.name,
                "made_by": tensor.made_by or None,
                "shape": tensor.shape,
                "dtype": tensor.dtype,
                "size_bytes": tensor.size_bytes,
                "label": tensor.label,
            }
            for tensor in timeline.tensors
        ],
    }


def print_timeline(described: dict[str, Any]) -> None:
    """Print the largest tensors at the peak and the path of the figure; takes what `write_timeline` returns."""
    from bench.units import format_bytes

    click.echo(f"  largest tensors at the peak of step {described['step']}")
    for tensor in described["tensors"]:
        category = tensor["category"].replace("_", " ")
        click.echo(printable(f"    {format_bytes(tensor['size_bytes']):>10}  {category:<15}  {tensor['label']}"))
    click.echo(printable(f"  timeline: {described['picture']} (numbers: {described['numbers']})"))


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
    "--device",
    "devices",
    multiple=True,
    shell_complete=complete_devices,
    help="Device, by name or file (bench list devices) [h200]. Repeatable.",
)
@device_file_option
@calibration_option
@memory_option
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
    calibrations: Calibrations,
    memory_bytes: int | None,
    recording: Path | None,
    timeline: Path | None,
    workspaces: str,
    as_json: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Estimate memory and speed on a GPU, without the GPU.

    On GPUs of AMD, Intel and Apple there is the formula alone: the rules of the others were checked on NVIDIA's.

    Options for axes and devices can be repeated; every combination is estimated.

    \b
    Examples:
      bench estimate --model resnet50 --optimizer adam --batch-size 64 --precision bf16 --device h200
      bench estimate --model vit_b_16 --batch-size 32 --batch-size 256 --device rtx4090 --json
      bench estimate configs/gpu.toml --device a100_80gb --json
      bench estimate --model resnet50 --device a100_80gb --memory 24GiB
      bench estimate --model resnet50 --device rtx3090 --calibration shared-rtx3090.toml
      bench estimate --model resnet50 --optimizer adam --device h200 --timeline resnet50.png
      bench estimate --explain-difference recordings/nvidia-h200/FILE.parquet
    """
    from bench.devices.calibration import Calibrations

    if recording is not None:
        others = (config, memory_bytes, timeline, None if calibrations == Calibrations() else calibrations)
        if overrides or devices or device_files or any(axes.values()) or any(each is not None for each in others):
            raise click.UsageError(
                "--explain-difference takes the case and the device from the file; remove the other options"
            )
        explain_difference(recording, workspaces=workspaces == "on", as_json=as_json)
        return
    named = _named(devices or (() if device_files else ("h200",)), device_files, calibrations)
    named = _as_cards(named, memory_limit(config, overrides, memory_bytes))
    if timeline is not None:
        check_target(timeline, "--timeline")
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


def _named(names: Sequence[str], files: Mapping[str, Device], calibrations: Calibrations) -> dict[str, Device]:
    """The devices by the names they were given by, with their calibrations; device files are taken as they are."""
    from bench.client import calibrated, this_cpu
    from bench.devices import load_device

    loaded = {name: load_device(name) for name in names}
    calibrations.refuse_unused([this_cpu() if device.kind == "cpu" else device for device in loaded.values()])
    own = {
        name: device if name.endswith(".toml") else calibrated(device, calibrations) for name, device in loaded.items()
    }
    return own | dict(files)


def _as_cards(named: dict[str, Device], limit_bytes: int | None) -> dict[str, Device]:
    """The devices as cards of so much memory, if that is limited; their names say so."""
    from bench.devices import card_name, with_memory

    if limit_bytes is None:
        return named
    return {card_name(name, limit_bytes): with_memory(device, limit_bytes) for name, device in named.items()}


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
    """Whether the case could not be traced on a GPU on which others are."""
    return row["trace_peak_allocated_bytes"] is None and device.vendor == "nvidia"


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
    """Estimates in the order of `cases`, with a bar while those that are not kept are made."""
    from bench.client import estimates_in_order
    from bench.launchers import LocalLauncher
    from bench.terminal import Progress

    with Progress() as progress:
        return estimates_in_order(
            LocalLauncher(),
            cases,
            device,
            workspaces=workspaces,
            say=progress.say,
            heard=lambda lost: progress.advance(),
            begin=lambda: progress.start(len(cases), scope=str(device)),
        )


def _print_estimate(row: dict[str, Any], device: Device) -> None:
    from bench.records import FORMULA_PARTS, TRACE_PARTS
    from bench.units import format_bytes, format_flop, format_rate, format_seconds

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
    if row["estimated_samples_per_s"] is not None:
        low, high = (format_rate(row[f"estimated_samples_per_s_{end}"]) for end in ("low", "high"))
        click.echo(f"    {low} to {high} in nine of ten cases")
    if row["estimated_speed_basis"]:
        click.echo(printable(f"    {row['estimated_speed_basis']}"))
    if row["step_flop"] is not None:
        peak, least = row["peak_flop_per_s"], row["least_step_time_s"]
        words = f"{format_flop(row['step_flop'])} per step"
        words += f"; the device's peak is {format_flop(peak)}/s" if peak else ""
        words += f", and its roofline {format_seconds(least)} per step" if least else ""
        click.echo(f"  arithmetic           {words}")
    if row["trace_peak_allocated_bytes"] is None and not device.is_gpu:
        what = "trace and speed are" if row["estimated_samples_per_s"] is None else "the trace is"
        more = "" if device.calibration else "; speed on this CPU after bench calibrate --device cpu"
        click.echo(f"  note: {what} estimated for GPUs only; see bench list devices{more}")
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
