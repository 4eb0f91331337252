"""Workspaces of matrix products.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp, aten/src/ATen/cuda/CUDABlas.cpp. As seen in torch 2.15, a workspace is
taken from the caching allocator around each call: cuBLAS's own size for mm, bmm, addmm and baddbmm, 1 MiB where addmm
goes to cublasLt for its bias.
"""

from __future__ import annotations

from typing import Any

from bench.estimators.temporaries.machine import MIB, Machine
from bench.estimators.temporaries.scripts import Script, around, results


def _product(arguments: tuple[Any, ...], outputs: list[int], machine: Machine) -> Script:
    if machine.keeps_workspaces:
        return results(outputs)
    return results(outputs) + around(machine.cublas_workspace_bytes)


def _addmm(arguments: tuple[Any, ...], outputs: list[int], machine: Machine) -> Script:
    return results(outputs) + around(MIB)


OPERATORS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
"""Operators that use cuBLAS's workspace: where it is kept, the first of them in a thread allocates it."""

RULES = {"aten::mm": _product, "aten::bmm": _product, "aten::addmm": _addmm, "aten::baddbmm": _product}
