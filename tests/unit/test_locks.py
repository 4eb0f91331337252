from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import BusyError
from bench.locks import device_lock_path, hold


def test_a_second_holder_leaves_at_once_naming_the_first(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with hold(path, "the device"), pytest.raises(BusyError) as caught, hold(path, "the device"):
        pass
    assert f"the device is in use by process {os.getpid()} on " in str(caught.value)
    with hold(path, "the device"):
        pass


def test_the_kernel_frees_the_lock_of_a_holder_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    code = f"import os, pathlib, bench.locks\nwith bench.locks.hold(pathlib.Path({str(path)!r}), 'x'): os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    assert path.with_name("x.lock.holder").exists()
    with hold(path, "the device"):
        pass


def test_a_holder_file_of_nonsense_does_not_hurt(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with hold(path, "the device"):
        path.with_name("x.lock.holder").write_text("[]", encoding="utf-8")
        with pytest.raises(BusyError, match=r"^the device is in use by another process\."), hold(path, "the device"):
            pass


def test_devices_have_locks_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))
    with hold(device_lock_path("a"), "a"), hold(device_lock_path("b"), "b"):
        assert {path.name for path in (tmp_path / "locks").glob("*.lock")} == {"a.lock", "b.lock"}
