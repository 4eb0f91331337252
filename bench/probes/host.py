"""Facts of the machine under a run, read from the operating system without torch. Unknown is None.

Linux first; macOS and Windows give what `platform` and `psutil` know.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.probes.cgroup import ROOT, read_cpu_quota, read_memory_limit_bytes, read_memory_used_bytes

_ARM_PARTS = {  # Arm, Main ID Register: (implementer, part) of server processors
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0x41", "0xd84"): "Arm Neoverse-V3",
    ("0x41", "0xd8e"): "Arm Neoverse-N3",
}
_HYPERVISORS = {  # what /sys/class/dmi/id says, lower case, and systemd-detect-virt's word for it
    "amazon ec2": "amazon",
    "google": "google",
    "microsoft corporation": "microsoft",
    "vmware": "vmware",
    "virtualbox": "oracle",
    "innotek": "oracle",
    "xen": "xen",
    "bochs": "qemu",
    "qemu": "qemu",
    "kvm": "kvm",
    "parallels": "parallels",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host columns of `Environment`; `memory_limit_bytes` is the control group's, where it is below the RAM."""

    cpu_model: str | None
    cpu_cores_physical: int | None
    cpu_cores_logical: int | None
    cpu_cores_usable: int | None
    cpu_governor: str | None
    ram_bytes: int | None
    memory_limit_bytes: int | None
    os_name: str | None
    kernel: str | None
    container: str | None
    virtualization: str | None
    host_hash: str | None


def measure_host(root: Path = ROOT) -> HostFacts:
    """Read every fact; a few milliseconds, no subprocess on Linux."""
    ram = int(psutil.virtual_memory().total)
    limit = read_memory_limit_bytes(root)
    return HostFacts(
        cpu_model=cpu_model(root),
        cpu_cores_physical=psutil.cpu_count(logical=False),
        cpu_cores_logical=psutil.cpu_count(logical=True),
        cpu_cores_usable=usable_cores(root),
        cpu_governor=cpu_governor(root),
        ram_bytes=ram,
        memory_limit_bytes=limit if limit is not None and limit < ram else None,
        os_name=os_name(root),
        kernel=platform.release() or None,
        container=container(root),
        virtualization=virtualization(root),
        host_hash=host_hash(root),
    )


def available_memory_bytes(root: Path = ROOT) -> int:
    """Memory that can still be taken without swapping, in bytes, within the control group's limit."""
    available = int(psutil.virtual_memory().available)
    limit, used = read_memory_limit_bytes(root), read_memory_used_bytes(root)
    return available if limit is None else max(0, min(available, limit - (used or 0)))


def cpu_model(root: Path = ROOT) -> str | None:
    """The processor's name as it states it; on Arm from its part number."""
    if sys.platform == "darwin" and root == ROOT:
        return _macos_cpu_model()
    fields = _cpuinfo(root)
    named = fields.get("model name") or fields.get("Processor") or fields.get("cpu model") or fields.get("cpu")
    if named:
        return " ".join(named.split())
    if "CPU part" in fields:
        implementer, part = fields.get("CPU implementer", "?"), fields["CPU part"]
        return _ARM_PARTS.get((implementer, part), f"Arm implementer {implementer} part {part}")
    return platform.processor() or None if root == ROOT else None


def usable_cores(root: Path = ROOT) -> int | None:
    """Cores that this process may use: its affinity, cut by the control group's quota, rounded up and at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores: int | None = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    quota = read_cpu_quota(root)
    return cores if cores is None or quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_governor(root: Path = ROOT) -> str | None:
    """The frequency governors of the cores, joined by commas where they differ; None in most virtual machines."""
    files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return ",".join(sorted({text for file in files if (text := _text(file))})) or None


def os_name(root: Path = ROOT) -> str | None:
    """`Debian GNU/Linux 12 (bookworm)`; the platform's word elsewhere."""
    for line in _text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip().strip('"')
    return platform.system() or None


def container(root: Path = ROOT) -> str | None:
    """What kind of container this is: `docker`, `podman`, `apptainer`, `kubernetes`, `lxc`; None if none shows."""
    if "APPTAINER_CONTAINER" in os.environ or "SINGULARITY_CONTAINER" in os.environ:
        return "apptainer"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    if named := os.environ.get("container"):  # noqa: SIM112 - systemd's convention is lower case
        return named
    groups = _text(root / "proc/1/cgroup")
    names = {"docker": "docker", "kubepods": "kubernetes", "libpod": "podman", "lxc": "lxc", "containerd": "containerd"}
    return next((name for word, name in names.items() if word in groups), None)


def virtualization(root: Path = ROOT) -> str | None:
    """The hypervisor: systemd-detect-virt's word, `wsl`, `unknown` where only the processor tells, or `none`.

    None if the processor cannot tell (Arm has no flag for it).
    """
    if "microsoft" in _text(root / "proc/sys/kernel/osrelease").lower():
        return "wsl"
    board = " ".join(_text(root / f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name", "bios_vendor"))
    flags = _cpuinfo(root).get("flags")
    if flags is not None and "hypervisor" not in flags.split():
        return "none"
    for word, name in _HYPERVISORS.items():
        if word in board.lower() and (flags is not None or name in ("qemu", "kvm", "vmware", "xen", "amazon")):
            return name
    return None if flags is None else _text(root / "sys/hypervisor/type") or "unknown"


def host_hash(root: Path = ROOT) -> str | None:
    """16 hexadecimal digits that stay the same for a machine and do not tell which it is.

    From `/etc/machine-id` (which machine-id(5) asks not to show as it is), else the host's name: containers without a
    machine-id that get a new name on every start are new machines to the resume.
    """
    identity = _text(root / "etc/machine-id") or (platform.node() if root == ROOT else _text(root / "etc/hostname"))
    return hashlib.sha256(f"bench host {identity}".encode()).hexdigest()[:16] if identity else None


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """The instructions that /proc/cpuinfo names, in its words (`flags` on x86, `Features` on Arm); empty is unknown."""
    fields = _cpuinfo(root)
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _macos_cpu_model() -> str | None:
    try:
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
