"""Everything that `diagnosis` judges, read once; a test hands in facts of its own."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from bench.probes.host import cpu_governor
from bench.probes.nvml import Gpu, GpuListing, read_gpu_listing, visible_gpus
from bench.probes.torch_facts import TorchFacts, read_torch_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The driver's view, torch's view and the host's limits. None is unknown; `torch` is None if not asked."""

    listing: GpuListing = field(default_factory=lambda: GpuListing(absent=True, error="no driver"))
    visible: tuple[Gpu, ...] = ()
    cuda_visible_devices: str | None = None
    hip_visible_devices: str | None = None  # ROCm's own name for it
    rocr_visible_devices: str | None = None  # of the layer below, which renumbers what it leaves
    torch: TorchFacts | None = None
    nvidia_card_on_bus: bool = False
    gpu_device_files: tuple[str, ...] = ()  # of NVIDIA's driver, ROCm's and WSL's
    shm_bytes: int | None = None
    governor: str | None = None
    open_files_limit: int | None = None
    tf32_override: str | None = None  # the variable NVIDIA_TF32_OVERRIDE


def read_machine_facts(*, ask_torch: bool = True, nvml_timeout_s: float | None = None) -> MachineFacts:
    """Read the machine.

    Args:
        ask_torch: Start a process that imports torch and tries the GPU, 3 to 10 s; leave `torch` None otherwise.
        nvml_timeout_s: The longest wait for the driver, in seconds; NvmlSession's where None.
    """
    listing = read_gpu_listing(nvml_timeout_s)
    return MachineFacts(
        listing=listing,
        visible=visible_gpus(listing.gpus),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        hip_visible_devices=os.environ.get("HIP_VISIBLE_DEVICES"),
        rocr_visible_devices=os.environ.get("ROCR_VISIBLE_DEVICES"),
        torch=read_torch_facts() if ask_torch else None,
        nvidia_card_on_bus=_has_nvidia_card(Path("/sys/bus/pci/devices")),
        gpu_device_files=tuple(path for path in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg") if Path(path).exists()),
        shm_bytes=_shm_bytes(),
        governor=cpu_governor(),
        open_files_limit=_open_files_limit(),
        tf32_override=os.environ.get("NVIDIA_TF32_OVERRIDE"),
    )


def _has_nvidia_card(devices: Path) -> bool:
    """Whether the PCI bus shows a display or 3D controller (class 0x03) of NVIDIA (vendor 0x10de), driver or not."""
    for device in devices.glob("*") if devices.is_dir() else ():
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _shm_bytes() -> int | None:
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None


def _open_files_limit() -> int | None:
    try:
        import resource
    except ImportError:
        return None  # Windows
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
