"""What a control group leaves of a machine: processors, memory, and whether the kernel killed for memory.

Versions 1 and 2, with limits of every ancestor that is visible taken into account (Linux, admin-guide/cgroup-v2.rst and
cgroup-v1/; cgroup_namespaces(7) for the root field of mountinfo). Every function takes the root of the file system, so
that a test can hand in a tree of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def read_cpu_quota(root: Path = ROOT) -> float | None:
    """The processors' worth of time that the control group allows, such as 1.5; None if it sets no limit."""
    quotas = [*_v2_quotas(root), *_v1_quotas(root)]
    return min(quotas, default=None)


def read_quota_wait_s(root: Path = ROOT) -> float | None:
    """Seconds that processes of this control group have waited for its processor quota; None if it does not count."""
    for folder in (*_folders("", root), *_folders("cpu", root)):
        for line in _text(folder / "cpu.stat").splitlines():
            name, _, count = line.partition(" ")
            if name in ("throttled_usec", "throttled_time") and count.strip().isdecimal():
                return int(count) * (1e-6 if name == "throttled_usec" else 1e-9)  # version 1 counts nanoseconds
    return None


def read_memory_limit_bytes(root: Path = ROOT) -> int | None:
    """The smallest memory limit of this control group and its ancestors in bytes; None if there is none."""
    limits = [_number(folder / "memory.max") for folder in _folders("", root)]
    limits += [_number(folder / "memory.limit_in_bytes") for folder in _folders("memory", root)]
    # version 1 writes "no limit" as the largest multiple of the page below 2^63
    return min((int(limit) for limit in limits if limit is not None and limit < 2**62), default=None)


def read_memory_used_bytes(root: Path = ROOT) -> int | None:
    """What the control group that sets the limit holds in bytes, without file pages that can be dropped at once."""
    for file, limit in (("memory.current", "memory.max"), ("memory.usage_in_bytes", "memory.limit_in_bytes")):
        controller = "" if limit == "memory.max" else "memory"
        limited = ((_number(folder / limit), folder) for folder in _folders(controller, root))
        found = min(((size, folder) for size, folder in limited if size is not None and size < 2**62), default=None)
        used = None if found is None else _number(found[1] / file)
        if found is not None and used is not None:
            return max(0, int(used) - _inactive_file_bytes(found[1]))
    return None


def _inactive_file_bytes(folder: Path) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        name, _, count = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(count)
    return 0


def read_oom_kills(root: Path = ROOT) -> int | None:
    """How many processes of this control group the kernel has killed for memory; None if it does not count.

    Read before a run and after it: a run that died of SIGKILL while the count rose was out of memory, not crashed.
    """
    files = [folder / "memory.events" for folder in _folders("", root)]
    files += [folder / "memory.oom_control" for folder in _folders("memory", root)]
    for file in files:
        for line in _text(file).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.strip().isdecimal():
                return int(count)
    return None


def _v2_quotas(root: Path) -> Iterator[float]:
    for folder in _folders("", root):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.strip().isdecimal():
            yield int(quota) / int(period)


def _v1_quotas(root: Path) -> Iterator[float]:
    for folder in _folders("cpu", root):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            yield quota / period


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group, innermost first, then its ancestors; `""` names version 2."""
    path = _group_path(controller, root)
    mount = _mount(controller, root)
    if path is None or mount is None:
        return
    mount_root, mount_point = mount
    inside = PurePosixPath(path)
    if inside.is_relative_to(mount_root):  # without a namespace, a container's mount shows a part of the hierarchy
        inside = inside.relative_to(mount_root)
    else:
        inside = PurePosixPath(str(inside).lstrip("/"))
    top = root / str(mount_point).lstrip("/")
    folder = top / inside
    while True:
        if folder.is_dir():
            yield folder
        if folder == top or top not in folder.parents:
            return
        folder = folder.parent


def _group_path(controller: str, root: Path) -> str | None:
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if (controller in names.split(",")) if controller else number == "0":
            return path
    return None


def _mount(controller: str, root: Path) -> tuple[PurePosixPath, PurePosixPath] | None:
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        system, _, options = kind.partition(" ")
        words = mount.split()
        wanted = (
            system == "cgroup" and controller in options.split()[-1].split(",") if controller else system == "cgroup2"
        )
        if wanted and len(words) > 4:
            return PurePosixPath(words[3]), PurePosixPath(words[4])
    return None


def _number(file: Path) -> float | None:
    text = _text(file)
    try:
        number = float(text)
    except ValueError:
        return None  # absent, or "max"
    return number if math.isfinite(number) else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
