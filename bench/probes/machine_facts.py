"""Everything that `diagnosis` judges, read once; a test hands in facts of its own."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
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
    ze_affinity_mask: str | None = None  # Level Zero's name for it, on Intel's GPUs
    torch: TorchFacts | None = None
    torch_build: str | None = None  # the GPUs that torch is built for, read without importing it: cuda, hip, xpu, none
    intel_cards: tuple[str, ...] = ()  # PCI addresses of Intel's display controllers; on bus 0 they are integrated
    apple_silicon: bool = False
    nvidia_card_on_bus: bool = False
    gpu_device_files: tuple[str, ...] = ()  # of NVIDIA's driver, ROCm's and WSL's
    shm_bytes: int | None = None
    governor: str | None = None
    open_files_limit: int | None = None
    tf32_override: str | None = None  # the variable NVIDIA_TF32_OVERRIDE


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
        ze_affinity_mask=os.environ.get("ZE_AFFINITY_MASK"),
        torch_build=read_torch_build(),
        intel_cards=_cards(_PCI, "0x8086"),
        apple_silicon=(platform.system(), platform.machine()) == ("Darwin", "arm64"),
        nvidia_card_on_bus=bool(_cards(_PCI, "0x10de")),
        gpu_device_files=tuple(path for path in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg") if Path(path).exists()),
        shm_bytes=_shm_bytes(),
        governor=cpu_governor(),
        open_files_limit=_open_files_limit(),
        tf32_override=os.environ.get("NVIDIA_TF32_OVERRIDE"),
    )


def _read_board(gpu: Gpu, timeout_s: float | None) -> GpuStatic | None:
    try:
        with GpuMonitor(gpu.uuid, timeout_s) as monitor:
            return monitor.static()
    except DeviceError:
        return None  # it answered a moment ago: whatever came in between, the listing's checks or a run will say it


_PCI = Path("/sys/bus/pci/devices")


def _cards(devices: Path, wanted: str) -> tuple[str, ...]:
    """Addresses of a vendor's display and 3D controllers (class 0x03) on the PCI bus, driver or not."""
    found = []
    for device in sorted(devices.glob("*")) if devices.is_dir() else ():
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == wanted and kind.startswith("0x03"):
            found.append(device.name)
    return tuple(found)


@functools.cache
def read_torch_build() -> str | None:
    """Which GPUs torch is built for, by its `version.py`, without importing it: that takes seconds.

    Returns:
        `cuda`, `hip`, `xpu` or `none`; None without torch.
    """
    spec = importlib.util.find_spec("torch")
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8") if spec and spec.origin else None
    except OSError:
        return None
    if text is None:
        return None
    built = re.findall(r"""^(cuda|hip|xpu)\b[^=\n]*= *['"]""", text, re.MULTILINE)
    return built[0] if built else "none"


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
