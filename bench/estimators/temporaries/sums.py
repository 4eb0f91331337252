"""Operators that are a reduction, or hold one."""

from __future__ import annotations

from typing import Any

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine
from bench.estimators.temporaries.reductions import reduction_buffers
from bench.estimators.temporaries.scripts import Script, around, results
from bench.estimators.tensors import Spec


def sum_buffers(source: Spec, dims: Any, dtype: Any, machine: Machine) -> Script:
    """The buffers of a sum or mean (aten/src/ATen/native/cuda/ReduceSumProdKernel.cu, ReduceMomentKernel.cu)."""
    return _buffers(source, dims, dtype, machine, 8 if source.item_bytes == 2 else 4)


def _buffers(source: Spec, dims: Any, dtype: Any, machine: Machine, vector: int) -> Script:
    output = dtype or source.dtype
    script: Script = []
    for group in reduction_buffers(
        source, tuple(dims) if dims else None, output, max(4, source.item_bytes), machine, vector
    ):
        script += around(*group)
    return script


def _sum(call: Call, machine: Machine) -> Script:
    source, dims, _, dtype = call.arguments[:4]
    return results(call.sizes) + sum_buffers(source, dims, dtype, machine)


def _sum_all(call: Call, machine: Machine) -> Script:
    return results(call.sizes) + sum_buffers(call.arguments[0], None, call.arguments[1], machine)


def _norm(call: Call, machine: Machine) -> Script:
    """A reduction (ReduceNormKernel.cu), but over dimensions of size 1 absolute values (LinearAlgebra.cpp)."""
    source, _, dims, _, dtype = call.arguments[:5]
    ndim = len(source.shape)
    reduced = {dim % ndim for dim in dims} if dims and ndim else range(ndim)
    if all(source.shape[dim] == 1 for dim in reduced):
        return results(call.sizes)
    return results(call.sizes) + _buffers(source, dims, dtype, machine, 4)


RULES = {
    "aten::sum.dim_IntList": _sum,
    "aten::mean.dim": _sum,
    "aten::sum": _sum_all,
    "aten::mean": _sum_all,
    "aten::linalg_vector_norm": _norm,
}
