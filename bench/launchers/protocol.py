"""The contract between whoever wants a task done and whatever runs it.

A task is a function `(argument, send) -> JSON object`. While it works it may `send` further objects: `{"phase": ...}`
names what it is doing, anything else is news for the caller. How it ended is an `Answer`, never an exception.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

Send = Callable[[dict[str, Any]], None]
Task = Callable[[Any, Send], dict[str, Any]]


class Outcome(Enum):
    """How a task ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # it raised a BenchError: the message is for the user
    BUSY = "busy"  # it raised a BusyError: another process has its device, and nothing was done
    TIMED_OUT = "timed out"
    DIED = "died"
    CANCELLED = "cancelled"  # by whoever had submitted it


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a task.

    Attributes:
        outcome: How it ended.
        value: What the task returned; empty unless answered.
        reason: One line on what happened; empty if it answered.
        phase: The last phase that the task announced; None as well where the server died under it, which says nothing
            of the task.
        news: Everything the task announced beside its phases, merged, newest last.
        start_s: From requesting the process to its first message, in seconds.
        duration_s: From requesting the process to its end, in seconds.
    """

    outcome: Outcome
    value: dict[str, Any]
    reason: str
    phase: str | None
    news: dict[str, Any]
    start_s: float | None
    duration_s: float


def _ignore(news: dict[str, Any]) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Job:
    """A task with its argument and its limits.

    Attributes:
        task: Returns a JSON object. Where it runs in another process it must be importable there.
        argument: Anything that can be pickled.
        timeout_s: After so many seconds the task is ended with everything that it started.
        from_last_word: Whether the seconds count from the task's last word rather than from the start.
        log: Where its standard output and error go; thrown away unless given.
        bare: Whether a process that starts at once, without torch, will do.
        listen: Called with every piece of news as it arrives.
        device: What the task has to itself, by any name that is the same for the same device; None where it shares
            what it uses. A launcher never runs two jobs of one device at a time: the second waits for the first. Across
            processes, devices are held with `bench.locks`.
    """

    task: Task
    argument: Any
    timeout_s: float
    from_last_word: bool = False
    log: Path | None = None
    bare: bool = False
    listen: Callable[[dict[str, Any]], None] = _ignore
    device: str | None = None


@dataclass(slots=True, eq=False)
class Handle:
    """A job that was submitted.

    Attributes:
        job: As submitted.
        answer: None until it has ended.
    """

    job: Job
    answer: Answer | None = field(default=None)


class Launcher(ABC):
    """Runs jobs."""

    def warm(self) -> None:
        """Begin with what the first job would have to wait for; returns at once."""
        return

    @abstractmethod
    def submit(self, job: Job) -> Handle:
        """Take a job on; it starts at once, or when its device is free.

        Raises:
            InfrastructureError: No process can be started.
        """

    @abstractmethod
    def wait(self, handles: Collection[Handle], timeout_s: float | None = None) -> list[Handle]:
        """Follow every job in flight until one of these has ended.

        Args:
            handles: Of this launcher's jobs.
            timeout_s: How long to wait at most; until one has ended where None.

        Returns:
            Those of `handles` that have ended; empty where the time passed before.

        Raises:
            InfrastructureError: A job that waited for its device cannot be started.
            KeyboardInterrupt: On Ctrl-C; the jobs go on until they are cancelled.
        """

    @abstractmethod
    def cancel(self, handles: Collection[Handle]) -> None:
        """End those jobs that are not over, with everything that they started; they are gone when this returns."""

    def as_ended(self, handles: Collection[Handle]) -> Iterator[Handle]:
        """Each job as it ends. Leaving early, by an exception or Ctrl-C too, cancels the rest."""
        left = list(handles)
        try:
            while left:
                for handle in self.wait(left):
                    left.remove(handle)
                    yield handle
        finally:
            self.cancel(left)

    def run(
        self,
        task: Task,
        argument: Any,
        *,
        timeout_s: float,
        from_last_word: bool = False,
        log: Path | None = None,
        bare: bool = False,
        listen: Callable[[dict[str, Any]], None] = _ignore,
        device: str | None = None,
    ) -> Answer:
        """Run one job to its end; arguments are the attributes of `Job`.

        Raises:
            InfrastructureError: No process can be started.
            KeyboardInterrupt: On Ctrl-C; the job is gone by then.
        """
        handle = self.submit(Job(task, argument, timeout_s, from_last_word, log, bare, listen, device))
        for ended in self.as_ended([handle]):
            assert ended.answer is not None
            return ended.answer
        raise AssertionError("unreachable")
