"""What reading a foreign file must not do, watched while it is read: run code, write elsewhere, eat memory or time.

Python's audit hooks see every file opened, every process, socket, import and `exec` (PEP 578). A hook cannot be taken
away again; it sleeps outside `watch`. Memory that was touched is read from Linux's own high-water mark.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CPU_LIMIT_S = 5.0
MEMORY_LIMIT_BYTES = 768 << 20
"""What may be touched on top of what the process had before one input."""

ADDRESS_SPACE_BYTES = 3 << 30
"""What may be asked for on top of what the process had mapped before the first input."""

_FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.spawn",
    "os.startfile",
    "os.putenv",
    "socket.",
    "ctypes.",
    "pickle.find_class",
    "sqlite3.",
    "webbrowser.",
    "urllib.",
    "ftplib.",
    "http.",
    "smtplib.",
    "pty.",
    "os.chown",
)
_CHANGES = {  # event: which of its arguments are paths, and where the dir_fd of each stands
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, -1),),
    "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Violation(BaseException):
    """A rule was broken; no `except Exception` of the code under test can hide it."""


class _Watch:
    def __init__(self) -> None:
        self.folder: str | None = None
        self.broken: list[str] = []
        self.installed = False


_State = _Watch()


def _inside(path: Any, descriptor: Any = -1) -> bool:
    if isinstance(path, int):
        return True  # opened before, and judged then
    text = os.fsdecode(path)
    if isinstance(descriptor, int) and descriptor >= 0 and not Path(text).is_absolute():
        text = f"{Path(f'/proc/self/fd/{descriptor}').readlink()}/{text}"
    place = Path(os.path.realpath(Path(text).parent)) / Path(text).name
    return str(place) in ("/dev/null", _State.folder) or place.is_relative_to(str(_State.folder))


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _State.folder is None:
        return
    fault = _fault_of(event, arguments, _State.folder)
    if fault is not None:
        _State.broken.append(fault)
        raise Violation(fault)


def _fault_of(event: str, arguments: tuple[Any, ...], folder: str) -> str | None:
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & _WRITING
        return f"opens {path!r} to write" if writes and not _inside(path) else None
    if event in _CHANGES:
        for number, place in _CHANGES[event]:
            if not _inside(arguments[number], arguments[place] if 0 <= place < len(arguments) else -1):
                return f"{event} of {arguments[number]!r}"
        return None
    if event in ("exec", "compile", "import"):
        what = getattr(arguments[0], "co_filename", "") if event == "exec" else arguments[1]
        return f"{event} of {what!r}" if folder in str(what) else None
    return f"{event}{arguments!r:.200}" if event.startswith(_FORBIDDEN) else None


def _timeout(*_: Any) -> None:
    if _State.folder is not None:
        _State.broken.append(f"takes more than {CPU_LIMIT_S:g} s of CPU time")
        raise Violation(_State.broken[-1])


def install(*, limit_memory: bool) -> None:
    """Watch this process from now on, inside `watch` only.

    Args:
        limit_memory: Refuse the process what a large allocation asks for; for a process of one's own.
    """
    if not _State.installed:
        sys.addaudithook(_hook)
        _State.installed = True
    if limit_memory and sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE_BYTES, -1))


@contextlib.contextmanager
def watch(folder: Path) -> Iterator[list[str]]:
    """Hold everything in the context against the rules; only below `folder` may be written, temporary files too.

    Yields:
        The rules that were broken so far.
    """
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    old = signal.signal(signal.SIGPROF, _timeout)
    _State.broken, start = [], _reset_peak()
    _State.folder = os.path.realpath(folder)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    try:
        yield _State.broken
    finally:
        _State.folder = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
        tempfile.tempdir = before
        if (grown := _peak_bytes() - start) > MEMORY_LIMIT_BYTES:
            _State.broken.append(f"touches {grown >> 20} MiB of memory")


def _reset_peak() -> int:
    """Forget the high-water mark (proc(5), clear_refs); returns it afterwards."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
