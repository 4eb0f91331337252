"""The guard sees what it must; without that, a fuzzer that finds nothing says nothing."""

from __future__ import annotations

import os
import pickle
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.errors import BenchError
from tests.fuzz import guard
from tests.fuzz.running import fault_of
from tests.fuzz.targets import Target


class _Payload:
    def __reduce__(self):
        return os.getenv, ("HOME",)


def _spin(folder: Path) -> None:
    while True:
        pass


BROKEN = {
    "writes elsewhere": lambda folder: (folder.parents[2] / "stray").write_text("x"),
    "writes beside": lambda folder: (folder.parent / "stray").write_text("x"),
    "makes a folder": lambda folder: (folder.parent / "stray").mkdir(),
    "links elsewhere": lambda folder: (folder.parent / "stray").symlink_to(folder),
    "climbs": lambda folder: (folder / ".." / "stray").write_text("x"),
    "runs a file": lambda folder: ((folder / "x.py").write_text("1"), runpy.run_path(str(folder / "x.py"))),
    "starts a process": lambda folder: subprocess.run([sys.executable, "-c", ""], check=False),
    "forks": lambda folder: os.fork(),
    "opens a socket": lambda folder: socket.socket(),
    "unpickles": lambda folder: pickle.loads(pickle.dumps(_Payload())),
    "eats memory": lambda folder: len(b"x" * (guard.MEMORY_LIMIT_BYTES + (64 << 20))),
    "takes too long": _spin,
    "crashes": lambda folder: {}["x"],
    "leaves a file": lambda folder: (folder / "bench-left").write_text("x"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_a_rule_is_a_finding(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "CPU_LIMIT_S", 0.5)
    guard.install(limit_memory=False)
    target = Target("broken", lambda folder: [b""], lambda data, rng: data, lambda data, folder: BROKEN[what](folder))
    assert fault_of(target, b"", tmp_path) is not None
    assert not (tmp_path / "stray").exists()


def test_refusing_and_writing_inside_is_no_finding(tmp_path: Path) -> None:
    def read(data: bytes, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "x").write_bytes(data)
        (folder / "a").mkdir()
        raise BenchError("a sentence")

    guard.install(limit_memory=False)
    assert fault_of(Target("good", lambda folder: [b""], lambda data, rng: data, read), b"x", tmp_path) is None
