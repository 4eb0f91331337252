"""The axes of cases as options of a command: what `bench estimate` and `bench fit` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import ChoicesType, ValueType, flat, models_option, read_config
from bench.errors import BenchError
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.config import SweepConfig
    from bench.records import Case

_PRECISIONS = click.Choice(["float32", "tf32", "bf16", "fp16"])
_FORMATS = click.Choice(["contiguous", "channels_last"])
_MANY: dict[str, Any] = {"multiple": True}
_MANY_CHOICES: dict[str, Any] = {"multiple": True, "callback": flat}
_update_axis = click.option(
    "--update",
    "updates",
    type=click.Choice(["step", "in_backward"]),
    **_MANY,
    help="When the optimizer updates the parameters [step].",
)
_axes = (
    click.option(
        "--dataset",
        "datasets",
        type=ChoicesType("dataset"),
        **_MANY_CHOICES,
        help="Data set [imagenet]. Repeatable, like the axes below.",
    ),
    click.option(
        "--model",
        "models",
        type=ChoicesType("model"),
        **_MANY_CHOICES,
        help="Model (bench list models), pattern such as 'resnet*', or FILE.py:NAME of your own.",
    ),
    models_option,
    click.option("--optimizer", "optimizers", type=ChoicesType("optimizer"), **_MANY_CHOICES, help="Optimizer [sgd]."),
    click.option("--precision", "precisions", type=_PRECISIONS, **_MANY, help="Precision [float32]."),
    click.option(
        "--memory-format", "memory_formats", type=_FORMATS, **_MANY, help="Memory format of tensors [contiguous]."
    ),
    click.option(
        "--image-size",
        "image_sizes",
        type=click.IntRange(1),
        **_MANY,
        help="Image side in pixels [the data set's; a timm model's own].",
    ),
    click.option(
        "--accumulation", "accumulations", type=click.IntRange(1), **_MANY, help="Micro-batches of a step [1]."
    ),
    click.option(
        "--checkpointing",
        "checkpointings",
        type=click.Choice(["none", "blocks"]),
        **_MANY,
        help="What is computed again in the backward [none].",
    ),
    click.option(
        "--compile", "compiles", type=ValueType("compile"), **_MANY, help="false, true or true:budget=0.5 [false]."
    ),
    _update_axis,
    click.option(
        "--allocator",
        "allocators",
        type=ValueType("allocator"),
        **_MANY,
        help="default, expandable, or a value of PYTORCH_ALLOC_CONF [default].",
    ),
    click.option(
        "--zero-grad",
        "zero_grads",
        type=click.Choice(["none", "zeros"]),
        **_MANY,
        help="What zero_grad sets gradients to [none].",
    ),
)


batch_size_option = click.option(
    "--batch-size", "batch_sizes", multiple=True, type=click.IntRange(1), help="Samples per step [64]. Repeatable."
)
workspaces_option = click.option(
    "--cudnn-workspaces",
    "workspaces",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    envvar="BENCH_CUDNN_WORKSPACES",
    show_envvar=True,
    help="Whether estimates include the workspaces of cuDNN's convolutions.",
)


def with_axes(command: Any) -> Any:
    """The options that name the axes of cases, added to a command (decorator)."""
    for option in reversed(_axes):
        command = option(command)
    return command


def with_axes_but_update(command: Any) -> Any:
    """As `with_axes`, for a command whose `--update` is something else; a configuration still has that axis."""
    for option in reversed(_axes):
        command = command if option is _update_axis else option(command)
    return command


def read_cases(
    config: Path | None,
    overrides: tuple[str, ...],
    axes: dict[str, tuple[Any, ...]],
    skipped: dict[Case, str] | None = None,
) -> list[Case]:
    """The cases of a configuration, or of the axes given. A case that cannot run is skipped with a message.

    Raises BenchError where every case is. `skipped` receives those with their reasons.
    """
    from bench.plan import build_cases, cross_axes, name_planned

    if config is not None and any(axes.values()):
        raise click.UsageError(
            "CONFIG cannot be combined with --model, --batch-size and the other axes; use --set to change it"
        )
    if config is None and not axes["models"]:
        raise click.UsageError("give --model NAME (bench list models) or a configuration")
    if config is not None:
        cases = build_cases(read_config(config, overrides), "cuda")
    else:
        cases = cross_axes(_given(axes), "cuda")
    names, found = name_planned(cases), []
    for case, reason in cases.items():
        if reason is None:
            found.append(case)
        else:
            click.echo(printable(f"skipping {names[case]}: {reason}"), err=True)
            if skipped is not None:
                skipped[case] = reason
    if cases and not found:
        raise BenchError("every case is skipped; nothing is left to do")
    return found


def _given(axes: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The axes of cases by their names, as the options gave them. Raises ConfigError where a number is too large."""
    from bench.records import MAX_BATCH_SIZE, MAX_IMAGE_SIZE, SWITCHES, Choice

    grid = {
        "dataset": axes["datasets"] or (Choice("imagenet"),),
        "model": axes["models"],
        "optimizer": axes["optimizers"] or (Choice("sgd"),),
        "batch_size": axes.get("batch_sizes") or (64,),
    }
    others = ("precision", "memory_format", "image_size", *SWITCHES)
    grid |= {axis: given for axis in others if (given := axes.get(f"{axis}s"))}
    if max(grid["batch_size"]) > MAX_BATCH_SIZE or max(grid.get("image_size", (0,))) > MAX_IMAGE_SIZE:
        _checked(grid, "estimate")  # which says the faults
    return grid


def config_of_axes(axes: dict[str, tuple[Any, ...]], name: str) -> SweepConfig | None:
    """A configuration of the axes given; None where none is. Raises BenchError."""
    if not any(axes.values()):
        return None
    if not axes["models"]:
        raise click.UsageError("give --model NAME (bench list models) beside the other axes, or a configuration")
    return _checked(_given(axes), name)


def _checked(grid: dict[str, tuple[Any, ...]], name: str) -> SweepConfig:
    from bench.config import check_config
    from bench.records import Choice

    written = {axis: [str(item) if isinstance(item, Choice) else item for item in grid[axis]] for axis in grid}
    return check_config({"name": name, "grid": written}, "command line")
