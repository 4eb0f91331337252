"""The peak of this process's resident memory.

`VmHWM` of /proc/self/status is the high-water mark of the present address space: after a fork it starts at what the
child shares with its parent, after an exec at zero. `ru_maxrss` carries the parent's peak across a fork and exec, so it
is used only where there is no /proc (getrusage(2), proc_pid_status(5)). Pages shared with a fork server count in full.
"""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_rss_peak(clear_refs: Path = _CLEAR_REFS) -> bool:
    """Set the peak to what is resident now; false if the kernel does not allow it (proc_pid_clear_refs(5))."""
    try:
        clear_refs.write_text("5")
    except OSError:
        return False
    return True


def rss_peak_bytes(status: Path = _STATUS) -> int | None:
    """The peak of resident memory in bytes, since the last reset or the fork; None if it cannot be told."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return _rusage_peak_bytes()
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # the kernel's kB is 1024 B
    return None


def _rusage_peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None  # Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
