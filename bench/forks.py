"""Work that may fail in any way, done in forks of this process: an item that raises, hangs or dies affects only itself.

A fork works through a group of items, in order, and returns each result. If one is lost (it raised, it timed out, the
process died), the fork is not used again: the rest of the group continues in a fresh one. An item that is lost after
others in its fork, or with work that it shares with them, is retried once, alone, so that it does not fail because of
what its neighbours did to the process.

Forks write to the standard output and error of this process. The output of a lost item is followed by a line that names
it: the traceback of an exception, the stack of what hung, Python's last output before a fatal signal.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bench.errors import describe_failure

Item = TypeVar("Item")

MOST_HANGS = 2
"""How many items of one kind may hang; each costs the full time limit, so the others of that kind are not tried."""

_PR_SET_PDEATHSIG = 1
_STACK_S = 0.5  # for a fork that hangs to write down where
_END_S = 2.0  # for a killed fork to be gone
_SIGNALS = {number.value for number in signal.Signals}


@dataclass(frozen=True, slots=True)
class Lost:
    """An item without a result; `reason` is one line on what happened, and where in the user's code."""

    reason: str


@dataclass(frozen=True, slots=True)
class Work(Generic[Item]):
    """The work of the forks.

    Attributes:
        do: `(item, alone) -> answer`, called in a fork; the result can be pickled. `alone`: do not share work with
            other items.
        shares: Whether `do` would share work with others for this item, unless told that it is alone.
        kin: The kind of an item: items of one kind hang for the same cause.
        describe: An item as text, for the log.
        timeout_s: The limit for one item.
    """

    do: Callable[[Item, bool], Any]
    shares: Callable[[Item], bool]
    kin: Callable[[Item], Hashable]
    describe: Callable[[Item], str]
    timeout_s: float


def work_apart(work: Work[Item], groups: Sequence[Sequence[Item]], workers: int) -> Iterator[tuple[Item, Any]]:
    """Each item with its result or a `Lost`, as they complete.

    Args:
        work: What to do.
        groups: Items that one fork should work through, since they share intermediate results.
        workers: The number of concurrent forks.
    """
    waiting = collections.deque((tuple(group), False) for group in groups if group)
    running: list[_Fork[Item]] = []
    hangs: collections.Counter[Hashable] = collections.Counter()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                items, alone = waiting.popleft()
                if hangs[work.kin(items[0])] < MOST_HANGS:
                    running.append(_Fork(work, items, alone))
                else:
                    yield items[0], Lost(f"not tried: {MOST_HANGS} similar ones timed out after {work.timeout_s:.0f} s")
                    waiting.extendleft([(items[1:], False)] if items[1:] else [])
            _wait(running)
            for fork in list(running):
                yield from fork.answers()
                if fork.is_over:
                    running.remove(fork)
                    waiting.extendleft([(tuple(fork.left[1:]), False)] if fork.left[1:] else [])
                    if fork.lost is not None and fork.in_company:
                        waiting.appendleft(((fork.left[0],), True))
                    elif fork.lost is not None:
                        hangs[work.kin(fork.left[0])] += fork.hung
                        yield fork.left[0], Lost(fork.lost)
    finally:
        for fork in running:
            fork.end()


def _wait(running: Sequence[_Fork[Any]]) -> None:
    """Wait until a fork sends a message, ends, or is overdue."""
    if not running:
        return
    first = min(fork.deadline for fork in running) - time.monotonic()
    places = [place for fork in running for place in (fork.receiver, fork.process.sentinel)]
    multiprocessing.connection.wait(places, timeout=max(0.0, first))


class _Fork(Generic[Item]):
    """One fork and its remaining items; `lost` is the failure of the first of these."""

    def __init__(self, work: Work[Item], items: Sequence[Item], alone: bool) -> None:
        self.left, self.hung, self.is_over = list(items), False, False
        self.lost: str | None = None
        self._work, self._alone, self._done = work, alone, 0
        context = multiprocessing.get_context("fork")
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_live, args=(work, items, alone, sender))
        self.process.start()
        sender.close()
        self.deadline = time.monotonic() + work.timeout_s

    @property
    def in_company(self) -> bool:
        """Whether other items may have caused the failure of this one."""
        return not self._alone and (self._done > 0 or self._work.shares(self.left[0]))

    def answers(self) -> Iterator[tuple[Item, Any]]:
        """The results since the last call; ends the fork if it is lost, overdue or done."""
        while not self.is_over and (message := self._receive()) is not None:
            if isinstance(message, Lost):
                self._lose(message.reason)
            else:
                self._done += 1
                self.deadline = time.monotonic() + self._work.timeout_s
                yield self.left.pop(0), message.value
                if not self.left:
                    self.end()
        if not self.is_over and time.monotonic() >= self.deadline:
            self.hung = True
            self._write_stack()
            self._lose(f"timed out after {self._work.timeout_s:.0f} s")
        elif not self.is_over and not self.process.is_alive() and not self.receiver.poll():
            self._lose(how_it_ended(self.process.exitcode))

    def _receive(self) -> Lost | _Answer | None:
        """The next message; None if there is none, or none that can be read."""
        try:
            message = self.receiver.recv() if self.receiver.poll() else None
        except Exception:  # noqa: BLE001 - it ended amid a message, or what it works on wrote into its pipe
            self.process.join(timeout=_END_S)
            self._lose(how_it_ended(self.process.exitcode))
            return None
        return message if isinstance(message, Lost | _Answer) else None

    def _lose(self, reason: str) -> None:
        sys.stderr.write(f"--- {self._work.describe(self.left[0])}: {reason}\n")
        sys.stderr.flush()
        self.lost = reason
        self.end()

    def _write_stack(self) -> None:
        """Make a hanging fork write its stack to the log."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGUSR1)
            self.process.join(timeout=_STACK_S)

    def end(self) -> None:
        """Kill the fork and everything it started."""
        self.is_over = True
        if self.process.pid is not None:
            for kill in (os.killpg, os.kill):  # it may not have created its own group yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(self.process.pid, signal.SIGKILL)
        self.process.join(timeout=_END_S)
        self.receiver.close()


@dataclass(frozen=True, slots=True)
class _Answer:
    value: Any


def _live(work: Work[Item], items: Sequence[Item], alone: bool, sender: Any) -> None:
    """The main function of a fork."""
    os.setpgid(0, 0)  # a signal to its own group reaches nothing else
    die_with_parent()
    with contextlib.suppress(Exception):  # standard error may be closed
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1)
    for item in items:
        try:
            sender.send(_Answer(work.do(item, alone)))
        except BaseException as error:  # noqa: BLE001 - whatever a model raises is the item's own outcome
            write_traceback(error)
            sender.send(Lost(describe_failure(error)))
            break
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(0)  # user code must not affect the exit


def write_traceback(error: BaseException) -> None:
    """Write it to standard error, bypassing whatever `sys.stderr` is by now."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - an exception may fail to be printed in any way
        text = f"{type(error).__name__}, whose traceback cannot be printed\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that forked it dies (Linux only; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def how_it_ended(exit_code: int | None) -> str:
    """The end of a process as text; `exit_code` as multiprocessing has it, None if it has not ended."""
    if exit_code is None:
        return "the process could not be killed"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name if -exit_code in _SIGNALS else f"signal {-exit_code}"
        hint = " (the host's out-of-memory killer does this)" if -exit_code == signal.SIGKILL else ""
        return f"the process was killed by {name}{hint}"
    return f"the process exited with code {exit_code}"
