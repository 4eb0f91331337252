"""AMD GPUs: torch's names are those of CUDA (`torch.cuda`, kind `cuda`), and AMD SMI stands in NVML's place.

AMD SMI is `amdsmi`, of ROCm or of its own package; without it a run has no readings. Not yet run on real hardware:
names and units are those of ROCm/amdsmi's py-interface and of torch/cuda/__init__.py, which reads the same.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.probes.backends.contract import DeviceReadings, InForce
from bench.probes.backends.cuda import CudaBackend
from bench.probes.gpu_monitor import LEAST_WINDOW_S, GpuSnapshot, difference, window_fields
from bench.probes.nvml import hash_uuid
from bench.records import Precision

NO_AMDSMI = "no readings from AMD SMI (Python has no `amdsmi`): clocks, power and temperature are unknown"
_UNKNOWN = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # what AMD SMI writes where firmware gives no answer


class RocmBackend(CudaBackend):
    """See `contract.Backend`; what is not here is as on CUDA."""

    def facts(self) -> dict[str, Any]:
        """As on CUDA, with the architectures, and without readings where there is no AMD SMI."""
        import torch

        found = super().facts()
        indices = range(found["device_count"])
        archs = tuple(str(getattr(torch.cuda.get_device_properties(i), "gcnArchName", "")) for i in indices)
        return {**found, "mps": (), "archs": archs, "silence": None if _amdsmi() else NO_AMDSMI}

    def see_only(self, gpu_uuid: str | None, gpu_index: int | None) -> None:
        """By place: HIP takes other UUIDs than torch tells."""
        super().see_only(None, gpu_index)

    def readings(self, gpu_uuid: str | None, error: str | None) -> DeviceReadings:
        """AMD SMI's."""
        return AmdReadings(error)

    def environment(self, index: int | None) -> dict[str, Any]:
        """What AMD SMI adds. There is no cuDNN: MIOpen comes with ROCm, whose version is `hip_version`."""
        import torch

        found: dict[str, Any] = {"cudnn_version": None, "mig": None}
        uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
        found["gpu_uuid_hash"] = hash_uuid(uuid) if set(uuid) - set("0-") else None
        smi = _amdsmi()
        handle = _find_handle(smi, index) if smi else None
        if smi is None or handle is None:
            return found
        cap = _ask(smi, "amdsmi_get_power_cap_info", handle) or {}
        clock = _ask(smi, "amdsmi_get_clock_info", handle, smi.AmdSmiClkType.GFX) or {}
        return {
            **found,
            "driver_version": (_ask(smi, "amdsmi_get_gpu_driver_info", handle) or {}).get("driver_version"),
            "vbios": (_ask(smi, "amdsmi_get_gpu_vbios_info", handle) or {}).get("version"),
            "power_limit_w": _number(cap.get("power_cap"), 1e-6),
            "power_limit_default_w": _number(cap.get("default_power_cap"), 1e-6),
            "max_sm_clock_hz": _number(clock.get("max_clk"), 1e6),
        }

    def precision(self, precision: Precision, variables: Mapping[str, str]) -> InForce | None:
        """As on CUDA, but for TF32: torch before 2.9 also wants a variable of hipBLASLt's."""
        import torch

        found = super().precision(precision, variables)
        asked = precision == "tf32" and found is None
        if asked and not torch.backends.cuda.matmul.allow_tf32 and variables.get("HIPBLASLT_ALLOW_TF32") != "1":
            return "float32", "this torch rounds to TF32 on ROCm only where HIPBLASLT_ALLOW_TF32=1 is set"
        return found

    def _has_fp16(self, capability: tuple[int, int]) -> bool:
        return True  # every architecture that ROCm supports

    def _has_tf32(self) -> bool:
        import torch

        supported = getattr(torch.cuda, "is_tf32_supported", None)
        return bool(supported()) if supported is not None else False


class AmdReadings:
    """See `contract.DeviceReadings`. Never raises: what AMD SMI does not answer is None."""

    def __init__(self, error: str | None = None) -> None:
        """Find the GPU that this process sees; `error` says why not to."""
        self._opened_s = 0.0
        self.error = error
        self._smi = None if error else _amdsmi()
        self._handle = _find_handle(self._smi, 0) if self._smi else None
        if self._smi and self._handle is None:
            self.error = "AMD SMI does not say which of its GPUs is torch's"
        self._start = GpuSnapshot()
        self._energy_j: float | None = None

    @property
    def open(self) -> bool:
        """Whether there is a GPU to read."""
        return self._handle is not None

    def used_bytes(self) -> int | None:
        """What all processes hold of its own memory; on an APU that is the small part that the firmware carves out."""
        return self._snapshot().used_total_bytes

    def start(self) -> None:
        """Read the device, while steps are in flight."""
        self._start = self._snapshot()

    def open_window(self) -> None:
        """Read the energy."""
        self._energy_j, self._opened_s = self._read_energy_j(), time.monotonic()

    def close_window(self) -> dict[str, Any]:
        """Columns of `Measurement`; none where nothing is read."""
        if self._handle is None:
            return {}
        long, energy_j = time.monotonic() - self._opened_s >= LEAST_WINDOW_S, self._read_energy_j()
        fields = window_fields(self._start, self._snapshot())
        return {**fields, "energy_window_j": difference(self._energy_j, energy_j) if long else None}

    def _read(self, name: str, *arguments: Any) -> Any:
        return None if self._handle is None else _ask(self._smi, name, self._handle, *arguments)

    def _read_energy_j(self) -> float | None:
        read = self._read("amdsmi_get_energy_count") or {}  # ROCm before 6.4 says `power` for the accumulator
        count, microjoules = read.get("energy_accumulator", read.get("power")), read.get("counter_resolution")
        return None if not count or not microjoules else count * microjoules * 1e-6

    def _snapshot(self) -> GpuSnapshot:
        smi: Any = self._smi
        if self._handle is None:
            return GpuSnapshot()
        kinds = smi.AmdSmiTemperatureType.JUNCTION, smi.AmdSmiTemperatureMetric.CURRENT
        power = self._read("amdsmi_get_power_info") or {}
        watts = (_number(power.get(name)) for name in ("current_socket_power", "average_socket_power"))
        used = self._read("amdsmi_get_gpu_memory_usage", smi.AmdSmiMemoryType.VRAM)
        return GpuSnapshot(
            sm_clock_hz=self._read_clock_hz(smi.AmdSmiClkType.GFX),
            memory_clock_hz=self._read_clock_hz(smi.AmdSmiClkType.MEM),
            temperature_c=_number(self._read("amdsmi_get_temp_metric", *kinds)),
            power_w=next((each for each in watts if each), None),
            energy_j=self._read_energy_j(),
            used_total_bytes=None if used is None else int(used),
        )

    def _read_clock_hz(self, kind: Any) -> float | None:
        read = self._read("amdsmi_get_clock_info", kind) or {}
        return _number(read.get("clk", read.get("cur_clk")), 1e6)  # `cur_clk` before ROCm 6.2


def _amdsmi() -> Any:
    """The library, started; None where it is not there or does not start."""
    try:
        amdsmi: Any = importlib.import_module("amdsmi")
    except (ImportError, OSError, KeyError, AttributeError):  # its own library may be missing, or of another version
        return None
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException:
        return None
    return amdsmi


def _ask(smi: Any, name: str, *arguments: Any) -> Any:
    """What a function of AMD SMI answers; None where this version, driver or GPU has no such answer."""
    asked: Callable[..., Any] | None = getattr(smi, name, None)
    try:
        return None if asked is None else asked(*arguments)
    except (smi.AmdSmiException, OSError, ValueError):
        return None


def _find_handle(smi: Any, index: int | None) -> Any:
    """AMD SMI's handle for torch's GPU: by PCI address, or the only one there is; never a guess."""
    import torch

    handles = list(_ask(smi, "amdsmi_get_processor_handles") or ())
    properties: Any = torch.cuda.get_device_properties(index)
    if getattr(properties, "pci_bus_id", None) is None:  # older torch
        return handles[0] if len(handles) == 1 else None
    place = (getattr(properties, "pci_domain_id", 0), properties.pci_bus_id, properties.pci_device_id)
    address = "{:04x}:{:02x}:{:02x}".format(*place)
    found = [each for each in handles if str(_ask(smi, "amdsmi_get_gpu_device_bdf", each)).lower().startswith(address)]
    return found[0] if len(found) == 1 else None  # several: partitions of one GPU


def _number(value: Any, scale: float = 1.0) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and value not in _UNKNOWN and value > 0
    return value * scale if known else None
