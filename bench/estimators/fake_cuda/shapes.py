"""Shapes of results where torch's `Meta` kernels are missing or do not speak of CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.estimators.tensors import CHANNELS_LAST_ORDER, Spec, channels_last, contiguous, suggests_channels_last


def convolution_is_channels_last(first: Spec, weight: Spec) -> bool:
    """Whether cuDNN works in channels-last (aten/src/ATen/native/ConvUtils.h: cudnn_conv_suggest_memory_format)."""
    if first.dtype == "float64" or weight.dtype == "float64":
        return False
    return suggests_channels_last(first) or suggests_channels_last(weight)


def _like_convolution(dtype: str, shape: Sequence[int], last: bool) -> Spec:
    return channels_last(dtype, shape) if last and len(shape) in CHANNELS_LAST_ORDER else contiguous(dtype, shape)


def convolution(
    image: Spec,
    weight: Spec,
    bias: Spec | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Spec:
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
    gradient: Spec,
    image: Spec,
    weight: Spec,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Spec | None, ...]:
    """Gradients of image, weight and bias; the image's and weight's are in the convolution's format."""
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    last = suggests_channels_last(image)
    return (
        _like_convolution(image.dtype, image.shape, last or suggests_channels_last(weight)) if output_mask[0] else None,
        _like_convolution(weight.dtype, weight.shape, last) if output_mask[1] else None,
        contiguous(gradient.dtype, (channels,)) if output_mask[2] else None,
    )


def layer_norm_backward(gradient: Spec, image: Spec, *rest: Any) -> tuple[Spec | None, ...]:
    """Contiguous gradients of image, weight and bias (aten/src/ATen/native/cuda/layer_norm_kernel.cu)."""
    weight, bias, mask = rest[3:6]
    return (
        contiguous(image.dtype, image.shape) if mask[0] else None,
        contiguous(weight.dtype, weight.shape) if mask[1] and weight else None,
        contiguous(bias.dtype, bias.shape) if mask[2] and bias else None,
    )


def batch_norm_backward(gradient: Spec, image: Spec, weight: Spec | None, *rest: Any) -> tuple[Spec | None, ...]:
    """Gradients of image, in its layout, weight and bias (aten/src/ATen/native/cuda/Normalization.cu)."""
    mask, scale = rest[6], weight.dtype if weight else "float32"
    channels = contiguous(scale, (image.shape[1],))
    return dense_like(image) if mask[0] else None, channels if mask[1] else None, channels if mask[2] else None


def dense_like(spec: Spec) -> Spec:
    """A tensor without gaps, its dimensions ordered in memory as those of `spec` (empty_like's preserve_format)."""
    order = sorted(range(len(spec.shape)), key=lambda dim: (spec.strides[dim], -dim))
    strides, step = [0] * len(spec.shape), 1
    for dim in order:
        strides[dim] = step
        step *= max(spec.shape[dim], 1)
    return Spec(spec.dtype, spec.shape, tuple(strides))


def _positions_first(dtype: str, shape: Sequence[int]) -> Spec:
    """`(B, heads, positions, width)` that lies in memory as `(B, positions, heads, width)`."""
    _, heads, length, width = shape
    return Spec(dtype, tuple(shape), (length * heads * width, width, heads * width, 1))


_SEED = Spec("int64", (), ())


def efficient_attention(query: Spec, key: Spec, value: Spec, mask: Any, wants_sums: bool, *_: Any) -> tuple[Any, ...]:
    """Result, logarithms of the sums (positions rounded up to 32), seed, offset (transformers/cuda/attention.cu)."""
    batch, heads, length = query.shape[:3]
    sums = contiguous("float32", (batch, heads, -(-length // 32) * 32 if wants_sums else 0))
    return _positions_first(query.dtype, (*query.shape[:3], value.shape[3])), sums, _SEED, _SEED


def efficient_attention_backward(gradient: Spec, query: Spec, key: Spec, value: Spec, *_: Any) -> tuple[Any, ...]:
    """Gradients of query, key and value, positions before heads; none of the mask."""
    return (*(_positions_first(spec.dtype, spec.shape) for spec in (query, key, value)), None)


def cudnn_attention(query: Spec, key: Spec, value: Spec, mask: Any, wants_sums: bool, *_: Any) -> tuple[Any, ...]:
    """Result in the layout of the query, logarithms of the sums, seed, offset (native/cudnn/MHA.cpp)."""
    sums = contiguous("float32", (*query.shape[:3], 1))
    return dense_like(query), sums, None, None, query.shape[2], key.shape[2], _SEED, _SEED, None


def attention_backward(gradient: Spec, query: Spec, key: Spec, value: Spec, *_: Any) -> tuple[Spec, ...]:
    """Gradients in the layouts of query, key and value."""
    return tuple(dense_like(spec) for spec in (query, key, value))


def flash_attention(query: Spec, key: Spec, value: Spec, *_: Any) -> tuple[Any, ...]:
    """Result in the layout of the query, logarithms of the sums, state of the random numbers.

    Source: transformers/cuda/flash_attn/flash_api.cpp. Torch 2.6 keeps the random numbers' state on the CPU.
    """
    sums = contiguous("float32", query.shape[:3])
    state = (contiguous("uint64", (2,)), contiguous("uint64", ()))
    return dense_like(query), sums, None, None, query.shape[2], key.shape[2], *state, None


RULES: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "convolution_overrideable": convolution,
    "convolution_backward": convolution_backward,
    "native_batch_norm_backward": batch_norm_backward,
    "native_layer_norm_backward": layer_norm_backward,
    "roll": lambda source, *_: contiguous(source.dtype, source.shape),
    "_scaled_dot_product_efficient_attention": efficient_attention,
    "_scaled_dot_product_efficient_attention_backward": efficient_attention_backward,
    "_scaled_dot_product_cudnn_attention": cudnn_attention,
    "_scaled_dot_product_cudnn_attention_backward": attention_backward,
    "_scaled_dot_product_flash_attention": flash_attention,
    "_scaled_dot_product_flash_attention_backward": attention_backward,
}
"""By the operator's name without overload; arguments as in its schema with tensors as `Spec`s."""
