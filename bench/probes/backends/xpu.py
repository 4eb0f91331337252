"""Intel GPUs: `torch.xpu`, with Level Zero's readings where torch offers them (2.14 and newer, with `pyzes`).

Not yet run on real hardware: names and units are those of torch/xpu and torch/csrc/xpu/Module.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.errors import DeviceError
from bench.probes.backends.contract import DeviceEvent, InForce
from bench.probes.backends.cuda import distinct_uuids
from bench.probes.gpu_monitor import GpuSnapshot, window_fields
from bench.probes.nvml import hash_uuid
from bench.probes.torch_memory import GpuMemory, memory_kind
from bench.records import Precision

NOTE = "Level Zero counts the memory of all processes together; none is told apart"
SILENCE = "power, energy and throttling are not read on Intel GPUs; clock and temperature need torch 2.14 and `pyzes`"


class XpuBackend:
    """See `contract.Backend`."""

    kind = "xpu"
    records_first = True

    def available(self) -> bool:
        """Torch's word."""
        import torch

        return hasattr(torch, "xpu") and torch.xpu.is_available()

    def facts(self) -> dict[str, Any]:
        """Of every GPU; an integrated one takes host memory."""
        import torch

        properties = [torch.xpu.get_device_properties(index) for index in range(torch.xpu.device_count())]
        return {
            "device_count": len(properties),
            "device_names": tuple(each.name for each in properties),
            "uuids": distinct_uuids(properties),
            "unified": tuple(memory_kind(each) == "unified" for each in properties),
            "total_bytes": tuple(int(each.total_memory) for each in properties),
            "silence": SILENCE,
        }

    def see_only(self, gpu_uuid: str | None, gpu_index: int | None) -> None:
        """By torch's index: `ZE_AFFINITY_MASK` counts GPUs that torch leaves out, as integrated ones beside others."""
        if not gpu_index:
            return
        import torch

        if gpu_index >= (count := torch.xpu.device_count()):
            raise DeviceError(f"xpu:{gpu_index}: torch sees {count} GPU(s)")
        torch.xpu.set_device(gpu_index)

    def synchronize(self) -> None:
        """As `torch.xpu.synchronize`."""
        import torch

        torch.xpu.synchronize()

    def event(self) -> DeviceEvent:
        """A SYCL event with profiling; `elapsed_time` is in milliseconds, as CUDA's."""
        import torch

        event_type: Any = torch.xpu.Event
        event: DeviceEvent = event_type(enable_timing=True)
        return event

    def memory(self) -> XpuMemory:
        """Torch's caching allocator."""
        return XpuMemory()

    def readings(self, gpu_uuid: str | None, error: str | None) -> XpuReadings:
        """Level Zero's, by way of torch."""
        return XpuReadings(error)

    def environment(self, index: int | None) -> dict[str, Any]:
        """Torch's properties. Xe cores are what NVIDIA calls multiprocessors."""
        import torch

        at = torch.xpu.current_device() if index is None else index
        properties = torch.xpu.get_device_properties(at)
        uuids = distinct_uuids([properties])
        kind = memory_kind(properties)
        return {
            "gpu_name": properties.name,
            "gpu_index": at,
            "gpu_count": torch.xpu.device_count(),
            "gpu_uuid_hash": hash_uuid(uuids[0]) if uuids else None,
            "gpu_total_bytes": None if kind == "unified" else int(properties.total_memory),
            "gpu_multiprocessors": getattr(properties, "gpu_subslice_count", None),
            "driver_version": getattr(properties, "driver_version", None),
            "device_memory_kind": kind,
            "device_memory_note": "the GPU takes host memory" if kind == "unified" else NOTE,
            "xpu_version": getattr(torch.version, "xpu", None),
        }

    def precision(self, precision: Precision, variables: Mapping[str, str]) -> InForce | None:
        """By the device's properties, and by oneDNN's switch for TF32 (aten/src/ATen/native/mkldnn/xpu/detail)."""
        import torch

        properties: Any = torch.xpu.get_device_properties(torch.xpu.current_device())
        name = properties.name
        if precision == "bf16":
            native = getattr(properties, "has_bfloat16_conversions", None)
            emulated = "bf16, emulated", f"{name} emulates bf16: it has no bf16 arithmetic"
            return (None, None) if native is None else (precision, None) if native else emulated
        if precision == "fp16":
            emulated = "fp16, emulated", f"{name} emulates fp16: it has no fp16 arithmetic"
            return (precision, None) if properties.has_fp16 else emulated
        on: bool | None = getattr(torch.backends.mkldnn, "allow_tf32", None)  # torch 2.7 and newer; off before
        if precision == "tf32":
            return "float32", "bench sets no TF32 on Intel GPUs"
        return (
            ("tf32", "code of the model or of a library set torch.backends.mkldnn.allow_tf32")
            if on
            else ("float32", None)
        )


class XpuMemory(GpuMemory):
    """Of `torch.xpu`, whose functions have the names of `torch.cuda`'s; the newest torch has the most of them."""

    kind = "xpu"

    def _free_and_total(self) -> tuple[int, int] | None:
        try:
            return super()._free_and_total()
        except (AttributeError, RuntimeError):  # torch before 2.8, or a driver without ext_intel_free_memory
            return None


class XpuReadings:
    """See `contract.DeviceReadings`. Never raises: what torch cannot read is None."""

    def __init__(self, error: str | None = None) -> None:
        """Read the current device; `error` says why not to."""
        self.error = error
        self._start = GpuSnapshot()

    @property
    def open(self) -> bool:
        """Whether this torch reads a clock."""
        return self.error is None and self._read("clock_rate") is not None

    def used_bytes(self) -> int | None:
        """Not read: to ask would start the device, and count in what that takes."""

    def start(self) -> None:
        """Read the device, while steps are in flight."""
        self._start = self._snapshot()

    def open_window(self) -> None:
        """Nothing: torch reads no energy, and its power takes 0.1 s of an idle device."""

    def close_window(self) -> dict[str, Any]:
        """Columns of `Measurement`."""
        return {} if self.error else window_fields(self._start, self._snapshot())

    def _snapshot(self) -> GpuSnapshot:
        clock = self._read("clock_rate")
        return GpuSnapshot(sm_clock_hz=clock * 1e6 if clock else None, temperature_c=self._read("temperature"))

    def _read(self, name: str) -> float | None:
        import torch

        asked = getattr(torch.xpu, name, None)
        try:
            return None if asked is None else float(asked())
        except (RuntimeError, ImportError, AttributeError, OSError):  # no `pyzes`, or no rights
            return None
