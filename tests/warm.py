"""Commands in forks of a process that has all of `bench` and torch loaded: as a user's, without the seconds of importing.

A command has its own process, session, environment, folder and files for output. What differs from `python -m bench`:
the runs that it starts are forks of itself rather than of a server of its own, which would import torch anew, and the
figures of its reports are not painted (see `tests.sketches`).
`plugins.bench(..., fresh=True)` is for tests of how processes start, what they import and how they end.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_AT_START = ("LD_", "OMP_", "MKL_", "KMP_", "TORCH", "PYTORCH_", "CUBLAS_", "DISABLE_ADDMM", "PYTHONHASHSEED")
"""Variables that are read once, when a library is loaded: each set of values has a process of its own."""

_servers: dict[tuple[tuple[str, str], ...], _Server] = {}


def run(
    arguments: Sequence[str], env: Mapping[str, str], cwd: Path | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """What `bench` with these arguments does; raises `subprocess.TimeoutExpired` as `subprocess.run` would."""
    at_start = tuple(sorted((name, value) for name, value in env.items() if name.startswith(_AT_START)))
    if at_start not in _servers:
        _servers[at_start] = _Server(dict(at_start))
    return _servers[at_start].run(arguments, env, cwd, timeout_s)


class _Server:
    """The loaded process; it ends with this one, whose end of a pipe it reads."""

    def __init__(self, at_start: Mapping[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_AT_START)}
        root = str(Path(__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**kept, **at_start, "PYTHONPATH": root},
        )
        atexit.register(self._end)

    def _end(self) -> None:
        self._process.communicate()  # the end of its input is its own

    def run(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory(prefix="bench-warm-") as folder:
            order = {
                "arguments": list(arguments),
                "env": dict(env),
                "cwd": str(cwd or Path.cwd()),
                "outputs": [f"{folder}/stdout", f"{folder}/stderr"],
                "timeout_s": timeout_s,
            }
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            code = json.loads(self._process.stdout.readline())
            stdout, stderr = (Path(path).read_text(encoding="utf-8") for path in order["outputs"])
        if code is None:
            raise subprocess.TimeoutExpired(["bench", *arguments], timeout_s, stdout, stderr)
        return subprocess.CompletedProcess(["bench", *arguments], code, stdout, stderr)


def _serve() -> None:
    import bench.cli
    import bench.preload
    import bench.report.render
    from tests import sketches

    bench.report.theme.save = sketches.save

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _live(order)
        answers.write(json.dumps(_wait(child, order["timeout_s"])) + "\n")
        answers.flush()


def _wait(child: int, timeout_s: float) -> int | None:
    """The code with which it ends, negative for a signal; None if it was killed since the time is up."""
    ended = os.pidfd_open(child)
    in_time = bool(select.select([ended], [], [], timeout_s)[0])
    os.close(ended)
    if not in_time:
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if in_time else None


def _live(order: Mapping[str, Any]) -> None:
    """The command's own process."""
    code: Any = 1
    try:
        os.setsid()
        atexit._clear()
        for number, path in enumerate(["/dev/null", *order["outputs"]]):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate("rww")
        )
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        sys.path[:] = [order["cwd"], *given, *sys.path]
        sys.argv = ["bench", *order["arguments"]]
        _fork_runs()
        from bench.cli import main

        main()
    except SystemExit as error:
        code = 0 if error.code is None else error.code
    except BaseException:  # noqa: BLE001 - as Python would at its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


def _fork_runs() -> None:
    """Let launchers fork this process, which is as fresh as their server, and find the packages of this environment."""
    import multiprocessing

    from bench import catalog
    from bench.launchers import LocalLauncher

    begin = LocalLauncher.__init__

    def begin_forking(self: LocalLauncher) -> None:
        begin(self)
        self._context = multiprocessing.get_context("fork")

    LocalLauncher.__init__ = begin_forking  # type: ignore[method-assign]
    LocalLauncher.warm = lambda self: None  # type: ignore[method-assign]
    for value in vars(catalog).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


if __name__ == "__main__":
    _serve()
