"""Scaled-dot-product attention.

Source: aten/src/ATen/native/transformers/cuda/attention.cu and attention_backward.cu,
mem_eff_attention/kernel_backward.h (workspace_size), flash_attn/flash_api.cpp.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, results
from bench.estimators.tensors import Spec, is_contiguous

HALF = ("bfloat16", "float16")
WIDEST_IN_REGISTERS = 128
"""Widest heads whose results the memory-efficient kernel for half precision keeps in registers."""

MASK_ALIGNMENT = 16
"""Of the rows of the mask's gradient, in elements."""


def _efficient(call: Call, machine: Machine) -> Script:
    """Seed and offset (on the CPU with dropout), the result, logarithms of the sums, the result in float32."""
    query, value, dropout = call.arguments[0], call.arguments[2], call.arguments[5]
    script: Script = [] if dropout else [(2, call.sizes[2]), (3, call.sizes[3])]
    script += [(0, call.sizes[0]), (1, call.sizes[1])]
    wide = query.dtype in HALF and max(query.shape[3], value.shape[3]) > WIDEST_IN_REGISTERS
    return script + (around(4 * math.prod(query.shape[:3]) * value.shape[3]) if wide else [])


def _efficient_backward(call: Call, machine: Machine) -> Script:
    gradient, query, key, value, mask = call.arguments[:5]
    batch, heads, length = query.shape[:3]
    sums = 4 * batch * heads * length
    repeated = [_repeated_bytes(spec, heads) if spec.shape[1] != heads else 0 for spec in (key, value)]
    copy = 0 if is_contiguous(_transposed(gradient)) else gradient.numel * gradient.item_bytes
    script: Script = [(-5, copy)] if copy else []
    script += results(call.sizes[:3])
    script += [(slot, size) for slot, size in zip((-6, -7), repeated, strict=True) if size]
    if len(call.sizes) > 3:
        rows = batch * heads * length
        script.append((3, mask.item_bytes * rows * _rounded(key.shape[2], MASK_ALIGNMENT)))
    if query.dtype in HALF:
        script.append((-3, sums))
    else:
        script += [(-1, 4 * gradient.numel), (-2, sums)]
        copied = length != 1 and heads != 1
        script += [(-3, sums), (-2, 0), (-1, 0)] if copied else [(-1, 0)]
    workspace = workspace_bytes(query, key, value, call.arguments[9], machine.compute_capability)
    script += [(-4, workspace), (-4, 0)]
    freed = {slot for slot, size in script if not size}
    return script + [(slot, 0) for slot, _ in reversed(script) if slot < 0 and slot not in freed]


def _repeated_bytes(spec: Spec, heads: int) -> int:
    """Of a gradient of keys or values with as many heads as the queries."""
    return spec.item_bytes * spec.numel // spec.shape[1] * heads


def _rounded(value: int, to: int) -> int:
    return -(-value // to) * to


def _transposed(spec: Spec) -> Spec:
    """With heads and positions exchanged."""
    return Spec(spec.dtype, *(tuple(values[index] for index in (0, 2, 1, 3)) for values in spec[1:]))


class AttentionBlocks(NamedTuple):
    """How a backward kernel divides its work.

    Attributes:
        queries: Positions of queries that one block takes.
        keys: Positions of keys that one block takes.
        columns: Of the queries' gradient that one tile has.
        adds_up: Whether gradients of keys and values are summed in the workspace.
    """

    queries: int
    keys: int
    columns: int
    adds_up: bool = False


def _blocks(dtype: str, width: int, dropout: float, capability: tuple[int, int]) -> AttentionBlocks:
    """Of the first kernel that takes the width and fits the shared memory of a multiprocessor.

    Source: mem_eff_attention/kernels/cutlassB.h; seen on compute capability 8.0, 8.6 and 9.0.
    """
    little_memory = capability in ((8, 6), (8, 9)) or capability[0] == 12
    if width <= 64 or capability < (8, 0):
        return AttentionBlocks(64, 64, 64)
    if dtype not in HALF:
        return AttentionBlocks(64 if little_memory else 128, 64, 64)
    if width > WIDEST_IN_REGISTERS:
        return AttentionBlocks(128, 64, 64, adds_up=True)
    if not little_memory:
        return AttentionBlocks(128, 128, 128)
    if width <= 96 and not dropout and capability[0] == 8:
        return AttentionBlocks(128, 64, 64)
    return AttentionBlocks(64, 64, 64, adds_up=True)


def workspace_bytes(query: Spec, key: Spec, value: Spec, dropout: float, capability: tuple[int, int]) -> int:
    """Gradients of queries with a lock and a counter a tile; those of keys and values where they are added up."""
    batch, heads, length, width = query.shape
    keys, value_width = key.shape[2], value.shape[3]
    blocks = _blocks(query.dtype, max(width, value_width), dropout, capability)
    tiles = -(-length // blocks.queries) * -(-width // blocks.columns)
    elements = tiles * (blocks.queries * blocks.columns + 4)
    if blocks.adds_up:
        splits = 1 if batch * heads >= 256 and keys <= 2 * blocks.keys else -(-keys // blocks.keys)
        splits = max(min(splits, 200 // (batch * heads)), 1)
        elements += splits * blocks.keys * sum(_rounded(size, blocks.queries) for size in (width, value_width))
    return 4 * batch * heads * _rounded(elements, 4)


def _cudnn_backward(call: Call, machine: Machine) -> Script:
    """Workspace of cudnn-frontend: gradients of queries in float32 and a sum per row; cuDNN's own comes on top."""
    batch, heads, length, width = call.arguments[1].shape
    return results(call.sizes) + around(4 * batch * heads * length * (width + 1))


def _cudnn(call: Call, machine: Machine) -> Script:
    """Seed and offset go first, then the result and the logarithms of the sums."""
    return [(2, call.sizes[2]), (3, call.sizes[3]), (0, call.sizes[0]), (1, call.sizes[1])]


def _flash(call: Call, machine: Machine) -> Script:
    """In torch 2.6 the state of the random numbers lies on the CPU and what is unused is not allocated.

    Where few blocks of queries would leave the GPU idle, keys are split and the results of the parts joined.
    """
    query, key, dropout = call.arguments[0], call.arguments[1], call.arguments[3]
    batch, heads, length, width = query.shape
    script = results(call.sizes[:2])
    splits = 1 if dropout else _splits(batch * heads * -(-length // 64), key.shape[2], width, machine.multiprocessors)
    parts = 4 * splits * batch * heads * length if splits > 1 else 0
    script += [(-1, parts), (-2, parts * _rounded_width(width))] if parts else []
    script += [] if machine.torch_version <= (2, 6) else [(2, call.sizes[2]), (3, call.sizes[3])]
    return script + ([(-2, 0), (-1, 0)] if parts else []) + (around(call.sizes[2]) if dropout else [])


def _rounded_width(width: int) -> int:
    return _rounded(width, 32 if width <= 128 else 64)


def _splits(blocks: int, keys: int, width: int, multiprocessors: int) -> int:
    """Into how many parts the keys are split (flash_api.cpp: num_splits_heuristic)."""
    places = 2 * multiprocessors
    if blocks >= 0.8 * places:
        return 1
    key_blocks = -(-keys // (256 if width <= 64 else 128 if width <= 128 else 64))
    efficiency: dict[int, float] = {}
    for splits in range(1, min(128, places, key_blocks) + 1):
        if splits == 1 or -(-key_blocks // splits) != -(-key_blocks // (splits - 1)):
            waves = blocks * splits / places
            efficiency[splits] = waves / math.ceil(waves)
    best = max(efficiency.values(), default=0.0)
    return next((splits for splits, value in efficiency.items() if value >= 0.85 * best), 1)


def _flash_backward(call: Call, machine: Machine) -> Script:
    """Contiguous gradient and result, the gradients, rows' sums, queries' gradient in float32 (flash_api.cpp)."""
    gradient, query, key, value, result = call.arguments[:5]
    batch, heads, length, width = query.shape
    rows, columns = _rounded(length, 128), _rounded_width(width)
    copies = [
        query.numel * query.item_bytes if not is_contiguous(_transposed(spec)) else 0 for spec in (gradient, result)
    ]
    slots = [(-1 - index, size) for index, size in enumerate(copies) if size]
    repeated = [_repeated_bytes(spec, heads) if spec.shape[1] != heads else 0 for spec in (key, value)]
    inner = around(4 * batch * heads * rows, 4 * batch * rows * heads * columns, *repeated, first=-3)
    return [*slots, *results(call.sizes), *inner, *((slot, 0) for slot, _ in slots)]


RULES = {
    "aten::_scaled_dot_product_flash_attention": _flash,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_cudnn_attention": _cudnn,
    "aten::_scaled_dot_product_cudnn_attention_backward": _cudnn_backward,
    "aten::_scaled_dot_product_efficient_attention": _efficient,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
}
