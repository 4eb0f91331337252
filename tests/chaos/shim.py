"""The shim of faults.c: built with the machine's C compiler, and steered from the process that runs under it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
NAMES = {
    "o": "open",
    "w": "write",
    "s": "fsync",
    "l": "link",
    "r": "rename",
    "u": "unlink",
    "c": "close",
    "m": "mkdir",
    "t": "truncate",
    "d": "read",
}
_MARK = "BENCH_CHAOS_SHIM"


class Action(IntEnum):
    """What happens at the call that is struck; see faults.c."""

    KILL_BEFORE = 0
    KILL_AFTER = 1
    FAIL = 2
    SHORT = 3
    FAIL_ON = 4


def compiler() -> str | None:
    """The C compiler, where there is one and the shim can be preloaded."""
    return shutil.which("cc") or shutil.which("gcc") if sys.platform == "linux" else None


def preload() -> None:
    """Start this process anew under the shim, unless it runs under it. Raises SystemExit without a compiler."""
    if os.environ.get(_MARK):
        return
    found = compiler()
    if found is None:
        raise SystemExit("the faults of the operating system need Linux and a C compiler (cc)")
    library = Path(tempfile.mkdtemp(prefix="chaos-shim-")) / "faults.so"
    subprocess.run([found, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    os.environ.update({_MARK: str(library), "LD_PRELOAD": str(library)})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Shim:
    """The shim of this process."""

    def __init__(self) -> None:
        """Find it; `preload` came before."""
        library = Path(os.environ.pop(_MARK))
        os.environ.pop("LD_PRELOAD")  # for this process alone, not for what it starts
        self._library = ctypes.CDLL(str(library))
        self._library.faults_names.restype = ctypes.c_char_p
        shutil.rmtree(library.parent)

    def arm(self, folder: Path, strike: int = 0, action: Action = Action.KILL_BEFORE, error: int = 0) -> None:
        """Count the calls below `folder` from now on, and strike the one numbered `strike` (from 1; 0 for none)."""
        self._library.faults_arm(os.fsencode(folder), strike, int(action), error)

    def disarm(self) -> list[str]:
        """Let all calls through again; the names of those that were counted, in order."""
        self._library.faults_disarm()
        return [NAMES[letter] for letter in self._library.faults_names().decode()]

    def summary(self, calls: list[str]) -> dict[str, int]:
        """How many of each."""
        return dict(Counter(calls))
