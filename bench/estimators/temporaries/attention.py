"""Scaled-dot-product attention.

Source: aten/src/ATen/native/transformers/cuda/attention.cu and attention_backward.cu,
mem_eff_attention/kernel_backward.h (workspace_size).
"""

from __future__ import annotations

from typing import Any

from bench.estimators.temporaries.machine import Machine
from bench.estimators.temporaries.scripts import Script
from bench.estimators.tensors import Spec

BLOCK = 64
"""Queries and columns that one block of the memory-efficient kernel takes in float32."""


def _efficient(arguments: tuple[Any, ...], outputs: list[int], machine: Machine) -> Script:
    """Seed and offset go first, then the result and the logarithms of the sums."""
    return [(2, outputs[2]), (3, outputs[3]), (0, outputs[0]), (1, outputs[1])]


def _efficient_backward(arguments: tuple[Any, ...], outputs: list[int], machine: Machine) -> Script:
    gradient, query = arguments[0], arguments[1]
    batch, heads, length, width = query.shape
    sums = 4 * batch * heads * length
    product = 4 * query.numel
    script: Script = [(0, outputs[0]), (1, outputs[1]), (2, outputs[2])]
    script += [(-1, product), (-2, sums), (-3, sums), (-2, 0), (-1, 0)]
    workspace = workspace_bytes(query)
    return [*script, (-4, workspace), (-4, 0), (-3, 0)]


def workspace_bytes(query: Spec) -> int:
    """Of the float32 backward on compute capability 8.0 and above: gradients of queries, with a lock and a counter a tile."""
    batch, heads, length, width = query.shape
    tiles = -(-length // BLOCK) * -(-width // BLOCK)
    return 4 * batch * heads * tiles * (BLOCK * BLOCK + 4)


RULES = {
    "aten::_scaled_dot_product_efficient_attention": _efficient,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
}
