"""`bench estimate` and `bench fit`: memory and speed of a step on a GPU that need not be here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import ChoiceType, config_argument, json_option, read_config, set_option
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.records import Case, Estimate

_MEMORY = (
    ("formula", "formula_bytes"), ("trace: allocated", "trace_peak_allocated_bytes"),
    ("trace: reserved", "trace_peak_reserved_bytes"), ("trace: requested", "trace_peak_requested_bytes"),
    ("device (nvidia-smi)", "estimated_device_bytes"),
)  # fmt: skip

_PRECISIONS = click.Choice(["float32", "tf32", "bf16", "fp16"])
_FORMATS = click.Choice(["contiguous", "channels_last"])
_MANY: dict[str, Any] = {"multiple": True}
_axes = (
    click.option("--dataset", "datasets", type=ChoiceType("dataset"), **_MANY, help="Data set [imagenet]."),
    click.option("--model", "models", type=ChoiceType("model"), **_MANY, help="Model."),
    click.option("--optimizer", "optimizers", type=ChoiceType("optimizer"), **_MANY, help="Optimizer [sgd]."),
    click.option("--precision", "precisions", type=_PRECISIONS, **_MANY, help="[float32]."),
    click.option("--memory-format", "memory_formats", type=_FORMATS, **_MANY, help="[contiguous]."),
    click.option("--image-size", "image_sizes", type=click.IntRange(1), **_MANY, help="Side in pixels [the set's]."),
)  # fmt: skip


def _with_axes(command: Any) -> Any:
    for option in reversed(_axes):
        command = option(command)
    return command


@click.command()
@config_argument
@set_option
@_with_axes
@click.option(
    "--batch-size", "batch_sizes", multiple=True, type=click.IntRange(1), help="Samples a step [64]. Repeatable."
)
@click.option(
    "--device", "devices", multiple=True, help="Name or file of a device (bench list devices) [h200]. Repeatable."
)
@json_option
def estimate(
    config: Path | None, overrides: tuple[str, ...], devices: tuple[str, ...], as_json: bool, **axes: tuple[Any, ...]
) -> None:
    """Estimate memory and speed of cases on a device, without the device; axes and devices may be given several times.

    \b
    Examples:
      bench estimate --model resnet50 --optimizer adam --batch-size 64 --precision bf16 --device h200
      bench estimate --model vit_b_16 --batch-size 32 --batch-size 256 --device rtx4090 --json
      bench estimate configs/gpu.toml --device a100_80gb --json
    """  # fmt: skip
    from dataclasses import asdict

    from bench.cli.root import echo_json

    cases = _cases(config, overrides, axes)
    rows: list[dict[str, Any]] = []
    for device in devices or ("h200",):
        for case, made in zip(cases, _estimates(cases, device), strict=True):
            fields = {name: value for name, value in asdict(made).items() if name != "case_key"}
            rows.append({**case.axes, "device": device, "case_key": case.key, **fields})
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        _print_estimate(row)


def _cases(config: Path | None, overrides: tuple[str, ...], axes: dict[str, tuple[Any, ...]]) -> list[Case]:
    """The cases of a configuration, or of the axes given. A case that cannot be is left out with a word."""
    from bench.config import check_config
    from bench.plan import build_cases

    if config is not None and any(axes.values()):
        raise click.UsageError(
            "give a configuration or the axes of cases, not both (change a configuration with --set)"
        )
    if config is None and not axes["models"]:
        raise click.UsageError("give --model, or a configuration")
    if config is not None:
        checked = read_config(config, overrides)
    else:
        grid = {
            "dataset": [str(name) for name in axes["datasets"]] or ["imagenet"],
            "model": [str(name) for name in axes["models"]],
            "optimizer": [str(name) for name in axes["optimizers"]] or ["sgd"],
            "batch_size": list(axes.get("batch_sizes", ())) or [64],
        }
        optional = {"precision": "precisions", "memory_format": "memory_formats", "image_size": "image_sizes"}
        grid |= {axis: list(axes[name]) for axis, name in optional.items() if axes[name]}
        checked = check_config({"name": "estimate", "grid": grid}, "command line")
    found = []
    for case, reason in build_cases(checked, "cuda").items():
        if reason is None:
            found.append(case)
        else:
            click.echo(printable(f"left out: {case}: {reason}"), err=True)
    return found


def _estimates(cases: list[Case], device: str) -> list[Estimate]:
    """Estimates in the order of `cases`. Raises UnknownNameError for a device that no file describes."""
    from bench.devices import load_device
    from bench.launchers import LocalLauncher
    from bench.sweep.estimates import estimate_in_child

    load_device(device)

    def say(line: str) -> None:
        click.echo(printable(line), err=True)

    made = estimate_in_child(LocalLauncher(), cases, device, timeout_s=600.0, say=say)
    by_key = {item.case_key: item for item in made}
    return [by_key[case.key] for case in cases]


def _print_estimate(row: dict[str, Any]) -> None:
    from bench.devices import load_device
    from bench.records import FORMULA_PARTS, TRACE_PARTS
    from bench.units import format_bytes, format_rate, format_seconds

    words = [f"{row['model']} on {row['dataset']}", row["optimizer"], f"batch {row['batch_size']}", row["precision"]]
    click.echo(click.style(printable(f"{', '.join(words)}, {row['memory_format']} on {row['device']}"), bold=True))
    for label, column in _MEMORY:
        click.echo(f"  {label:<20} {format_bytes(row[column]):>10}")
    parts = [(name, row[f"formula_{name}_bytes"] if name in FORMULA_PARTS else None, row[f"trace_{name}_bytes"])
             for name in TRACE_PARTS]  # fmt: skip
    click.echo(f"  {'where it goes':<20} {'formula':>10} {'trace':>10}")
    for name, formula, trace in parts:
        click.echo(f"    {name.replace('_', ' '):<18} {format_bytes(formula):>10} {format_bytes(trace):>10}")
    device = load_device(row["device"])
    needed = row["estimated_device_bytes"] or row["trace_peak_reserved_bytes"]
    if needed is not None and device.memory_bytes:
        verdict = "fits" if needed <= device.memory_bytes else "does not fit"
        context = "" if row["estimated_device_bytes"] else " (without the context, which was not measured on this GPU)"
        click.echo(f"  {verdict}: {format_bytes(needed)} of {format_bytes(device.memory_bytes)}{context}")
    speed = format_rate(row["estimated_samples_per_s"], "samples")
    click.echo(f"  speed                {speed} ({format_seconds(row['estimated_step_time_s'])} a step; roofline)")
    if row["estimate_note"]:
        click.echo(printable(f"  note: {row['estimate_note']}"))


@click.command()
@_with_axes
@click.option("--device", default="h200", show_default=True, help="Name or file of a device (bench list devices).")
@click.option(
    "--fraction",
    type=click.FloatRange(0.05, 1.0),
    default=0.8,
    show_default=True,
    help="Share of the memory that the recommended batch may take.",
)
@json_option
def fit(device: str, fraction: float, as_json: bool, **axes: tuple[Any, ...]) -> None:
    """Find the largest batch that a GPU holds, a recommended one, and the ladder from 16 up.

    \b
    Examples:
      bench fit --model resnet50 --optimizer adam --device rtx4090
      bench fit --model vit_b_16 --precision bf16 --device a100_40gb --fraction 0.9 --json
    """  # fmt: skip
    from bench.cli.root import echo_json
    from bench.devices import load_device
    from bench.errors import BenchError
    from bench.launchers import LocalLauncher
    from bench.sweep.estimates import fit_in_child
    from bench.units import format_bytes

    load_device(device)
    cases = _cases(None, (), axes)
    if len(cases) != 1:
        raise BenchError(f"fit answers for one case at a time; these axes give {len(cases)}")

    def say(line: str) -> None:
        if not as_json:
            click.echo(printable(line), err=True)

    found = fit_in_child(LocalLauncher(), cases[0], device, fraction, say)
    if as_json:
        echo_json(
            {
                **{axis: value for axis, value in cases[0].axes.items() if axis != "batch_size"},
                "device": device,
                **found,
            }
        )
        return
    click.echo(f"{'batch':>8} {'reserved':>10} {'share':>7}")
    for rung in found["ladder"]:
        share = f"{rung['share_frac'] * 100:.0f} %"
        verdict = "" if rung["fits"] else "out of memory"
        reserved = format_bytes(rung["reserved_bytes"])
        click.echo(f"{rung['batch_size']:>8} {reserved:>10} {share:>7}  {verdict}".rstrip())
    click.echo(
        f"largest batch that fits in {format_bytes(found['memory_bytes'])}: {found['largest_batch_size'] or 'none'}"
    )
    click.echo(f"recommended at {fraction * 100:.0f} %: {found['recommended_batch_size'] or 'none'}")
    if found["context_bytes"] is None:
        click.echo("the CUDA context of this GPU was not measured and is not counted; some hundreds of MiB are usual")


COMMANDS = (estimate, fit)
