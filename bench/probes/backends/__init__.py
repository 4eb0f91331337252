"""Kinds of devices: one file a vendor, behind `contract.Backend`. Nothing here imports torch until it is asked.

ROCm goes by torch's name `cuda`, as torch's build for it does; which of the two a torch is for, `torch.version` says.
"""

from __future__ import annotations

from bench.probes.backends.contract import Backend, DeviceEvent, DeviceReadings, TorchMemory
from bench.records import ACCELERATORS


def backend(kind: str) -> Backend:
    """The code for a kind of device, `cpu`, `cuda`, `xpu` or `mps`. Imports torch for `cuda`. Raises ValueError."""
    match kind:
        case "cpu":
            from bench.probes.backends.cpu import CpuBackend

            return CpuBackend()
        case "cuda":
            import torch

            if torch.version.hip is not None:
                from bench.probes.backends.rocm import RocmBackend

                return RocmBackend()
            from bench.probes.backends.cuda import CudaBackend

            return CudaBackend()
        case "xpu":
            from bench.probes.backends.xpu import XpuBackend

            return XpuBackend()
        case "mps":
            from bench.probes.backends.mps import MpsBackend

            return MpsBackend()
    raise ValueError(f"unknown kind of device: {kind}")


def accelerator() -> Backend | None:
    """The first kind of GPU that this torch sees; None if it sees none."""
    found = (each for kind in ACCELERATORS if (each := backend(kind)).available())
    return next(found, None)


__all__ = ["Backend", "DeviceEvent", "DeviceReadings", "TorchMemory", "accelerator", "backend"]
