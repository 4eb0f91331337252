"""Batch norm and layer norm.

Sources: aten/src/ATen/native/cuda/Normalization.cuh (flexible_launch_configs and the channels-last templates),
aten/src/ATen/native/cuda/Normalization.cu, aten/src/ATen/native/cuda/layer_norm_kernel.cu.
"""

from __future__ import annotations

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, copy_bytes, results
from bench.estimators.tensors import Spec, is_channels_last_contiguous, is_contiguous

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
    image = call.arguments[1]
    if not _is_channels_last(image) or image.numel > INT32_MAX or len(call.sizes) != 3:
        return results(call.sizes)
    channels = 4 * image.shape[1]
    script: Script = [(-1, channels), (-2, channels), (1, call.sizes[1]), (2, call.sizes[2])]
    return [*script, *around(*_staging(image, 2), first=-3), (0, call.sizes[0]), (-2, 0), (-1, 0)]


def _enclosed(copies: list[int], inner: Script) -> Script:
    """Copies made before, freed after."""
    slots = [(-1 - index, size) for index, size in enumerate(copies) if size]
    return slots + inner + [(slot, 0) for slot, _ in reversed(slots)]


def _layer_norm(call: Call, machine: Machine) -> Script:
    return _enclosed([copy_bytes(call.arguments[0])], results(call.sizes))


def _layer_norm_backward(call: Call, machine: Machine) -> Script:
    gradient, image = call.arguments[:2]
    late = copy_bytes(gradient)
    script = results(call.sizes) + ([(-2, late), (-2, 0)] if late else [])
    return _enclosed([copy_bytes(image)], script)


RULES = {
    "aten::native_batch_norm": _batch_norm,
    "aten::native_batch_norm_backward": _batch_norm_backward,
    "aten::native_layer_norm": _layer_norm,
    "aten::native_layer_norm_backward": _layer_norm_backward,
}
