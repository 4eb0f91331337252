"""Operators that are a reduction, or hold one.

Staging buffers of reductions, exactly as torch configures them.

A reduction that is split over thread blocks allocates a buffer for partial results and one of semaphores (4 B each).
Whether it is split depends on the shape after TensorIterator has reordered and merged dimensions, on the number of
multiprocessors and on the threads that each holds.

Sources: aten/src/ATen/native/cuda/Reduce.cuh (setReduceConfig, gpu_reduce_kernel), aten/src/ATen/TensorIterator.cpp
(reorder_dimensions, coalesce_dimensions, can_use_32bit_indexing, split). Left out: storage offsets, which can narrow
the vectors of a reduction over slow dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, results
from bench.estimators.tensors import ITEM_BYTES, Spec, compare_strides, contiguous, dense_like, is_contiguous, sort_dims

MAX_THREADS, WARP = 512, 32
MIN_VALUES, MAX_VALUES = 16, 256
INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Loop:
    """TensorIterator's view of a reduction: dimensions from the fastest, strides in bytes of output and input."""

    shape: tuple[int, ...]
    output: tuple[int, ...]
    input: tuple[int, ...]
    item_bytes: int

    @property
    def numel(self) -> int:
        """Elements of the input."""
        return math.prod(self.shape)

    @property
    def reduced_dims(self) -> int:
        """How many dimensions are reduced; they come first."""
        return sum(stride == 0 for stride in self.output)

    @property
    def outputs(self) -> int:
        """Elements of the output."""
        count = 1
        for size, stride in zip(self.shape, self.output, strict=True):
            if stride != 0 or size == 0:
                count *= size
        return count

    @property
    def fits_32bit(self) -> bool:
        """Whether every offset fits 32 bits (TensorIteratorBase::can_use_32bit_indexing)."""
        if self.numel > INT32_MAX:
            return False
        return all(
            1 + sum((size - 1) * stride for size, stride in zip(self.shape, strides, strict=True)) <= INT32_MAX
            for strides in (self.output, self.input)
        )


def build_loop(source: Spec, dims: Sequence[int] | None, output_item_bytes: int) -> Loop:
    """The loop over `source` that reduces `dims` (all of them where there are none)."""
    ndim = len(source.shape)
    chosen = {dim % ndim for dim in dims} if dims and ndim else set(range(ndim))
    kept, step = [0] * ndim, output_item_bytes
    for dim in reversed(range(ndim)):
        if dim not in chosen:
            kept[dim] = step
            step *= source.shape[dim]
    strides = [stride * source.item_bytes for stride in source.strides]
    order = _sorted_dims(source.shape, kept, strides)
    shape, output, inputs = (tuple([values[dim] for dim in order]) for values in (source.shape, kept, strides))
    return _merged(Loop(shape, output, inputs, source.item_bytes))


def _sorted_dims(shape: Sequence[int], kept: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Reduced dimensions first, then by growing stride."""

    def compare(one: int, other: int) -> int:
        if (kept[one] == 0) != (kept[other] == 0):
            return 1 if kept[other] == 0 else -1
        return compare_strides(shape, (kept, strides), one, other)

    return sort_dims(len(shape), compare)


def _merged(loop: Loop) -> Loop:
    """Join neighbouring dimensions that are one in memory (TensorIteratorBase::coalesce_dimensions)."""
    if len(loop.shape) <= 1:
        return loop
    shape, output, source = [loop.shape[0]], [loop.output[0]], [loop.input[0]]
    for size, kept, stride in zip(loop.shape[1:], loop.output[1:], loop.input[1:], strict=True):
        joined = shape[-1] * output[-1] == kept and shape[-1] * source[-1] == stride
        if joined or shape[-1] == 1 or size == 1:
            if shape[-1] == 1:
                output[-1], source[-1] = kept, stride
            shape[-1] *= size
        else:
            shape.append(size)
            output.append(kept)
            source.append(stride)
    return Loop(tuple(shape), tuple(output), tuple(source), loop.item_bytes)


def split_loop(loop: Loop) -> Iterator[Loop]:
    """Halves, again and again, until offsets fit 32 bits (SplitUntil32Bit)."""
    if loop.fits_32bit:
        yield loop
        return
    extents = [
        max((size - 1) * abs(strides[dim]) for strides in (loop.output, loop.input))
        for dim, size in enumerate(loop.shape)
    ]
    dim = max(range(len(extents)), key=lambda index: (extents[index], -index))
    first = loop.shape[dim] // 2
    for size in (first, loop.shape[dim] - first):
        shape = (*loop.shape[:dim], size, *loop.shape[dim + 1 :])
        yield from split_loop(_merged(Loop(shape, loop.output, loop.input, loop.item_bytes)))


def _last_power(value: int) -> int:
    return 1 << (max(value, 1).bit_length() - 1)


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)


def staging_bytes(loop: Loop, sum_bytes: int, machine: Machine, vector: int = 4) -> tuple[int, int]:
    """Bytes of the buffer and of the semaphores; two zeros where the reduction is not split over blocks.

    Args:
        loop: The reduction; its offsets fit 32 bits.
        sum_bytes: Bytes of an accumulator.
        machine: The GPU.
        vector: Elements that are loaded at once along a contiguous reduced dimension.
    """
    outputs = loop.outputs
    inputs = loop.numel // outputs if outputs else 0
    if not inputs:
        return 0, 0
    on_fastest, fastest = _fastest_stride(loop)
    dim0, dim1 = (inputs, outputs) if on_fastest else (outputs, inputs)
    if not loop.shape:
        dim0 = dim1 = 1
    output_vector = 1
    if fastest == loop.item_bytes:
        if on_fastest and dim0 >= 128 and loop.reduced_dims == 1:
            dim0 //= vector
        elif not on_fastest:
            output_vector = _output_vector(loop)
            dim0 //= output_vector
    limit = MAX_THREADS // output_vector
    width, height = _block(dim0, dim1, limit)
    return _split_over_blocks(inputs, outputs, sum_bytes, machine, on_fastest, output_vector, width, height)


def _fastest_stride(loop: Loop) -> tuple[bool, int]:
    if not loop.shape:
        return True, loop.item_bytes
    reduced = loop.reduced_dims
    on_fastest = reduced == len(loop.shape) or (reduced > 0 and loop.input[0] < loop.input[reduced])
    if reduced == 0:
        on_fastest = loop.input[0] < loop.input[0]
    return on_fastest, loop.input[0] if on_fastest else loop.input[reduced]


def _output_vector(loop: Loop) -> int:
    vector, index = 4, loop.reduced_dims
    values = [loop.shape[index], *(stride // loop.item_bytes for dim, stride in enumerate(loop.input) if dim != index)]
    for value in values:
        while value % vector:
            vector //= 2
    return vector


def _block(dim0: int, dim1: int, limit: int) -> tuple[int, int]:
    first = _last_power(dim0) if dim0 < limit else limit
    second = _last_power(dim1) if dim1 < limit else limit
    width = min(first, WARP)
    height = min(second, limit // width)
    return min(first, limit // height), height


def _split_over_blocks(
    inputs: int, outputs: int, sum_bytes: int, machine: Machine, on_fastest: bool, vector: int, width: int, height: int
) -> tuple[int, int]:
    step_input, step_output = (width, 1) if on_fastest else (1, width)
    across_warps = _divide_up(inputs, step_input) >= min(height * 16, MAX_VALUES)
    if across_warps:
        step_input *= height
    else:
        step_output *= height
    values = _divide_up(inputs, step_input)
    grid = _divide_up(outputs // vector, step_output)
    target = machine.multiprocessors * (machine.threads_per_multiprocessor // (width * height))
    if not across_warps or values < MAX_VALUES or grid > target:
        return 0, 0
    least, most = _divide_up(values, MAX_VALUES), _divide_up(values, MIN_VALUES)
    blocks = min(max(_divide_up(target, grid), least), most)
    if blocks <= 1:
        return 0, 0
    buffer = sum_bytes * outputs * blocks * (1 if on_fastest else width * vector)
    return buffer, 4 * grid


@lru_cache(maxsize=65536)
def reduction_buffers(
    source: Spec, dims: tuple[int, ...] | None, output_dtype: str, sum_bytes: int, machine: Machine, vector: int = 4
) -> tuple[tuple[int, ...], ...]:
    """Bytes of what a reduction allocates around its kernels: one group for each kernel, made and freed together.

    Args:
        source: The input.
        dims: What is reduced; None or empty for everything.
        output_dtype: Type of the result.
        sum_bytes: Bytes of an accumulator.
        machine: The GPU.
        vector: See `staging_bytes`.
    """
    if source.numel == 0:
        return ()
    loop = build_loop(source, dims, ITEM_BYTES[output_dtype])
    groups = (staging_bytes(part, sum_bytes, machine, vector) for part in split_loop(loop))
    return tuple(group for group in groups if group[0])


def sum_buffers(source: Spec, dims: Any, dtype: Any, machine: Machine) -> Script:
    """The buffers of a sum or mean (aten/src/ATen/native/cuda/ReduceSumProdKernel.cu, ReduceMomentKernel.cu).

    What is added up in another type than its own is converted first, except for half precision in float32.
    """
    output = dtype or (source.dtype if source.dtype.startswith(("float", "bfloat", "complex")) else "int64")
    converted = output != source.dtype and not (source.item_bytes == 2 and output == "float32")
    if converted:
        source = dense_like(Spec(output, *source[1:]))
    vector = 8 if source.item_bytes == 2 else 4
    buffers = _buffers(source, dims, output, machine, vector, max(4, source.item_bytes))
    return [(-5, source.nbytes), *buffers, (-5, 0)] if converted else buffers


def _buffers(source: Spec, dims: Any, output: str, machine: Machine, vector: int, sum_bytes: int) -> Script:
    script: Script = []
    for group in reduction_buffers(source, tuple(dims) if dims else None, output, sum_bytes, machine, vector):
        script += around(*group)
    return script


def _sum(call: Call, machine: Machine) -> Script:
    source, dims, _, dtype = call.arguments[:4]
    return results(call.sizes) + sum_buffers(source, dims, dtype, machine)


def _sum_all(call: Call, machine: Machine) -> Script:
    return results(call.sizes) + sum_buffers(call.arguments[0], None, call.arguments[1], machine)


def _norm(call: Call, machine: Machine) -> Script:
    """A reduction (ReduceNormKernel.cu), but over dimensions of size 1 absolute values (LinearAlgebra.cpp)."""
    source, _, dims, _, dtype = call.arguments[:5]
    ndim = len(source.shape)
    reduced = {dim % ndim for dim in dims} if dims and ndim else range(ndim)
    if all(source.shape[dim] == 1 for dim in reduced):
        return results(call.sizes)
    return results(call.sizes) + _buffers(source, dims, dtype or source.dtype, machine, 4, max(4, source.item_bytes))


MOMENTS_BYTES, MOMENTS_VECTOR = 16, 2
"""Of the accumulator of a variance, and the elements that are loaded at once (ReduceMomentKernel.cu)."""


def _variance(call: Call, machine: Machine) -> Script:
    source, dims = call.arguments[:2]
    size = 2 * MOMENTS_BYTES if source.dtype == "float64" else MOMENTS_BYTES
    return results(call.sizes) + _buffers(source, dims, source.dtype, machine, MOMENTS_VECTOR, size)


def _extreme(call: Call, machine: Machine) -> Script:
    """The largest or least of a contiguous copy (ReduceMaxValuesKernel.cu, ReduceAllOps.cpp)."""
    source, dims = call.arguments[0], call.arguments[1] if len(call.arguments) > 1 else None
    if dims is not None:
        return results(call.sizes) + _buffers(source, dims, source.dtype, machine, 4, source.item_bytes)
    copy = 0 if is_contiguous(source) else source.nbytes
    packed = contiguous(source.dtype, source.shape)
    return results(call.sizes) + around(
        copy, first=-5, within=_buffers(packed, None, source.dtype, machine, 4, source.item_bytes)
    )


def _place(call: Call, machine: Machine) -> Script:
    """The largest or least with its place, a pair of 16 bytes (ReduceArgMaxKernel.cu, TensorCompare.cu)."""
    source, dim = call.arguments[:2]
    dims = None if dim is None else (dim,)
    return results(call.sizes) + _buffers(source, dims, "int64", machine, 4, 16)


def _truth(call: Call, machine: Machine) -> Script:
    """Whether any or all are true (ReduceLogicKernel.cu)."""
    source, dims = call.arguments[0], call.arguments[1] if len(call.arguments) > 1 else None
    dims = (dims,) if type(dims) is int else dims
    return results(call.sizes) + _buffers(source, dims, "bool", machine, 4, 1)


RULES = {
    "aten::sum.dim_IntList": _sum,
    "aten::sum.IntList_out": _sum,
    "aten::mean.dim": _sum,
    "aten::mean.out": _sum,
    "aten::sum": _sum_all,
    "aten::mean": _sum_all,
    "aten::linalg_vector_norm": _norm,
    "aten::var.correction": _variance,
    "aten::var_mean.correction": _variance,
    "aten::std.correction": _variance,
    "aten::std_mean.correction": _variance,
    "aten::amax": _extreme,
    "aten::amin": _extreme,
    "aten::max": _extreme,
    "aten::min": _extreme,
    "aten::max.dim": _place,
    "aten::min.dim": _place,
    "aten::argmax": _place,
    "aten::argmin": _place,
    "aten::any": _truth,
    "aten::all": _truth,
}
