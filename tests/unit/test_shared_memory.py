"""A full /dev/shm: what torch says of it is known, anything else is not, and the advice has figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

KILLED = RuntimeError(
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
REFUSED = RuntimeError(
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    "RuntimeError: unable to allocate shared memory(shm) for file </torch_28268_3760142286_0>: No space left on "
    "device (28)\n"
)
WRITTEN = RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")
REMEDY = "start the container with --shm-size=8g or --ipc=host, or set measure.loader_workers = 0"


def caused_by(error: BaseException) -> RuntimeError:
    outer = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    outer.__cause__ = error
    return outer


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.workload import shared_memory

    def usage(place: Path) -> Any:
        assert place == Path("/dev/shm")
        return shutil._ntuple_diskusage(64 << 20, 63 << 20, 1 << 20)

    monkeypatch.setattr(shared_memory.shutil, "disk_usage", usage)


@pytest.mark.parametrize("error", [KILLED, REFUSED, WRITTEN, caused_by(KILLED)], ids=repr)
def test_what_torch_says_of_a_full_dev_shm_gets_figures_and_a_remedy(error: RuntimeError) -> None:
    from bench.workload.shared_memory import is_shared_memory_full, shared_memory_hint

    assert is_shared_memory_full(error)
    assert shared_memory_hint(error) == (f"; /dev/shm is or was full: 64.0 MiB in total, 1.00 MiB free now; {REMEDY}")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)"),
        OSError(28, "No space left on device", "/data/x.jpg"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ValueError("the model's own: killed by signal: Bus error"),
    ],
    ids=repr,
)
def test_other_failures_get_no_advice(error: Exception) -> None:
    from bench.workload.shared_memory import is_shared_memory_full, shared_memory_hint

    assert not is_shared_memory_full(error)
    assert shared_memory_hint(error) == ""


def test_the_advice_is_given_once() -> None:
    from bench.workload.shared_memory import is_shared_memory_full, shared_memory_advice, shared_memory_hint

    told = ValueError(f"the loader's 2 workers: {shared_memory_advice()}")
    told.__cause__ = KILLED
    assert is_shared_memory_full(told)
    assert shared_memory_hint(told) == ""


def test_an_error_that_is_its_own_cause_ends() -> None:
    from bench.workload.shared_memory import is_shared_memory_full

    error = RuntimeError("x")
    error.__context__ = other = ValueError("y")
    other.__context__ = error
    assert not is_shared_memory_full(error)


def test_without_a_dev_shm_the_remedy_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.workload import shared_memory
    from bench.workload.shared_memory import shared_memory_advice

    def absent(place: Path) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(shared_memory.shutil, "disk_usage", absent)
    assert shared_memory_advice() == f"/dev/shm is full or missing; {REMEDY}"


def test_a_run_that_ends_so_is_out_of_memory_and_its_reason_ends_with_the_advice() -> None:
    from bench.probes.backends import backend
    from bench.probes.gpu_monitor import Readings
    from bench.records import Case, Choice, Protocol
    from bench.worker import MeasureTask, _failure, _Run

    case = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 8)
    run = _Run(MeasureTask(case, Protocol(), "cpu"), lambda news: None, backend("cpu"), Readings(None))
    for error in (KILLED, REFUSED, caused_by(KILLED)):
        found = _failure(run, error)
        assert found["status"] == "oom"
        assert found["reason"].endswith(REMEDY)
    found = _failure(run, RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    assert found["status"] == "failed"
