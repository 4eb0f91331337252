"""Kernels as columns that are affine in the batch size, so that two recordings serve every batch size.

All that is noted of a kernel (FLOPs, bytes, the sides of its product) is `base + slope * batch`: each is a product of
sizes of which at most one holds the batch. Batch 1 takes other paths in torch (a dimension of size 1 counts as expanded
and as contiguous) and is recorded by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from bench.estimators.roofline.operators import Kernel
from bench.estimators.roofline.recording import Recorded, record_optimizer, record_step
from bench.records import Choice, ImageSpec

NUMBERS = ("flops", "nbytes", "layout_bytes", "rows", "columns", "depth", "products")
"""The columns, each a field of `Kernel`."""

PROBES = (16, 48)
"""Batch sizes of the two recordings."""


class Columns(NamedTuple):
    """The kernels of a step at one batch size, one entry a kernel.

    Attributes:
        phase: `forward`, `backward` or `optimizer`.
        kind: One of `operators.CLASSES`.
        dtype: Torch's name of the type it computes in.
        launches: Kernels that the entry stands for.
        shared: See `Kernel`.
        window: See `Kernel`.
        numbers: The fields `NUMBERS`, shape `(kernels, len(NUMBERS))`.
    """

    phase: np.ndarray
    kind: np.ndarray
    dtype: np.ndarray
    launches: np.ndarray
    shared: np.ndarray
    window: np.ndarray
    numbers: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """One of `NUMBERS`."""
        values: np.ndarray = self.numbers[:, NUMBERS.index(name)]
        return values


def to_columns(recorded: Sequence[tuple[str, str, Kernel]]) -> Columns:
    """A recording as columns."""
    kernels = [kernel for _, _, kernel in recorded]
    return Columns(
        phase=np.array([phase for phase, _, _ in recorded], dtype=object),
        kind=np.array([kernel.kind for kernel in kernels], dtype=object),
        dtype=np.array([kernel.dtype for kernel in kernels], dtype=object),
        launches=np.array([kernel.launches for kernel in kernels], dtype=float),
        shared=np.array([kernel.shared for kernel in kernels], dtype=float),
        window=np.array([kernel.window for kernel in kernels], dtype=float),
        numbers=np.array([[getattr(kernel, name) for name in NUMBERS] for kernel in kernels], dtype=float).reshape(
            -1, len(NUMBERS)
        ),
    )


@functools.lru_cache(maxsize=512)
def _affine(model: Choice, images: ImageSpec, narrow: torch.dtype | None) -> tuple[Columns, np.ndarray] | None:
    """The columns at batch 0 and their slopes; None where the two recordings are not of the same kernels, or fail."""
    try:
        low, high = [_recorded(model, images, batch, narrow) for batch in PROBES]
    except Exception:  # noqa: BLE001 - whatever a model raises at its own batch size is for its own recording to say
        return None
    if _outline(low) != _outline(high):
        return None
    first, second = to_columns(low), to_columns(high)
    slopes = (second.numbers - first.numbers) / (PROBES[1] - PROBES[0])
    return first._replace(numbers=first.numbers - PROBES[0] * slopes), slopes


def _outline(recorded: Recorded) -> list[tuple[str, str, str, str]]:
    return [(phase, operator, kernel.kind, kernel.dtype) for phase, operator, kernel in recorded]


def _recorded(model: Choice, images: ImageSpec, batch: int, narrow: torch.dtype | None) -> Recorded:
    return record_step(model, images, batch, narrow)


@functools.lru_cache(maxsize=512)
def _single(model: Choice, images: ImageSpec, batch: int, narrow: torch.dtype | None) -> Columns:
    return to_columns(_recorded(model, images, batch, narrow))


def step_columns(model: Choice, images: ImageSpec, batch_size: int, narrow: torch.dtype | None = None) -> Columns:
    """Forward, loss and backward at a batch size; the first size of a model takes seconds, any other microseconds.

    Args:
        model: Of the catalog.
        images: Shape of one sample, and the classes.
        batch_size: How many samples.
        narrow: 16-bit type of autocast, or None.

    Raises:
        Unsupported: See `recording.record_step`.
    """
    found = _affine(model, images, narrow) if batch_size > 1 else None
    if found is None:
        return _single(model, images, batch_size, narrow)
    base, slopes = found
    return base._replace(numbers=base.numbers + batch_size * slopes)


@functools.lru_cache(maxsize=512)
def optimizer_columns(model: Choice, images: ImageSpec, optimizer: Choice, scaled: bool) -> Columns:
    """The optimizer's step on the model's parameters; it does not depend on the batch.

    Raises:
        Unsupported: See `recording.record_optimizer`.
    """
    return to_columns(record_optimizer(model, images, optimizer, scaled))


def joined(parts: Sequence[Columns]) -> Columns:
    """The kernels of several recordings, one after another."""
    return Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))
