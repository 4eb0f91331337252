"""Everything that `diagnosis` judges, read once; a test hands in facts of its own."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import DeviceError
from bench.probes.gpu_monitor import GpuMonitor, GpuStatic
from bench.probes.host import cpu_governor
from bench.probes.nvml import Gpu, GpuListing, count_other_processes, read_gpu_listing, visible_gpus
from bench.probes.torch_facts import TorchFacts, read_torch_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The driver's view, torch's view and the host's limits. None is unknown; `torch` is None if not asked."""

    listing: GpuListing = field(default_factory=lambda: GpuListing(absent=True, error="no driver"))
    visible: tuple[Gpu, ...] = ()
    boards: tuple[GpuStatic, ...] = ()  # what those that answer are set to; empty if not asked
    other_processes: tuple[int, ...] = ()  # of each visible GPU where it is known; 0 where not asked
    cuda_visible_devices: str | None = None
    hip_visible_devices: str | None = None  # ROCm's own name for it
    rocr_visible_devices: str | None = None  # of the layer below, which renumbers what it leaves
    torch: TorchFacts | None = None
    nvidia_card_on_bus: bool = False
    gpu_device_files: tuple[str, ...] = ()  # of NVIDIA's driver, ROCm's and WSL's
    shm_bytes: int | None = None
    governor: str | None = None
    open_files_limit: int | None = None


def read_machine_facts(
    *, ask_torch: bool = True, ask_settings: bool = False, nvml_timeout_s: float | None = None
) -> MachineFacts:
    """Read the machine.

    Args:
        ask_torch: Start a process that imports torch and tries the GPU, 3 to 10 s; leave `torch` None otherwise.
        ask_settings: Ask each visible GPU for its settings and the processes on it, some 50 ms a GPU.
        nvml_timeout_s: The longest wait for the driver, in seconds; NvmlSession's where None.
    """
    listing = read_gpu_listing(nvml_timeout_s)
    visible = visible_gpus(listing.gpus)
    asked = visible if ask_settings else ()
    return MachineFacts(
        listing=listing,
        visible=visible,
        boards=tuple(filter(None, (_read_board(gpu, nvml_timeout_s) for gpu in asked))),
        other_processes=tuple(count_other_processes(gpu.uuid, nvml_timeout_s) or 0 for gpu in asked),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        hip_visible_devices=os.environ.get("HIP_VISIBLE_DEVICES"),
        rocr_visible_devices=os.environ.get("ROCR_VISIBLE_DEVICES"),
        torch=read_torch_facts() if ask_torch else None,
        nvidia_card_on_bus=_has_nvidia_card(Path("/sys/bus/pci/devices")),
        gpu_device_files=tuple(path for path in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg") if Path(path).exists()),
        shm_bytes=_shm_bytes(),
        governor=cpu_governor(),
        open_files_limit=_open_files_limit(),
    )


def _read_board(gpu: Gpu, timeout_s: float | None) -> GpuStatic | None:
    try:
        with GpuMonitor(gpu.uuid, timeout_s) as monitor:
            return monitor.static()
    except DeviceError:
        return None  # it answered a moment ago: whatever came in between, the listing's checks or a run will say it


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
