"""Apple GPUs: `torch.mps`, on memory that is the host's.

Peaks are counted from torch 2.14 on, where MPS's allocator answers `torch.accelerator` (pytorch/pytorch #186748);
before, torch knows what is held now, which is not a peak, and the columns are null. Not yet run on real hardware: names
and units are those of torch/mps, MPSAllocator.mm and MPSEvent.mm.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Any

from bench.probes.backends.contract import DeviceEvent, InForce
from bench.probes.gpu_monitor import Readings
from bench.records import Precision

NO_PEAKS = "this torch keeps no peak of MPS's memory"
UNIFIED = "the GPU takes host memory"
SILENCE = "clocks, power, temperature and throttling of Apple GPUs are not read"


class MpsBackend:
    """See `contract.Backend`."""

    kind = "mps"
    records_first = False  # the notification of a first record would pass for that of a second: MPSEvent.mm

    def available(self) -> bool:
        """Torch's word."""
        import torch

        return torch.backends.mps.is_available()

    def facts(self) -> dict[str, Any]:
        """Of the one GPU."""
        import torch

        return {
            "device_count": 1,
            "device_names": (_name(),),
            "unified": (True,),
            "total_bytes": (int(torch.mps.recommended_max_memory()),),
            "silence": "; ".join([SILENCE, *([] if _stats() is not None else [NO_PEAKS])]),
        }

    def see_only(self, gpu_uuid: str | None, gpu_index: int | None) -> None:
        """Nothing: there is one."""

    def synchronize(self) -> None:
        """As `torch.mps.synchronize`."""
        import torch

        torch.mps.synchronize()

    def event(self) -> DeviceEvent:
        """A Metal event. Its time is when a thread of the host heard of it, in ms; asked twice, it waits for ever."""
        import torch

        event: DeviceEvent = torch.mps.Event(enable_timing=True)
        return event

    def memory(self) -> MpsMemory:
        """Metal's heaps, as torch keeps them."""
        return MpsMemory()

    def readings(self, gpu_uuid: str | None, error: str | None) -> Readings:
        """Nothing to read: macOS has it for root alone."""
        return Readings(None, error)

    def environment(self, index: int | None) -> dict[str, Any]:
        """What torch and the system tell. The driver is part of macOS: `os_name` says which."""
        import torch

        cores = getattr(torch.backends.mps, "get_core_count", None)  # torch 2.9 and newer
        return {
            "gpu_name": _name(),
            "gpu_index": 0,
            "gpu_count": 1,
            "gpu_multiprocessors": int(cores()) if cores else None,
            "device_memory_kind": "unified",
            "device_memory_note": UNIFIED if _stats() is not None else f"{UNIFIED}; {NO_PEAKS}",
        }

    def precision(self, precision: Precision, variables: Mapping[str, str]) -> InForce | None:
        """Metal has no TF32; whether a chip has bf16 or emulates it, nothing tells."""
        if precision == "bf16":
            return None, None
        if precision == "fp16":
            return precision, None
        if precision == "tf32":
            return "float32", "Apple GPUs have no TF32"
        return "float32", None


class MpsMemory:
    """See `contract.TorchMemory`. Shares are of what Metal recommends as the most (`recommendedMaxWorkingSetSize`)."""

    unified = True

    def reset(self) -> None:
        """Let the peaks start again, where there are any."""
        import torch

        if _stats() is not None:
            torch.accelerator.reset_peak_memory_stats()

    def peaks(self) -> dict[str, int | None]:
        """What `torch.accelerator` counts; MPS does not count what was requested."""
        stats = _stats() or {}
        counted = stats.get("allocated_bytes.all.allocated", 0) > 0
        return {
            "peak_allocated_bytes": stats.get("allocated_bytes.all.peak") if counted else None,
            "peak_requested_bytes": None,
            "peak_reserved_bytes": stats.get("reserved_bytes.all.peak") if counted else None,
        }

    def device_fields(self, used_before_bytes: int | None = None) -> dict[str, int | None]:
        """Null: the memory is the host's, and MPS counts no retries."""
        return {"device_total_bytes": None, "alloc_retries": None, "context_bytes": None}

    def is_exhausted(self) -> bool:
        """False: MPS says `out of memory` itself, and no library below it hides that."""
        return False

    def play_card(self, limit_bytes: int, used_before_bytes: int | None = None) -> int:
        """A share of the most that Metal recommends."""
        return self._hold(limit_bytes)

    def share_host(self, limit_bytes: int, resident_bytes: int) -> int:
        """What the limit leaves beside the process."""
        return self._hold(limit_bytes - resident_bytes)

    def _hold(self, left_bytes: int) -> int:
        import torch

        allowed = max(1, left_bytes)  # 0 would be no limit at all
        torch.mps.set_per_process_memory_fraction(min(2.0, allowed / torch.mps.recommended_max_memory()))
        return allowed

    def read_allowed(self) -> None:
        """MPS takes a share and does not tell it."""


def _stats() -> Mapping[str, Any] | None:
    """What MPS's allocator counts; None where this torch has no count."""
    import torch

    read = getattr(torch.accelerator, "memory_stats", None)  # torch 2.9 and newer
    try:
        found: Mapping[str, Any] | None = None if read is None else read()
    except RuntimeError:  # "Allocator for mps is not a DeviceAllocator", before 2.14
        return None
    return found


def _name() -> str:
    """`Apple M2 Max`: Metal's name for the GPU, which is the chip's."""
    import torch

    name = getattr(torch.backends.mps, "get_name", None)  # torch 2.9 and newer
    if name is not None:
        return str(name())
    try:
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return "Apple GPU"
    return asked.stdout.strip() or "Apple GPU"
