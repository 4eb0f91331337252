"""The roofline: how long a training step takes at the least that such kernels usually need. A first estimate.

It reads the recording that the memory's estimate reads too: each call is a kernel or a few with FLOPs and bytes
(`Kernel`), and each kernel takes the longer of its arithmetic and its traffic, and a launch:

    time = max(FLOPs / (peak of its type x efficiency), bytes / (bandwidth x efficiency)) + launch overhead

The efficiency of a product falls with small sides: `columns / (columns + c) x depth / (depth + d)`, as a tile that is
not filled does the work of one that is; that of a convolution also with few tiles for each multiprocessor, `tiles /
(tiles + t)`. Kernels without products, and depthwise convolutions, are bound by their traffic. The host takes time for
each kernel too: a step of small kernels takes as long as the host needs to ask for them.

How far off it is stands below, and in every estimate's `basis`. What it leaves out:

* the data path: decoding and the copy to the device (inputs other than `synthetic`);
* which kernel cuDNN and cuBLAS choose: winners of `cudnn.benchmark`, poor choices for odd sizes, Winograd by case;
* caches between kernels: every tensor comes from memory and goes there, which overestimates small ones on chips with a
  large L2, but for batch norm, whose images stay on the chip between statistics and result;
* clocks: the device file's peaks hold at a rated clock; cards with little power (T4, L4) stay far below theirs;
* `torch.compile`, and allocations that make the step wait;
* how far the host is ahead of the device: the step takes the longer of the two, as if either always hid the other; the
  gradient scaler of fp16 makes the host wait once per step;
* the host's own speed, which no device file holds: its time per kernel is one constant. A step of small convolutions
  took 15 us per kernel, one of a small MLP 5 us, on one core of a server's CPU without a GPU; published profiles say 5
  to 25 us.

The constants say how much of a device's peaks kernels reach. They were fitted on two sources, both real measurements by
others and neither in this repository; `tools/fit_roofline.py` fits again and prints these figures.

1. Single operators, forward only, float32, torch 2.1 (scai-tech/NeuSight): `memory_frac`, `launch_s` on 11,642 rows of
   elementwise operators of 7 NVIDIA GPUs, P4 to A100 (median error 4.4 %, p90 17.7 %); `reduction_frac` on 2,033 of
   softmax (9.9 %, 34 %); `normalisation_frac` on 2,038 of layer norm (11.6 %, 37 %); `matmul_frac`, `product_depth` on
   14,521 of matrix products on P100, V100, A100 and H100 (16 %, 43 %); `winograd_frac`, `convolution_columns`,
   `convolution_tiles` on 14,697 of convolutions by 3 x 3 on P100, V100 and A100 (28 %, 71 %). Cards of 75 W and less
   are left out of products: their clocks are far below the rated ones.
2. Training steps of an RTX 3090, fp16 autocast, torch 1.12, CUDA 11.3, batches that fill the card (timm's
   `benchmark.py`), 142 rows of models of 13 families that torchvision has too (`tools/timm_models.toml`):
   `depthwise_frac`, `direct_frac`, and the factors `fp16_contiguous` and `fp16_channels_last`: four constants in all.

Error of samples/s on the steps: median 4.2 %, p90 19.3 %, rank correlation 0.994 in the sample; median 7.4 %, p90 20 %,
rank correlation 0.992 where each family was predicted with the other families' constants. What is counted, and the form
of the curves, was decided with these rows in sight, so the second figure flatters too. On 34 rows of 17 models that no
decision was made on (widths and depths that torchvision has no name for, among them vision transformers, which torch
1.12 ran without fused attention): median 8.3 %, p90 47 %, rank correlation 0.989. Worst: RegNet in channels-last (cuDNN
8.3's direct kernels), small MobileNets and MNASNets, and Inception, whose steps take longer than estimated. No other
GPU, no float32 and no small step has been checked.

`Kernel`s stand behind each call of a recorded step. FLOPs are those of torch's own formulas
(`torch.utils.flop_counter`), a multiplication and an addition counting two. The gradient of a convolution's weight is
the exception: torch's formula takes it `groups` times too large, and it is counted as many as the forward's.

Bytes are what must cross between the chip and its memory when no cache holds anything between two kernels: every input
once, every output once, unless the kernel is known to read more often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.devices import PRECISIONS, Device
from bench.errors import Unsupported
from bench.estimators.recording import Call, Recording, StepEnd, calls_of
from bench.estimators.tensors import Spec
from bench.records import Case, MemoryFormat, Precision

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


def step_kernels(calls: Iterable[Call], known: dict[Any, Any] | None = None) -> list[tuple[str, Kernel]]:
    """All kernels of a step with their phases; what happens in `zero_grad` belongs to the optimizer.

    Args:
        calls: Of the step.
        known: Receives what was found for each call, so that calls that are alike are worked out once.

    Returns:
        `(forward | backward | optimizer, kernel)`, in order.
    """
    found: list[tuple[str, Kernel]] = []
    known = {} if known is None else known
    for call in calls:
        key = (call.operator, call.phase, id(call.arguments), *[output.nbytes for output in call.outputs])
        if key not in known:
            known[key] = call.arguments, _phase_kernels(call)
        found += known[key][1]
    return found


def _phase_kernels(call: Call) -> list[tuple[str, Kernel]]:
    phase = call.phase.name.lower()
    if phase in ("forward", "backward"):
        return [(phase, kernel) for kernel in list_kernels(call)]
    return [("optimizer", kernel._replace(kind="optimizer")) for kernel in list_kernels(call)]


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


@dataclass(frozen=True, slots=True)
class Constants:
    """Shares of the device's peaks (`_frac`), sides of products at which half of a share is reached, and seconds.

    Attributes:
        memory_frac: Of the bandwidth: elementwise kernels, copies, the optimizer, and products bound by traffic.
        normalisation_frac: Of the bandwidth, with the reads that `operators` counts.
        reduction_frac: Of the bandwidth: softmax, sums.
        depthwise_frac: Of the bandwidth.
        winograd_frac: Of the peak rate, convolutions by 3 x 3 in float32 without tensor cores, which multiply less
            than is counted.
        convolution_columns: Channels per group at which half of it is reached.
        convolution_tiles: Tiles of its result for each multiprocessor, likewise.
        matmul_frac: Of the peak rate, products and all other convolutions.
        product_depth: Length of the sums at which half of it is reached, in convolutions too (channels per group times
            positions of the filter): single convolutions were at hand with filters of 3 x 3 only, which do not tell.
        attention_frac: Of the peak rate; FlashAttention-2 (arXiv 2307.08691) reports 0.5 to 0.73; not fitted.
        direct_frac: Of the peak rate, grouped convolutions in channels-last without a tensor-core kernel.
        layout_passes: Reads and writes of a convolution's images when they are turned round; known, not fitted.
        launch_s: Start and end of a kernel, where the device file has none.
        host_dispatch_s: Of the host for each kernel: Python, autograd, dispatcher, driver. Not fitted, see `__init__`.
        fp16_contiguous: What times in 16 bits are multiplied by, contiguous.
        fp16_channels_last: Likewise, channels-last.
    """

    memory_frac: float = 0.753
    normalisation_frac: float = 0.511
    reduction_frac: float = 0.599
    depthwise_frac: float = 0.228
    winograd_frac: float = 0.979
    convolution_columns: float = 6.92
    convolution_tiles: float = 0.256
    matmul_frac: float = 0.789
    product_depth: float = 41.7
    attention_frac: float = 0.5
    direct_frac: float = 0.0347
    layout_passes: float = 2.0
    launch_s: float = 6.59e-6
    host_dispatch_s: float = 15e-6
    fp16_contiguous: float = 0.898
    fp16_channels_last: float = 0.866

    def scale(self, precision: Precision, memory_format: MemoryFormat) -> float:
        """What times are multiplied by; 1 in float32 and tf32, of which no steps were at hand to fit on."""
        if precision not in ("bf16", "fp16"):
            return 1.0
        return self.fp16_channels_last if memory_format == "channels_last" else self.fp16_contiguous


CONSTANTS = Constants()
"""As fitted."""

FITTED_ON = (
    "fitted on single float32 operators and on large fp16 steps of an RTX 3090 (median error of samples/s 4 % "
    "there, 7 % on families held out, one in ten over 20 %); not validated on other GPUs or small steps"
)
"""What a reader must know beside an estimate: the figures above in one line."""


_RATES: Mapping[str, str] = {"float16": "fp16", "bfloat16": "bf16", "float32": "float32"}
_TILE_ELEMENTS = 128 * 128
"""Of a product's result that one block of threads computes, as usual in cuDNN and CUTLASS."""

_WINOGRAD_WINDOW = 9
"""Filters of 3 x 3, which cuDNN may compute by Winograd's transform, though not on tensor cores in general."""

_LEAST = 1e-6
"""In place of 0, which is of no product."""

_DIRECT_GROUPS, _DIRECT_WIDTH = 32, 32
"""Grouped convolutions in channels-last need so many groups, of at most so many channels, for a tensor-core kernel.

Read off timm's rows (cuDNN 8.3: RegNet takes 2 to 3 times longer than contiguous, ResNeXt does not); newer cuDNN may
have more kernels. pytorch/pytorch issue 34977 shows the direct kernels that run instead.
"""


def kernel_time_s(
    kernel: Kernel, device: Device, precision: Precision, memory_format: MemoryFormat, constants: Constants = CONSTANTS
) -> float:
    """Seconds of a kernel on the device, launch included.

    Raises:
        Unsupported: The device file lacks the bandwidth, the multiprocessors, or the peak rate of a type that is used.
    """
    bandwidth = device.memory_bandwidth_bytes_per_s
    if bandwidth is None:
        raise Unsupported(_missing("memory_bandwidth_bytes_per_s", device))
    if device.multiprocessors is None:
        raise Unsupported(_missing("multiprocessors", device))
    arithmetic = conversion = 0.0
    if kernel.flops > 0:
        peak = _peak(kernel.dtype, device, precision)
        frac = _product_frac(kernel, device.multiprocessors, precision, memory_format, constants)
        arithmetic = kernel.flops / (peak * frac) if kernel.kind != "depthwise" else 0.0
    traffic = kernel.nbytes / (bandwidth * _memory_frac(kernel.kind, constants))
    if kernel.kind == "convolution" and memory_format != "channels_last" and precision != "float32":
        # tensor cores want channels last: cuDNN turns contiguous images round before and after
        conversion = constants.layout_passes * kernel.layout_bytes / (bandwidth * constants.memory_frac)
    launch = device.launch_overhead_s if device.launch_overhead_s is not None else constants.launch_s
    scale = constants.scale(precision, memory_format)
    return (max(arithmetic, traffic) + conversion) * scale + launch * kernel.launches


def _missing(key: str, device: Device) -> str:
    return f"no speed estimate on {device.name}: {key} is unknown; add it to a device file (--device-file)"


def _peak(dtype: str, device: Device, precision: Precision) -> float:
    """FLOP/s of products of a type."""
    rate = "tf32" if precision == "tf32" and dtype == "float32" else _RATES.get(dtype, dtype)
    peak = device.peak_flop_per_s(rate) if rate in PRECISIONS else None
    if peak is None:
        raise Unsupported(_missing(f"peak_{rate}_flop_per_s", device))
    return peak


def _product_frac(
    kernel: Kernel, multiprocessors: int, precision: Precision, memory_format: MemoryFormat, constants: Constants
) -> float:
    """Share of the peak rate that a product reaches."""
    if kernel.kind == "matmul":
        return constants.matmul_frac * _filled(kernel.depth, constants.product_depth)
    if kernel.kind != "convolution":
        return constants.attention_frac
    on_tensor_cores = kernel.dtype != "float32" or precision == "tf32"
    transformed = kernel.window == _WINOGRAD_WINDOW and not on_tensor_cores
    sides = _filled(kernel.columns, constants.convolution_columns) * _filled(kernel.depth, constants.product_depth)
    tiles = float(kernel.rows) * kernel.columns * kernel.products / (_TILE_ELEMENTS * multiprocessors)
    spread = 1.0 if kernel.shared > 0 else _filled(tiles, constants.convolution_tiles)
    frac = (constants.winograd_frac if transformed else constants.matmul_frac) * sides * spread
    if memory_format == "channels_last" and _has_no_tensor_kernel(kernel):
        return min(frac, constants.direct_frac)
    return frac


def _filled(amount: float, half: float) -> float:
    """Share of the peak at an amount of work side by side; one half at `half`."""
    return max(amount, _LEAST) / (max(amount, _LEAST) + half)


def _has_no_tensor_kernel(kernel: Kernel) -> bool:
    groups, channels = kernel.products, min(kernel.rows, kernel.columns)
    halves = kernel.dtype in ("float16", "bfloat16")
    return halves and groups > 1 and (groups < _DIRECT_GROUPS or channels > _DIRECT_WIDTH)


def _memory_frac(kind: str, constants: Constants) -> float:
    """Share of the bandwidth that a class of kernels reaches."""
    own = {
        "normalisation": constants.normalisation_frac,
        "reduction": constants.reduction_frac,
        "depthwise": constants.depthwise_frac,
    }
    return own.get(kind, constants.memory_frac)


__all__ = ["CONSTANTS", "Constants", "SpeedEstimate", "estimate_speed", "kernels_of"]


@dataclass(frozen=True, slots=True)
class SpeedEstimate:
    """How fast a case is thought to run on a device.

    Attributes:
        step_time_s: Of one optimizer step: the longer of the device's time and the host's.
        samples_per_s: Batch size over step time.
        basis: What it is, what it was fitted on and how far off that was; to be shown beside the number.
        device_time_s: Of all kernels, one after another.
        host_time_s: Of the host to ask for them.
        flops: Of the step's products.
        moved_bytes: Between the chip and its memory.
        kernel_count: How many kernels a step launches.
        class_times_s: `(class of operators, seconds)` of the device's time, the longest first.
        phase_times_s: `(forward | backward | optimizer, seconds)`, in this order.
    """

    step_time_s: float
    samples_per_s: float
    basis: str
    device_time_s: float
    host_time_s: float
    flops: float
    moved_bytes: float
    kernel_count: int
    class_times_s: tuple[tuple[str, float], ...]
    phase_times_s: tuple[tuple[str, float], ...]

    @property
    def host_bound(self) -> bool:
        """Whether the host, not the device, decides the step's time."""
        return self.host_time_s > self.device_time_s


def estimate_speed(recording: Recording, case: Case, device: Device, constants: Constants = CONSTANTS) -> SpeedEstimate:
    """The roofline of one case on one device.

    Args:
        recording: Of the case, at its batch size.
        case: Its input path makes no difference.
        device: From a device file.
        constants: The efficiencies.

    Raises:
        Unsupported: The device file lacks what is needed (a peak rate, the bandwidth).
    """
    if device.kind != "cuda":
        raise Unsupported(f"no speed estimate for {device.name}: the constants were fitted on NVIDIA GPUs only")
    kernels = kernels_of(recording)
    known = recording.derived.setdefault(("times", device, case.precision, case.memory_format, constants), {})
    times: list[float] = []
    for _, kernel in kernels:
        time_s = known.get(id(kernel))  # `kernels_of` keeps it
        if time_s is None:
            time_s = kernel_time_s(kernel, device, case.precision, case.memory_format, constants)
            known[id(kernel)] = time_s
        times.append(time_s)
    device_time, launches = math.fsum(times), math.fsum(kernel.launches for _, kernel in kernels)
    host_time = launches * constants.host_dispatch_s
    step_time = max(device_time, host_time)
    classes = _sums((kernel.kind for _, kernel in kernels), times)
    phases = _sums((phase for phase, _ in kernels), times)
    return SpeedEstimate(
        step_time_s=step_time,
        samples_per_s=case.batch_size / step_time,
        basis=_basis(case, device, host_time > device_time),
        device_time_s=device_time,
        host_time_s=host_time,
        flops=math.fsum(kernel.flops for _, kernel in kernels),
        moved_bytes=math.fsum(kernel.nbytes for _, kernel in kernels),
        kernel_count=round(launches),
        class_times_s=tuple(sorted(classes.items(), key=lambda item: -item[1])),
        phase_times_s=tuple((phase, phases.get(phase, 0.0)) for phase in ("forward", "backward", "optimizer")),
    )


def kernels_of(recording: Recording) -> list[tuple[str, Kernel]]:
    """All kernels of the last recorded step with their phases.

    The first step makes the optimizer's state and has no gradients to drop.
    """
    last = max(entry.step for entry in recording.entries if type(entry) is StepEnd)
    return step_kernels(calls_of(recording, last), recording.derived.setdefault("kernels", {}))


def _sums(names: Iterable[str], times: Iterable[float]) -> dict[str, float]:
    """The times of each name, by names in order."""
    found: dict[str, list[float]] = {}
    for name, time_s in zip(names, times, strict=True):
        found.setdefault(name, []).append(time_s)
    return {name: math.fsum(found[name]) for name in sorted(found)}


def _basis(case: Case, device: Device, host_bound: bool) -> str:
    words = [f"roofline of recorded kernels on {device.name}, {FITTED_ON}"]
    if case.precision not in ("fp16", "bf16"):
        words.append(f"not validated for {case.precision}")
    if host_bound:
        words.append("limited by the host, at a constant time per kernel that was not fitted")
    return "; ".join(words)
