"""Workspaces of matrix products.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp, aten/src/ATen/cuda/CUDABlas.cpp. A workspace is taken from the caching
allocator, by version around each call or once for each thread: cuBLAS's own for mm, bmm and baddbmm, cublasLt's where
addmm goes there for its bias, and for all of them where cublasLt is preferred.
"""

from __future__ import annotations

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine, Script, around, results


def _product(call: Call, machine: Machine) -> Script:
    return results(call.sizes) + _transient("aten::mm", machine)


def _addmm(call: Call, machine: Machine) -> Script:
    return results(call.sizes) + _transient("aten::addmm", machine)


def _transient(operator: str, machine: Machine) -> Script:
    """The workspace that is taken around one call, if any."""
    if machine.uses_lt(operator):
        return around(machine.lt_workspace_bytes) if machine.lt_workspace == "each" else []
    return [] if machine.keeps_workspaces else around(machine.cublas_workspace_bytes)


def kept_workspaces(operator: str, machine: Machine) -> list[tuple[str, int]]:
    """Name and bytes of the workspaces that an operator's first call in a thread allocates for good, in order.

    Up to 2.13 a cublasLt handle is a cuBLAS handle and brings cuBLAS's workspace with it; since then it does not.
    """
    base = operator.partition(".")[0]
    if base not in RULES or not machine.keeps_workspaces:
        return []
    uses_lt, kind = machine.uses_lt(base), machine.lt_workspace
    own = uses_lt and kind == "kept"
    kept = [] if own and machine.torch_version >= (2, 14) else [("cublas", machine.cublas_workspace_bytes)]
    kept += [("cublaslt", machine.lt_workspace_bytes)] if own else []
    return [(name, size) for name, size in kept if size]


RULES = {"aten::mm": _product, "aten::bmm": _product, "aten::addmm": _addmm, "aten::baddbmm": _product}
