"""`bench show`: a data set as a picture, a model as a table of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import ChoiceType, data_root_option, json_option, models_option
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.records import Choice, ImageSpec, Task

_DATASETS: Mapping[Task, str] = {"classification": "mnist", "segmentation": "voc_segmentation"}
"""Whose images a model is shown for unless they are given."""


@click.group()
def show() -> None:
    """Show samples of a data set or the layers of a model."""


@show.command("dataset")
@click.argument("name", type=ChoiceType("dataset"))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="PNG file to write [NAME.png].")
@click.option("--count", type=click.IntRange(1, 400), default=16, show_default=True, help="Number of samples.")
@click.option("--seed", type=int, default=42, show_default=True, help="Seed for the random choice.")
@data_root_option
def show_dataset(name: Choice, out: Path | None, count: int, seed: int, root: Path | None) -> None:
    """Draw random samples with their labels or masks.

    Normalisation is undone.

    \b
    Examples:
      bench show dataset cifar10 --count 25
      bench show dataset folder:/data/flowers --out flowers.png
    """
    from bench.folders import data_folder
    from bench.gallery import render_samples
    from bench.plan import describe

    describe.cache_clear()  # read a folder again
    target = out or Path(f"{name.name}.png")
    source = render_samples(name, root or data_folder(), target, count=count, seed=seed)
    for note in describe(name).notes:
        click.echo(printable(f"{name}: {note}"), err=True)
    note = (
        " (synthetic images: the files are not on this machine; see bench data fetch)" if source == "synthetic" else ""
    )
    click.echo(f"{target}{note}")


@show.command("model")
@click.argument("name", type=ChoiceType("model"))
@click.option("--dataset", type=ChoiceType("dataset"), help="Use the shape and classes of this data set.")
@click.option("--input", "shape", metavar="C,H,W", help="Shape of one sample, instead of a data set's.")
@click.option("--classes", type=click.IntRange(1), help="Number of classes [the data set's, 10 with --input].")
@click.option("--image-size", type=click.IntRange(1), help="Image side in pixels [the data set's; a timm model's own].")
@models_option
@json_option
def show_model(
    name: Choice, dataset: Choice | None, shape: str | None, classes: int | None, image_size: int | None, as_json: bool
) -> None:
    """List the layers of a model.

    For one sample: output shape, parameters and bytes of activations of each layer. The last line names the blocks that
    `--checkpointing blocks` computes again.

    \b
    Examples:
      bench show model mlp --dataset mnist
      bench show model resnet18 --input 3,32,32 --classes 10 --json
      bench show model timm:convnextv2_tiny --dataset cifar10
      bench show model my_models.py:build
    """
    from bench import catalog
    from bench.cli.root import echo_json
    from bench.client import layers_in_child
    from bench.launchers import LocalLauncher
    from bench.units import format_bytes, format_count

    task = "classification" if catalog.is_external("model", name.name) else catalog.model(name.name).task
    images = _images(name, dataset, shape, classes, image_size, task or "classification")
    found = layers_in_child(LocalLauncher(), name, images)
    layers, notes = found["layers"], [note for note in (catalog.model_note(name), found["note"]) if note]
    if as_json:
        of_blocks = found["blocks"] or ()
        for layer in layers:
            layer["block"] = next((block for block in of_blocks if f"{layer['path']}.".startswith(f"{block}.")), None)
        echo_json(layers)
        for note in notes:
            click.echo(printable(f"note: {note}"), err=True)
        return
    rows = [
        (
            layer["path"],
            layer["kind"],
            "x".join(map(str, layer["output_shape"])),
            format_count(layer["parameters"]),
            format_bytes(layer["activation_bytes"]),
        )
        for layer in layers
    ]
    header = ("layer", "kind", "output of one sample", "parameters", "activation")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(5)]
    for row in [header, *rows]:
        left = "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=False))
        right = "  ".join(f"{cell:>{width}}" for cell, width in zip(row[3:], widths[3:], strict=True))
        click.echo(printable(f"{left}  {right}"))
    total = sum(layer["parameters"] for layer in layers)
    click.echo(
        f"{format_count(total)} parameters ({format_bytes(total * 4)} in float32); "
        f"{format_bytes(sum(layer['activation_bytes'] for layer in layers))} of outputs per sample"
    )
    click.echo(printable(_blocks_in_words(found["blocks"])))
    for note in notes:
        click.echo(printable(f"note: {note}"))


def _blocks_in_words(blocks: list[str] | None) -> str:
    if blocks is None:
        return "checkpointing blocks: the model's own switch decides what is computed again"
    if not blocks:
        return "checkpointing blocks: not for this model, which has no repeated blocks"
    return f"checkpointing blocks computes these {len(blocks)} again: {', '.join(blocks)}"


def _images(
    model: Choice, dataset: Choice | None, shape: str | None, classes: int | None, image_size: int | None, task: Task
) -> ImageSpec:
    from bench.catalog import parse_choice
    from bench.plan import default_side, describe, image_spec
    from bench.records import MAX_IMAGE_SIZE, ImageSpec

    if shape is None:
        describe.cache_clear()  # read a folder again
        dataset = dataset or parse_choice("dataset", _DATASETS[task])
        images = image_spec(dataset, image_size or default_side(dataset, model))
        return replace(images, classes=classes or images.classes)
    if dataset is not None:
        raise click.UsageError("give --dataset or --input, not both")
    try:
        channels, height, width = (int(part) for part in shape.replace("x", ",").split(","))
        if not all(1 <= side <= MAX_IMAGE_SIZE for side in (channels, height, width)):
            raise ValueError
    except ValueError:
        raise click.BadParameter(
            f'"{shape}" is not a valid shape; write three whole numbers like 3,32,32, each at most 16384',
            param_hint="--input",
        ) from None
    return ImageSpec(channels, image_size or height, image_size or width, classes or 10, task)


GROUP = "Estimate"
COMMANDS = (show,)
