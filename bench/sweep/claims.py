"""Who runs what, where several machines work on one plan: exclusive files with a heartbeat.

A claim is a file `<part>.<try>` that only one process can create. Its holder touches it while it works, and takes it
away when the run has its part or was given up in an orderly way. A claim that is not touched any more is *lost*: its
holder was killed, or its machine is gone. The run is then claimed as the next try, in a file of its own, so that of
several who notice only one goes on, and the row says how many tries were lost. All tries write the same part, without
overwriting: a machine that comes back cannot make a run count twice.

Times are those of the file system that holds the claims, so that clocks of hosts need not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.store.parts import TEMPORARY, typed_errors

HEARTBEAT_S = 15.0
LOST_AFTER_S = 120.0
"""Without a heartbeat: eight of them, and twice as long as network file systems keep old times of files."""

MOST_TRIES = 3
"""Of a run; after that many lost ones it is a row with the status `crashed`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that is this process's.

    Attributes:
        path: The file.
        number: Which try it is, from 0: how many before it were lost.
    """

    path: Path
    number: int

    def beat(self) -> None:
        """Say that the holder is alive."""
        with contextlib.suppress(OSError):  # the next beat, or the part, says it as well
            os.utime(self.path)

    def drop(self) -> None:
        """Let others have the run: it was not measured. What was lost before stays lost."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Take away all claims of the run: it has its part."""
        for path in _claims(self.path.parent, self.path.stem):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def claim_run(folder: Path, part: str) -> Claim | None:
    """Claim a run; None where a live process has it.

    Args:
        folder: Of the claims; made if absent.
        part: The name of the run's part.

    Raises:
        StoreError: The disk cannot write the claim.
    """
    with typed_errors(folder):
        folder.mkdir(exist_ok=True)
    held = _claims(folder, part)
    number = 0
    if held:
        if not is_lost(held[-1]):
            return None
        number = _number(held[-1]) + 1
    path = folder / f"{part}.{number}"
    try:
        with typed_errors(path), path.open("x", encoding="utf-8") as file:
            json.dump(_me(), file)
    except FileExistsError:  # another process was faster
        return None
    return Claim(path, number)


def clear_finished(folder: Path, part: str) -> None:
    """Take away what a process left that was killed between its run's part and its claim's end."""
    if (folder / f"{part}.0").exists():  # a glance, where a finished sweep asks for each of its runs
        Claim(folder / f"{part}.0", 0).close()


def is_lost(path: Path) -> bool:
    """Whether the holder of a claim is gone: dead on this host, or silent for `LOST_AFTER_S`."""
    try:
        age_s = _now(path.parent) - path.stat().st_mtime
        holder = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # given up, or finished, just now
        return False
    except (OSError, ValueError):  # not written to its end yet, or by a holder who was killed meanwhile
        return age_s > LOST_AFTER_S
    me = _me()
    if isinstance(holder, dict) and all(holder.get(name) == me[name] for name in ("host", "boot", "processes")):
        return not _is_alive(holder)
    return age_s > LOST_AFTER_S


def _claims(folder: Path, part: str) -> list[Path]:
    """The claims of a run, the first try first."""
    return sorted((path for path in folder.glob(f"{part}.*") if path.suffix[1:].isdigit()), key=_number)


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _now(folder: Path) -> float:
    """The time by the clock of a folder's file system."""
    probe = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _me() -> dict[str, object]:
    """This process, as another can find out whether it is alive."""
    try:
        processes = Path("/proc/self/ns/pid").stat().st_ino  # a container's process numbers are its own
    except OSError:
        processes = 0
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "boot": round(psutil.boot_time()),
        "processes": processes,
        "pid": process.pid,
        "started": process.create_time(),
    }


def _is_alive(holder: dict[str, object]) -> bool:
    try:
        process = psutil.Process(int(str(holder["pid"])))
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and abs(process.create_time() - float(str(holder["started"]))) < 1.0
    except (psutil.Error, KeyError, ValueError):
        return False
