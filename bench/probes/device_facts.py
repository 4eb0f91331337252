"""The figures of a device file, read off the GPU that is present; what the device does not tell is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.errors import DeviceError
from bench.probes.gpu_monitor import GpuMonitor
from bench.probes.torch_memory import memory_kind

_CORES_PER_MULTIPROCESSOR = {
    (6, 0): 64,
    (6, 1): 128,
    (6, 2): 128,
    (7, 0): 64,
    (7, 2): 64,
    (7, 5): 64,
    (8, 0): 64,
    (8, 6): 128,
    (8, 7): 128,
    (8, 9): 128,
    (9, 0): 128,
    (10, 0): 128,
    (10, 3): 128,
    (12, 0): 128,
    (12, 1): 128,
}
"""float32 lanes by compute capability: CUDA C++ Programming Guide, throughput of native arithmetic instructions."""

_TENSOR_FLOP_PER_CYCLE = {
    (7, 0): 1024,
    (7, 5): 1024,
    (8, 0): 2048,
    (8, 6): 1024,
    (8, 9): 1024,
    (9, 0): 4096,
    (10, 0): 8192,
    (10, 3): 8192,
    (12, 0): 1024,
    (12, 1): 1024,
}
"""Dense fp16 products accumulated in float32, of one multiprocessor and cycle: NVIDIA's architecture whitepapers, and
what the device files of this package come to. GeForce cards and the A10G do half as many; those called GTX have no
tensor cores."""

Note = Callable[[str, Any, str], None]


def measure_device_facts(gpu_uuid: str | None, *, context: bool = True) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and sources for `bench.devices.render_device_toml`, of the CUDA device that this process sees first.

    A source that begins with `measured:` is of a value that the GPU gave; the others are derived from such values. What
    neither gives is left out.

    Args:
        gpu_uuid: For NVML's part; without it, or where NVML gives no answer, limits stay out.
        context: Whether to measure the context too: some kernels run for it, and the process must have touched CUDA in
            no other way before.
    """
    import torch

    properties = torch.cuda.get_device_properties(0)
    hip = getattr(torch.version, "hip", None)
    versions = f"torch {torch.__version__}, " + (f"HIP {hip}" if hip else f"CUDA {torch.version.cuda}")
    values: dict[str, Any] = {"gpu_name": properties.name, "kind": "cuda", **({"vendor": "amd"} if hip else {})}
    sources: dict[str, str] = {}

    def note(key: str, value: Any, source: str) -> None:
        if value and key not in values:
            values[key], sources[key] = value, source

    asked = f"measured: device properties ({versions})"
    note("memory_bytes", properties.total_memory, asked)
    note("multiprocessors", properties.multi_processor_count, asked)
    if not hip:  # an MI250X says 9.0, as a Hopper does: the rates of NVIDIA's generations must not follow from it
        note("compute_capability", [properties.major, properties.minor], asked)
    note("l2_bytes", getattr(properties, "L2_cache_size", None), asked)
    note("max_threads_per_multiprocessor", getattr(properties, "max_threads_per_multi_processor", None), asked)
    note("memory_bus_bits", getattr(properties, "memory_bus_width", None), asked)
    note("memory_clock_hz", getattr(properties, "memory_clock_rate", 0) * 1e3, asked)
    note("boost_clock_hz", getattr(properties, "clock_rate", 0) * 1e3, asked)
    _note_nvml(note, gpu_uuid)
    _note_rates(note, values)
    if context and memory_kind(properties) != "unified":  # where all that the host has in use would count as it
        measured = f"measured: used - reserved after one product and convolution ({versions})"
        note("context_bytes", _measure_context_bytes(), measured)
    return values, sources


def _note_nvml(note: Note, gpu_uuid: str | None) -> None:
    """What NVML adds; its clocks are the highest that can be set, often above the rated ones that CUDA reports."""
    if gpu_uuid is None:
        return
    try:
        with GpuMonitor(gpu_uuid) as monitor:
            static = monitor.static()
    except DeviceError:
        return
    note("nvml_memory_bytes", static.total_bytes, "measured: NVML")
    note("boost_clock_hz", static.max_sm_clock_hz, "derived: NVML's maximum clock of the multiprocessors")
    note("memory_clock_hz", static.max_memory_clock_hz, "derived: NVML's maximum clock of the memory")
    if not static.is_slice:  # the limit is of the whole board
        note("power_limit_w", static.power_limit_default_w, "measured: NVML, default limit")


def _note_rates(note: Note, values: Mapping[str, Any]) -> None:
    """Rates that follow from clocks and widths; those of tensor cores from the architecture as well."""
    bus_bits, memory_hz = values.get("memory_bus_bits"), values.get("memory_clock_hz")
    if bus_bits and memory_hz:
        note("memory_bandwidth_bytes_per_s", 2.0 * memory_hz * bus_bits / 8, "derived: 2 x memory clock x bus width")
    capability, count, clock_hz = (
        values.get(key) for key in ("compute_capability", "multiprocessors", "boost_clock_hz")
    )
    known = tuple(capability or ())
    cores = _CORES_PER_MULTIPROCESSOR.get(known)
    note("fp32_cores_per_multiprocessor", cores, "CUDA C++ Programming Guide, by compute capability")
    if not count or not clock_hz:
        return
    if cores:
        note("peak_float32_flop_per_s", 2.0 * cores * count * clock_hz, "derived: 2 x cores x maximum clock")
    name = str(values["gpu_name"]).casefold()
    if known < (7, 0) and "peak_float32_flop_per_s" in values:
        note("peak_fp16_flop_per_s", values["peak_float32_flop_per_s"], "derived: that of float32; no tensor cores")
    per_cycle = None if "gtx" in name else _TENSOR_FLOP_PER_CYCLE.get(known)
    if per_cycle is None:
        return
    half = "geforce" in name or name.endswith("a10g")
    per_cycle = per_cycle // 2 if half else per_cycle
    of = f"compute capability {'.'.join(map(str, known))}" + (" and a board that does half" if half else "")
    kinds = (("fp16", 1.0), ("bf16", 1.0), ("tf32", 0.5)) if known >= (8, 0) else (("fp16", 1.0),)
    for kind, share in kinds:
        rate = per_cycle * share
        source = f"derived: {count} x {clock_hz / 1e9:g} GHz x {rate:g} FLOP per cycle and multiprocessor, of {of}"
        note(f"peak_{kind}_flop_per_s", rate * count * clock_hz, f"{source}; rated figures may be some percent lower")


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
