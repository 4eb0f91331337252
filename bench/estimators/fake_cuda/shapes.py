"""Shapes of results where torch's `Meta` kernels are missing or do not speak of CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.estimators.tensors import CHANNELS_LAST_ORDER, Spec, channels_last, contiguous, suggests_channels_last

def convolution_is_channels_last(first: Spec, weight: Spec) -> bool:
    """The format that cuDNN convolutions work in (aten/src/ATen/native/ConvUtils.h: cudnn_conv_suggest_memory_format)."""
    if first.dtype == "float64" or weight.dtype == "float64":
        return False
    return suggests_channels_last(first) or suggests_channels_last(weight)


def _like_convolution(dtype: str, shape: Sequence[int], last: bool) -> Spec:
    return channels_last(dtype, shape) if last and len(shape) in CHANNELS_LAST_ORDER else contiguous(dtype, shape)


def convolution(
    image: Spec, weight: Spec, bias: Spec | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Spec:  # fmt: skip
    """The result of a convolution over any number of spatial dimensions."""
    spatial = len(weight.shape) - 2

    def at(values: Sequence[int], index: int) -> int:
        return values[index] if len(values) > 1 else values[0]

    sizes = []
    for i in range(spatial):
        size, kernel, step = image.shape[i + 2], weight.shape[i + 2], at(stride, i)
        reach = at(dilation, i) * (kernel - 1)
        if transposed:
            sizes.append((size - 1) * step - 2 * at(padding, i) + reach + at(output_padding, i) + 1)
        else:
            sizes.append((size + 2 * at(padding, i) - reach - 1) // step + 1)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    shape = (image.shape[0], channels, *sizes)
    return _like_convolution(image.dtype, shape, convolution_is_channels_last(image, weight))


def convolution_backward(
    gradient: Spec, image: Spec, weight: Spec, bias_sizes: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, output_mask: Sequence[bool],
) -> tuple[Spec | None, ...]:  # fmt: skip
    """Gradients of image, weight and bias; the image's and weight's are in the convolution's format."""
    last = convolution_is_channels_last(image, weight)
    return (
        _like_convolution(image.dtype, image.shape, last) if output_mask[0] else None,
        _like_convolution(weight.dtype, weight.shape, last) if output_mask[1] else None,
        contiguous(gradient.dtype, (weight.shape[0] if not transposed else weight.shape[1] * groups,))
        if output_mask[2]
        else None,
    )


RULES: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "convolution_overrideable": convolution,
    "convolution_backward": convolution_backward,
}
"""By the operator's name without overload; arguments as in its schema with tensors as `Spec`s."""
