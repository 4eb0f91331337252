"""The environment of a run: machine, GPU and software, as the columns of `records.Environment`.

Called in the worker, where torch is loaded anyway; every other fact comes from modules that do without it. UUIDs and
the machine's identity are hashed. Unknown is None.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import __version__
from bench.errors import DeviceError
from bench.probes.backends import backend
from bench.probes.cuda_mps import mps_state
from bench.probes.gpu_monitor import GpuMonitor, GpuStatic
from bench.probes.gpu_settings import NO_NVML, GpuSettings, spell_missing
from bench.probes.host import measure_host
from bench.probes.nvml import hash_uuid
from bench.probes.torch_memory import memory_kind
from bench.records import Environment, join_notes
from bench.records.variables import spell_variables

_STATIC_COLUMNS = ("vbios", "driver_version", "mig", "power_limit_w", "power_limit_default_w", "max_sm_clock_hz")


def measure_environment(
    device: str, gpu_index: int | None = None, monitor: GpuMonitor | None = None, gpu_uuid: str | None = None
) -> Environment:
    """Read every column of the environment.

    Args:
        device: `cpu`, or a kind of GPU, as torch calls it. Only for a GPU is one touched.
        gpu_index: torch's index of the GPU; the current device where None.
        monitor: The GPU's monitor, where the caller has one open; else NVML is opened and closed again.
        gpu_uuid: As NVML names the GPU, where the caller knows; CUDA's word where None.

    Returns:
        The environment; what cannot be read is None. About 20 ms, 100 ms with NVML to open.
    """
    import torch

    kind = device.partition(":")[0]
    commit, dirty = read_git_state()
    return Environment(
        device=kind,
        **(_gpu_fields(gpu_index, monitor, gpu_uuid) if kind == "cuda" else {}) | backend(kind).environment(gpu_index),
        **asdict(measure_host()),
        cuda_version=torch.version.cuda,
        hip_version=getattr(torch.version, "hip", None),
        torch_version=torch.__version__,
        torch_arch_list=" ".join(torch.cuda.get_arch_list()) or None,
        torch_git=getattr(torch.version, "git_version", None),
        torchvision_version=_version("torchvision"),
        timm_version=_version("timm"),
        python_version=platform.python_version(),
        numpy_version=_version("numpy"),
        pandas_version=_version("pandas"),
        pyarrow_version=_version("pyarrow"),
        bench_version=__version__,
        allocator_settings=spell_variables(os.environ, "allocator"),
        speed_variables=spell_variables(os.environ, "result"),
        other_variables=spell_variables(os.environ, "message"),
        torch_threads=torch.get_num_threads(),
        niceness=os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else None,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        git_commit=commit,
        git_dirty=dirty,
    )


def read_git_state(package: Path = Path(__file__).parents[1]) -> tuple[str | None, bool | None]:
    """The commit that bench was checked out from, and whether its package differs from it.

    Only files of the package count: a sweep that writes its own reports does not make itself dirty. Both are None for
    an installed package, even where the environment that it lies in stands inside some other repository.
    """
    tracked = _git(package, "ls-files", "--", "errors.py")
    if not tracked:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    return commit or None, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        asked = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # a run must not write the index of the user's checkout
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here
    return asked.stdout.strip() if asked.returncode == 0 else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpu_fields(gpu_index: int | None, monitor: GpuMonitor | None, gpu_uuid: str | None) -> dict[str, Any]:
    import torch

    index: int = torch.cuda.current_device() if gpu_index is None else gpu_index
    properties = torch.cuda.get_device_properties(index)
    told = str(properties.uuid) if getattr(properties, "uuid", None) is not None else None
    uuid = gpu_uuid or told
    static = monitor.static() if monitor is not None else _read_static(uuid)
    fields: dict[str, Any] = {
        "gpu_name": properties.name,
        "gpu_uuid_hash": hash_uuid(uuid) if uuid else None,
        "gpu_index": index,
        "gpu_count": torch.cuda.device_count(),
        **_memory_fields(index, properties, static),
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "cudnn_version": _cudnn_version(torch),
    }
    if static is not None:
        fields.update({name: getattr(static, name) for name in _STATIC_COLUMNS})
    settings = asdict(static.settings if static is not None else GpuSettings(note=NO_NVML))
    mps, why = mps_state(index)
    notes = (settings.pop("note"), spell_missing({"mps": why}))
    return {**fields, **settings, "mps": mps, "gpu_settings_note": join_notes(*notes)}


UNIFIED = "the GPU takes host memory, of which neither CUDA nor NVML keeps an account of its own"
CUT = "NVML shows the board and not this slice of it"
SILENT = "NVML gives no memory of this GPU"


def _memory_fields(index: int, properties: Any, static: GpuStatic | None) -> dict[str, Any]:
    """How much memory, of which kind, and why columns of device memory will be null."""
    kind = memory_kind(properties)
    if kind == "unified":
        return {"device_memory_kind": kind, "device_memory_note": UNIFIED}
    shown = None if static is None else static.allowed_bytes
    note = None if shown is not None else CUT if kind == "slice" and static is not None else SILENT
    allowed = min(filter(None, (shown, _cuda_total_bytes(index))), default=properties.total_memory)
    return {
        "gpu_total_bytes": properties.total_memory,
        "gpu_memory_limit_bytes": allowed if allowed < properties.total_memory else None,
        "device_memory_kind": kind,
        "device_memory_note": note,
    }


def _cuda_total_bytes(index: int) -> int | None:
    """All that CUDA's context shows this process of the device's memory; None if it has no room for a context."""
    import torch

    try:
        return int(torch.cuda.mem_get_info(index)[1])
    except (RuntimeError, AssertionError):  # AssertionError: a torch without CUDA
        return None


def _read_static(uuid: str | None) -> GpuStatic | None:
    if uuid is None:
        return None
    try:
        with GpuMonitor(uuid) as monitor:
            return monitor.static()
    except DeviceError:
        return None  # no NVML, as on ROCm: these columns stay unknown


def _cudnn_version(torch: ModuleType) -> str | None:
    """`9.10.2`; cuDNN 9 writes 91002, earlier ones 8902 (cudnn_version.h)."""
    number = torch.backends.cudnn.version()
    if number is None:
        return None
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"
