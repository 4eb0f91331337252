"""The messages of a child process: its phases, events and result; and what its silence means."""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.forks import how_it_ended

GRACE_S = 2.0  # between terminating a process and killing it
_LOG_TAIL_BYTES = 4096
_PIECE_BYTES = 1 << 20


class Outcome(Enum):
    """How a child ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # it raised a BenchError: the message is for the user
    TIMED_OUT = "timed out"
    DIED = "died"


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a child process.

    Attributes:
        outcome: How it ended.
        value: What the task returned; empty unless answered.
        reason: One line on what happened; empty if it answered.
        phase: The last phase that the child reported; also None if the server died under it, which shows nothing about
            the task.
        news: Everything else the child reported, merged, newest last.
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


class Conversation:
    """The messages of a child so far."""

    def __init__(self, started: float, listen: Callable[[dict[str, Any]], None]) -> None:
        """Begin at `started`, a time of the monotonic clock; `listen` is called with every event."""
        self.started = self.last_word = started
        self.tell = listen
        self.first_word: float | None = None
        self.phase: str | None = None
        self.news: dict[str, Any] = {}
        self.final: dict[str, Any] | None = None
        self._unread = b""
        self._outside = ""

    def follow(self, receiver: Connection, process: BaseProcess, timeout_s: float, from_last_word: bool) -> bool:
        """Read messages until the result, the child's death or the deadline; returns whether the deadline passed.

        Messages sent in time count, even if this process was stopped in the meantime and reads them late.
        """
        overdue: float | None = None
        while self.final is None:
            now = time.monotonic()
            left = (self.last_word if from_last_word else self.started) + timeout_s - now
            overdue = None if left > 0 else overdue or now
            if overdue is not None and now - overdue > GRACE_S:  # it keeps sending
                return True
            ready = multiprocessing.connection.wait([receiver, process.sentinel], timeout=max(0.0, left))
            if receiver in ready or receiver.poll():
                if not self._listen(receiver):
                    process.join(timeout=GRACE_S)
                    return False
            elif process.sentinel in ready:
                return False
            elif left <= 0:
                return True
        return False

    def _listen(self, receiver: Connection) -> bool:
        """Read what is available, which may end in the middle of a message: nothing here waits for a child."""
        try:
            piece = os.read(receiver.fileno(), _PIECE_BYTES)
            *lines, self._unread = (self._unread + piece).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return False
        self.last_word = time.monotonic()
        if self.first_word is None:
            self.first_word = self.last_word
        for message in messages:
            self._hear(message)
        return bool(piece)

    def _hear(self, message: dict[str, Any]) -> None:
        if "outcome" in message:
            self.final = message
            return
        self.phase = message.pop("phase", self.phase)
        if message:
            self.news.update(message)
            self.tell(message)

    def forget(self, reason: str) -> None:
        """Discard the child's phase: it was ended for `reason`, a cause outside the task."""
        self.phase, self._outside = None, reason

    def answer(self, timed_out: bool, exit_code: int | None, log: Path | None) -> Answer:
        """The messages as a result."""
        outcome, value, reason = Outcome.DIED, {}, ""
        if timed_out:
            outcome, reason = Outcome.TIMED_OUT, f"timed out during {self.phase or 'start'}"
        elif self.final is None:
            ended = f"{how_it_ended(exit_code)} during {self.phase or 'start'}"
            reason = self._outside or f"{ended}{_last_words(log)}"
        else:
            outcome, value = Outcome(self.final["outcome"]), self.final.get("value", {})
            reason = self.final.get("reason", "")
        now = time.monotonic()
        start_s = None if self.first_word is None else self.first_word - self.started
        return Answer(outcome, value, reason, self.phase, self.news, start_s, now - self.started)


def _last_words(log: Path | None) -> str:
    """The last line of the log, if there is one."""
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1].strip()[:300]}" if lines else ""
