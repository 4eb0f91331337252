"""Batch norm, layer norm, RMS norm and group norm.

Sources: aten/src/ATen/native/cuda/Normalization.cuh (flexible_launch_configs and the channels-last templates),
aten/src/ATen/native/cuda/Normalization.cu, aten/src/ATen/native/cuda/layer_norm_kernel.cu.
"""

from __future__ import annotations

import math

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, copy_bytes, results
from bench.estimators.temporaries.sums import WARP, sum_buffers
from bench.estimators.tensors import Spec, contiguous, is_channels_last_contiguous, is_contiguous

MAX_THREADS, TILE_WIDTH, PER_THREAD, MAX_ROWS, LEAST_ROWS = 512, 32, 16, 128, 8
INT32_MAX = 2**31 - 1


def _last_power(value: int) -> int:
    return 1 << (max(value, 1).bit_length() - 1)


def _grid(rows: int, channels: int) -> tuple[int, int]:
    """Blocks along the channels and along the reduced dimension."""
    width = min(_last_power(channels), TILE_WIDTH)
    height = min(_last_power(-(-rows // PER_THREAD)), MAX_THREADS // width)
    if width * height != MAX_THREADS:
        width = min(_last_power(channels), MAX_THREADS // height)
    across = -(-channels // width)
    down = min(-(-rows // (height * PER_THREAD)), MAX_ROWS)
    return across, down if down >= LEAST_ROWS else 1


def _staging(image: Spec, factor: int) -> tuple[int, int]:
    """Bytes of the staging buffer and the semaphores of a channels-last kernel."""
    channels = image.shape[1]
    across, down = _grid(image.numel // channels, channels)
    return (4 * factor * channels * down, 4 * across) if down > 1 else (0, 0)


def _is_channels_last(image: Spec) -> bool:
    return is_channels_last_contiguous(image) or (is_contiguous(image) and image.strides[1] == 1)


def _batch_norm(call: Call, machine: Machine) -> Script:
    image = call.arguments[0]
    plain = is_contiguous(image) and image.strides[1] != 1
    script = results(call.sizes)
    return script if plain or not _is_channels_last(image) else script + around(*_staging(image, 4))


def _batch_norm_backward(call: Call, machine: Machine) -> Script:
    """Two sums a channel and, without training, the deviations, then the gradients of weight and bias and the image's.

    The sums are staged where image and gradient are in channels-last.
    """
    gradient, image, trains, mask = (call.arguments[place] for place in (0, 1, 7, 9))
    if not _is_channels_last(image) or image.numel > INT32_MAX:
        return results(call.sizes)
    slots = iter(enumerate(call.sizes))
    for_image, *others = [next(slots) if wanted else None for wanted in mask]
    channels = 4 * image.shape[1]
    script: Script = [(-1, channels), (-2, channels), *filter(None, others)]
    staged = around(*_staging(image, 2), first=-3) if _is_channels_last(gradient) else []
    if trains:
        return [*script, *staged, *filter(None, [for_image]), (-2, 0), (-1, 0)]
    return [*script, (-5, channels), *staged, *filter(None, [for_image]), (-5, 0), (-2, 0), (-1, 0)]


def _enclosed(copies: list[int], inner: Script) -> Script:
    """Copies made before, freed after."""
    slots = [(-6 - index, size) for index, size in enumerate(copies) if size]
    return slots + inner + [(slot, 0) for slot, _ in reversed(slots)]


def _layer_norm(call: Call, machine: Machine) -> Script:
    return _enclosed([copy_bytes(call.arguments[0])], results(call.sizes))


MANY_ROWS, ROWS_A_BLOCK = 64 * 1024, 32


def _layer_norm_backward(call: Call, machine: Machine) -> Script:
    """Of layer norm and RMS norm, whose lists of wanted gradients stand last.

    Gradients of weight and bias are summed in two steps where rows are many and short.
    """
    gradient, image, mask = call.arguments[0], call.arguments[1], call.arguments[-1]
    late, width = copy_bytes(gradient), math.prod(call.arguments[2])
    rows = image.numel // width if width else 0
    script = results(call.sizes)
    if rows > MANY_ROWS and width // WARP < machine.multiprocessors // 2 and any(mask[1:]):
        script = _layer_norm_in_parts(call, rows, width, machine)
        late_script: Script = [(-9, late)] if late else []
        place = len(call.sizes)
        script = [*script[:place], *late_script, *script[place:], *([(-9, 0)] if late else [])]
    elif late:
        script += [(-2, late), (-2, 0)]
    return _enclosed([copy_bytes(image)], script)


def _layer_norm_in_parts(call: Call, rows: int, width: int, machine: Machine) -> Script:
    """Sums of 32 rows each, then their sum in place of the gradient that was allocated first."""
    blocks = -(-rows // ROWS_A_BLOCK)
    slots = [slot for slot, output in enumerate(call.outputs) if math.prod(output.spec.shape) == width]
    slots = [slot for slot in slots if slot or not call.arguments[-1][0]]
    parts = [contiguous(call.outputs[slot].spec.dtype, (blocks, width)) for slot in slots]
    script: Script = [(slot, size) if slot not in slots else (-10 - slot, size) for slot, size in enumerate(call.sizes)]
    script += [(-13 - slot, part.nbytes) for slot, part in zip(slots, parts, strict=True)]
    for slot, part in zip(slots, parts, strict=True):
        script += [(slot, call.sizes[slot]), *sum_buffers(part, (0,), None, machine), (-10 - slot, 0)]
    return script + [(-13 - slot, 0) for slot in reversed(slots)]


def _group_norm(call: Call, machine: Machine) -> Script:
    """A factor and a summand for each channel of each sample (aten/src/ATen/native/cuda/group_norm_kernel.cu)."""
    weight, bias, samples, channels, pixels = call.arguments[1:6]
    if pixels == 1 or (weight is None and bias is None):
        return results(call.sizes)
    factors = 4 * samples * channels
    return results(call.sizes) + around(factors, factors)


def _group_norm_backward(call: Call, machine: Machine) -> Script:
    """Two sums a channel, and three coefficients: two a group and, unless in channels-last, one a channel."""
    image, weight, samples, channels, pixels, groups, mask = (call.arguments[place] for place in (1, *range(4, 10)))
    if pixels == 1:
        return results(call.sizes)
    sums, coefficients = 4 * samples * channels, 4 * samples * groups if mask[0] else 0
    own = sums if mask[0] and weight is not None and is_contiguous(image) else 0
    return results(call.sizes) + around(sums, sums, coefficients, coefficients, own)


RULES = {
    "aten::_fused_rms_norm": _layer_norm,
    "aten::_fused_rms_norm_backward": _layer_norm_backward,
    "aten::native_batch_norm": _batch_norm,
    "aten::native_batch_norm_backward": _batch_norm_backward,
    "aten::native_group_norm": _group_norm,
    "aten::native_group_norm_backward": _group_norm_backward,
    "aten::native_layer_norm": _layer_norm,
    "aten::native_layer_norm_backward": _layer_norm_backward,
}
