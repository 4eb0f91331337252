"""Runs on this machine: each in a fresh process, forked from a server with torch imported and CUDA untouched.

Importing torch and torchvision takes seconds, a fork takes milliseconds, and the fork is as fresh as a new interpreter
in everything that a measurement depends on: no CUDA context, an empty allocator, no threads. The server is
multiprocessing's.

Each child leads its own session, so that it dies with everything it started, and is killed by the kernel when the
server dies, which in turn exits when this process does: nothing outlives the sweep, however it ends.
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
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.errors import BenchError, InfrastructureError, describe_failure
from bench.forks import die_with_parent, write_traceback
from bench.interpreters import safe_children
from bench.launchers.conversation import GRACE_S, Answer, Conversation, Outcome
from bench.probes.torch_facts import start_fault

START_ATTEMPTS = 3
_EXIT_UNKNOWN = 255  # what multiprocessing says of a child whose server died

Send = Callable[[dict[str, Any]], None]
Task = Callable[[Any, Send], dict[str, Any]]


class LocalLauncher:
    """Runs tasks one at a time in fresh processes, each with a time limit."""

    def __init__(self) -> None:
        """Configure the server; it starts with `warm` or with the first task."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_preloaded())
        self._bare = multiprocessing.get_context("spawn")

    def warm(self) -> None:
        """Start the server, which begins to import torch while this process goes on."""
        from multiprocessing import forkserver

        with _interrupts_blocked():
            forkserver.ensure_running()

    def run(
        self,
        task: Task,
        argument: Any,
        *,
        timeout_s: float,
        from_last_word: bool = False,
        log: Path | None = None,
        bare: bool = False,
        listen: Callable[[dict[str, Any]], None] = lambda news: None,
    ) -> Answer:
        """Run `task(argument, send)` in a fresh process and wait for its result.

        Args:
            task: A function of a module, importable in the child; it returns a JSON object and may `send` further ones.
                `{"phase": ...}` reports its phase, anything else is an event for the caller.
            argument: Anything that can be pickled.
            timeout_s: The time limit in seconds; then the child's whole process group is killed.
            from_last_word: Whether the limit counts from the child's last message instead of the start.
            log: The file for the child's standard output and error; discarded unless given.
            bare: Whether the child is a new interpreter without torch, which starts at once, rather than a fork of the
                server, which has imported torch first.
            listen: Called with every event as it arrives.

        Raises:
            KeyboardInterrupt: On Ctrl-C; the child is gone by then.
        """
        started = time.monotonic()
        context = self._bare if bare else self._context
        process, receiver = _start(context, task, argument, str(log or os.devnull))
        conversation = Conversation(started, listen)
        try:
            timed_out = conversation.follow(receiver, process, timeout_s, from_last_word)
        finally:
            _end_group(process)
            receiver.close()
        if not timed_out and conversation.final is None and process.exitcode == _EXIT_UNKNOWN and _server_died():
            conversation.forget("the fork server was killed, and the run with it")
        return conversation.answer(timed_out, process.exitcode, log)


def _start(
    context: SpawnContext | ForkServerContext, task: Task, argument: Any, log: str
) -> tuple[BaseProcess, Connection]:
    """A child and the reading end of its pipe; a server that dies in the meantime is started again."""
    for attempt in range(START_ATTEMPTS):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(task, argument, sender, log), daemon=False)
        try:
            with _interrupts_blocked():  # a server that this starts must not hear Ctrl-C either: it would speak of it
                process.start()
        except (EOFError, OSError) as error:
            receiver.close()
            if fault := start_fault():
                raise InfrastructureError(fault) from error
            if attempt + 1 == START_ATTEMPTS:
                raise InfrastructureError(
                    f"the fork server does not respond ({error}), although torch can be imported. Is memory short?"
                ) from error
            time.sleep(0.2)
        else:
            return process, receiver
        finally:
            sender.close()
    raise AssertionError("unreachable")


def _preloaded() -> list[str]:
    """What the server imports: everything that a run needs, and the main module of this process.

    Each child imports the parent's main module again, as multiprocessing always does; so the server has it already.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    own = [name for name in sorted(sys.modules) if name.startswith("bench.")]
    return ["bench.launchers.preload", *([spec.name] if spec else []), *own]


def _child(task: Task, argument: Any, sender: Connection, log: str) -> None:
    """The main function of a child."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent()
    _let_server_go()
    _redirect(log)

    def send(message: dict[str, Any]) -> None:
        left = json.dumps(message).encode() + b"\n"
        while left:
            left = left[os.write(sender.fileno(), left) :]

    send({"phase": "start"})
    try:
        final = {"outcome": Outcome.ANSWERED.value, "value": task(argument, send)}
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
    from multiprocessing import forkserver

    handle = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)  # there is no public name
    if handle is not None:
        os.close(handle)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]


def _redirect(log: str) -> None:
    """Send standard output and error, of C code too, to the log."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


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
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C for the duration of the context; processes that start within never receive it unless they ask to.

    Nor do they import from the current folder.
    """
    with safe_children():
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
