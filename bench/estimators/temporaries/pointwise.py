"""Operators whose results come in another order than they are returned, and those that copy an operand."""

from __future__ import annotations

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, results
from bench.estimators.tensors import is_contiguous


def _dropout(call: Call, machine: Machine) -> Script:
    """The mask goes first (aten/src/ATen/native/cuda/Dropout.cu)."""
    return [(1, call.sizes[1]), (0, call.sizes[0])]


def _roll(call: Call, machine: Machine) -> Script:
    """One dimension after the other, from a contiguous copy (aten/src/ATen/native/cuda/TensorTransformations.cu)."""
    source, shifts = call.arguments[:2]
    size = source.numel * source.item_bytes
    steps: Script = [(-9, size)] if not is_contiguous(source) else []
    previous = -9 if steps else None
    for number in range(max(len(shifts), 1)):
        slot = 0 if number == max(len(shifts), 1) - 1 else -1 - number
        steps.append((slot, size))
        if previous is not None:
            steps.append((previous, 0))
        previous = slot
    return steps


def _softmax_backward(call: Call, machine: Machine) -> Script:
    """The product of gradient and result (aten/src/ATen/native/cuda/SoftMax.cu: softmax_backward_cuda_out)."""
    return results(call.sizes) + around(call.arguments[0].numel * call.arguments[0].item_bytes)


SORT_BYTES = 3583
"""Scratch of a sort of a few thousand pairs (cub::DeviceRadixSort), as seen."""


def _index_put(call: Call, machine: Machine) -> Script:
    """Accumulating writes sort their indices (aten/src/ATen/native/cuda/Indexing.cu: index_put_with_sort_kernel)."""
    indices, values, accumulate = call.arguments[1:4]
    count = max((index.numel for index in indices if index is not None), default=0)
    if not accumulate or not count:
        return results(call.sizes)
    size, spread = 8 * count, 0 if is_contiguous(values) else values.numel * values.item_bytes
    script: Script = [(-1, size), (-2, size), (-2, 0)]
    script += [(-3, spread)] if spread else []
    script += [(-4, size), (-5, size), (-6, size), (-7, SORT_BYTES), (-7, 0), (-6, 0), (-5, 0), (-4, 0)]
    return [*script, *([(-3, 0)] if spread else []), (-1, 0)]


RULES = {
    "aten::_index_put_impl_": _index_put,
    "aten::native_dropout": _dropout,
    "aten::roll": _roll,
    "aten::_softmax_backward_data": _softmax_backward,
}
