"""One sweep per device and one per results folder; the kernel releases the locks when a process dies.

A device has two locks. A sweep holds the first for as long as it lasts, so that a second sweep is refused at once. The
process that measures holds the other (`run_lock_path`) for its one run, whoever started it: a parent or a launcher can
die before its children, and only what measures knows when the device is free again.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from bench.errors import BusyError


def device_lock_path(device_id: str) -> Path:
    """The lock of a device, shared by all users of the machine. `BENCH_LOCK_DIR` moves it.

    Raises:
        BusyError: The folder of the locks cannot be created.
    """
    root = Path(os.environ.get("BENCH_LOCK_DIR") or Path(tempfile.gettempdir()) / "bench-locks")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BusyError(
            f"{root}: the folder of the devices' locks cannot be made ({error.strerror or error}). Name another, the "
            "same for all users of this machine, in the environment's BENCH_LOCK_DIR"
        ) from error
    with contextlib.suppress(OSError):  # another user made it, with this mode, or the disk takes no changes
        root.chmod(0o1777)
    return root / f"{device_id}.lock"


def run_lock_path(device_id: str) -> Path:
    """The lock of the one process that measures on a device. Raises as `device_lock_path`."""
    return device_lock_path(f"{device_id}.run")


@contextlib.contextmanager
def hold(path: Path, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock for the duration of the context, or fail.

    Args:
        path: The lock file; its holder is noted next to it.
        what: What is locked, for the message.
        wait_s: How long to wait for it; by default it fails at once.

    Raises:
        BusyError: Another process holds it; the message names it.
    """
    holder = path.with_name(f"{path.name}.holder")
    lock = FileLock(path, timeout=wait_s, mode=0o666)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(f"{what} is in use by {_who(holder)}. Wait for it, or end it; nothing was changed") from error
    except (OSError, NotImplementedError) as error:  # the latter where the file system knows no locks
        said = getattr(error, "strerror", None) or error
        raise BusyError(f"{what} cannot be locked ({path}: {said}); nothing was changed") from error
    try:
        me = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:200]}
        with contextlib.suppress(OSError):  # naming the holder is a courtesy; the lock itself stands
            holder.write_text(json.dumps(me), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        me = json.loads(holder.read_text(encoding="utf-8"))
        pid = int(me["pid"])
        if me["host"] == socket.gethostname() and not psutil.pid_exists(pid):
            return "another process"  # what stands there is of a holder who was killed, before this one
        return f"process {pid} on {me['host']!s:.60} ({me['command']!s:.200})"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
