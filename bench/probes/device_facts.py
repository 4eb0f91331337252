"""The figures of a device file, read off the GPU that is present; what the device does not tell is left out."""

from __future__ import annotations

from typing import Any

from bench.errors import DeviceError
from bench.probes.gpu_monitor import GpuMonitor

_CORES_PER_MULTIPROCESSOR = {
    (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128,
    (10, 3): 128, (12, 0): 128,
}  # fmt: skip
"""float32 lanes by compute capability: CUDA C++ Programming Guide, throughput of native arithmetic instructions."""


def measure_device_facts(gpu_uuid: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and sources for `bench.devices.render_device_toml`, of the CUDA device that this process sees first.

    Peak rates of tensor cores are no property that a driver tells: they stay out, to be filled in from the datasheet.
    The context is measured, so the process must have touched CUDA in no other way before.

    Args:
        gpu_uuid: For NVML's part; without it, or where NVML gives no answer, clocks and limits stay out.
    """
    import torch

    properties = torch.cuda.get_device_properties(0)
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    values: dict[str, Any] = {"gpu_name": properties.name, "kind": "cuda"}
    sources: dict[str, str] = {}

    def note(key: str, value: Any, source: str) -> None:
        if value:
            values[key], sources[key] = value, source

    asked = f"measured: device properties ({versions})"
    note("memory_bytes", properties.total_memory, asked)
    note("multiprocessors", properties.multi_processor_count, asked)
    note("compute_capability", [properties.major, properties.minor], asked)
    note("l2_bytes", getattr(properties, "L2_cache_size", None), asked)
    note("max_threads_per_multiprocessor", getattr(properties, "max_threads_per_multi_processor", None), asked)
    bus_bits = getattr(properties, "memory_bus_width", None)
    clock_khz = getattr(properties, "memory_clock_rate", None)
    note("memory_bus_bits", bus_bits, asked)
    if bus_bits and clock_khz:
        note("memory_clock_hz", clock_khz * 1e3, asked)
        note(
            "memory_bandwidth_bytes_per_s",
            2.0 * clock_khz * 1e3 * bus_bits / 8,
            "derived: 2 x memory clock x bus width",
        )
    _note_nvml(note, gpu_uuid)
    _note_float32(note, values)
    note(
        "context_bytes",
        _measure_context_bytes(),
        f"measured: used - reserved after one product and convolution ({versions})",
    )
    return values, sources


def _note_nvml(note: Any, gpu_uuid: str | None) -> None:
    if gpu_uuid is None:
        return
    try:
        with GpuMonitor(gpu_uuid) as monitor:
            static = monitor.static()
    except DeviceError:
        return
    note("nvml_memory_bytes", static.total_bytes, "measured: NVML")
    note("boost_clock_hz", static.max_sm_clock_hz, "measured: NVML, maximum clock of the multiprocessors")
    note("power_limit_w", static.power_limit_default_w, "measured: NVML, default limit")


def _note_float32(note: Any, values: dict[str, Any]) -> None:
    cores = _CORES_PER_MULTIPROCESSOR.get(tuple(values["compute_capability"]))
    note("fp32_cores_per_multiprocessor", cores, "CUDA C++ Programming Guide, by compute capability")
    clock_hz = values.get("boost_clock_hz")
    if cores and clock_hz:
        rate = 2.0 * cores * values["multiprocessors"] * clock_hz
        note("peak_float32_flop_per_s", rate, "derived: 2 x cores x maximum clock")


def _measure_context_bytes() -> int | None:
    """What the device holds beyond torch's allocator once kernels and libraries are loaded; others' use counts in."""
    import torch

    image = torch.zeros(1, 3, 32, 32, device="cuda", requires_grad=True)
    weight = torch.zeros(8, 3, 3, 3, device="cuda", requires_grad=True)
    product = torch.nn.functional.conv2d(image, weight).flatten(1)
    (product @ product.T).sum().backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    return context if context > 0 else None
