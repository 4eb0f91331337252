"""Which of the host's processors are close to which GPU, and how to share them out.

Linux tells it in /sys: `local_cpulist` of a PCI device has the processors of its NUMA node, `thread_siblings_list`
those that are one core (Documentation/ABI/testing/sysfs-bus-pci, sysfs-devices-system-cpu).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("/")


def parse_cpu_list(text: str) -> frozenset[int]:
    """The numbers of a list as the kernel writes it: `0-3,8`. Raises ValueError for other text."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def spell_cpu_list(cpus: Sequence[int]) -> str:
    """Numbers as the kernel writes them: `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def usable_cpus() -> frozenset[int]:
    """The processors that this process may use; empty where the system does not tell."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except AttributeError:
        return frozenset()


def cpus_near(pci_bus_id: str | None, root: Path = ROOT) -> frozenset[int]:
    """The processors of a PCI device's NUMA node; empty where that is unknown.

    Args:
        pci_bus_id: As NVML writes it: `00000000:3B:00.0`. The kernel's has four digits before the first colon.
        root: The root of the file system.
    """
    if pci_bus_id is None:
        return frozenset()
    domain, _, rest = pci_bus_id.lower().partition(":")
    try:
        place = root / "sys/bus/pci/devices" / f"{int(domain, 16):04x}:{rest}" / "local_cpulist"
        return parse_cpu_list(place.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return frozenset()


def share_cpus(
    near: Sequence[frozenset[int]], usable: frozenset[int], root: Path = ROOT
) -> list[tuple[int, ...]] | None:
    """Disjoint processors for each of several workers, whole cores close to its device, equally many where possible.

    Args:
        near: The processors close to each worker's device; empty where unknown.
        usable: Those that may be used.
        root: The root of the file system.

    Returns:
        The processors of each worker, in the same order; None where there are fewer cores than workers in some place.
        Where one device's place is unknown, or places overlap without being equal, all share all.
    """
    places = [place & usable for place in near]
    distinct = set(places)
    if not all(places) or sum(map(len, distinct)) != len(frozenset().union(*distinct)):
        places = [usable] * len(near)
    shares: list[tuple[int, ...]] = [()] * len(near)
    for place in set(places):
        workers = [number for number, own in enumerate(places) if own == place]
        cores = _cores(place, root)
        if len(cores) < len(workers):
            return None
        size = len(cores) // len(workers)
        for turn, worker in enumerate(workers):
            own = cores[turn * size : (turn + 1) * size]
            shares[worker] = tuple(sorted(cpu for core in own for cpu in core))
    return shares


def _cores(cpus: frozenset[int], root: Path) -> list[tuple[int, ...]]:
    """Processors by the core that they are threads of, in order."""
    cores = {}
    for cpu in cpus:
        try:
            place = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            core = parse_cpu_list(place.read_text(encoding="ascii")) & cpus
        except (OSError, ValueError):
            core = frozenset()
        cores[min(core | {cpu})] = tuple(sorted(core | {cpu}))
    return [cores[first] for first in sorted(cores)]
