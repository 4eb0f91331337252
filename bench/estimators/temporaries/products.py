"""Workspaces of matrix products.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp, aten/src/ATen/cuda/CUDABlas.cpp. A workspace is taken from the caching
allocator, by version around each call or once for each thread: cuBLAS's own for mm, bmm and baddbmm, cublasLt's where
addmm goes there for its bias, and for all of them where cublasLt is preferred.
"""

from __future__ import annotations

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, results
from bench.estimators.tensors import Spec, is_contiguous


def _product(call: Call, machine: Machine) -> Script:
    operands = [spec for spec in call.arguments if isinstance(spec, Spec)][-2:]
    return results(call.sizes) + around(*map(_copy_bytes, operands), within=_transient(call, machine))


def _vector_product(call: Call, machine: Machine) -> Script:
    return results(call.sizes) + _transient(call, machine)


def _copy_bytes(spec: Spec) -> int:
    """Of a copy of an operand that cuBLAS cannot read (LinearAlgebraUtils, prepare_batch_matrix_for_cublas)."""
    if len(spec.shape) < 2 or spec.numel == 0:
        return 0
    (rows, columns), (down, across) = spec.shape[-2:], spec.strides[-2:]
    readable = (down == 1 and across >= max(1, rows)) or (across == 1 and down >= max(1, columns))
    dense = len(spec.shape) == 2 and is_contiguous(spec)
    return 0 if readable or dense else spec.numel * spec.item_bytes


def goes_to_lt(call: Call, machine: Machine) -> bool:
    """Whether cublasLt computes a product: of those with a bias, where it can add that, and no factor is a column.

    Up to 2.11 it adds rows, unscaled (isInputCompliesAddmmCudaLt in aten/src/ATen/native/cuda/Blas.cpp); in 2.15 it was
    seen to scale and add matrices too, where they lie row by row. What lies between is taken to turn at 2.14.
    """
    base = call.operator.partition(".")[0]
    if base != "aten::addmm" or machine.blas.prefers_lt:
        return machine.uses_lt(base)
    bias, _, factor, beta = call.arguments[:4]
    is_row = len(bias.shape) == 1 and bias.shape[0] == factor.shape[1]
    adds = is_row or len(bias.shape) == 2 if machine.torch_version >= (2, 14) else is_row and beta == 1
    return machine.uses_lt(base) and adds and is_contiguous(bias) and min(factor.shape) > 1


def _transient(call: Call, machine: Machine) -> Script:
    """The workspace that is taken around one call, if any."""
    if goes_to_lt(call, machine):
        return around(machine.lt_workspace_bytes, first=-4) if machine.lt_workspace == "each" else []
    return [] if machine.keeps_workspaces else around(machine.cublas_workspace_bytes, first=-4)


def kept_workspaces(call: Call, machine: Machine) -> list[tuple[str, int]]:
    """Name and bytes of the workspaces that a call allocates for good where it is a thread's first, in order.

    Up to 2.13 a cublasLt handle is a cuBLAS handle and brings cuBLAS's workspace with it; since then it does not.
    """
    if call.operator.partition(".")[0] not in RULES or not machine.keeps_workspaces:
        return []
    uses_lt, kind = goes_to_lt(call, machine), machine.lt_workspace
    own = uses_lt and kind == "kept"
    kept = [] if own and machine.torch_version >= (2, 14) else [("cublas", machine.cublas_workspace_bytes)]
    kept += [("cublaslt", machine.lt_workspace_bytes)] if own else []
    return [(name, size) for name, size in kept if size]


RULES = {
    "aten::mm": _product,
    "aten::bmm": _product,
    "aten::addmm": _product,
    "aten::baddbmm": _product,
    "aten::addmv": _vector_product,
    "aten::addmv_": _vector_product,
    "aten::dot": _vector_product,
    "aten::vdot": _vector_product,
}
