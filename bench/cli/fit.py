"""`bench fit`: the largest batch that fits on a GPU, and a recommended one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import click

from bench.cli.axes import batch_size_option, read_cases, with_axes, workspaces_option
from bench.cli.options import calibration_option, complete_devices, device_file_option, json_option, memory_option
from bench.terminal import printable
from bench.units import counted

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.devices.calibration import Calibrations
    from bench.launchers import Launcher
    from bench.records import Case, Estimate
    from bench.sweep.verifying import PresentGpu, Verified

_FORMULA_LADDER = tuple(16 << doubled for doubled in range(7))
_MULTIPLE = 8  # of a recommended batch: see `estimators.fitting`
_VERDICTS = {"fits": "", "may not fit": "may not fit", "does not fit": "out of memory"}


@click.command()
@with_axes
@batch_size_option
@click.option("--save-memory", is_flag=True, help="Instead, list ways to make the batch of --batch-size fit.")
@click.option(
    "--device",
    shell_complete=complete_devices,
    help="Device, by name or file (bench list devices) [h200]; auto is this machine's GPU.",
)
@device_file_option
@calibration_option
@memory_option
@click.option(
    "--fraction", type=click.FloatRange(0.05, 1.0), help="Fraction of memory that the recommended batch may use [0.8]."
)
@click.option("--verify", is_flag=True, help="Check the result with real steps on this machine's GPU.")
@workspaces_option
@json_option
def fit(
    device: str | None,
    device_files: dict[str, Device],
    calibrations: Calibrations,
    memory_bytes: int | None,
    save_memory: bool,
    fraction: float | None,
    verify: bool,
    workspaces: str,
    as_json: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Find the largest batch that fits on a GPU.

    Also prints a recommended batch and a ladder of batch sizes from 16 up. The search ends at the size of the data set,
    and the output says if more would fit. Every batch up to the largest one fits; if an even larger one happens to fit
    again, it is named too.

    With --save-memory, the batch is given, and the answer is how to make it fit: --accumulation, --checkpointing,
    --update and --allocator are tried alone and together, each with its peak, its speed against the step as it is, and
    what it gives up; bf16 and channels_last stand apart. An axis that you name is kept. The best trade-offs come first.

    If the GPU's file lacks the size of a CUDA context, a range of measured sizes is used, and batches within it may not
    fit. --verify reports the error of the estimate: it runs a few steps in at most 12 fresh processes.

    On GPUs of AMD, Intel and Apple there is the formula alone, which does not say what fits.

    \b
    Examples:
      bench fit --model resnet50 --optimizer adam --device rtx4090
      bench fit --model vit_b_16 --precision bf16 --device a100_40gb --fraction 0.9 --json
      bench fit --model resnet50 --device auto --verify
      bench fit --model resnet50 --device a100_80gb --memory 24GiB
      bench fit --model resnet50 --device-file mine.toml
      bench fit --model vit_l_16 --batch-size 64 --device rtx4090 --save-memory
    """
    from bench.client import calibrated, fit_in_child
    from bench.devices import load_device, with_memory
    from bench.devices.vendors import FORMULA_THERE, no_trace
    from bench.errors import EXIT_FAILED_CASES, BenchError
    from bench.launchers import LocalLauncher
    from bench.terminal import Progress

    device, described = _one_device(device, device_files)
    if device != "auto" and not device_files and not device.endswith(".toml"):
        listed = load_device(device)
        calibrations.refuse_unused([listed])
        described = calibrated(listed, calibrations)
    case = _one_case(axes, save_memory=save_memory, fraction=fraction)

    def say(line: str) -> None:
        if not as_json:
            click.echo(printable(line), err=True)

    held: contextlib.AbstractContextManager[PresentGpu | None] = contextlib.nullcontext()
    if verify or device == "auto":
        from bench.sweep.verifying import present_gpu, verify_fit

        held = present_gpu(described or device, memory_bytes, calibrations)
    with held as gpu:
        if gpu and gpu.remark:
            say(gpu.remark)
        asked = gpu.device if gpu else with_memory(load_device(described or device), memory_bytes)
        shown = str(asked) if device == "auto" or memory_bytes is not None else device
        if reason := no_trace(asked):
            if save_memory or verify:
                raise BenchError(f"{reason}. {FORMULA_THERE} {shown}")
            _print_formula(case, asked, shown, reason, fraction or 0.8, as_json)
            click.get_current_context().exit(EXIT_FAILED_CASES)
        launcher, with_workspaces = gpu.launcher if gpu else LocalLauncher(), workspaces == "on"
        if save_memory:
            named = {axis for axis, values in axes.items() if values}
            _save_memory(launcher, case, asked, named, gpu if verify else None, shown, with_workspaces, as_json)
            return
        found = fit_in_child(launcher, case, asked, fraction=fraction or 0.8, say=say, workspaces=with_workspaces)
        checked = None
        if gpu and verify:
            with Progress(quiet=as_json) as progress:
                checked = verify_fit(gpu, case, found, progress, workspaces=with_workspaces)
    _print(case, shown, asdict(found), checked, as_json)


def _one_device(device: str | None, files: dict[str, Device]) -> tuple[str, Device | None]:
    """The device as named, and its description unless it is `auto`. Raises UsageError or BenchError."""
    from bench.devices import load_device
    from bench.errors import BenchError

    if len(files) > 1 or (device and files):
        raise click.UsageError("fit works on one device: give --device or one --device-file")
    ((name, described),) = files.items() or [(device or "h200", None)]
    if name != "auto" and not (described := described or load_device(name)).is_gpu:
        raise BenchError(f"{name}: fit follows torch's CUDA allocator, so it needs a GPU. See bench list devices")
    return name, described


def _one_case(axes: dict[str, tuple[Any, ...]], *, save_memory: bool, fraction: float | None) -> Case:
    """The case that the axes give. Raises UsageError or BenchError."""
    from bench.errors import BenchError

    if not axes["models"]:
        raise click.UsageError("give --model NAME (bench list models)")
    if axes["batch_sizes"] and not save_memory:
        raise click.UsageError("fit finds the batch size; --batch-size goes with --save-memory")
    if fraction is not None and save_memory:
        raise click.UsageError("--fraction is for the recommended batch; it does not go with --save-memory")
    cases = read_cases(None, (), axes)
    if len(cases) != 1:
        raise BenchError(f"fit works on one case at a time; these axes give {counted(len(cases), 'case')}")
    return cases[0]


def _save_memory(
    launcher: Launcher,
    case: Case,
    device: str | Device,
    named: set[str],
    gpu: PresentGpu | None,
    shown: str,
    workspaces: bool,
    as_json: bool,
) -> None:
    """Answer `--save-memory`, with real runs on `gpu` if there is one. `named`: the options that the user gave."""
    from bench.cli.saving_text import print_saving
    from bench.client import saving_in_child
    from bench.estimators.saving import VARIED
    from bench.terminal import Progress

    with Progress(quiet=as_json) as progress:
        saving = saving_in_child(
            launcher,
            case,
            device,
            named={axis for axis in VARIED if f"{axis}s" in named},
            workspaces=workspaces,
            say=progress.say,
            heard=lambda lost: progress.advance(),
            begin=lambda ways: progress.start(ways, scope=shown),
        )
    runs = None
    if gpu is not None:
        from bench.sweep.verifying import verify_saving

        with Progress(quiet=as_json) as progress:
            runs = verify_saving(gpu, saving, progress)
    print_saving(saving, shown, runs, as_json=as_json)


def _print(
    case: Case, device: str, found: dict[str, Any], checked: tuple[Verified, Estimate | None] | None, as_json: bool
) -> None:
    from bench import catalog
    from bench.cli.root import echo_json

    if not as_json:
        title = case.label(("precision", "memory_format", "image_size"), batch=False)
        click.echo(click.style(printable(f"{title} on {device}"), bold=True))
        _print_found(found)
        if note := catalog.model_note(case.model):
            click.echo(printable(f"note: {case.model}: {note}"))
        if checked is not None:
            _print_verified(found, *checked)
        return
    axes = {axis: value for axis, value in case.axes.items() if axis != "batch_size"}
    more = _verified_fields(found, *checked) if checked is not None else {}
    echo_json({**axes, "device": device, **found, **more, "reason": None})


def _print_formula(case: Case, device: Device, shown: str, reason: str, fraction: float, as_json: bool) -> None:
    """What the formula says of batch sizes from 16 up on a GPU that the trace does not follow, and why it is alone."""
    from bench import catalog
    from bench.cli.root import echo_json
    from bench.client import estimates_in_order
    from bench.estimators.fitting import Fit, Rung
    from bench.launchers import LocalLauncher
    from bench.units import format_bytes

    images = catalog.describe_dataset(case.dataset).train_samples or None
    sizes = [size for size in _FORMULA_LADDER if size <= (images or size)]
    cases = [replace(case, batch_size=size) for size in sizes]
    made = estimates_in_order(LocalLauncher(), cases, device, workspaces=False)
    if as_json:
        axes = {axis: value for axis, value in case.axes.items() if axis != "batch_size"}
        empty, rung = ({field.name: None for field in fields(kind)} for kind in (Fit, Rung))
        ladder = [
            {**rung, "batch_size": size, "formula_bytes": each.formula_bytes}
            for size, each in zip(sizes, made, strict=True)
        ]
        known = {"dataset_images": images, "fraction": fraction, "memory_bytes": device.memory_bytes, "ladder": ladder}
        echo_json({**axes, "device": shown, **empty, **known, "reason": reason})
        return
    title = case.label(("precision", "memory_format", "image_size"), batch=False)
    click.echo(click.style(printable(f"{title} on {shown}"), bold=True))
    click.echo(f"{'batch':>8} {'formula':>10}")
    for size, each in zip(sizes, made, strict=True):
        click.echo(f"{size:>8} {format_bytes(each.formula_bytes):>10}")
    click.echo(printable(f"largest batch that fits: unknown; {reason}"))


def _print_found(found: dict[str, Any]) -> None:
    """The ladder, the result and its basis."""
    from bench.units import format_bytes

    click.echo(f"{'batch':>8} {'reserved':>10} {'device':>10} {'share':>7}")
    for rung in found["ladder"]:
        share, verdict = f"{rung['share_frac'] * 100:.0f} %", _VERDICTS[rung["verdict"]]
        sizes = f"{format_bytes(rung['reserved_bytes']):>10} {format_bytes(rung['device_bytes']):>10}"
        click.echo(f"{rung['batch_size']:>8} {sizes} {share:>7}  {verdict}".rstrip())
    for line in _answer(found):
        click.echo(line)
    ends = [found["context_low_bytes"], found["context_high_bytes"]]
    spread = f" ({format_bytes(ends[0])} to {format_bytes(ends[1])})" if None not in ends else ""
    click.echo(printable(f"CUDA context: {format_bytes(found['context_bytes'])}{spread}; {found['context_basis']}"))


def _answer(found: dict[str, Any]) -> Iterator[str]:
    """The largest batch, what limits it, and what is known beyond it."""
    from bench.units import format_bytes

    largest, at_all, memory = found["largest_batch_size"], found["largest_fitting_batch_size"], found["memory_bytes"]
    low, high = (found[f"largest_batch_size_{end}"] or "none" for end in ("low", "high"))
    spread = f" (between {low} and {high})" if low != high else ""
    room = f"{found['fraction'] * 100:.0f} %: {found['recommended_batch_size'] or 'none'}"
    if found["ended_by"] == "images":
        yield f"all {largest:,} images of the data set fit in {format_bytes(memory)}, and more would{spread}"
        yield "the search ended at the size of the data set, below the GPU's limit"
    elif found["ended_by"] == "search":
        yield f"a batch of {largest:,} fits in {format_bytes(memory)}, and more may{spread}"
        yield "the search ended there, below the GPU's limit"
    else:
        which = "largest batch that fits" if at_all == largest else "largest batch up to which all fit"
        yield f"{which} in {format_bytes(memory)}: {largest or 'none'}{spread}"
        yield from _beyond(largest, at_all, found)
    images, room_ends = found["dataset_images"], found["recommended_batch_size"]
    if found["ended_by"] == "images" and room_ends is not None and images - room_ends < _MULTIPLE:
        below = f"the last multiple of {_MULTIPLE} below the data set's {images:,} images"
        room += f", {'the size of the data set' if room_ends == images else below}"
    yield f"recommended at {room}"


def _beyond(largest: int | None, at_all: int | None, found: dict[str, Any]) -> Iterator[str]:
    """What is known about batches beyond the largest one up to which all fit."""
    if at_all != largest:
        spans = ", ".join(
            str(one) if one == two else f"{one} to {two}" for one, two in found["batch_sizes_that_do_not_fit"]
        )
        yield f"memory is not monotonic here: the largest batch that fits at all is {at_all}; {spans} do not fit"
    last, bound = found["searched_batch_sizes"][1], found["none_fits_from"]
    if bound is None:
        yield f"not all batches above {last} were tried"
    elif last + 1 < bound:
        yield f"not all batches from {last + 1} to {bound - 1} were tried; none from {bound} up can fit"


def _verified_fields(found: dict[str, Any], verified: Verified, estimate: Estimate | None) -> dict[str, Any]:
    """What `--verify` adds to the JSON; errors are (estimate - measured) / measured, None if either is unknown."""
    from bench.stats import relative_error

    largest, run = verified.largest_batch_size, verified.largest_run or {}
    names = {
        "peak_allocated_bytes": "trace_peak_allocated_bytes",
        "peak_reserved_bytes": "trace_peak_reserved_bytes",
        "device_used_bytes": "estimated_device_bytes",
    }
    pairs = {name: (getattr(estimate, column, None), run.get(name)) for name, column in names.items()}
    return {
        "verified_largest_batch_size": largest,
        "verified_largest_fitting_batch_size": verified.largest_fitting_batch_size,
        "verified_smallest_oom": verified.smallest_too_large,
        "verified_exactly": verified.exact,
        "verified_error_batches": (found["largest_batch_size"] or 0) - (largest or 0),
        "verified_error_frac": relative_error(found["largest_batch_size"] or 0, largest) if largest else None,
        "verified_at_largest": {
            name: {
                "estimated_bytes": made,
                "measured_bytes": seen,
                "relative_error": relative_error(made, seen) if made and seen else None,
            }
            for name, (made, seen) in pairs.items()
        },
        "verify_runs": list(verified.runs),
    }


def _print_verified(found: dict[str, Any], verified: Verified, estimate: Estimate | None) -> None:
    from bench.units import format_bytes, format_frac

    fields = _verified_fields(found, verified, estimate)
    largest, runs = verified.largest_batch_size, len(verified.runs)
    words = f"verified: the largest batch that ran is {largest or 'none'}"
    if largest is not None and largest == verified.most:
        words += ", where the search ended, below the GPU's limit"
    elif not verified.exact:
        too_large = verified.smallest_too_large
        words += f", and {f'{too_large} did not fit' if too_large else 'no batch was too large'}"
    off = fields["verified_error_batches"]
    far = "the estimate is exact" if off == 0 else f"the estimate is off by {off:+d}"
    far += f" ({format_frac(fields['verified_error_frac'])})" if off and largest else ""
    click.echo(click.style(f"{words}; {far} ({counted(runs, 'run')})", bold=True))
    again, estimated = verified.largest_fitting_batch_size, found["largest_fitting_batch_size"]
    if again != largest or estimated != found["largest_batch_size"]:
        click.echo(f"  the largest batch that ran at all is {again or 'none'}; the estimate is {estimated or 'none'}")
    for name, both in fields["verified_at_largest"].items():
        if both["measured_bytes"] is None or both["estimated_bytes"] is None:
            continue
        made, seen = format_bytes(both["estimated_bytes"]), format_bytes(both["measured_bytes"])
        error = "exact" if both["relative_error"] == 0 else format_frac(both["relative_error"])
        title = name.removesuffix("_bytes").replace("_", " ")
        click.echo(f"  {title} at batch {largest}: {made} estimated, {seen} measured ({error})")


GROUP = "Estimate"
COMMANDS = (fit,)
