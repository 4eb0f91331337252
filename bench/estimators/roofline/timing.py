"""From kernels to seconds: each takes the longer of its arithmetic and its traffic, and a launch.

    time = max(FLOPs / (peak of its type x efficiency), bytes / (bandwidth x efficiency)) + launch overhead

The efficiency of a product falls with small sides: `columns / (columns + c) x depth / (depth + d)`, as a tile that is
not filled does the work of one that is; that of a convolution also with few tiles for each multiprocessor,
`tiles / (tiles + t)`. Kernels without products, and depthwise convolutions, are bound by their traffic.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.devices import PRECISIONS, Device
from bench.errors import Unsupported
from bench.estimators.roofline.constants import CONSTANTS, Constants
from bench.estimators.roofline.kernels import Kernels
from bench.records import MemoryFormat, Precision

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


def kernel_times_s(
    kernels: Kernels,
    device: Device,
    precision: Precision,
    memory_format: MemoryFormat,
    constants: Constants = CONSTANTS,
) -> np.ndarray:
    """Seconds of each kernel on the device, launch included, shape `(kernels,)`.

    Raises:
        Unsupported: The device file lacks the bandwidth, the multiprocessors, or the peak rate of a type that is used.
    """
    bandwidth = device.memory_bandwidth_bytes_per_s
    if bandwidth is None:
        raise Unsupported(_missing("memory_bandwidth_bytes_per_s", device))
    if device.multiprocessors is None:
        raise Unsupported(_missing("multiprocessors", device))
    fracs = _product_fracs(kernels, device.multiprocessors, precision, memory_format, constants)
    arithmetic = kernels.column("flops") / (_peaks(kernels, device, precision) * fracs) * (kernels.kind != "depthwise")
    traffic = kernels.column("nbytes") / (bandwidth * _memory_fracs(kernels, constants))
    conversion = _conversion_s(kernels, precision, memory_format, bandwidth * constants.memory_frac, constants)
    launch = device.launch_overhead_s if device.launch_overhead_s is not None else constants.launch_s
    scale = constants.scale(precision, memory_format)
    times: np.ndarray = (np.maximum(arithmetic, traffic) + conversion) * scale + launch * kernels.column("launches")
    return times


def _missing(key: str, device: Device) -> str:
    return f"no speed estimate on {device.name}: {key} is unknown; add it to a device file (--device-file)"


def _peaks(kernels: Kernels, device: Device, precision: Precision) -> np.ndarray:
    """FLOP/s of each kernel's type; 1 where it does no products."""
    peaks = np.ones(len(kernels.kind))
    multiplies = kernels.column("flops") > 0
    for dtype in sorted(set(kernels.dtype[multiplies])):
        rate = "tf32" if precision == "tf32" and dtype == "float32" else _RATES.get(dtype, dtype)
        peak = device.peak_flop_per_s(rate) if rate in PRECISIONS else None
        if peak is None:
            raise Unsupported(_missing(f"peak_{rate}_flop_per_s", device))
        peaks[multiplies & (kernels.dtype == dtype)] = peak
    return peaks


def _product_fracs(
    kernels: Kernels, multiprocessors: int, precision: Precision, memory_format: MemoryFormat, constants: Constants
) -> np.ndarray:
    """Shares of the peak rate that products reach; for kernels without products they mean nothing."""
    width, depth = kernels.column("columns"), kernels.column("depth")
    frac = np.full(len(width), constants.attention_frac)
    convolution, matmul = kernels.kind == "convolution", kernels.kind == "matmul"
    tiles = kernels.column("rows") * width * kernels.column("products") / (_TILE_ELEMENTS * multiprocessors)
    sides = _filled(width, constants.convolution_columns) * _filled(depth, constants.product_depth)
    spread = np.where(kernels.column("shared") > 0, 1.0, _filled(tiles, constants.convolution_tiles))
    on_tensor_cores = (kernels.dtype != "float32") | (precision == "tf32")
    transformed = (kernels.column("window") == _WINOGRAD_WINDOW) & ~on_tensor_cores
    best = np.where(transformed, constants.winograd_frac, constants.matmul_frac)
    frac[convolution] = (best * sides * spread)[convolution]
    frac[matmul] = (constants.matmul_frac * _filled(depth, constants.product_depth))[matmul]
    if memory_format == "channels_last":
        direct = convolution & _has_no_tensor_kernel(kernels)
        frac[direct] = np.minimum(frac[direct], constants.direct_frac)
    return frac


def _filled(amount: np.ndarray, half: float) -> np.ndarray:
    """Share of the peak at an amount of work side by side; one half at `half`."""
    share: np.ndarray = np.maximum(amount, _LEAST) / (np.maximum(amount, _LEAST) + half)
    return share


def _has_no_tensor_kernel(kernels: Kernels) -> np.ndarray:
    groups = kernels.column("products")
    channels = np.minimum(kernels.column("rows"), kernels.column("columns"))
    halves = (kernels.dtype == "float16") | (kernels.dtype == "bfloat16")
    found: np.ndarray = halves & (groups > 1) & ((groups < _DIRECT_GROUPS) | (channels > _DIRECT_WIDTH))
    return found


def _memory_fracs(kernels: Kernels, constants: Constants) -> np.ndarray:
    fracs = np.full(len(kernels.kind), constants.memory_frac)
    fracs[kernels.kind == "normalisation"] = constants.normalisation_frac
    fracs[kernels.kind == "reduction"] = constants.reduction_frac
    fracs[kernels.kind == "depthwise"] = constants.depthwise_frac
    return fracs


def _conversion_s(
    kernels: Kernels, precision: Precision, memory_format: MemoryFormat, bytes_per_s: float, constants: Constants
) -> np.ndarray:
    """Tensor cores want channels last: cuDNN turns contiguous images round before and after each convolution."""
    if memory_format == "channels_last" or precision == "float32":
        return np.zeros(len(kernels.kind))
    turned = np.where(kernels.kind == "convolution", kernels.column("layout_bytes"), 0.0)
    seconds: np.ndarray = constants.layout_passes * turned / bytes_per_s
    return seconds
