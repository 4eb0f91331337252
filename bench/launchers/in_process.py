"""Tasks in this very process: for a debugger, and for tests.

Nothing is fresh: what one task leaves behind (CUDA's context, the allocator's cache, torch's settings) the next one
finds, and a crash is this process's. So no measurement of it may be published.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import time
from collections.abc import Collection, Iterator
from typing import Any

from bench.errors import BenchError, BusyError, describe_failure
from bench.forks import write_traceback
from bench.launchers.protocol import Answer, Handle, Job, Launcher, Outcome


class InProcessLauncher(Launcher):
    """Runs each job to its end as it is submitted, without a time limit and with this process's terminal.

    A test that answers for tasks overrides `perform`.
    """

    def submit(self, job: Job) -> Handle:
        """Perform the job; the handle has its answer."""
        return Handle(job, self.perform(job))

    def wait(self, handles: Collection[Handle], timeout_s: float | None = None) -> list[Handle]:
        """All of them: they have ended."""
        return list(handles)

    def cancel(self, handles: Collection[Handle]) -> None:
        """Nothing is in flight."""

    def perform(self, job: Job) -> Answer:
        """What comes of a job. Environment variables that it sets are put back.

        Raises:
            KeyboardInterrupt: On Ctrl-C, whatever the task makes of it.
        """
        started = time.monotonic()
        words: dict[str, Any] = {"phase": "start"}

        def send(message: dict[str, Any]) -> None:
            heard = json.loads(json.dumps(message))  # as it would arrive from another process
            words.update(heard)
            if news := {name: value for name, value in heard.items() if name != "phase"}:
                job.listen(news)

        before = dict(os.environ)
        outcome, value, reason = Outcome.ANSWERED, {}, ""
        with _interrupts_remembered() as interrupts:
            try:
                value = json.loads(json.dumps(job.task(copy.copy(job.argument), send)))
            except BusyError as error:
                outcome, reason = Outcome.BUSY, str(error)
            except BenchError as error:
                outcome, reason = Outcome.REFUSED, str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the task's outcome
                write_traceback(error)
                outcome, reason = Outcome.DIED, describe_failure(error)
            finally:
                os.environ.clear()
                os.environ.update(before)
        if interrupts:
            raise KeyboardInterrupt
        phase = words.pop("phase")
        return Answer(outcome, value, reason, phase, words, 0.0, time.monotonic() - started)


@contextlib.contextmanager
def _interrupts_remembered() -> Iterator[list[int]]:
    """Whether Ctrl-C was pressed meanwhile: a run that takes all that its model raises for a result takes this too."""
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: Any) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not the main thread, which alone hears of it
        yield seen
        return
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
