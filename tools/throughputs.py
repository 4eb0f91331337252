"""Throughputs that others measured, as steps of known kernels on known devices.

What their protocols do differently from `bench sweep` is stated here, row by row where it differs; no row is dropped.
Some of it follows from what is known of the software (`PROTOCOL`), some had to be read off the rows themselves: how
much slower early software was on a new generation. The kernels are those that today's torch launches.
"""

from __future__ import annotations

import csv
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.catalog import parse_choice
from bench.devices import PRECISIONS, Device, list_devices, load_device
from bench.errors import BenchError
from bench.estimators.kept import machine_of, recording_of
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.recording import Recording
from bench.estimators.roofline import Kernel, kernels_of
from bench.records import Case, Choice

GPUS = "train_throughput_gpus.csv"
TIMM = "train_throughput_timm_rtx3090.csv"
FORWARD = "forward_throughput_timm.csv"

FAMILIES = (
    *("resnext", "seresnext", "resnet", "wide_resnet", "densenet", "vgg", "inception", "mnasnet", "mobilenet"),
    *("efficientnet_v2", "efficientnet", "regnet", "convnext", "swin", "vit", "alexnet", "shufflenet"),
)

EARLY_AMPERE = 1.17
"""Steps on compute capability 8 took so much longer before torch 1.11: 15 to 19 % between torch 1.7 .. 1.10 and 1.13 on
five cards (lambda)."""

EARLY_HOPPER = 1.06
"""On compute capability 9 before torch 2: 6 to 8 % between torch 1.13 and 2.3 on two cards (lambda)."""

FIRST_A100 = 1.35
"""NGC 20.06, the first software for A100, in tf32: against NGC 20.12 on the same models."""

NVIDIA_CODE = 0.94
"""NVIDIA's own training code against lambda's: weights in 16 bits (apex), images decoded on the GPU."""

EXCHANGE_S_PER_BYTE = 1.75 / 125e9
"""Of 8 GPUs that add up their gradients in a ring: 2 x 7 / 8 of them pass each GPU's NVLink (pycls, V100)."""

LUCID_HOST_S = 27e-6
"""Of lucid's host for each kernel, read off MobileNetV3 at batch 32."""

TORCHBENCH_HZ = 900e6
"""The clock at which torchbench's T4 is locked."""

UNSTATED_BATCH = {"float32": 64, "fp16": 128}
"""Of NVIDIA's logs of 2019 that do not state it: what later ones have."""

DIRECT_FRAC = 0.0056
"""Of the peak, times the root of the channels per group: grouped convolutions in 16 bits and channels-last before
cuDNN 8.9, unless there are 32 groups of at most 32 channels. They ran without tensor cores (pytorch/pytorch issue
34977; timm's RegNets)."""

COMPILED_FRAC = 0.6
"""Of the time of normalisation, reductions and elementwise kernels that is left when torch.compile fuses them."""

FIRST_DIRECT_FRAC = 0.018
"""Likewise, all grouped convolutions in 16 bits in cuDNN 7 (NGC 19.10, ResNeXt)."""


@dataclass(frozen=True)
class Step:
    """One row: a step whose time was measured.

    Attributes:
        source: Who measured it.
        card: Full name of the GPU.
        device: With the clock that was set.
        model: Of the catalog.
        precision: Of the step.
        memory_format: Of model and images.
        batch_size: Samples of a step.
        forward_only: Whether nothing was trained.
        seconds: That a step took.
        kernels: How often each is launched.
        factor: By how much the protocol's software lengthens the device's time.
        extra_s: What the protocol does beside the step.
        host_s: Of the host for each kernel; None: as estimated.
    """

    source: str
    card: str
    device: Device
    model: str
    precision: Any
    memory_format: Any
    batch_size: int
    forward_only: bool
    seconds: float
    kernels: Mapping[Kernel, int]
    factor: float = 1.0
    extra_s: float = 0.0
    host_s: float | None = None

    @property
    def family(self) -> str:
        """Of the model."""
        name = self.model.removeprefix("timm:")
        return next(family for family in FAMILIES if name.startswith(family))

    @property
    def generation(self) -> str:
        """Compute capability of the device."""
        major, minor = self.device.compute_capability or (0, 0)
        return f"{major}.{minor}"


def load_gpus(folder: Path) -> list[Step]:
    """Steps of many cards."""
    return [_gpus_step(row) for row in _rows(folder / GPUS)]


def load_timm(folder: Path) -> list[Step]:
    """Steps of an RTX 3090, of timm's models that torchvision has too (torch 1.12)."""
    tables = tomllib.loads((Path(__file__).parent / "timm_models.toml").read_text(encoding="utf-8"))
    names = tables["same"] | tables["nearly"]
    steps = []
    for row in _rows(folder / TIMM):
        if row["model"] in names:
            case = Case(
                Choice("imagenet"),
                Choice(names[row["model"]]),
                Choice("sgd_momentum"),
                int(row["train_batch_size"]),
                "fp16",
                "channels_last" if row["layout"] == "nhwc" else "contiguous",
                image_size=int(row["train_img_size"]),
            )
            steps.append(_step("timm", load_device("rtx3090"), case, float(row["train_samples_per_sec"]), (1, 12)))
    return steps


def load_forward(folder: Path) -> list[Step]:
    """Inference of timm's models that torchvision has too, RTX 3090 and RTX 5090."""
    steps = []
    for row in _rows(folder / FORWARD):
        case = Case(
            Choice("imagenet"),
            Choice(row["torchvision_model"]),
            Choice("sgd_momentum"),
            int(row["batch_size"]),
            "fp16",
            row["memory_format"],  # type: ignore[arg-type]
            image_size=int(row["image_size"]),
        )
        version = _version(row["torch_version"])
        step = _step("timm", load_device(row["device"]), case, float(row["samples_per_s"]), version, forward_only=True)
        steps.append(step)
    return steps


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        yield from csv.DictReader(opened)


def _gpus_step(row: Mapping[str, str]) -> Step:
    source, precision = row["src"], row["precision"]
    batch = int(float(row["batch_size"])) if row["batch_size"] else UNSTATED_BATCH[precision]
    case = Case(
        Choice("imagenet"),
        parse_choice("model", _model(row)),
        parse_choice("optimizer", _optimizer(row["optimizer"])),
        batch,
        precision,  # type: ignore[arg-type]
        row["memory_format"],  # type: ignore[arg-type]
        image_size=int(row["image_size"]),
    )
    version = _version(row["torch_version"])
    device = _device(row)
    if source == "torchbench":
        device = with_clock(device, TORCHBENCH_HZ)
    step = _step(source, device, case, float(row["samples_per_s"]), version, trained="none" not in row["optimizer"])
    capability = device.compute_capability or (0, 0)
    factor = NVIDIA_CODE if source == "nvidia_dle" else 1.0
    if capability[0] == 8 and version < (1, 11):
        factor *= EARLY_AMPERE
    if capability[0] == 9 and version < (2, 0):
        factor *= EARLY_HOPPER
    if capability == (8, 0) and version < (1, 7) and precision == "tf32":
        factor *= FIRST_A100
    return replace(step, card=row["gpu"], factor=factor, host_s=LUCID_HOST_S if source == "lucid" else None)


def _model(row: Mapping[str, str]) -> str:
    """The catalog's name; EfficientNet-WideSE has no counterpart but the one without, which is as fast."""
    if row["torchvision_model"]:
        return row["torchvision_model"]
    if row["timm_model"]:
        return f"timm:{row['timm_model']}"
    return {"224": "efficientnet_b0", "380": "efficientnet_b4"}[row["image_size"]]


def _optimizer(text: str) -> str:
    words = text.lower()
    if "rmsprop" in words:
        return "rmsprop:momentum=0.9"
    known = next((name for name in ("adadelta", "adam") if name in words), "sgd")
    return "sgd_momentum" if "momentum" in words else known


def _version(text: str) -> tuple[int, int]:
    """Of torch; 1.12 where it is unstated, of 2022."""
    try:
        major, minor, *_ = text.split(".")
        return int(major), int(minor)
    except ValueError:
        return 1, 12


@cache
def _by_name() -> dict[str, Device]:
    devices = [load_device(name) for name in list_devices()]
    return {_plain(name): device for device in devices for name in (device.gpu_name, *device.aliases)}


def _plain(name: str) -> str:
    return name.removeprefix("NVIDIA ").lower()


def _device(row: Mapping[str, str]) -> Device:
    if row["device"]:
        return load_device(row["device"])
    try:
        return _by_name()[_plain(row["gpu"])]
    except KeyError:
        raise BenchError(f"{GPUS}: no device file describes {row['gpu']}") from None


def with_clock(device: Device, clock_hz: float) -> Device:
    """The device with its multiprocessors at another clock than the rated one."""
    assert device.boost_clock_hz
    share = clock_hz / device.boost_clock_hz
    peaks = {f"peak_{name}_flop_per_s": device.peak_flop_per_s(name) for name in PRECISIONS}
    return replace(device, boost_clock_hz=clock_hz, **{key: peak and peak * share for key, peak in peaks.items()})


def _step(
    source: str,
    device: Device,
    case: Case,
    samples_per_s: float,
    version: tuple[int, int],
    *,
    forward_only: bool = False,
    trained: bool = True,
) -> Step:
    if version < (2, 0):  # one parameter after another, and gradients set to zero
        optimizer = Choice.of(case.optimizer.name, {**dict(case.optimizer.settings), "foreach": False})
        case = replace(case, optimizer=optimizer, zero_grad="zeros")
    kernels = kernels_of(_recording(case))
    weights = sum(kernel.nbytes / 4 for phase, kernel in kernels if phase == "optimizer")
    if forward_only:
        kernels = [(phase, _inferred(kernel)) for phase, kernel in kernels if phase == "forward"]
    if not trained:
        kernels = [(phase, kernel) for phase, kernel in kernels if phase != "optimizer"]
    return Step(
        source,
        device.gpu_name,
        device,
        str(case.model),
        case.precision,
        case.memory_format,
        case.batch_size,
        forward_only,
        case.batch_size / samples_per_s,
        Counter(as_of(version, (kernel for _, kernel in kernels), compiled=source == "gpu_insights")),
        extra_s=0.0 if trained else weights * EXCHANGE_S_PER_BYTE,
    )


def _recording(case: Case) -> Recording:
    """From recordings that are kept or made now, as on an RTX 3090; tf32 launches what float32 does."""
    machine = machine_of(load_device("rtx3090"), settings_in_force())
    return recording_of(replace(case, precision="float32") if case.precision == "tf32" else case, machine, shared=True)


def _inferred(kernel: Kernel) -> Kernel:
    """Batch norm with fixed statistics, which scales and shifts."""
    is_batch_norm = kernel.kind == "normalisation" and kernel.batch
    return kernel._replace(kind="elementwise") if is_batch_norm else kernel


def as_of(version: tuple[int, int], kernels: Iterable[Kernel], *, compiled: bool = False) -> Iterator[Kernel]:
    """What an older torch, with the cuDNN of its time, or a compiled model launched in place of today's kernels."""
    for kernel in kernels:
        if compiled and kernel.kind in ("normalisation", "reduction", "elementwise"):
            kernel = kernel._replace(nbytes=kernel.nbytes * COMPILED_FRAC, launches=kernel.launches * COMPILED_FRAC)
        halves = kernel.dtype in ("float16", "bfloat16")
        if kernel.kind == "attention" and version < (2, 0):
            yield from _unfused(kernel, 2 if halves else 4)
        elif kernel.kind == "convolution" and kernel.products > 1 and halves and version < (1, 14):
            yield _without_tensor_cores(kernel, version)
        else:
            yield kernel


def _without_tensor_cores(kernel: Kernel, version: tuple[int, int]) -> Kernel:
    """A grouped convolution as a large product of as much more arithmetic; itself where it had tensor cores."""
    narrow = kernel.products >= 32 and min(kernel.rows, kernel.columns) <= 32
    if version < (1, 6):
        share = FIRST_DIRECT_FRAC
    elif not kernel.planes and not narrow:
        share = DIRECT_FRAC * min(kernel.rows, kernel.columns) ** 0.5
    else:
        return kernel
    return kernel._replace(kind="matmul", flops=kernel.flops / share, depth=1e9)


def _unfused(kernel: Kernel, item_bytes: int) -> list[Kernel]:
    """Attention as products of matrices, a scale and a softmax in float32 between them."""
    scores = kernel.products * kernel.rows * kernel.columns
    moved = kernel.products * kernel.depth * (kernel.rows + kernel.columns) * item_bytes
    product = kernel._replace(
        kind="matmul", flops=2 * scores * kernel.depth, nbytes=moved + scores * item_bytes, launches=1.0
    )
    cast = 0 if item_bytes == 4 else 4 + item_bytes
    scale = kernel._replace(kind="elementwise", dtype="float32", flops=0.0, nbytes=scores * (2 * item_bytes + cast))
    softmax = scale._replace(kind="reduction", nbytes=scores * (12 if kernel.backward else 4 + item_bytes))
    return [product] * (4 if kernel.backward else 2) + [scale, softmax]
