"""What the host did during a measured window beside the run: other processes, the hypervisor, quotas, clocks.

Sources: proc_stat(5) for the processors' time, in ticks of 10 ms; getrusage(2) for switches and this process's own
time; Linux, admin-guide/cgroup-v2.rst for `throttled_usec`; cpufreq's `scaling_cur_freq`, or `cpu MHz` of /proc/cpuinfo
where there is none (a virtual machine's is the rated clock and never moves). Where the system does not tell, values are
None.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.probes.cgroup import ROOT, read_quota_wait_s


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters since the start, in seconds of all processors together, and the clocks now."""

    at_s: float
    busy_s: float | None
    stolen_s: float | None
    own_s: float
    switches: int | None
    quota_wait_s: float | None
    clock_hz: float | None


class HostWindow:
    """Readings of the host around one window; about a millisecond each, never inside it."""

    def __init__(self, root: Path = ROOT) -> None:
        """Read; the window begins at once.

        Args:
            root: The root of the file system.
        """
        self._root = root
        self._start = _read(root)

    def close(self) -> dict[str, Any]:
        """Read again; returns columns of `Measurement`."""
        start, end = self._start, _read(self._root)
        cores_s = (end.at_s - start.at_s) * (os.cpu_count() or 1)
        busy_s = _difference(start.busy_s, end.busy_s)
        others = None if busy_s is None or cores_s <= 0 else (busy_s - (end.own_s - start.own_s)) / cores_s
        return {
            "host_others_window_frac": None if others is None else min(1.0, max(0.0, others)),
            "stolen_window_s": _difference(start.stolen_s, end.stolen_s),
            "involuntary_switches": _difference(start.switches, end.switches),
            "quota_wait_window_s": _difference(start.quota_wait_s, end.quota_wait_s),
            "cpu_clock_start_hz": start.clock_hz,
            "cpu_clock_end_hz": end.clock_hz,
        }


def _difference(start: Any, end: Any) -> Any:
    return None if start is None or end is None or end < start else end - start


def _read(root: Path) -> _Reading:
    busy_s, stolen_s = _processor_times_s(root)
    own = os.times()
    return _Reading(
        at_s=time.monotonic(),
        busy_s=busy_s,
        stolen_s=stolen_s,
        own_s=own.user + own.system,
        switches=_involuntary_switches(),
        quota_wait_s=read_quota_wait_s(root),
        clock_hz=_clock_hz(root),
    )


def _processor_times_s(root: Path) -> tuple[float | None, float | None]:
    """What all processors spent in user and system, niced and interrupts included, and what a hypervisor took away."""
    try:
        with (root / "proc/stat").open(encoding="ascii") as file:
            values = [int(text) for text in file.readline().split()[1:9]]
        user, nice, system, _, _, irq, softirq, stolen = values
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None, None
    return (user + nice + system + irq + softirq) / ticks, stolen / ticks


def _involuntary_switches() -> int | None:
    try:
        import resource
    except ImportError:
        return None  # Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _clock_hz(root: Path) -> float | None:
    """The mean over the processors, in Hz."""
    files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    found = [int(text) * 1e3 for file in files if (text := _text(file)).isdecimal()]
    if not found:
        lines = (line.partition(":") for line in _text(root / "proc/cpuinfo").splitlines())
        said = (value.strip() for name, _, value in lines if name.strip() == "cpu MHz")
        found = [float(value) * 1e6 for value in said if value.replace(".", "", 1).isdecimal()]  # or `Unknown`
    return statistics.fmean(found) if found else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
