"""Jobs on this machine: a process each, several at a time, all followed by one loop.

A process is a fork of a server that has torch imported and CUDA untouched: importing torch and torchvision takes
seconds, a fork takes milliseconds, and the fork is as fresh as a new interpreter in all that a measurement depends on:
no CUDA context, an empty allocator, no threads. The server is multiprocessing's. A `bare` job gets a fork of this
process while that has neither torch nor a second thread, which takes milliseconds, and else a new interpreter. None of
them imports the program that this process runs: a script without a guard around its calls would run again in each.
`ForkLauncher` forks this process for every job.

Each child leads its own session, so that it dies with everything it started, and is killed by the kernel when the
process that forked it dies; the server leaves when this process does. So nothing outlives a sweep, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.errors import BenchError, BusyError, InfrastructureError, describe_failure
from bench.forks import die_with_parent, how_it_ended, write_traceback
from bench.interpreters import safe_children
from bench.launchers.protocol import Answer, Handle, Job, Launcher, Outcome, Task

START_ATTEMPTS = 3
GRACE_S = 2.0  # between terminating a process and killing it
PRELOAD = "bench.preload"
_EXIT_UNKNOWN = 255  # what multiprocessing says of a child whose server died
_LOG_TAIL_BYTES = 4096
_PIECE_BYTES = 1 << 20

Context = ForkServerContext | SpawnContext | ForkContext
Variables = dict[str, str | None]
"""Environment variables to set, or to unset."""

_replaced_streams: list[Any] = []
"""Of a fork's parent. They are not let go: a file that somebody opened over handle 1 or 2 would close it."""

_server_environment: dict[str, str] = {}
"""The environment of this process when the fork server started."""


class LocalLauncher(Launcher):
    """Runs each job in a fresh process."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        """Configure the server; it starts with `warm` or with the first job.

        Args:
            preload: Modules that it imports beside its own.
        """
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*_preloaded(), *preload])
        self._waiting: list[Handle] = []
        self._children: dict[Handle, _Child] = {}

    def warm(self) -> None:
        """Start the server, which begins to import torch while this process goes on."""
        from multiprocessing import forkserver

        _changed_variables(restart=not self._children)
        with _interrupts_blocked():
            forkserver.ensure_running()

    def submit(self, job: Job) -> Handle:
        """See `Launcher`."""
        handle = Handle(job)
        self._waiting.append(handle)
        self._start_ready()
        return handle

    def wait(self, handles: Collection[Handle], timeout_s: float | None = None) -> list[Handle]:
        """See `Launcher`."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            ended = [handle for handle in handles if handle.answer is not None]
            left = float("inf") if end is None else end - time.monotonic()
            if ended or not handles or left <= 0:
                return ended
            if not self._children:
                raise ValueError("none of these jobs is in flight")
            self._follow(left)

    def cancel(self, handles: Collection[Handle]) -> None:
        """See `Launcher`."""
        for handle in handles:
            if handle in self._waiting:
                self._waiting.remove(handle)
                handle.answer = Answer(Outcome.CANCELLED, {}, "cancelled before it started", None, {}, None, 0.0)
            elif handle in self._children:
                self._end(handle, cancelled=True)
        self._start_ready()

    def _start_ready(self) -> None:
        """Start those that wait and whose device is free, in the order in which they came."""
        taken = {handle.job.device for handle in self._children} - {None}
        for handle in list(self._waiting):
            device = handle.job.device
            if device not in taken:
                taken |= {device} - {None}
                self._waiting.remove(handle)
                self._children[handle] = self._start(handle.job)

    def _follow(self, most_s: float) -> None:
        """Hear what there is, within `most_s` seconds or the first deadline; what has ended makes room for others."""
        children = self._children.values()
        places = [place for child in children for place in (child.receiver, child.process.sentinel)]
        left_s = min(most_s, *(child.conversation.left_s for child in children))
        multiprocessing.connection.wait(places, timeout=max(0.0, left_s))
        for handle, child in list(self._children.items()):
            if child.conversation.is_over(child.receiver, child.process):
                self._end(handle)
        self._start_ready()

    def _end(self, handle: Handle, *, cancelled: bool = False) -> None:
        """End a child that is over, or is to be, and answer."""
        child = self._children[handle]
        _end_group(child.process)
        child.receiver.close()
        del self._children[handle]  # not before: whoever is interrupted meanwhile cancels it again
        told = child.conversation
        died = not told.timed_out and told.final is None and not cancelled
        if died and child.process.exitcode == _EXIT_UNKNOWN and _server_died():
            told.forget("the fork server was killed, and the run with it")
        handle.answer = told.answer(child.process.exitcode, cancelled=cancelled)

    def _start(self, job: Job) -> _Child:
        """A child; a server that dies meanwhile is started again."""
        started = time.monotonic()
        context = _bare_context() if job.bare else self._context
        variables = {} if job.bare else _changed_variables(restart=not self._children)
        for attempt in range(START_ATTEMPTS):
            try:
                return _Child(*_start_process(context, _live, job, variables), _Conversation(job, started))
            except (EOFError, OSError) as error:
                from bench.launchers.faults import start_fault

                if fault := start_fault(PRELOAD):
                    raise InfrastructureError(fault) from error
                if attempt + 1 == START_ATTEMPTS:
                    raise InfrastructureError(
                        f"the fork server does not respond ({error}), although torch can be imported. Is memory short?"
                    ) from error
                time.sleep(0.2)
        raise AssertionError("unreachable")


class ForkLauncher(LocalLauncher):
    """Runs each job in a fork of this process, as it is: tasks and arguments need not be importable, nor pickled.

    What a job does to torch, CUDA or anything else is done to the fork. Only where the system forks (Linux), and for
    jobs that do not touch a GPU: a fork cannot use one that this process has used.
    """

    def __init__(self, prepare: Callable[[], None] = lambda: None) -> None:
        """Take what each child does before its task."""
        super().__init__()
        self._prepare = prepare

    def warm(self) -> None:
        """Nothing: there is no server."""

    def _start(self, job: Job) -> _Child:
        if sys.platform != "linux":
            raise InfrastructureError(f"this needs forks of the running process, which {sys.platform} does not have")

        def prepared(argument: Any, send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
            self._prepare()
            return job.task(argument, send)

        def live(task: Task, argument: Any, sender: Connection, log: str, variables: Variables) -> None:
            _live(prepared, argument, sender, log, variables)

        started = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the fork does without
                process = _start_process(multiprocessing.get_context("fork"), live, job, {})
        except OSError as error:
            raise InfrastructureError(f"this process cannot be forked: {error.strerror or error}") from error
        return _Child(*process, _Conversation(job, started))


@dataclass(frozen=True, slots=True)
class _Child:
    """A process, the end of its pipe to listen at, and what it has said."""

    process: BaseProcess
    receiver: Connection
    conversation: _Conversation


class _Conversation:
    """What a child has said so far, and whether it is over.

    What it said in time counts, even where this process was stopped meanwhile and hears it late.
    """

    def __init__(self, job: Job, started: float) -> None:
        """Begin at `started`, a time of the monotonic clock."""
        self.started = self.last_word = started
        self.first_word: float | None = None
        self.phase: str | None = None
        self.news: dict[str, Any] = {}
        self.final: dict[str, Any] | None = None
        self.timed_out = False
        self._job = job
        self._overdue: float | None = None
        self._unread = b""
        self._outside = ""

    @property
    def left_s(self) -> float:
        """Until the deadline; negative after it."""
        return (self.last_word if self._job.from_last_word else self.started) + self._job.timeout_s - time.monotonic()

    def is_over(self, receiver: Connection, process: BaseProcess) -> bool:
        """Hear what there is; whether that was the final answer, or the child is dead, or out of time."""
        left_s, now = self.left_s, time.monotonic()
        self._overdue = None if left_s > 0 else self._overdue or now
        if self._overdue is not None and now - self._overdue > GRACE_S:  # it talks and talks
            self.timed_out = True
        elif receiver.poll():
            if not self._listen(receiver):
                process.join(timeout=GRACE_S)
                return True
        elif multiprocessing.connection.wait([process.sentinel], timeout=0):
            return not receiver.poll()  # it may have spoken between the two looks
        elif left_s <= 0:
            self.timed_out = True
        return self.timed_out or self.final is not None

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
            self._job.listen(message)

    def forget(self, reason: str) -> None:
        """Discard the child's phase: it was ended for `reason`, a cause outside the task."""
        self.phase, self._outside = None, reason

    def answer(self, exit_code: int | None, *, cancelled: bool = False) -> Answer:
        """The messages as a result."""
        outcome, value, reason = Outcome.DIED, {}, ""
        if cancelled:
            outcome, reason = Outcome.CANCELLED, f"cancelled during {self.phase or 'start'}"
        elif self.timed_out:
            outcome, reason = Outcome.TIMED_OUT, f"timed out during {self.phase or 'start'}"
        elif self.final is None:
            ended = f"{how_it_ended(exit_code)} during {self.phase or 'start'}"
            reason = self._outside or f"{ended}{_last_words(self._job.log)}"
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


def _changed_variables(*, restart: bool) -> Variables:
    """What differs from the environment that the fork server started with.

    Args:
        restart: Whether the server may be ended, to start again, if torch, which it has imported, reads what differs.
    """
    from multiprocessing import forkserver

    from bench.launchers.faults import READ_BY_TORCH

    server, now = forkserver._forkserver, dict(os.environ)
    if getattr(server, "_forkserver_pid", None) is not None:  # there is no public name
        names = {name for name, _ in now.items() ^ _server_environment.items()}
        if not (restart and any(name.startswith(READ_BY_TORCH) for name in names)):
            return {name: now.get(name) for name in names}
        server._stop()  # type: ignore[attr-defined]
    _server_environment.clear()
    _server_environment.update(now)
    return {}


def _start_process(
    context: Context, live: Callable[[Task, Any, Connection, str, Variables], None], job: Job, variables: Variables
) -> tuple[BaseProcess, Connection]:
    """A process that lives as told, and the end of its pipe to listen at.

    Raises:
        EOFError, OSError: It does not start.
        InfrastructureError: This process may not have children.
    """
    if multiprocessing.current_process().daemon:
        raise InfrastructureError(
            "this process is a daemonic child of multiprocessing, which may not have children of its own; start it "
            "with daemon=False, or call from another process"
        )
    receiver, sender = context.Pipe(duplex=False)
    arguments = (job.task, job.argument, sender, str(job.log or os.devnull), variables)
    process = context.Process(target=live, args=arguments, daemon=False)
    try:
        # a server that this starts must not hear Ctrl-C either: it would speak of it
        with _interrupts_blocked(forks=isinstance(context, ForkContext)), _main_hidden(job.task):
            process.start()
    except BaseException:
        receiver.close()
        raise
    finally:
        sender.close()
    return process, receiver


def _bare_context() -> Context:
    """How a process without torch is made: by forking this one where nothing of it can harm the fork."""
    if sys.platform == "linux" and "torch" not in sys.modules:
        threads = sum(1 for _ in Path("/proc/self/task").iterdir())  # a lock that another holds would stay locked
        if threads == 1:
            return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


@contextlib.contextmanager
def _main_hidden(task: Task) -> Iterator[None]:
    """Keep a child from importing this process's main module, unless the task is defined there."""
    main = sys.modules["__main__"]
    if getattr(task, "__module__", None) != "__main__":
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _preloaded() -> list[str]:
    """What the server imports: all that a run needs, and what this process has of its own package."""
    return [PRELOAD, *(name for name in sorted(sys.modules) if name.startswith("bench."))]


def _live(task: Task, argument: Any, sender: Connection, log: str, variables: Variables) -> None:
    """The main function of a child."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.setsid()
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:  # as whoever started this process wants it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork of this process has its handler
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent()
    _let_server_go()
    if sys.platform == "linux":  # as in a script: a lock that outlives this child is then not reported at the terminal
        multiprocessing.set_start_method("fork", force=True)
    _redirect(log)

    def send(message: dict[str, Any]) -> None:
        left = json.dumps(message).encode() + b"\n"
        while left:
            left = left[os.write(sender.fileno(), left) :]

    send({"phase": "start"})
    try:
        final = {"outcome": Outcome.ANSWERED.value, "value": task(argument, send)}
    except BusyError as error:
        final = {"outcome": Outcome.BUSY.value, "reason": str(error)}
    except BenchError as error:
        final = {"outcome": Outcome.REFUSED.value, "reason": str(error)}
    except BaseException as error:  # noqa: BLE001 - whatever it is, its words are worth more than an exit code
        write_traceback(error)
        final = {"outcome": Outcome.DIED.value, "reason": describe_failure(error)}
    send(final)
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no teardown: nothing of a finished measurement may hang, and the parent has what it needs


def _let_server_go() -> None:
    """Close this child's end of the pipe by which the server detects that its owner is alive.

    Multiprocessing gives every child a copy, for children of its own: with it a run that hangs would keep the server,
    and so itself, alive after the sweep was killed. (CPython, Lib/multiprocessing/forkserver.py, `_serve_one`.)
    """
    module = sys.modules.get("multiprocessing.forkserver")
    server = getattr(module, "_forkserver", None)
    handle = getattr(server, "_forkserver_alive_fd", None)  # there is no public name
    if server is not None and handle is not None:
        os.close(handle)
        server._forkserver_alive_fd = None


def _redirect(log: str) -> None:
    """Send standard output and error, of C code too, to the log."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    _replaced_streams[:] = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a notebook's own are not for a fork


def _end_group(process: BaseProcess) -> None:
    """End the child and everything it started: terminate, wait, kill. Returns when the child is gone."""
    if process.pid is None:
        return
    process.join(timeout=0.2)  # it may just be leaving
    if process.is_alive():
        _signal_group(process.pid, signal.SIGTERM)
        process.join(timeout=GRACE_S)
    _signal_group(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()  # it had not made its own group yet
        process.join(timeout=GRACE_S)


def _server_died() -> bool:
    """Whether the fork server is dead, or dies within a second: its pipes close before it is gone."""
    from multiprocessing import forkserver

    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)  # there is no public name
    if pid is None:
        return True
    for _ in range(20):
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return True
        except ChildProcessError:  # multiprocessing has seen its end already
            return True
        time.sleep(0.05)
    return False


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextlib.contextmanager
def _interrupts_blocked(*, forks: bool = False) -> Iterator[None]:
    """Block Ctrl-C for the duration of the context; processes that start within never receive it unless they ask to.

    Nor do they import from the current folder. With `forks` they are forks, which need no resource tracker.
    """
    with safe_children():
        if not forks:
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()  # its start would unblock the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interrupt_on_terminate() -> Iterator[None]:
    """Let SIGTERM end a sweep like Ctrl-C: finished runs are kept, and nothing is left running."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
