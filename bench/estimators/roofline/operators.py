"""What an operator costs: the kernels behind it, with the FLOPs and bytes of each.

FLOPs are those of torch's own formulas (`torch.utils.flop_counter`), a multiplication and an addition counting two.
The gradient of a convolution's weight is the exception: torch's formula takes it `groups` times too large, and it is
counted as what it is, as many as the forward's.

Bytes are what must cross between the chip and its memory when no cache holds anything between two kernels: every input
once, every output once, unless the kernel is known to read more often.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

CLASSES = ("convolution", "depthwise", "matmul", "attention", "normalisation", "reduction", "elementwise", "optimizer")
"""Classes of operators; the optimizer's are one class whatever they do, since they differ by their bytes only."""


class Kernel(NamedTuple):
    """One kernel.

    Attributes:
        kind: One of `CLASSES`.
        dtype: Torch's name of the type that it computes in, `float16`; decides the peak rate.
        flops: Multiplications and additions of its products; 0 for all others, which memory bounds.
        nbytes: Read and written.
        layout_bytes: Of the images it reads and writes, where it is a convolution.
        rows: Of the product that it is, M.
        columns: N.
        depth: K, what is summed over.
        products: How many such products (batched ones, groups of a convolution).
        shared: Whether multiprocessors share the work of one sum, as they do where it runs over all images; 1 or 0.
        window: Positions of a convolution's filter; 1 elsewhere.
        launches: How many kernels are launched where several alike are written as one.
    """

    kind: str
    dtype: str = "float32"
    flops: float = 0.0
    nbytes: float = 0.0
    layout_bytes: float = 0.0
    rows: float = 0.0
    columns: float = 0.0
    depth: float = 0.0
    products: float = 1.0
    shared: float = 0.0
    window: float = 1.0
    launches: float = 1.0


Rule = Callable[..., list[Kernel]]
"""`(operator, arguments, named, result) -> kernels`."""


def list_kernels(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> list[Kernel]:
    """The kernels of one call that a dispatch mode saw; none for views and for what the host does alone.

    Args:
        operator: The `OpOverload`.
        arguments: As it was called.
        named: Its keyword arguments.
        result: What it returned.
    """
    if _launches_nothing(operator):
        return []
    rule: Rule = _RULES.get(operator._schema.name.removeprefix("aten::"), _elementwise)
    return list(rule(operator, arguments, named, result))


_FREE = frozenset((
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh", "_unsafe_view",
    "resize_", "set_", "as_strided_", "_reshape_alias", "alias",
))  # fmt: skip


@functools.cache
def _launches_nothing(operator: Any) -> bool:
    schema = operator._schema
    if schema.name.removeprefix("aten::") in _FREE:
        return True
    aliases = [value.alias_info for value in schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def touched_bytes(tensor: Tensor) -> int:
    """Bytes of the elements that there are in memory: an expanded dimension counts once."""
    numbers = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0)
    return numbers * tensor.element_size()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@functools.cache
def _written(operator: Any) -> tuple[int, ...]:
    """Positions of the arguments that the operator writes to."""
    arguments = operator._schema.arguments
    return tuple(
        place for place, value in enumerate(arguments) if value.alias_info is not None and value.alias_info.is_write
    )


def _traffic(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> int:
    """Every tensor read once and written once."""
    places = _written(operator)
    names = [value.name for value in operator._schema.arguments]
    written = [arguments[place] if place < len(arguments) else named.get(names[place]) for place in places]
    given: list[Any] = [arguments, named]
    if operator._schema.name in _OVERWRITING:  # what is written is not read first
        given = [value for place, value in enumerate(arguments) if place not in places]
    made = () if places else tensors_in(result)
    return sum(map(touched_bytes, (*tensors_in(given), *tensors_in(written), *made)))


_OVERWRITING = frozenset((
    "aten::copy_", "aten::fill_", "aten::zero_", "aten::bernoulli_", "aten::uniform_", "aten::normal_",
    "aten::_foreach_copy_", "aten::_foreach_zero_",
))  # fmt: skip


def _elementwise(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> list[Kernel]:
    first = next(tensors_in((result, arguments)), None)
    if first is None or all(tensor.device.type == "cpu" for tensor in tensors_in((arguments, named, result))):
        return []
    return [Kernel("elementwise", _dtype(first), nbytes=_traffic(operator, arguments, named, result))]


def _as(kind: str, reads: Sequence[float] = (), writes: float = 1.0) -> Rule:
    """A rule for kernels that read their arguments `reads` times (once each unless given) and write their results."""

    def rule(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> list[Kernel]:
        first = next(tensors_in(arguments))
        if not reads:
            return [Kernel(kind, _dtype(first), nbytes=_traffic(operator, arguments, named, result))]
        read = sum(
            times * sum(map(touched_bytes, tensors_in(value))) for times, value in zip(reads, arguments, strict=False)
        )
        written = sum(map(touched_bytes, tensors_in(result)))
        return [Kernel(kind, _dtype(first), nbytes=read + writes * written)]

    return rule


def _flops(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> float:
    return float(flop_registry[operator._overloadpacket](*arguments, **named, out_val=result))


def _product(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> list[Kernel]:
    left = arguments[1] if operator._schema.name in ("aten::addmm", "aten::baddbmm") else arguments[0]
    *batch, rows, depth = left.shape
    return [
        Kernel(
            "matmul", _dtype(left),
            flops=_flops(operator, arguments, named, result), nbytes=_traffic(operator, arguments, named, result),
            rows=rows, columns=result.shape[-1], depth=depth, products=math.prod(batch),
        )
    ]  # fmt: skip


def _attention(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> list[Kernel]:
    query, key = (arguments[1], arguments[2]) if "backward" in operator._schema.name else (arguments[0], arguments[1])
    return [
        Kernel(
            "attention", _dtype(query),
            flops=_flops(operator, arguments, named, result), nbytes=_traffic(operator, arguments, named, result),
            rows=query.shape[-2], columns=key.shape[-2], depth=query.shape[-1], products=math.prod(query.shape[:-2]),
        )
    ]  # fmt: skip


def _convolution(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> list[Kernel]:
    images, weight, bias = arguments[:3]
    kernels = [_image_kernel(images, weight, result, arguments, reads=(images, weight), writes=result)]
    if bias is not None:
        kernels.append(Kernel("elementwise", _dtype(images), nbytes=2 * touched_bytes(result)))
    return kernels


def _convolution_backward(
    operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any
) -> list[Kernel]:
    gradient, images, weight = arguments[:3]
    wants_images, wants_weight, wants_bias = arguments[10]
    forward = (arguments[1], arguments[2], None, *arguments[4:10])
    kernels = []
    if wants_images:
        kernels.append(_image_kernel(images, weight, gradient, forward, (gradient, weight), result[0], "images"))
    if wants_weight:
        kernels.append(_image_kernel(images, weight, gradient, forward, (gradient, images), result[1], "weight"))
    if wants_bias:
        kernels.append(Kernel("reduction", _dtype(gradient), nbytes=touched_bytes(gradient)))
    return kernels


def _image_kernel(
    images: Tensor,
    weight: Tensor,
    output: Tensor,
    forward: tuple[Any, ...],
    reads: tuple[Tensor, Tensor],
    writes: Tensor,
    towards: str = "output",
) -> Kernel:
    """One of the three products of a convolution; `forward` holds the forward's arguments."""
    groups = forward[8]
    channels, filters, window = weight.shape[1], weight.shape[0] // groups, math.prod(weight.shape[2:])
    pixels = images.shape[0] * math.prod((images if forward[6] else output).shape[2:])
    shapes = {
        "output": (pixels, filters, channels * window),
        "images": (images.shape[0] * math.prod(images.shape[2:]), channels, filters * window),
        "weight": (filters, channels * window, pixels),
    }
    rows, columns, depth = shapes[towards]
    flops = flop_registry[torch.ops.aten.convolution](*forward, out_val=output)
    return Kernel(
        kind="depthwise" if groups > 1 and channels == 1 else "convolution",
        dtype=_dtype(images),
        flops=float(flops),
        nbytes=sum(map(touched_bytes, (*reads, writes))),
        layout_bytes=touched_bytes(images) + touched_bytes(output),
        rows=rows, columns=columns, depth=depth, products=groups, shared=float(towards == "weight"), window=window,
    )  # fmt: skip


def _written_whole(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> list[Kernel]:
    """Gradients of a slice: zeros everywhere, then the copy of the slice."""
    small, whole = touched_bytes(arguments[0]), touched_bytes(result)
    return [
        Kernel("elementwise", _dtype(result), nbytes=whole),
        Kernel("elementwise", _dtype(result), nbytes=2 * small),
    ]


_RULES: dict[str, Rule] = {
    "mm": _product, "bmm": _product, "addmm": _product, "baddbmm": _product,
    "convolution": _convolution, "convolution_backward": _convolution_backward,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_efficient_attention_backward": _attention,
    # cuDNN's persistent form: what was read for the statistics stays on the chip (cudnnBatchNormMode_t)
    "native_batch_norm": _as("normalisation", (1.0,)),
    "native_batch_norm_backward": _as("normalisation", (1.0, 1.0)),
    "native_layer_norm": _as("normalisation", (1.0,)),
    # one kernel for the input's gradient, one for the weight's and bias's (native/cuda/layer_norm_kernel.cu)
    "native_layer_norm_backward": _as("normalisation", (2.0, 2.0)),
    "native_group_norm": _as("normalisation", (2.0,)),
    "native_group_norm_backward": _as("normalisation", (2.0, 2.0)),
    "_softmax": _as("reduction"), "_safe_softmax": _as("reduction"), "_log_softmax": _as("reduction"),
    "_softmax_backward_data": _as("reduction", (1.0, 1.0)),
    "_log_softmax_backward_data": _as("reduction", (1.0, 1.0)),
    "sum": _as("reduction"), "mean": _as("reduction"), "linalg_vector_norm": _as("reduction"),
    "var_mean": _as("reduction", (2.0,)),
    "max_pool2d_with_indices": _as("elementwise"),
    "max_pool2d_with_indices_backward": _as("elementwise", (1.0, 0.0, 0, 0, 0, 0, 0, 1.0)),
    "avg_pool2d_backward": _as("elementwise", (1.0, 0.0)),
    "_adaptive_avg_pool2d": _as("reduction"), "_adaptive_avg_pool2d_backward": _as("elementwise", (1.0, 0.0)),
    "slice_backward": _written_whole, "select_backward": _written_whole,
}  # fmt: skip
