"""Strides of the results of pointwise operators, as TensorIterator lays them out (aten/src/ATen/TensorIterator.cpp).

Torch's `Meta` kernels written in Python lay some of them out differently where dimensions have size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.estimators.tensors import (
    Spec,
    compare_strides,
    contiguous,
    is_channels_last_contiguous,
    is_contiguous,
    sort_dims,
)

POINTWISE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "rsub",
        "gelu",
        "gelu_backward",
        "silu",
        "silu_backward",
        "relu",
        "threshold_backward",
        "hardswish",
        "hardswish_backward",
        "hardsigmoid",
        "hardsigmoid_backward",
        "sigmoid",
        "sigmoid_backward",
        "tanh",
        "tanh_backward",
        "pow",
        "neg",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "abs",
        "clamp",
        "clamp_min",
        "clamp_max",
        "where",
        "maximum",
        "minimum",
        "hardtanh",
        "hardtanh_backward",
        "leaky_relu",
        "leaky_relu_backward",
        "elu",
        "elu_backward",
        "mish",
        "mish_backward",
        "softplus",
        "softplus_backward",
        "addcmul",
        "addcdiv",
        "lerp",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    ]
)

SECOND_FIRST = frozenset(("threshold_backward", "leaky_relu_backward"))
"""Operators that give TensorIterator their second tensor first (aten/src/ATen/native/Activation.cpp)."""


def lay_out(result: Spec, operands: Sequence[Spec]) -> Spec:
    """`result` with the strides that TensorIterator gives it for these operands."""
    shape = result.shape
    same = all(spec.shape == shape for spec in operands)
    if same and all(map(is_contiguous, operands)):
        return contiguous(result.dtype, shape)
    if same and (all(map(is_channels_last_contiguous, operands)) or _equal_and_dense(operands)):
        return Spec(result.dtype, shape, operands[0].strides)
    steps = [_broadcast(spec, shape) for spec in operands]
    strides, step = [0] * len(shape), 1
    for dim in sort_dims(len(shape), partial(compare_strides, shape, steps)):
        strides[dim] = step
        step *= shape[dim]
    return Spec(result.dtype, shape, tuple(strides))


def _equal_and_dense(operands: Sequence[Spec]) -> bool:
    first = operands[0]
    if any(spec.strides != first.strides for spec in operands):
        return False
    step = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(first.strides, first.shape, strict=True) if size != 1
    ):
        if stride != step:
            return False
        step *= size
    return True


def _broadcast(spec: Spec, shape: Sequence[int]) -> list[int]:
    """Strides in bytes over the result's dimensions, 0 where the operand is repeated."""
    missing = len(shape) - len(spec.shape)
    own = [
        0 if size == 1 and shape[missing + dim] != 1 else stride * spec.item_bytes
        for dim, (size, stride) in enumerate(zip(spec.shape, spec.strides, strict=True))
    ]
    return [0] * missing + own
