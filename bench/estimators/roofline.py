"""The roofline: how long a training step takes when each kernel is limited as such kernels are on such cards.

It reads the recording that the memory's estimate reads too: each call is a kernel or a few with FLOPs and bytes
(`Kernel`), and each kernel takes the longer of its arithmetic and its traffic, and a launch:

    time = max(FLOPs / (peak of its type x share), bytes / (bandwidth x share)) + launch overhead

* Products reach less of the peak with short sums and few channels (`amount / (amount + half)`), convolutions also with
  channels that do not fill tiles of 64 and with few tiles for each multiprocessor. Tensor cores reach more of their
  rate where it is halved (GeForce). Grouped convolutions have a share of their own. Depthwise ones are computed at the
  rate of float32, their gradients an order slower.
* Normalisation is limited by multiprocessors as well as by memory: the two times add. That is why the bandwidth that
  H100 and B200 have over A100 does not all reach a step, and why images that lie in planes (contiguous) cost more
  than those in pixels (channels-last), most of all in 16 bits, where tensor cores have them turned round besides.
* The host takes time for each kernel too: a step of small kernels takes as long as the host needs to ask for them.

The constants say how much of a device's peaks kernels reach. They were fitted to measurements by others, none of which
is in this repository; `python -m tools.fit_roofline` fits again and prints these figures, `tools/throughputs.py` states
what protocols do differently. All rows count:

1. training on 31 GPUs, compute capability 6.1 to 12.0, 211 rows of 31 models in four precisions (torch 1.3 to 2.12);
2. training of torchvision's models on an RTX 3090, fp16 autocast, both memory formats, 142 rows (torch 1.12);
3. inference of such models on an RTX 3090, 437 rows (torch 2.1 and 2.4).

Errors of samples/s, as median, mean and 90th percentile:

    many GPUs, in the sample            5.0 %   6.6 %  13.4 %
    many GPUs, card left out            6.5 %   7.8 %  15.7 %    the worst card T4 with 17.4 %
    many GPUs, generation left out      6.2 %   8.5 %  16.8 %    the worst generation 7.5 with 9.3 %
    training on RTX 3090, in the sample 4.0 %   6.5 %  14.5 %
    the same, family left out           6.5 %   8.8 %  19.3 %    the worst family MobileNet with 21 %
    inference on RTX 3090, in the sample 7.5 %  11.1 %  18.6 %
    inference on RTX 5090, not fitted   8.9 %   8.4 %  15.8 %

Ratios between two cards for ResNet-50, both left out: 87 % of pairs within 10 % in tf32, 65 % in fp16 (Ampere with GDDR
is predicted 5 to 13 % too slow in fp16, Turing 3 to 5 % too fast). Ranks correlate with 0.99 in all of them.

The form of the curves was decided with these rows in sight, so that figures of left-out rows flatter too; constants of
protocols (how slow the first software of a generation was) are not left out. `memory_frac` is that of single
elementwise operators on V100 and A100 (scai-tech/NeuSight); `attention_frac`, `launch_s` are not fitted.

What it leaves out:

* the data path: decoding and the copy to the device (inputs other than `synthetic`);
* which kernel cuDNN and cuBLAS choose: winners of `cudnn.benchmark`, poor choices for odd sizes, slower ones where
  there is no room for workspaces;
* caches between kernels: every tensor comes from memory and goes there, but for batch norm, whose images stay on the
  chip between statistics and result. A term for the L2 did not lower the error on Ada and Blackwell;
* clocks: multiprocessors run at the rated boost clock, though boards of GeForce run faster, and cards with little power
  (T4, L4) slower;
* `torch.compile`, and allocations that make the step wait;
* how far the host is ahead of the device: the step takes the longer of the two, as if either always hid the other; the
  gradient scaler of fp16 makes the host wait once per step;
* the host's own speed, which no device file holds: its time per kernel is one constant. Published profiles say 5 to
  25 us.

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
from bench.devices.calibration import reckoned
from bench.devices.vendors import no_speed
from bench.errors import Unsupported
from bench.estimators.recording import Call, Recording, StepEnd, calls_of
from bench.estimators.tensors import Spec
from bench.records import Case, Precision

CLASSES = (
    *("convolution", "depthwise", "matmul", "attention"),
    *("normalisation", "reduction", "pooling", "elementwise", "optimizer"),
)
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
        shared: Whether multiprocessors share the work of one sum, as they do where it runs over all images.
        winograd: Whether cuDNN may multiply less than is counted (filters wider than one pixel, at every pixel).
        planes: Whether images lie plane by plane (contiguous), not pixel by pixel (channels-last).
        batch: Whether it normalises over the batch.
        backward: Whether it is of the backward pass.
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
    shared: bool = False
    winograd: bool = False
    planes: bool = False
    batch: bool = False
    backward: bool = False
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
        return [(phase, kernel._replace(backward=phase == "backward")) for kernel in list_kernels(call)]
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


def _batch_norm(call: Call) -> list[Kernel]:
    """The persistent form of cuDNN: what was read for the statistics stays on the chip (cudnnBatchNormMode_t)."""
    (kernel,) = _as("normalisation", (1.0, 1.0) if call.name.endswith("backward") else (1.0,))(call)
    return [kernel._replace(planes=_lies_in_planes(call.arguments[0]), batch=True)]


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
    stride, transposed, groups = call.arguments[3], call.arguments[6], call.arguments[8]
    kernels = [_image_kernel(images, weight, output, stride, transposed, groups, "output")]
    if bias is not None:
        kernels.append(Kernel("elementwise", images.dtype, nbytes=2 * touched_bytes(output)))
    return kernels


def _convolution_backward(call: Call) -> list[Kernel]:
    gradient, images, weight = call.arguments[:3]
    stride, transposed, groups, wanted = (call.arguments[place] for place in (4, 7, 9, 10))
    kernels = [
        _image_kernel(images, weight, gradient, stride, transposed, groups, towards)
        for towards, is_wanted in zip(("images", "weight"), wanted, strict=False)
        if is_wanted
    ]
    if wanted[2]:
        kernels.append(Kernel("reduction", gradient.dtype, nbytes=touched_bytes(gradient)))
    return kernels


def _image_kernel(
    images: Spec, weight: Spec, output: Spec, stride: Sequence[int], transposed: bool, groups: int, towards: str
) -> Kernel:
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
        shared=towards == "weight",
        winograd=window > 1 and groups == 1 and set(stride) == {1},
        planes=_lies_in_planes(images),
    )


def _lies_in_planes(images: Spec) -> bool:
    """Whether images `(B, C, H, W)` are contiguous, which makes a difference for more than one channel and pixel."""
    return len(images.shape) > 3 and images.strides[1] > 1


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
    **{f"{library}_batch_norm{way}": _batch_norm for library in ("native", "cudnn") for way in ("", "_backward")},
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
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d"), _as("pooling")),
    "max_pool2d_with_indices_backward": _as("pooling", (1.0, 0.0, 0, 0, 0, 0, 0, 1.0)),
    "avg_pool2d_backward": _as("pooling", (1.0, 0.0)),
    "_adaptive_avg_pool2d": _as("reduction"),
    "_adaptive_avg_pool2d_backward": _as("elementwise", (1.0, 0.0)),
}


@dataclass(frozen=True, slots=True)
class Constants:
    """Shares of the device's peaks (`_frac`), sides of products at which half of a share is reached, and seconds.

    Shares of tensor cores' and float32 units' rates may exceed 1: they are reached by products without end, whose
    length of sum and number of columns are far above the halves, and boost clocks exceed the rated ones.

    Attributes:
        memory_frac: Of the bandwidth: elementwise kernels, copies, the optimizer, and products bound by traffic.
        normalisation_frac: Of the bandwidth, with the reads that are counted.
        reduction_frac: Of the bandwidth: softmax, sums.
        pooling_frac: Of the bandwidth: pooling over windows, which reads most pixels several times.
        plane_gather: Numbers that a multiprocessor moves per cycle in batch norm of images that lie in planes.
        pixel_gather: Likewise, in all other normalisation.
        layout_gather: Likewise, where images are turned round.
        layout_passes: Reads and writes of images in 16 bits that lie in planes, which tensor cores have turned round.
        convolution_frac: Of the peak rate.
        convolution_columns: Channels at which half of it is reached.
        convolution_tiles: Tiles of its result for each multiprocessor, likewise.
        winograd_gain: How much faster than counted cuDNN's fast algorithms are, in float32 without tensor cores.
        grouped_frac: Of `convolution_frac`, convolutions in groups.
        grouped_columns: Channels per group at which half of it is reached.
        depthwise_frac: Of the rate of float32, which they are computed at whatever the type.
        depthwise_pixels: How much faster they are where images lie pixel by pixel.
        depthwise_backward: How much slower their gradients are.
        matmul_frac: Of the peak rate.
        product_depth: Length of the sums at which half of it is reached, in convolutions too (channels per group times
            positions of the filter).
        attention_frac: Of the peak rate; FlashAttention-2 (arXiv 2307.08691) reports 0.5 to 0.73; not fitted.
        early_attention_frac: Likewise, before compute capability 8, for which there is no FlashAttention-2.
        early_halves: How much longer kernels in 16 bits take before compute capability 8.
        full_rate_frac: Of the share that tensor cores at half rate reach, on all other chips: those of GeForce work at
            half rate when they accumulate in float32, which leaves power and operands to spare.
        launch_s: Start and end of a kernel, where the device file has none; not fitted.
        host_dispatch_s: Of the host for each kernel: Python, autograd, dispatcher, driver. Rows that it
            decides are few: at batch 8 and 16 of one V100 machine.
    """

    memory_frac: float = 0.88
    normalisation_frac: float = 0.479
    reduction_frac: float = 0.925
    pooling_frac: float = 0.285
    plane_gather: float = 3.05
    pixel_gather: float = 36.4
    layout_gather: float = 32.2
    layout_passes: float = 0.384
    convolution_frac: float = 1.12
    convolution_columns: float = 17.1
    convolution_tiles: float = 0.413
    winograd_gain: float = 1.69
    grouped_frac: float = 0.701
    grouped_columns: float = 61.9
    depthwise_frac: float = 0.485
    depthwise_pixels: float = 1.34
    depthwise_backward: float = 10.4
    matmul_frac: float = 1.1
    product_depth: float = 19.6
    attention_frac: float = 0.5
    early_attention_frac: float = 0.097
    early_halves: float = 1.07
    full_rate_frac: float = 0.812
    launch_s: float = 5e-6
    host_dispatch_s: float = 15e-6


CONSTANTS = Constants()
"""As fitted."""

FITTED_ON = (
    "fitted on throughputs that others measured on 31 GPUs (median error of samples/s 6.5 % on GPUs that were left "
    "out, 6.5 % on families of models that were left out)"
)
"""What a reader must know beside an estimate: the figures above in one line."""

_RATES: Mapping[str, str] = {"float16": "fp16", "bfloat16": "bf16", "float32": "float32"}
_TILE_ELEMENTS = 128 * 128
"""Of a product's result that one block of threads computes, as usual in cuDNN and CUTLASS."""

_TILE_COLUMNS = 64
"""Of a convolution's channels that are computed together, needed or not; the narrowest of the usual tiles."""

_LEAST = 1e-6
"""In place of 0, which is of no product."""

_FAST_FLOAT32 = 3
"""Products of tensor cores for one of float32 in attention (cutlass::arch::OpMultiplyAddFastF32)."""

_HALVED = 512
"""FLOP in 16 bits that tensor cores of GeForce do per multiprocessor and cycle."""

_AMPERE = (8, 0)
_VOLTA = (7, 0)


class Rates(NamedTuple):
    """What of a device bounds the kernels of one type; arrays where kernels of many devices are timed at once.

    Attributes:
        bandwidth: Of the memory, in B/s.
        cycles: Of all multiprocessors, in 1/s.
        products: Peak rate of the type, in FLOP/s.
        float32: Peak rate without tensor cores, in FLOP/s.
        multiprocessors: How many.
        launch_s: Of one kernel.
    """

    bandwidth: float
    cycles: float
    products: float
    float32: float
    multiprocessors: float
    launch_s: float


class Form(NamedTuple):
    """What decides which constants are a kernel's; the numbers are in the `Kernel` and the `Rates`.

    Attributes:
        kind: One of `CLASSES`.
        halves: Whether it computes in 16 bits.
        on_tensor_cores: Whether its products are on tensor cores.
        early: Whether the device is older than compute capability 8.
        full_rate: Whether its tensor cores accumulate in float32 at full rate.
        grouped: Whether it is a convolution in groups.
        shared: As in `Kernel`, like the others.
        winograd: Only where it is not on tensor cores.
        planes: Likewise.
        backward: Likewise.
    """

    kind: str
    halves: bool
    on_tensor_cores: bool
    early: bool
    full_rate: bool
    grouped: bool
    shared: bool
    winograd: bool
    planes: bool
    backward: bool


def kernel_time_s(kernel: Kernel, device: Device, precision: Precision, constants: Constants = CONSTANTS) -> float:
    """Seconds of a kernel on the device, launch included.

    Raises:
        Unsupported: The device file lacks the bandwidth, the multiprocessors, their clock, or the peak rate of a type
            that is used.
    """
    return time_s(form_of(kernel, device, precision), kernel, rates_of(kernel, device, precision, constants), constants)


def form_of(kernel: Kernel, device: Device, precision: Precision) -> Form:
    """Which constants are the kernel's."""
    capability = device.compute_capability or _AMPERE
    halves = kernel.dtype in ("float16", "bfloat16")
    on_tensor_cores = capability >= _VOLTA and (halves or (precision == "tf32" and kernel.dtype == "float32"))
    return Form(
        kernel.kind,
        halves,
        on_tensor_cores,
        capability < _AMPERE,
        on_tensor_cores and _at_full_rate(device),
        kernel.products > 1,
        kernel.shared,
        kernel.winograd and not on_tensor_cores,
        kernel.planes,
        kernel.backward,
    )


def _at_full_rate(device: Device) -> bool:
    """Whether tensor cores do more per cycle than those of GeForce, which are halved (512 FLOP in 16 bits)."""
    peak, cycles = device.peak_fp16_flop_per_s, (device.multiprocessors or 0) * (device.boost_clock_hz or 0.0)
    return peak is None or peak > 1.5 * _HALVED * cycles


def rates_of(kernel: Kernel, device: Device, precision: Precision, constants: Constants = CONSTANTS) -> Rates:
    """What bounds the kernel.

    Raises:
        Unsupported: As `kernel_time_s`.
    """
    values: dict[str, Any] = {}
    needed = (
        "memory_bandwidth_bytes_per_s",
        "multiprocessors",
        *(("boost_clock_hz",) if device.kind == "cuda" else ()),
    )
    for key in needed:
        values[key] = getattr(device, key)
        if values[key] is None:
            raise Unsupported(_missing(key, device))
    launch = device.launch_overhead_s if device.launch_overhead_s is not None else constants.launch_s
    return Rates(
        values["memory_bandwidth_bytes_per_s"] * (device.memory_ecc_frac or 1.0),
        values["multiprocessors"] * values.get("boost_clock_hz", math.inf),  # of a CPU, memory alone is the limit
        _peak(kernel.dtype, device, precision) if kernel.flops > 0 and kernel.kind != "depthwise" else math.inf,
        _peak("float32", device, "float32") if kernel.kind == "depthwise" else math.inf,
        values["multiprocessors"],
        launch,
    )


def _missing(key: str, device: Device) -> str:
    return f"no speed estimate on {device.name}: {key} is unknown; add it to a device file (--device-file)"


def _peak(dtype: str, device: Device, precision: Precision) -> float:
    """FLOP/s of products of a type; before tensor cores, 16 bits are computed as float32."""
    rate = "tf32" if precision == "tf32" and dtype == "float32" else _RATES.get(dtype, dtype)
    peak = device.peak_flop_per_s(rate) if rate in PRECISIONS else None
    if peak is None and rate == "fp16" and (device.compute_capability or _AMPERE) < _VOLTA:
        peak = device.peak_float32_flop_per_s
    if peak is None:
        raise Unsupported(_missing(f"peak_{rate}_flop_per_s", device))
    return peak


def time_s(form: Form, kernel: Kernel, rates: Rates, constants: Constants) -> float:
    """Seconds of a kernel, or of an array of them: plain arithmetic on the numbers of `kernel` and `rates`."""
    per_byte = 1.0 / rates.bandwidth
    gather = _gather(form, constants)
    if gather:
        per_byte = per_byte + 1.0 / (gather * (2 if form.halves else 4) * rates.cycles)
    busy = kernel.nbytes * per_byte / _memory_frac(form.kind, constants)
    if form.kind in _PRODUCTS:
        busy = _larger(busy, kernel.flops / _product_rate(form, kernel, rates, constants))
    if form.kind == "convolution" and form.halves and form.on_tensor_cores and form.planes:
        turn = 1 / (rates.bandwidth * constants.memory_frac) + 1 / (constants.layout_gather * 2 * rates.cycles)
        busy = busy + constants.layout_passes * kernel.layout_bytes * turn
    if form.early and form.halves:
        busy = busy * constants.early_halves
    return busy + rates.launch_s * kernel.launches


_PRODUCTS = ("convolution", "depthwise", "matmul", "attention")


def _larger(one: float, other: float) -> float:
    """The larger of two numbers, or of each two of two arrays."""
    return (one + other + abs(one - other)) / 2


def _gather(form: Form, constants: Constants) -> float | None:
    """Numbers per cycle that a multiprocessor moves where it, not memory, may be the limit."""
    if form.kind == "normalisation":
        return constants.plane_gather if form.planes else constants.pixel_gather
    return None


def _memory_frac(kind: str, constants: Constants) -> float:
    """Share of the bandwidth that a class of kernels reaches."""
    own = {
        "normalisation": constants.normalisation_frac,
        "reduction": constants.reduction_frac,
        "pooling": constants.pooling_frac,
    }
    return own.get(kind, constants.memory_frac)


def _product_rate(form: Form, kernel: Kernel, rates: Rates, constants: Constants) -> float:
    """FLOP/s that a product reaches."""
    if form.kind == "depthwise":
        gain = 1.0 if form.planes else constants.depthwise_pixels
        return rates.float32 * constants.depthwise_frac * gain / (constants.depthwise_backward if form.backward else 1)
    if form.kind == "attention":
        frac = constants.early_attention_frac if form.early else constants.attention_frac
        return rates.products * frac / (1 if form.halves or not form.on_tensor_cores else _FAST_FLOAT32)
    reached = rates.products * _filled(kernel.depth, constants.product_depth)
    if form.full_rate:
        reached = reached * constants.full_rate_frac
    if form.kind == "matmul":
        return reached * constants.matmul_frac
    columns = constants.grouped_columns if form.grouped else constants.convolution_columns
    reached = reached * _filled(kernel.columns, columns) * constants.convolution_frac
    if not form.grouped:
        reached = reached * kernel.columns / (-(-kernel.columns // _TILE_COLUMNS) * _TILE_COLUMNS)
    if form.grouped:
        reached = reached * constants.grouped_frac
    elif form.winograd:
        reached = reached * constants.winograd_gain
    if form.shared:
        return reached
    tiles = kernel.rows * kernel.columns * kernel.products / (_TILE_ELEMENTS * rates.multiprocessors)
    return reached * _filled(tiles, constants.convolution_tiles)


def _filled(amount: float, half: float) -> float:
    """Share of the peak at an amount of work side by side; one half at `half`."""
    return (amount + _LEAST) / (amount + _LEAST + half)


__all__ = [
    *("CONSTANTS", "Constants", "SpeedEstimate", "count_flops", "estimate_speed", "kernels_of", "least_time_s"),
    "speed_interval",
]


@dataclass(frozen=True, slots=True)
class SpeedEstimate:
    """How fast a case is thought to run on a device.

    Attributes:
        step_time_s: Of one optimizer step: the longer of the device's time and the host's.
        samples_per_s: Batch size over step time.
        samples_per_s_low: The low end of the interval of `speed_interval`.
        samples_per_s_high: The high end.
        basis: What it is, what it was fitted on and how far off that was; to be shown beside the number.
        device_time_s: Of all kernels, one after another.
        host_time_s: Of the host to ask for them.
        flops: Of the step's products.
        least_time_s: Of all kernels at the device's peak rate and bandwidth, see `least_time_s`.
            None for a calibrated device whose rated peaks are not known.
        moved_bytes: Between the chip and its memory.
        kernel_count: How many kernels a step launches.
        class_times_s: `(class of operators, seconds)` of the device's time, the longest first.
        phase_times_s: `(forward | backward | optimizer, seconds)`, in this order.
    """

    step_time_s: float
    samples_per_s: float
    samples_per_s_low: float
    samples_per_s_high: float
    basis: str
    device_time_s: float
    host_time_s: float
    flops: float
    least_time_s: float | None
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
        Unsupported: The roofline was not checked on such devices, or the device file lacks what is needed (a peak rate,
            the bandwidth).
    """
    if reason := no_speed(device):
        raise Unsupported(reason)
    kernels, ceilings = kernels_of(recording), reckoned(device)
    known = recording.derived.setdefault(("times", ceilings, case.precision, constants), {})
    times: list[float] = []
    for _, kernel in kernels:
        time_s = known.get(id(kernel))  # `kernels_of` keeps it
        if time_s is None:
            time_s = known[id(kernel)] = kernel_time_s(kernel, ceilings, case.precision, constants)
        times.append(time_s)
    device_time, launches = math.fsum(times), math.fsum(kernel.launches for _, kernel in kernels)
    host_time = launches * dispatch_s(device, constants)
    step_time = max(device_time, host_time)
    classes = _sums((kernel.kind for _, kernel in kernels), times)
    phases = _sums((phase for phase, _ in kernels), times)
    samples_per_s = case.batch_size / step_time
    low, high = speed_interval(samples_per_s, device, case.precision, host_bound=host_time > device_time)
    return SpeedEstimate(
        step_time_s=step_time,
        samples_per_s=samples_per_s,
        samples_per_s_low=low,
        samples_per_s_high=high,
        basis=_basis(case, device, host_time > device_time),
        device_time_s=device_time,
        host_time_s=host_time,
        flops=count_flops(kernels),
        least_time_s=_least_time_s(kernels, device, case.precision),
        moved_bytes=math.fsum(kernel.nbytes for _, kernel in kernels),
        kernel_count=round(launches),
        class_times_s=tuple(sorted(classes.items(), key=lambda item: -item[1])),
        phase_times_s=tuple((phase, phases.get(phase, 0.0)) for phase in ("forward", "backward", "optimizer")),
    )


def dispatch_s(device: Device, constants: Constants = CONSTANTS) -> float:
    """Seconds of the host for each kernel: as calibrated on the device's machine, else one constant."""
    return device.calibrated_dispatch_s or constants.host_dispatch_s


HELD: Mapping[Precision, tuple[float, float]] = {
    "float32": (0.82, 1.2),
    "tf32": (0.83, 1.07),
    "fp16": (0.81, 1.26),
    "bf16": (0.81, 1.26),
}
"""Between which shares of the estimate 90 % of measurements lay, on cards and families of models that were left out."""

FITTED_CAPABILITIES = ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
"""Compute capabilities of the cards that were measured. On others the interval is twice as wide, in logarithms."""

HOSTS = (0.6, 3.0)
"""Likewise, where the host decides: published profiles have 5 to 25 us for each kernel, and the constant is 15 us."""


def speed_interval(
    samples_per_s: float, device: Device, precision: Precision, *, host_bound: bool = False
) -> tuple[float, float]:
    """What holds the measured samples/s in nine of ten cases: `(low, high)`.

    Args:
        samples_per_s: As estimated.
        device: Whether cards of its compute capability were measured decides with the precision.
        precision: Of the case.
        host_bound: Whether the host decides the step's time.
    """
    low, high = HOSTS if host_bound else HELD[precision]
    if device.compute_capability not in FITTED_CAPABILITIES:
        low, high = low**2, high**2
    return samples_per_s * low, samples_per_s * high


def kernels_of(recording: Recording) -> list[tuple[str, Kernel]]:
    """All kernels of the last recorded step with their phases.

    The first step makes the optimizer's state and has no gradients to drop.
    """
    last = max(entry.step for entry in recording.entries if type(entry) is StepEnd)
    return step_kernels(calls_of(recording, last), recording.derived.setdefault("kernels", {}))


def count_flops(kernels: Iterable[tuple[str, Kernel]]) -> float:
    """Multiplications and additions of a step's products; what a checkpointed step computes again counts again."""
    return math.fsum(kernel.flops for _, kernel in kernels)


def least_time_s(kernels: Iterable[tuple[str, Kernel]], device: Device, precision: Precision) -> float:
    """Seconds of a step at the device's rated peaks: each kernel takes the longer of its arithmetic and its traffic.

    No launch, no efficiency and no host is in it. What stays in the L2 between kernels counts as traffic, so that small
    tensors can be faster.

    Raises:
        Unsupported: The device file lacks the bandwidth or the peak rate of a type that is used.
    """
    bandwidth = device.memory_bandwidth_bytes_per_s
    if bandwidth is None:
        raise Unsupported(_missing("memory_bandwidth_bytes_per_s", device))
    return math.fsum(
        max(kernel.flops / _peak(kernel.dtype, device, precision) if kernel.flops else 0.0, kernel.nbytes / bandwidth)
        for _, kernel in kernels
    )


def _least_time_s(kernels: Iterable[tuple[str, Kernel]], device: Device, precision: Precision) -> float | None:
    """As `least_time_s`; None for a calibrated device whose rated peaks are not known."""
    try:
        return least_time_s(kernels, device, precision)
    except Unsupported:
        if not device.calibration:
            raise
        return None


def _sums(names: Iterable[str], times: Iterable[float]) -> dict[str, float]:
    """The times of each name, by names in order."""
    found: dict[str, list[float]] = {}
    for name, time_s in zip(names, times, strict=True):
        found.setdefault(name, []).append(time_s)
    return {name: math.fsum(found[name]) for name in sorted(found)}


def _basis(case: Case, device: Device, host_bound: bool) -> str:
    if device.calibration:
        words = [f"roofline of recorded kernels on {device.name}, {device.calibration}"]
        if device.kind == "cuda" and getattr(device, f"calibrated_{case.precision}_flop_per_s") is None:
            words.append(f"not calibrated for {case.precision}")
        return "; ".join([*words, *(["limited by the host"] if host_bound else [])])
    words = [f"roofline of recorded kernels on {device.name}, {FITTED_ON}"]
    if device.compute_capability not in FITTED_CAPABILITIES:
        words.append("no card of its compute capability was measured, so the interval is twice as wide")
    if host_bound:
        words.append("limited by the host, whose time per kernel is one constant and differs by a factor of 5")
    return "; ".join(words)
