"""Workspaces of matrix products.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp, aten/src/ATen/cuda/CUDABlas.cpp. A workspace is
taken from the caching allocator, by version around each call or once for each thread: cuBLAS's own size for mm, bmm and
baddbmm, 1 MiB where addmm goes to cublasLt for its bias.
"""

from __future__ import annotations

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import MIB, Machine
from bench.estimators.temporaries.scripts import Script, around, results


def _product(call: Call, machine: Machine) -> Script:
    if machine.keeps_workspaces:
        return results(call.sizes)
    return results(call.sizes) + around(machine.cublas_workspace_bytes)


def _addmm(call: Call, machine: Machine) -> Script:
    return results(call.sizes) + (around(MIB) if machine.lt_workspace == "each" else [])


def kept_workspaces(operator: str, machine: Machine) -> list[tuple[str, int]]:
    """Name and bytes of the workspaces that an operator's first call in a thread allocates for good, in order."""
    base = operator.partition(".")[0]
    if base not in RULES or not machine.keeps_workspaces:
        return []
    kept = [("cublas", machine.cublas_workspace_bytes)]
    return [*kept, ("cublaslt", MIB)] if base == "aten::addmm" and machine.lt_workspace == "kept" else kept


RULES = {"aten::mm": _product, "aten::bmm": _product, "aten::addmm": _addmm, "aten::baddbmm": _product}
