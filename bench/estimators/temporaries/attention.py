"""Scaled-dot-product attention.

Source: aten/src/ATen/native/transformers/cuda/attention.cu and attention_backward.cu,
mem_eff_attention/kernel_backward.h (workspace_size).
"""

from __future__ import annotations

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, results
from bench.estimators.tensors import Spec, is_contiguous

BLOCK = 64
"""Queries and columns that one block of the memory-efficient kernel takes in float32."""


def _efficient(call: Call, machine: Machine) -> Script:
    """Seed and offset go first, then the result and the logarithms of the sums."""
    return [(2, call.sizes[2]), (3, call.sizes[3]), (0, call.sizes[0]), (1, call.sizes[1])]


def _efficient_backward(call: Call, machine: Machine) -> Script:
    gradient, query = call.arguments[0], call.arguments[1]
    batch, heads, length, _ = query.shape
    sums = 4 * batch * heads * length
    product = 4 * query.numel
    copied = not is_contiguous(_transposed(gradient))
    script: Script = [(-5, product)] if copied else []
    script += [(0, call.sizes[0]), (1, call.sizes[1]), (2, call.sizes[2])]
    script += [(-1, product), (-2, sums), (-3, sums), (-2, 0), (-1, 0)]
    workspace = workspace_bytes(query)
    script += [(-4, workspace), (-4, 0), (-3, 0)]
    return [*script, (-5, 0)] if copied else script


def _transposed(spec: Spec) -> Spec:
    """With heads and positions exchanged."""
    return Spec(spec.dtype, *(tuple(values[index] for index in (0, 2, 1, 3)) for values in spec[1:]))


def workspace_bytes(query: Spec) -> int:
    """Of the float32 backward from compute capability 8.0 on: gradients of queries, a lock and a counter a tile."""
    batch, heads, length, width = query.shape
    tiles = -(-length // BLOCK) * -(-width // BLOCK)
    return 4 * batch * heads * tiles * (BLOCK * BLOCK + 4)


def _cudnn_backward(call: Call, machine: Machine) -> Script:
    """Workspace of cudnn-frontend: gradients of queries in float32 and a sum a row; cuDNN's own comes on top."""
    batch, heads, length, width = call.arguments[1].shape
    return results(call.sizes) + around(4 * batch * heads * length * (width + 1))


def _flash(call: Call, machine: Machine) -> Script:
    """In torch 2.6 the state of the random numbers lies on the CPU and what is unused is not allocated."""
    return results(call.sizes[:2] if machine.torch_version <= (2, 6) else call.sizes)


def _flash_backward(call: Call, machine: Machine) -> Script:
    """Contiguous gradient and result, the gradients, rows' sums, queries' gradient in float32 (flash_api.cpp)."""
    gradient, query, result = call.arguments[0], call.arguments[1], call.arguments[4]
    batch, heads, length, width = query.shape
    rows, columns = -(-length // 128) * 128, -(-width // 32) * 32
    copies = [
        query.numel * query.item_bytes if not is_contiguous(_transposed(spec)) else 0 for spec in (gradient, result)
    ]
    slots = [(-1 - index, size) for index, size in enumerate(copies) if size]
    inner = around(4 * batch * heads * rows, 4 * batch * rows * heads * columns, first=-3)
    return [*slots, *results(call.sizes), *inner, *((slot, 0) for slot, _ in slots)]


RULES = {
    "aten::_scaled_dot_product_flash_attention": _flash,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_cudnn_attention": _efficient,
    "aten::_scaled_dot_product_cudnn_attention_backward": _cudnn_backward,
    "aten::_scaled_dot_product_efficient_attention": _efficient,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
}
