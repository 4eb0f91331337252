"""Operators whose results come in another order than they are returned, and those that copy an operand."""

from __future__ import annotations

import math
from collections.abc import Callable

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, copy_bytes, results
from bench.estimators.tensors import Spec, is_channels_last_contiguous, is_contiguous, lay_out, suggests_channels_last


def _copying(*places: int) -> Callable[[Call, Machine], Script]:
    """A rule: results first, then contiguous copies of the arguments at some places."""

    def rule(call: Call, machine: Machine) -> Script:
        return results(call.sizes) + around(*(copy_bytes(call.arguments[place]) for place in places))

    return rule


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
    """The product of gradient and result, copied if it is not contiguous, as the result is (SoftMax.cu)."""
    gradient, result = call.arguments[:2]
    product = lay_out(gradient, [gradient, result])
    return results(call.sizes) + around(product.nbytes, copy_bytes(product), copy_bytes(result))


def _pooled(call: Call, machine: Machine) -> Script:
    """Packed results and input where the results are not contiguous (AdaptiveMaxPooling2d.cu)."""
    packed = [copy_bytes(output.spec) for output in call.outputs]
    return results(call.sizes) + around(*packed, copy_bytes(call.arguments[0]))


def _in_format(*places: int, source: int) -> Callable[[Call, Machine], Script]:
    """A rule: results first, then copies of the arguments at some places in the format of the one at `source`."""

    def rule(call: Call, machine: Machine) -> Script:
        last = suggests_channels_last(call.arguments[source])
        packed = is_channels_last_contiguous if last else is_contiguous
        specs = [call.arguments[place] for place in places]
        return results(call.sizes) + around(*(0 if packed(spec) else spec.numel * spec.item_bytes for spec in specs))

    return rule


def _averaged(call: Call, machine: Machine) -> Script:
    """A packed input first, unless in channels-last (AdaptiveAveragePooling.cu)."""
    source = call.arguments[0]
    copy = 0 if suggests_channels_last(source) else copy_bytes(source)
    return around(copy, within=results(call.sizes))


def _averaged_backward(call: Call, machine: Machine) -> Script:
    """A packed gradient, unless in channels-last."""
    gradient, source = call.arguments[:2]
    return results(call.sizes) + around(0 if suggests_channels_last(source) else copy_bytes(gradient))


def _pooled_backward(call: Call, machine: Machine) -> Script:
    """Packed gradient, places and result (AdaptiveMaxPooling2d.cu)."""
    gradient, _, places = call.arguments[:3]
    packed = [copy_bytes(output.spec) for output in call.outputs]
    return results(call.sizes) + around(copy_bytes(gradient), copy_bytes(places), *packed)


def _antialiased(call: Call, machine: Machine) -> Script:
    """As `_pooled`, of an interpolation that averages (UpSampleBilinear2d.cu)."""
    return _pooled(call, machine)


def _unfold(call: Call, machine: Machine) -> Script:
    """A first result of the input's size, which is then made larger (aten/src/ATen/native/cuda/Im2Col.cu)."""
    source = call.arguments[0]
    first = source.numel * source.item_bytes
    if call.sizes[0] <= first:
        return [(0, first), *around(copy_bytes(source))]
    return around(first, copy_bytes(source), within=results(call.sizes))


def _distance_backward(call: Call, machine: Machine) -> Script:
    """Packed points, and each pair's share in the gradient (aten/src/ATen/native/cuda/DistanceKernel.cu)."""
    one, other = call.arguments[1:3]
    pairs = one.item_bytes * one.numel * other.shape[-2]
    return results(call.sizes) + around(copy_bytes(one), copy_bytes(other), pairs)


SORT_TILE, SORT_SCAN_TILE, SORT_BITS = 2304, 4608, 8
"""Pairs that one block sorts at once, that one block of a longer sort takes, and bits of the key in one pass."""


def _sort_bytes(count: int, largest: int) -> int:
    """Scratch of a sort of pairs of 64-bit numbers (cub::DeviceRadixSort in CUDA 13), as seen.

    Args:
        count: How many pairs.
        largest: The largest key.
    """
    if count <= SORT_TILE:
        return 1
    passes = max(1, -(-largest.bit_length() // SORT_BITS))
    moved = 2 * (-(-8 * count // 256) * 256) if passes > 1 else 0
    return 1024 * -(-count // SORT_SCAN_TILE) + 2048 * passes + moved + 511


def _pow_of_number(call: Call, machine: Machine) -> Script:
    """The base becomes a float64 or int64 tensor (aten/src/ATen/native/Pow.cpp: pow_Scalar_out), unless it is 1."""
    return results(call.sizes) + (around(8) if call.arguments[0] != 1 else [])


def _index_put(call: Call, machine: Machine) -> Script:
    """Accumulating writes sort their indices (aten/src/ATen/native/cuda/Indexing.cu: index_put_with_sort_kernel)."""
    target, indices, values, accumulate = call.arguments[:4]
    count = max((index.numel for index in indices if index is not None), default=0)
    if not accumulate or not count:
        return results(call.sizes)
    size, spread = 8 * count, 0 if is_contiguous(values) else values.numel * values.item_bytes
    last = max(place for place, index in enumerate(indices) if index is not None)
    largest = (target.numel - 1) // math.prod(target.shape[last + 1 :])
    script: Script = [(-1, size), (-2, size), (-2, 0)]
    script += [(-3, spread)] if spread else []
    script += [(-4, size), (-5, size), (-6, size), (-7, _sort_bytes(count, largest)), (-7, 0)]
    script += [(-6, 0), (-5, 0), (-4, 0)]
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


def _sort(call: Call, machine: Machine) -> Script:
    """Positions along the sorted dimension (aten/src/ATen/native/cuda/Sort.cu)."""
    source = call.arguments[0]
    dim = next((value for value in call.arguments[1:] if type(value) is int), -1)
    return results(call.sizes) + around(8 * source.shape[dim] if source.shape else 0)


_first = _copying(0)

RULES = {
    "aten::_adaptive_avg_pool2d": _averaged,
    "aten::_adaptive_avg_pool2d_backward": _averaged_backward,
    "aten::_cdist_backward": _distance_backward,
    "aten::_cdist_forward": _copying(0, 1),
    "aten::_index_put_impl_": _index_put,
    "aten::_log_softmax": _first,
    "aten::_log_softmax_backward_data": _copying(0, 1),
    "aten::_softmax": _first,
    "aten::_softmax_backward_data": _softmax_backward,
    "aten::_upsample_bicubic2d_aa": _antialiased,
    "aten::_upsample_bicubic2d_aa_backward": _first,
    "aten::_upsample_bilinear2d_aa": _antialiased,
    "aten::_upsample_bilinear2d_aa_backward": _first,
    "aten::adaptive_max_pool2d": _pooled,
    "aten::adaptive_max_pool2d_backward": _pooled_backward,
    "aten::avg_pool2d": _in_format(0, source=0),
    "aten::avg_pool2d_backward": _in_format(0, 1, source=1),
    "aten::avg_pool3d_backward": _first,
    "aten::col2im": _unfold,
    "aten::cumsum": _first,
    "aten::im2col": _unfold,
    "aten::max_pool2d_with_indices": _in_format(0, source=0),
    "aten::max_pool2d_with_indices_backward": _in_format(1, 0, 7, source=1),
    "aten::native_dropout": _dropout,
    "aten::nll_loss2d_forward": _nll_loss2d,
    "aten::pow.Scalar": _pow_of_number,
    "aten::reflection_pad2d": _first,
    "aten::reflection_pad2d_backward": _first,
    "aten::roll": _roll,
    "aten::rrelu_with_noise": _first,
    "aten::sort": _sort,
    "aten::topk": _first,
    "aten::_upsample_nearest_exact2d": _in_format(0, source=0),
    "aten::_upsample_nearest_exact2d_backward": _in_format(0, source=0),
    "aten::upsample_bicubic2d_backward": _first,
    "aten::upsample_bilinear2d_backward": _upsample_bilinear_backward,
    "aten::upsample_nearest2d": _in_format(0, source=0),
    "aten::upsample_nearest2d_backward": _in_format(0, source=0),
}
