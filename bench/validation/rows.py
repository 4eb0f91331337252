"""Measurements from other tools, whatever their file, and reading the cells of a CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from bench import catalog
from bench.devices import load_device
from bench.errors import BenchError
from bench.records import Choice, ImageSpec, MemoryFormat, Precision

Quantity = Literal["allocated", "reserved", "device"]
ZeroGrad = Literal["before_batch", "before_backward", "never"]
Workspaces = Literal["none", "spatial", "all"]

IMAGENET = Choice("imagenet")
MAX_BATCH_SIZE = 1 << 20
MAX_IMAGE_SIZE = 1 << 14
MAX_CLASSES = 1 << 20


@dataclass(frozen=True, slots=True)
class TrainingLoop:
    """The properties of another training loop that determine its memory.

    Attributes:
        zero_grad: When gradients go: before the batch is loaded, between loss and backward, or never.
        keeps_maximum: Whether values and indices of the outputs' maximum live until the next step's.
        keeps_gradients: Whether `zero_grad` fills gradients with zeros, as it did before torch 2.0, and keeps them.
        workspaces: Which convolutions have workspaces of cuDNN: none, those with kernels above 1 x 1, or all.
        torch_version: Major and minor of the torch that ran; decides the allocator's rules.
    """

    zero_grad: ZeroGrad = "before_batch"
    keeps_maximum: bool = False
    keeps_gradients: bool = False
    workspaces: Workspaces = "all"
    torch_version: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of a file.

    Attributes:
        line: Of the file, from 1 with the header.
        family: A word to group errors by, the model's name unless the file knows better.
        model: Of the catalog.
        optimizer: Of the catalog.
        batch_size: Samples per step.
        images: What the model saw.
        device: Name of a device file.
        measured_bytes: What was measured.
        quantity: What that is: torch's allocated or reserved peak, or what the driver showed on the device.
        precision: As in `Case`.
        memory_format: As in `Case`.
        after_setup: Whether `measured_bytes` is what came on top of model and optimizer on the device.
        capacity_bytes: All of the device's memory where the file knows it.
        loop: None for the step of bench.
        dataset: Whose images and classes the step of bench takes; of no consequence to other loops.
        published: The published estimates of other estimators for this row, by name, in bytes.
    """

    line: int
    family: str
    model: Choice
    optimizer: Choice
    batch_size: int
    images: ImageSpec
    device: str
    measured_bytes: int
    quantity: Quantity
    precision: Precision = "float32"
    memory_format: MemoryFormat = "contiguous"
    after_setup: bool = False
    capacity_bytes: int | None = None
    loop: TrainingLoop | None = None
    dataset: Choice = IMAGENET
    published: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class TableLayout:
    """A kind of file.

    Attributes:
        name: The module's.
        summary: One line.
        columns: Those that a file of this layout must have; the layout with most of them wins.
        read: `(cells, line, device) -> Measured`, None for a row that is not a supported case; raises BenchError with
            the fault of a cell. `device` is what the user asked for, or None.
        alternatives: Of each of these groups of columns a file must have one.
    """

    name: str
    summary: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, str], int, str | None], Measured | None]
    alternatives: tuple[tuple[str, ...], ...] = ()


def whole(cells: Mapping[str, str], column: str, largest: int, default: int | None = None) -> int:
    """The whole number above 0 in a cell; `default` where it is empty. Raises BenchError."""
    text = cells.get(column, "").strip()
    if not text and default is not None:
        return default
    try:
        value = float(text) if len(text) <= 40 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value != int(value) or not 0 < value <= largest:
        raise BenchError(f'{column}: "{text[:40]}" is not a whole number from 1 to {largest}')
    return int(value)


def choice(cells: Mapping[str, str], kind: Literal["model", "optimizer", "dataset"], default: str = "") -> Choice:
    """An entry of a catalog from the cell of its kind. Raises UnknownNameError or BenchError."""
    text = cells.get(kind, "").strip() or default
    if not text or len(text) > 200:
        raise BenchError(f'{kind}: "{text[:40]}" is not the name of a {kind}')
    return catalog.parse_choice(kind, text)


def device_name(text: str) -> str:
    """The name of the device's file. Raises UnknownNameError."""
    return load_device(text).name


LARGEST_BYTES = 1 << 50
