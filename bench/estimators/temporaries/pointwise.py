"""Operators whose results come in another order than they are returned, and those that copy an operand."""

from __future__ import annotations

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, copy_bytes, results
from bench.estimators.tensors import Spec, is_channels_last_contiguous, is_contiguous, suggests_channels_last


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


def _softmax(call: Call, machine: Machine) -> Script:
    """From a contiguous copy (aten/src/ATen/native/cuda/SoftMax.cu: host_softmax)."""
    return results(call.sizes) + around(copy_bytes(call.arguments[0]))


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


def _nll_loss2d(call: Call, machine: Machine) -> Script:
    """The weight goes first; both operands must be contiguous (aten/src/ATen/native/cuda/NLLLoss2d.cu)."""
    source, target, _, reduction = call.arguments[:4]
    copies = [copy_bytes(source), copy_bytes(target)] if reduction else []
    return [(1, call.sizes[1]), (0, call.sizes[0]), *around(*copies)]


FEWEST_CHANNELS_LAST = 4
"""Below, the bilinear kernels work on contiguous images (aten/src/ATen/native/cuda/UpSampleBilinear2d.cu)."""


def _works_channels_last(image: Spec) -> bool:
    return suggests_channels_last(image) and image.shape[1] >= FEWEST_CHANNELS_LAST


def _channels_last_copy_bytes(image: Spec) -> int:
    return 0 if is_channels_last_contiguous(image) else image.numel * image.item_bytes


def _upsample_bilinear(call: Call, machine: Machine) -> Script:
    image = call.arguments[0]
    return results(call.sizes) + around(_channels_last_copy_bytes(image) if _works_channels_last(image) else 0)


def _upsample_bilinear_backward(call: Call, machine: Machine) -> Script:
    """A gradient that is part of a larger one is copied, and the result too if the kernel writes another layout."""
    gradient, result = call.arguments[0], call.outputs[0].spec
    if gradient.shape == result.shape:
        copies = []
    elif _works_channels_last(gradient) and is_channels_last_contiguous(result):
        copies = [_channels_last_copy_bytes(gradient)]
    else:
        copies = [copy_bytes(result), copy_bytes(gradient)]
    return results(call.sizes) + around(*copies)


RULES = {
    "aten::_index_put_impl_": _index_put,
    "aten::native_dropout": _dropout,
    "aten::roll": _roll,
    "aten::_log_softmax": _softmax,
    "aten::_softmax": _softmax,
    "aten::_softmax_backward_data": _softmax_backward,
    "aten::nll_loss2d_forward": _nll_loss2d,
    "aten::upsample_bilinear2d": _upsample_bilinear,
    "aten::upsample_bilinear2d_backward": _upsample_bilinear_backward,
}
