"""Stand-ins for GPUs of AMD, Intel and Apple: `torch.cuda`, `torch.xpu` and `torch.mps` that answer as torch's sources
and documents say, above tensors that are the CPU's.

Each is as its vendor's torch has it in a version; what a version lacks is taken away. See `bench.probes.backends`.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

GIB = 1 << 30
STATS = {
    "allocated_bytes.all.allocated": 900 << 20,
    "allocated_bytes.all.peak": 300 << 20,
    "requested_bytes.all.peak": 290 << 20,
    "reserved_bytes.all.peak": 400 << 20,
    "reserved_bytes.all.current": 350 << 20,
}


class Marks:
    """Events on the host's clock, which keep to what `torch.mps.Event` demands: recorded once, asked once."""

    def __init__(self, log: list[str], *, once: bool = False) -> None:
        self.log, self.once = log, once

    def __call__(self, enable_timing: bool = False) -> Mark:
        assert enable_timing
        return Mark(self)


class Mark:
    def __init__(self, of: Marks) -> None:
        self.of, self.at_s, self.asked = of, 0.0, False

    def record(self) -> None:
        assert not (self.of.once and self.at_s), "recorded twice"
        self.of.log.append("record")
        self.at_s = time.perf_counter()

    def elapsed_time(self, end: Mark) -> float:
        assert not (self.of.once and end.asked), "would wait for ever: MPSEventPool::elapsedTime"
        end.asked = True
        return (end.at_s - self.at_s) * 1e3


@contextlib.contextmanager
def tensors_of(kind: str) -> Iterator[None]:
    """Put on the CPU what is asked for on a device that is not there."""
    from torch.overrides import TorchFunctionMode

    def here(value: Any) -> Any:
        there = isinstance(value, torch.device) and value.type == kind
        named = isinstance(value, str) and value.partition(":")[0] == kind
        return torch.device("cpu") if there or named else value

    class OnTheCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*map(here, args), **{name: here(value) for name, value in (kwargs or {}).items()})

    with OnTheCpu():
        yield


def _hide(patch: pytest.MonkeyPatch) -> None:
    """Let optimizers find no accelerator, as the tensors are the CPU's: they would ask it whether it captures a graph."""
    importlib.import_module("torch._dynamo")  # an optimizer would, and it looks at functions that are replaced here
    patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    patch.setattr(torch.version, "cuda", None)


def _allocator(patch: pytest.MonkeyPatch, module: Any, total: int, stats: dict[str, int], log: list[str]) -> None:
    _hide(patch)
    share = [1.0]
    replaced: dict[str, Callable[..., Any]] = {
        "synchronize": lambda *_: log.append("synchronize"),
        "memory_stats": lambda *_: stats,
        "memory_reserved": lambda *_: stats["reserved_bytes.all.current"],
        "reset_peak_memory_stats": lambda *_: log.append("reset"),
        "empty_cache": lambda: log.append("empty"),
        "mem_get_info": lambda *_: (total - GIB, total),
        "set_per_process_memory_fraction": lambda fraction, *_: share.__setitem__(0, fraction),
        "get_per_process_memory_fraction": lambda *_: share[0],
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "init": lambda: None,
    }
    for name, function in replaced.items():
        patch.setattr(module, name, function, raising=False)


def play_rocm(patch: pytest.MonkeyPatch, *, smi: bool = True, name: str = "AMD Instinct MI300X", **changes: Any) -> Any:
    """A torch for ROCm with two cards, and AMD SMI's stand-in where it is to be installed; returns a log and that."""
    log: list[str] = []
    _allocator(patch, torch.cuda, 192 * GIB, {**STATS, "num_alloc_retries": 0, "num_ooms": 0}, log)

    def properties(index: int | None = None) -> SimpleNamespace:
        base = {
            "name": name,
            "major": 9,
            "minor": 4,
            "total_memory": 192 * GIB,
            "multi_processor_count": 304,
            "warp_size": 64,
            "gcnArchName": "gfx942:sramecc+:xnack-",
            "is_integrated": 0,
            "uuid": f"31323334-3536-3738-3930-31323334353{index or 0}",
            "pci_domain_id": 0,
            "pci_bus_id": 0xC1 + (index or 0),
            "pci_device_id": 0,
        }
        return SimpleNamespace(**{**base, **changes})

    patch.setattr(torch.version, "hip", "6.4.43482")
    patch.setattr(torch.backends.cudnn, "version", lambda: 3004000)
    for found, answer in {
        "get_device_properties": properties,
        "get_device_name": lambda index=None: name,
        "get_device_capability": lambda index=None: (9, 4),
        "get_allocator_backend": lambda: "native",
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_tf32_supported": lambda: True,
        "Event": Marks(log),
    }.items():
        patch.setattr(torch.cuda, found, answer, raising=False)
    library = FakeAmdSmi() if smi else None
    patch.setitem(sys.modules, "amdsmi", library)
    return SimpleNamespace(log=log, smi=library)


class FakeAmdSmi:
    """`amdsmi` with the functions and units of ROCm/amdsmi's py-interface, of two cards in another order than HIP's."""

    class AmdSmiException(Exception):
        pass

    AmdSmiClkType = SimpleNamespace(GFX="gfx", MEM="mem")
    AmdSmiTemperatureType = SimpleNamespace(JUNCTION="junction")
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT="current")
    AmdSmiMemoryType = SimpleNamespace(VRAM="vram")

    def __init__(self) -> None:
        self.energy = 1_000_000
        self.refused: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("amdsmi_") and name in object.__getattribute__(self, "refused"):
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    def amdsmi_init(self) -> None:
        pass

    def amdsmi_get_processor_handles(self) -> list[str]:
        return ["second", "first"]

    def amdsmi_get_gpu_device_bdf(self, handle: str) -> str:
        return {"first": "0000:C1:00.0", "second": "0000:C2:00.0"}[handle]

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        assert handle == "first"
        return {"current_socket_power": 612, "average_socket_power": "N/A", "power_limit": 750_000_000}

    def amdsmi_get_power_cap_info(self, handle: str) -> dict[str, int]:
        return {"power_cap": 700_000_000, "default_power_cap": 750_000_000}

    def amdsmi_get_clock_info(self, handle: str, kind: str) -> dict[str, Any]:
        return {"clk": {"gfx": 2100, "mem": 1300}[kind], "min_clk": 132, "max_clk": 2100}

    def amdsmi_get_temp_metric(self, handle: str, sensor: str, metric: str) -> int:
        return 64

    def amdsmi_get_energy_count(self, handle: str) -> dict[str, Any]:
        self.energy += 100_000
        return {"energy_accumulator": self.energy, "counter_resolution": 15.26, "timestamp": 1}

    def amdsmi_get_gpu_memory_usage(self, handle: str, kind: str) -> int:
        return 3 * GIB

    def amdsmi_get_gpu_driver_info(self, handle: str) -> dict[str, str]:
        return {"driver_name": "amdgpu", "driver_version": "6.12.12"}

    def amdsmi_get_gpu_vbios_info(self, handle: str) -> dict[str, str]:
        raise self.AmdSmiException("not supported")


def play_xpu(patch: pytest.MonkeyPatch, *, newest: bool = True, **changes: Any) -> list[str]:
    """A torch for XPU with two cards: as of 2.15, with what `pyzes` adds, or as of 2.6; returns a log."""
    log: list[str] = []
    _allocator(patch, torch.xpu, 64 * GIB, dict(STATS), log)

    def properties(index: int | None = None) -> SimpleNamespace:
        base = {
            "name": "Intel(R) Data Center GPU Max 1550",
            "driver_version": "1.6.33578+13",
            "gpu_subslice_count": 64,
            "total_memory": 64 * GIB,
            "has_fp16": True,
        }
        new = {
            "is_integrated_gpu": False,
            "has_bfloat16_conversions": True,
            "uuid": f"8680d50b-2f00-0000-0000-00000000000{(index or 0) + 1}",
        }
        return SimpleNamespace(**{**base, **(new if newest else {}), **changes})

    patch.setattr(torch.version, "xpu", "20250101", raising=False)
    patch.setattr(torch.xpu, "get_device_properties", properties)
    patch.setattr(torch.xpu, "set_device", lambda index: log.append(f"set {index}"))
    patch.setattr(torch.xpu, "Event", Marks(log))
    if newest:
        patch.setattr(torch.xpu, "clock_rate", lambda *_: 1600.0, raising=False)
        patch.setattr(torch.xpu, "temperature", lambda *_: 51.0, raising=False)
    else:
        for name in ("mem_get_info", "set_per_process_memory_fraction", "get_per_process_memory_fraction"):
            patch.delattr(torch.xpu, name, raising=False)
        for name in ("clock_rate", "temperature"):
            patch.delattr(torch.xpu, name, raising=False)
    return log


def play_mps(patch: pytest.MonkeyPatch, *, newest: bool = True) -> list[str]:
    """A torch on a Mac: as of 2.15, whose allocator answers `torch.accelerator`, or as of 2.6; returns a log."""
    log: list[str] = []
    _hide(patch)
    patch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name, answer in {
        "synchronize": lambda: log.append("synchronize"),
        "device_count": lambda: 1,
        "current_allocated_memory": lambda: 100 << 20,
        "driver_allocated_memory": lambda: 500 << 20,
        "recommended_max_memory": lambda: 48 * GIB,
        "set_per_process_memory_fraction": lambda share: log.append(f"share {share:.6f}"),
        "Event": Marks(log, once=True),
    }.items():
        patch.setattr(torch.mps, name, answer)
    if newest:
        counted = {key: 0 if key.startswith("requested") else value for key, value in STATS.items()}
        patch.setattr(torch.accelerator, "memory_stats", lambda *_: counted, raising=False)
        patch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda *_: log.append("reset"), raising=False)
        patch.setattr(torch.backends.mps, "get_name", lambda: "Apple M4 Max", raising=False)
        patch.setattr(torch.backends.mps, "get_core_count", lambda: 40, raising=False)
    else:
        patch.delattr(torch.accelerator, "memory_stats", raising=False)
        for name in ("get_name", "get_core_count"):
            patch.delattr(torch.backends.mps, name, raising=False)
    return log
