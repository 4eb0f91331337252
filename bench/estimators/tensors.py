"""What operators see of tensors, as plain values: type, shape, strides. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

ITEM_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint64": 8,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes of one element, by torch's name of the type."""

CHANNELS_LAST_ORDER = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}
"""Dimensions from the fastest to the slowest in channels-last tensors, by their number."""


class Spec(NamedTuple):
    """A tensor's type by torch's name, shape, and strides in elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of a storage that holds exactly this tensor."""
        if 0 in self.shape:
            return 0
        last = 0
        for size, stride in zip(self.shape, self.strides, strict=True):
            last += (size - 1) * stride
        return (last + 1) * ITEM_BYTES[self.dtype]


def contiguous(dtype: str, shape: Sequence[int]) -> Spec:
    """A contiguous tensor."""
    strides, step = [0] * len(shape), 1
    for index in reversed(range(len(shape))):
        strides[index] = step
        step *= max(shape[index], 1)
    return Spec(dtype, tuple(shape), tuple(strides))


def channels_last(dtype: str, shape: Sequence[int]) -> Spec:
    """A channels-last tensor of 4 or 5 dimensions."""
    strides, step = [0] * len(shape), 1
    for index in CHANNELS_LAST_ORDER[len(shape)]:
        strides[index] = step
        step *= shape[index]
    return Spec(dtype, tuple(shape), tuple(strides))


def suggests_channels_last(spec: Spec) -> bool:
    """Whether torch would go on in channels-last (c10/core/MemoryFormat.h: is_channels_last_strides_2d)."""
    if len(spec.shape) not in CHANNELS_LAST_ORDER or spec.strides[1] == 0:
        return False
    least = 0
    for index in CHANNELS_LAST_ORDER[len(spec.shape)]:
        size, stride = spec.shape[index], spec.strides[index]
        if size == 0 or stride < least or (index == 0 and least == spec.strides[1]):
            return False
        least = stride * size if size > 1 else stride
    return True


def is_contiguous(spec: Spec) -> bool:
    """Whether the tensor is contiguous; dimensions of size 1 do not count."""
    return _packed(spec, range(len(spec.shape) - 1, -1, -1))


def is_channels_last_contiguous(spec: Spec) -> bool:
    """Whether the tensor is contiguous in the channels-last order."""
    return len(spec.shape) in CHANNELS_LAST_ORDER and _packed(spec, CHANNELS_LAST_ORDER[len(spec.shape)])


def _packed(spec: Spec, order: Sequence[int]) -> bool:
    step = 1
    for index in order:
        if spec.shape[index] != 1:
            if spec.strides[index] != step:
                return False
            step *= spec.shape[index]
    return True


def sort_dims(count: int, compare: Callable[[int, int], int]) -> list[int]:
    """Dimensions from the fastest to the slowest (TensorIteratorBase::reorder_dimensions).

    An insertion sort from the last dimension on that knows of undecided pairs.

    Args:
        count: The number of dimensions.
        compare: Positive where the first dimension belongs behind the second, negative before, 0 undecided.
    """
    order = list(reversed(range(count)))
    for start in range(1, count):
        at = start
        for before in range(start - 1, -1, -1):
            verdict = compare(order[before], order[at])
            if verdict > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif verdict < 0:
                break
    return order


def compare_strides(shape: Sequence[int], operands: Sequence[Sequence[int]], one: int, other: int) -> int:
    """How TensorIterator orders two dimensions by the operands' strides, the first operand that decides going first."""
    for strides in operands:
        first, second = strides[one], strides[other]
        if first == 0 or second == 0:
            continue
        if first != second:
            return -1 if first < second else 1
        if shape[one] > shape[other]:
            return 1
    return 0


def dense_like(spec: Spec) -> Spec:
    """A tensor without gaps, its dimensions ordered in memory as those of `spec` (empty_like's preserve_format)."""
    order = sorted(range(len(spec.shape)), key=lambda dim: (spec.strides[dim], -dim))
    strides, step = [0] * len(spec.shape), 1
    for dim in order:
        strides[dim] = step
        step *= max(spec.shape[dim], 1)
    return Spec(spec.dtype, spec.shape, tuple(strides))


def lay_out(result: Spec, operands: Sequence[Spec]) -> Spec:
    """`result` with the strides that TensorIterator gives it for these operands."""
    shape = result.shape
    same = all(spec.shape == shape for spec in operands)
    if same and all(map(is_contiguous, operands)):
        return contiguous(result.dtype, shape)
    if same and len(shape) == 4 and all(map(is_channels_last_contiguous, operands)):
        return channels_last(result.dtype, shape)
    if same and (all(map(is_channels_last_contiguous, operands)) or _equal_and_dense(operands)):
        return Spec(result.dtype, shape, operands[0].strides)
    steps = [_broadcast(spec, shape) for spec in operands]
    strides, step = [0] * len(shape), 1
    for dim in sort_dims(len(shape), partial(compare_strides, shape, steps)):
        strides[dim] = step
        step *= shape[dim]
    return Spec(result.dtype, shape, tuple(strides))


def _equal_and_dense(operands: Sequence[Spec]) -> bool:
    first = operands[0]
    if any(spec.strides != first.strides for spec in operands):
        return False
    step = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(first.strides, first.shape, strict=True) if size != 1
    ):
        if stride != step:
            return False
        step *= size
    return True


def _broadcast(spec: Spec, shape: Sequence[int]) -> list[int]:
    """Strides in bytes over the result's dimensions, 0 where the operand is repeated."""
    missing = len(shape) - len(spec.shape)
    own = [
        0 if size == 1 and shape[missing + dim] != 1 else stride * spec.item_bytes
        for dim, (size, stride) in enumerate(zip(spec.shape, spec.strides, strict=True))
    ]
    return [0] * missing + own
