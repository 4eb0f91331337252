"""Tasks for the real launcher that hold still while something is done to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Send = Callable[[dict[str, Any]], None]


def answers(argument: Any, send: Send) -> dict[str, Any]:
    """Say who did it."""
    return {"pid": os.getpid(), "server": os.getppid()}


def waits_with_a_child(argument: Any, send: Send) -> dict[str, Any]:
    """Start a grandchild, tell its id, and wait for `argument` seconds in the phase `measure`."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    send({"phase": "measure", "pid": os.getpid(), "server": os.getppid(), "grandchild": child.pid})
    time.sleep(argument)
    return {"waited": argument}


def waits_for_its_child(argument: Any, send: Send) -> dict[str, Any]:
    """As a DataLoader does: raise where the grandchild dies."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    send({"phase": "measure", "pid": os.getpid(), "server": os.getppid(), "grandchild": child.pid})
    raise RuntimeError(f"worker {child.pid} ended with {child.wait()}")


def loses_its_loader(argument: Any, send: Send) -> dict[str, Any]:
    """Read batches from a real DataLoader whose workers are told, so that one can be killed."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(torch.zeros(100_000, 4)), batch_size=4, num_workers=1, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    send({"phase": "measure", "pid": os.getpid(), "server": os.getppid(), "grandchild": batches._workers[0].pid})
    for _ in batches:
        time.sleep(0.01)
    return {}


def stops_in_the_middle_of_a_word(argument: Any, send: Send) -> dict[str, Any]:
    """Write half a message and stop: a reader who waits for the rest waits for ever."""
    import signal
    from unittest import mock

    real = os.write

    def half(handle: int, data: bytes) -> int:
        written = real(handle, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGSTOP)
        return written

    with mock.patch.object(os, "write", half):
        send({"phase": "measure"})
    return {}


LOG = "BENCH_CHAOS_LOG"
"""The file where `measures` says when it has which device."""


def measures(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """A run as `tests.chaos.fake_sweep` makes it up, which has its device to itself for some milliseconds."""
    from dataclasses import asdict

    from bench.tasks import _taken_device
    from tests.chaos.fake_sweep import measurement_of

    lock = argument["lock"]
    with _taken_device(argument):
        started = time.time()
        _note(f"begin {lock} {os.getpid()} {started!r}")
        send({"phase": "measure"})
        made = measurement_of(argument["case"], argument["repeat"], "", failing=False)
        time.sleep(0.02 + 0.02 * (made.step_times_s[0] % 1))
        ended = time.time()
        _note(f"end {lock} {os.getpid()} {ended!r}")
    return {**asdict(made), "started_unix_s": started, "warmup_times_s": [ended - started]}


def _note(line: str) -> None:
    if path := os.environ.get(LOG):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, f"{line}\n".encode())
        os.close(handle)


def tells_environment(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """The machine that `tests.chaos.fake_sweep` makes up."""
    from dataclasses import asdict

    from tests.chaos.fake_sweep import CPU

    return asdict(CPU)


def answers_at_length(argument: Any, send: Send) -> dict[str, Any]:
    """An answer larger than any pipe."""
    return {"values": list(range(argument))}
