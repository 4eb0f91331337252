"""What a recorded step costs: the kernels behind each call, with the FLOPs and bytes of each. No torch here.

FLOPs are those of torch's own formulas (`torch.utils.flop_counter`), a multiplication and an addition counting two.
The gradient of a convolution's weight is the exception: torch's formula takes it `groups` times too large, and it is
counted as what it is, as many as the forward's.

Bytes are what must cross between the chip and its memory when no cache holds anything between two kernels: every input
once, every output once, unless the kernel is known to read more often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.estimators.recording import Call
from bench.estimators.tensors import Spec

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


def step_kernels(calls: Iterable[Call]) -> list[tuple[str, Kernel]]:
    """All kernels of a step with their phases; what happens in `zero_grad` belongs to the optimizer.

    Returns:
        `(forward | backward | optimizer, kernel)`, in order.
    """
    found: list[tuple[str, Kernel]] = []
    for call in calls:
        phase = call.phase.name.lower()
        if phase in ("forward", "backward"):
            found += [(phase, kernel) for kernel in list_kernels(call)]
        else:
            found += [("optimizer", kernel._replace(kind="optimizer")) for kernel in list_kernels(call)]
    return found


def list_kernels(call: Call) -> list[Kernel]:
    """The kernels of one call; none for what only allocates."""
    name = call.name
    if name in _FREE:
        return []
    if name.startswith(("_foreach_", "_fused_", "_amp_foreach_")):
        return _over_lists(call)
    return _RULES.get(name, _elementwise)(call)


_FREE = frozenset(
    ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "as_strided_")
)

Rule = Callable[[Call], list[Kernel]]


def _specs(value: Any) -> Iterator[Spec]:
    """All tensors in nested tuples."""
    if type(value) is Spec:
        yield value
    elif type(value) is tuple:
        for item in value:
            yield from _specs(item)


def touched_bytes(spec: Spec) -> int:
    """Bytes of the elements that there are in memory: an expanded dimension counts once."""
    numbers = 1
    for size, stride in zip(spec.shape, spec.strides, strict=True):
        if stride or size == 0:
            numbers *= size
    return numbers * spec.item_bytes


def _bytes(value: Any) -> int:
    return sum(map(touched_bytes, _specs(value)))


def _made(call: Call) -> list[Spec]:
    return [output.spec for output in call.outputs]


def _traffic(call: Call) -> int:
    """Every tensor read once and written once."""
    written = [call.arguments[place] for place in call.written]
    read = call.arguments
    if call.name in _OVERWRITING or call.operator.endswith("out"):  # what is written is not read first
        read = tuple(value for place, value in enumerate(call.arguments) if place not in call.written)
    return _bytes(read) + _bytes(tuple(written)) + (0 if written else sum(map(touched_bytes, _made(call))))


_OVERWRITING = frozenset(
    ("copy_", "fill_", "zero_", "bernoulli_", "uniform_", "normal_", "_foreach_copy_", "_foreach_zero_")
)


def _dtype(call: Call) -> str:
    first = next(_specs((tuple(_made(call)), call.arguments)), None)
    return first.dtype if first else "float32"


def _elementwise(call: Call) -> list[Kernel]:
    traffic = _traffic(call)
    return [Kernel("elementwise", _dtype(call), nbytes=traffic)] if traffic else []


def _as(kind: str, reads: Sequence[float] = (), writes: float = 1.0) -> Rule:
    """A rule for kernels that read their arguments `reads` times (once each unless given) and write their results."""

    def rule(call: Call) -> list[Kernel]:
        first = next(_specs(call.arguments))
        if not reads:
            return [Kernel(kind, first.dtype, nbytes=_traffic(call))]
        read = sum(times * _bytes(value) for times, value in zip(reads, call.arguments, strict=False))
        return [Kernel(kind, first.dtype, nbytes=read + writes * sum(map(touched_bytes, _made(call))))]

    return rule


def _product(call: Call) -> list[Kernel]:
    first = 1 if call.name in ("addmm", "baddbmm") else 0
    left, right = call.arguments[first], call.arguments[first + 1]
    *batch, rows, depth = left.shape
    columns, products = right.shape[-1], math.prod(batch)
    return [
        Kernel(
            "matmul",
            left.dtype,
            flops=2.0 * products * rows * columns * depth,
            nbytes=_traffic(call),
            rows=rows,
            columns=columns,
            depth=depth,
            products=products,
        )
    ]


def _attention(call: Call) -> list[Kernel]:
    """Two products forward; five backward, where the scores are computed again."""
    is_backward = call.name.endswith("backward")
    query, key, value = call.arguments[1:4] if is_backward else call.arguments[0:3]
    *batch, rows, depth = query.shape
    columns, products = key.shape[-2], math.prod(batch)
    widths = 3 * depth + 2 * value.shape[-1] if is_backward else depth + value.shape[-1]
    return [
        Kernel(
            "attention",
            query.dtype,
            flops=2.0 * products * rows * columns * widths,
            nbytes=_traffic(call),
            rows=rows,
            columns=columns,
            depth=depth,
            products=products,
        )
    ]


def _convolution(call: Call) -> list[Kernel]:
    images, weight, bias = call.arguments[:3]
    (output,) = _made(call)
    transposed, groups = call.arguments[6], call.arguments[8]
    kernels = [_image_kernel(images, weight, output, transposed, groups, "output")]
    if bias is not None:
        kernels.append(Kernel("elementwise", images.dtype, nbytes=2 * touched_bytes(output)))
    return kernels


def _convolution_backward(call: Call) -> list[Kernel]:
    gradient, images, weight = call.arguments[:3]
    transposed, groups, wanted = call.arguments[7], call.arguments[9], call.arguments[10]
    kernels = [
        _image_kernel(images, weight, gradient, transposed, groups, towards)
        for towards, is_wanted in zip(("images", "weight"), wanted, strict=False)
        if is_wanted
    ]
    if wanted[2]:
        kernels.append(Kernel("reduction", gradient.dtype, nbytes=touched_bytes(gradient)))
    return kernels


def _image_kernel(images: Spec, weight: Spec, output: Spec, transposed: bool, groups: int, towards: str) -> Kernel:
    """One of the three products of a convolution: towards its output, or the gradient of its images or weight."""
    channels, filters, window = weight.shape[1], weight.shape[0] // groups, math.prod(weight.shape[2:])
    pixels = images.shape[0] * math.prod((images if transposed else output).shape[2:])
    rows, columns, depth = {
        "output": (pixels, filters, channels * window),
        "images": (images.shape[0] * math.prod(images.shape[2:]), channels, filters * window),
        "weight": (filters, channels * window, pixels),
    }[towards]
    return Kernel(
        kind="depthwise" if groups > 1 and channels == 1 else "convolution",
        dtype=images.dtype,
        flops=2.0 * pixels * math.prod(weight.shape),
        nbytes=touched_bytes(images) + touched_bytes(weight) + touched_bytes(output),
        layout_bytes=touched_bytes(images) + touched_bytes(output),
        rows=rows,
        columns=columns,
        depth=depth,
        products=groups,
        shared=float(towards == "weight"),
        window=window,
    )


def _over_lists(call: Call) -> list[Kernel]:
    """One operator over lists of tensors, in as few launches as torch makes of it.

    A fused optimizer does not write its gradients, though its schema allows it.
    """
    lists = [value for value in call.arguments if type(value) is tuple and value and type(value[0]) is Spec]
    if not lists:
        return []
    traffic = _traffic(call)
    if call.name.startswith("_fused_"):
        traffic -= _bytes(call.arguments[1])
    return [Kernel("elementwise", lists[0][0].dtype, nbytes=traffic, launches=_launches(lists[0], len(lists)))]


def _launches(tensors: Sequence[Spec], lists: int) -> int:
    """Kernels of one operator over lists of tensors (aten/src/ATen/native/cuda/MultiTensorApply.cuh)."""
    most = {1: 110, 2: 64, 3: 48, 4: 36}.get(lists, 30)
    chunks = sum(-(-spec.numel // 65_536) for spec in tensors)
    return max(-(-len(tensors) // most), -(-chunks // 320))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _product),
    **{
        f"_scaled_dot_product_{kernel}_attention{way}": _attention
        for kernel in ("efficient", "flash", "cudnn")
        for way in ("", "_backward")
    },
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    # cuDNN's persistent form: what was read for the statistics stays on the chip (cudnnBatchNormMode_t)
    "native_batch_norm": _as("normalisation", (1.0,)),
    "native_batch_norm_backward": _as("normalisation", (1.0, 1.0)),
    "cudnn_batch_norm": _as("normalisation", (1.0,)),
    "cudnn_batch_norm_backward": _as("normalisation", (1.0, 1.0)),
    "native_layer_norm": _as("normalisation", (1.0,)),
    # one kernel for the input's gradient, one for the weight's and bias's (native/cuda/layer_norm_kernel.cu)
    "native_layer_norm_backward": _as("normalisation", (2.0, 2.0)),
    "native_group_norm": _as("normalisation", (2.0,)),
    "native_group_norm_backward": _as("normalisation", (2.0, 2.0)),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _as("reduction")),
    "_softmax_backward_data": _as("reduction", (1.0, 1.0)),
    "_log_softmax_backward_data": _as("reduction", (1.0, 1.0)),
    **dict.fromkeys(("sum", "mean", "linalg_vector_norm"), _as("reduction")),
    "var_mean": _as("reduction", (2.0,)),
    "max_pool2d_with_indices_backward": _as("elementwise", (1.0, 0.0, 0, 0, 0, 0, 0, 1.0)),
    "avg_pool2d_backward": _as("elementwise", (1.0, 0.0)),
    "_adaptive_avg_pool2d": _as("reduction"),
    "_adaptive_avg_pool2d_backward": _as("elementwise", (1.0, 0.0)),
}
