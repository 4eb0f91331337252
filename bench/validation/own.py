"""The layout of bench: columns named as in its results, so that an export of a store is such a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast, get_args

from bench.errors import BenchError
from bench.plan import image_spec
from bench.records import MemoryFormat, Precision
from bench.validation.rows import (
    LARGEST_BYTES,
    MAX_BATCH_SIZE,
    MAX_CLASSES,
    MAX_IMAGE_SIZE,
    Measured,
    Quantity,
    TableLayout,
    TrainingLoop,
    choice,
    device_name,
    whole,
)

_MEASURED: tuple[tuple[str, Quantity], ...] = (
    ("peak_allocated_bytes", "allocated"),
    ("peak_reserved_bytes", "reserved"),
    ("device_used_bytes", "device"),
    ("measured_bytes", "device"),
)


def read(cells: Mapping[str, str], line: int, device: str | None) -> Measured:
    """A row; see `TableLayout.read`.

    Beside the required columns: dataset [imagenet], image_size, classes, precision, memory_format, device or gpu_name,
    and torch_version. With another torch than the installed one, or other classes than the data set's, a plain loop in
    float32 stands for the step of bench.
    """
    measured, quantity = _measured(cells)
    dataset = choice(cells, "dataset", "imagenet")
    own = image_spec(dataset, whole(cells, "image_size", MAX_IMAGE_SIZE, 0))
    classes = whole(cells, "classes", MAX_CLASSES, own.classes)
    model = choice(cells, "model")
    precision = _one_of(cells, "precision", get_args(Precision), "float32")
    memory_format = _one_of(cells, "memory_format", get_args(MemoryFormat), "contiguous")
    version = _version(cells.get("torch_version", ""))
    loop = TrainingLoop(torch_version=version) if version or classes != own.classes else None
    if loop and own.task != "classification":
        raise BenchError("another torch_version or number of classes can only be estimated for classification")
    if loop and (precision, memory_format) != ("float32", "contiguous"):
        raise BenchError("another torch_version or number of classes can only be estimated in contiguous float32")
    return Measured(
        line,
        model.name,
        model,
        choice(cells, "optimizer", "sgd"),
        whole(cells, "batch_size", MAX_BATCH_SIZE),
        replace(own, classes=classes),
        _device(cells, device),
        measured,
        quantity,
        cast(Precision, precision),
        cast(MemoryFormat, memory_format),
        loop=loop,
        dataset=dataset,
    )


def _measured(cells: Mapping[str, str]) -> tuple[int, Quantity]:
    for column, quantity in _MEASURED:
        if cells.get(column, "").strip():
            return whole(cells, column, LARGEST_BYTES), quantity
    raise BenchError(f"no measurement; fill in one of {', '.join(column for column, _ in _MEASURED)}")


def _device(cells: Mapping[str, str], asked: str | None) -> str:
    text = cells.get("device", "").strip() or cells.get("gpu_name", "").strip()
    if text in ("", "cuda") or text.startswith("cuda:"):
        text = cells.get("gpu_name", "").strip()
    if text:
        return device_name(text)
    if asked is None:
        raise BenchError("device: missing in this row; set it with --device NAME")
    return asked


def _one_of(cells: Mapping[str, str], column: str, allowed: tuple[str, ...], default: str) -> str:
    text = cells.get(column, "").strip() or default
    if text not in allowed:
        raise BenchError(f'{column}: "{text[:40]}" is not one of {", ".join(allowed)}')
    return text


def _version(text: str) -> tuple[int, int] | None:
    if not text.strip():
        return None
    match = re.match(r"(\d{1,3})\.(\d{1,3})(\D|$)", text.strip())
    if match is None:
        raise BenchError(f'torch_version: "{text[:40]}" is not a version such as 2.6')
    return int(match[1]), int(match[2])


LAYOUT = TableLayout(
    "own",
    "columns as in the results of bench: model, batch_size and a peak in bytes",
    ("model", "batch_size"),
    read,
    (tuple(column for column, _ in _MEASURED),),
)
