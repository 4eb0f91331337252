"""Some runs of an order, one after the other, in one job of a scheduler that may end it at any time.

The runs are done by a child, `bench run-planned ORDER --follow`, which hears none of the scheduler's signals: this
process does, and stops handing out runs. So SIGUSR2 (time is nearly up) and SIGTERM (preempted, cancelled) end a chunk
after its current run; after SIGTERM, which SIGKILL follows, the run has `GRACE_S` left and is given up in an orderly
way then.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.errors import InfrastructureError

GRACE_S = 20
"""Between SIGTERM and giving up a run; Slurm's KillWait and a partition's GraceTime are 30 s unless configured."""

BUSY_S = 5.0  # between two looks at a device that is not free: the last run's process may still be leaving
MOST_BUSY_S = 300.0

EXIT_TRY_AGAIN = 75
"""As EX_TEMPFAIL of sysexits.h: the device was not free, or another process has a run; nothing is wrong."""


class ChunkError(InfrastructureError):
    """The runs of a chunk cannot be done on this machine."""


class _Signals:
    """What the scheduler has said so far."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.stop = ""
        self._child = child

    def hear(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGALRM:
            self.stop = f"{self.stop}; the run was given up after {GRACE_S} s"
            self._child.send_signal(signal.SIGINT)
            return
        self.stop = self.stop or name
        if number == signal.SIGTERM:
            signal.alarm(GRACE_S)


def do_chunk(order: str, runs: Sequence[tuple[int, int]], device: str | None = None, estimates: bool = False) -> int:
    """Do these runs of an order on this machine's one visible device; returns how many have their parts now.

    Args:
        order: The path of the order.
        runs: `(index, attempt)`, in the order of execution.
        device: Another device than the one visible GPU: as for `bench run-planned`.
        estimates: Whether to store the estimates of the order for this device too.

    Raises:
        ChunkError: The child ended by itself; its words are in the job's log.
    """
    command = [sys.executable, "-m", "bench", "run-planned", order, "--follow"]
    command += ["--device", device] if device else []
    command += ["--estimates"] if estimates else []
    left, done, waited = list(runs), 0, 0.0
    while left:
        with _child(command) as (child, signals):
            while left and not signals.stop:
                answer = _ask(child, *left[0])
                if answer is None:
                    break
                print(f"run {answer['index']}: {_words(answer)}", flush=True)  # noqa: T201 - the job's log
                if answer["came"] != "busy":
                    left.pop(0)
                    done += answer["came"] in ("measured", "present")
                    waited = 0.0
                    continue
                break
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
            code = child.wait()
            stopped = signals.stop
        if not left or stopped:
            if left:
                print(f"{stopped}: {len(left)} runs of this chunk are left", flush=True)  # noqa: T201
            return done
        if code not in (0, EXIT_TRY_AGAIN):
            raise ChunkError(f"bench run-planned ended with {code}; {len(left)} runs of this chunk are left")
        waited += BUSY_S
        if waited > MOST_BUSY_S:
            raise ChunkError(
                f"the device was not free for {MOST_BUSY_S:.0f} s; {len(left)} runs of this chunk are left"
            )
        time.sleep(BUSY_S)
    return done


def _words(answer: dict[str, Any]) -> str:
    return " ".join(str(answer[name]) for name in ("came", "status", "reason") if answer.get(name))


def _ask(child: subprocess.Popen[str], index: int, attempt: int) -> dict[str, Any] | None:
    """What came of one run; None where the child is gone."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(f"{index} {attempt}\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except OSError:
        return None
    return json.loads(line) if line.endswith("\n") else None


@contextlib.contextmanager
def _child(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], _Signals]]:
    """The child, which ignores what this process hears meanwhile."""
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}  # ignored stays ignored in a child
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        signals = _Signals(child)
        for number in numbers:
            signal.signal(number, signals.hear)
        try:
            yield child, signals
        finally:
            signal.alarm(0)
            if child.poll() is None:
                child.kill()
                child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_folder(order: Path) -> Path:
    """Where the jobs of an order write their logs."""
    return order.parent.parent / "logs" / order.stem
