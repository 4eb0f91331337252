"""The machine and the software under a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.records.case import stable_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine and the software under a run; absent is null in the columns and reads `unknown` in reports."""

    device: str  # cpu, or cuda
    estimate_device: str | None = None  # the device file that the estimates beside this row were made for
    gpu_name: str | None = None
    gpu_uuid_hash: str | None = None
    gpu_index: int | None = None
    gpu_count: int | None = None
    gpu_total_bytes: int | None = None
    gpu_multiprocessors: int | None = None
    gpu_capability: str | None = None
    vbios: str | None = None
    driver_version: str | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence_mode: bool | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    max_sm_clock_hz: float | None = None
    cuda_version: str | None = None
    cudnn_version: str | None = None
    hip_version: str | None = None  # of a ROCm build of torch
    torch_version: str | None = None
    torch_arch_list: str | None = None
    torch_git: str | None = None
    torchvision_version: str | None = None
    python_version: str | None = None
    numpy_version: str | None = None
    pandas_version: str | None = None
    pyarrow_version: str | None = None
    bench_version: str | None = None
    allocator_settings: str | None = None  # environment variables of torch's allocator: bench.records.variables
    speed_variables: str | None = None  # those that change speed, memory or numbers unseen
    other_variables: str | None = None  # those of the same libraries that change none of it
    torch_threads: int | None = None
    cpu_model: str | None = None
    cpu_cores_physical: int | None = None
    cpu_cores_logical: int | None = None
    cpu_cores_usable: int | None = None  # after affinity and cgroup quota
    cpu_governor: str | None = None
    cpu_capability: str | None = None  # the instruction set torch chose: AVX2, AVX512
    ram_bytes: int | None = None
    memory_limit_bytes: int | None = None  # of the control group, where it is below the RAM
    os_name: str | None = None
    kernel: str | None = None
    container: str | None = None
    virtualization: str | None = None
    host_hash: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    in_process: bool | None = None  # true where runs share the process of whoever asked for them (sweep --in-process)

    @property
    def key(self) -> str:
        """The `environment_key`: what must be equal for two runs to be repeats of each other."""
        values = {name: getattr(self, name) for name in _COMPARED}
        return stable_hash(values | ({"in_process": True} if self.in_process else {}))

    def changes_since(self, before: Mapping[str, object]) -> list[str]:
        """Why the key is not that of an environment with the fields `before`: `torch_version 2.6 -> 2.7`."""
        pairs = {name: (before.get(name), getattr(self, name)) for name in (*_COMPARED, "in_process")}
        return [
            f"{name} {absent_word(name) if old is None else old} -> {absent_word(name) if new is None else new}"
            for name, (old, new) in pairs.items()
            if old != new
        ]


_COMPARED = (
    "device",
    "gpu_name",
    "gpu_uuid_hash",
    "gpu_capability",
    "driver_version",
    "mig",
    "power_limit_w",
    "cuda_version",
    "cudnn_version",
    "torch_version",
    "torchvision_version",
    "python_version",
    "allocator_settings",
    "speed_variables",
    "cpu_model",
    "cpu_cores_usable",
    "ram_bytes",
    "host_hash",
)
_VARIABLES = ("allocator_settings", "speed_variables", "other_variables")


def absent_word(field: str) -> str:
    """What a field of machine, versions or protocol says that has no value.

    Returns:
        `none set` of those that hold environment variables, `unknown` of all others.
    """
    return "none set" if field in _VARIABLES else "unknown"
