"""From kernels to seconds: each takes the longer of its arithmetic and its traffic, and a launch.

    time = max(FLOPs / (peak of its type x efficiency), bytes / (bandwidth x efficiency)) + launch overhead

The efficiency of a product falls with small sides: `columns / (columns + c) x depth / (depth + d)`, as a tile that is not
filled does the work of one that is. Kernels without products are bound by their traffic.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.devices import Device
from bench.errors import Unsupported
from bench.estimators.roofline.columns import Columns
from bench.estimators.roofline.constants import CONSTANTS, Constants
from bench.records import MemoryFormat, Precision

_RATES: Mapping[str, str] = {"float16": "fp16", "bfloat16": "bf16", "float32": "float32"}
_DIRECT_GROUPS, _DIRECT_WIDTH = 32, 32
"""Grouped convolutions in channels-last have a tensor-core kernel from so many groups on, of at most so many channels."""


def kernel_times_s(
    columns: Columns, device: Device, precision: Precision, memory_format: MemoryFormat, constants: Constants = CONSTANTS
) -> np.ndarray:
    """Seconds of each kernel on the device, launch included, shape `(kernels,)`.

    Raises:
        Unsupported: The device file does not say how fast its memory is, or how fast it computes in a type that is used.
    """
    bandwidth = device.memory_bandwidth_bytes_per_s
    if bandwidth is None:
        raise Unsupported(f"no time without the memory bandwidth of {device.name}: set memory_bandwidth_bytes_per_s in its file")
    arithmetic = _arithmetic_s(columns, _peaks(columns, device, precision), memory_format, constants)
    traffic = columns.column("nbytes") / (bandwidth * _memory_fracs(columns, constants))
    conversion = _conversion_s(columns, precision, memory_format, bandwidth * constants.memory_frac, constants)
    launch = device.launch_overhead_s if device.launch_overhead_s is not None else constants.launch_s
    scale = constants.scale(precision, memory_format)
    times: np.ndarray = (np.maximum(arithmetic, traffic) + conversion) * scale + launch * columns.launches
    return times


def _peaks(columns: Columns, device: Device, precision: Precision) -> np.ndarray:
    """FLOP/s of each kernel's type; 1 where it does no products."""
    peaks = np.ones(len(columns.kind))
    multiplies = columns.column("flops") > 0
    for dtype in sorted(set(columns.dtype[multiplies])):
        rate = "tf32" if precision == "tf32" and dtype == "float32" else _RATES.get(dtype)
        peak = device.peak_flop_per_s(rate) if rate is not None else None
        if peak is None:
            raise Unsupported(f"no time without the peak rate of {device.name} in {rate or dtype}: its device file has none")
        peaks[multiplies & (columns.dtype == dtype)] = peak
    return peaks


def _arithmetic_s(columns: Columns, peaks: np.ndarray, memory_format: MemoryFormat, constants: Constants) -> np.ndarray:
    """Seconds of the products alone; 0 for kernels without."""
    width, depth = columns.column("columns"), columns.column("depth")
    frac = np.full(len(width), constants.attention_frac)
    convolution, matmul = columns.kind == "convolution", columns.kind == "matmul"
    frac[convolution] = (
        constants.convolution_frac * _filled(width, constants.convolution_columns) * _filled(depth, constants.convolution_depth)
    )[convolution]
    frac[matmul] = (constants.matmul_frac * _filled(depth, constants.matmul_depth))[matmul]
    if memory_format == "channels_last":
        direct = convolution & _has_no_tensor_kernel(columns)
        frac[direct] = np.minimum(frac[direct], constants.direct_frac)
    multiplies = convolution | matmul | (columns.kind == "attention")
    return np.where(multiplies, columns.column("flops") / (peaks * frac), 0.0)


def _filled(side: np.ndarray, half: float) -> np.ndarray:
    """Share of the peak at a side of a product; one half at `half`. A side of 0 is of no product."""
    return np.maximum(side, 1.0) / (np.maximum(side, 1.0) + half)


def _has_no_tensor_kernel(columns: Columns) -> np.ndarray:
    groups = columns.column("products")
    channels = np.minimum(columns.column("rows"), columns.column("columns"))
    halves = (columns.dtype == "float16") | (columns.dtype == "bfloat16")
    found: np.ndarray = halves & (groups > 1) & ((groups < _DIRECT_GROUPS) | (channels > _DIRECT_WIDTH))
    return found


def _memory_fracs(columns: Columns, constants: Constants) -> np.ndarray:
    fracs = np.full(len(columns.kind), constants.memory_frac)
    fracs[columns.kind == "normalisation"] = constants.normalisation_frac
    fracs[columns.kind == "reduction"] = constants.reduction_frac
    fracs[columns.kind == "depthwise"] = constants.depthwise_frac
    return fracs


def _conversion_s(
    columns: Columns, precision: Precision, memory_format: MemoryFormat, bytes_per_s: float, constants: Constants
) -> np.ndarray:
    """Tensor cores want channels last: cuDNN turns contiguous images round before and after each convolution."""
    if memory_format == "channels_last" or precision == "float32":
        return np.zeros(len(columns.kind))
    turned = np.where(columns.kind == "convolution", columns.column("layout_bytes"), 0.0)
    seconds: np.ndarray = constants.layout_passes * turned / bytes_per_s
    return seconds
