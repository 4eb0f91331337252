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
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_AT_START = (
    "LD_",
    "OMP_",
    "MKL_",
    "KMP_",
    "TORCH_BLAS_",
    "TORCH_CUBLAS",
    "TORCH_LOGS",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
)
"""Variables that are read once, when a library is loaded: each set of values has a process of its own."""

_MOST_SERVERS = 3  # each takes some 500 MiB

_servers: dict[tuple[tuple[str, str], ...], _Server] = {}


def run(
    arguments: Sequence[str],
    env: Mapping[str, str],
    cwd: Path | None = None,
    timeout_s: float = 240,
    *,
    script: Path | None = None,
    loaded_with: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """What `bench` with these arguments does, or a script.

    Args:
        arguments: Of the command line.
        env: The environment.
        cwd: The current folder; this process's unless given.
        timeout_s: How long it may take.
        script: A Python file to run rather than `bench`.
        loaded_with: The environment in which torch is loaded, where that may be another.

    Raises:
        subprocess.TimeoutExpired: It took longer; it is gone by then.
    """
    begun = env if loaded_with is None else loaded_with
    at_start = tuple(sorted((name, value) for name, value in begun.items() if name.startswith(_AT_START)))
    if at_start not in _servers:
        for other in list(_servers)[: 1 - _MOST_SERVERS]:
            _servers.pop(other).end()
        _servers[at_start] = _Server(dict(at_start))
    order = {
        "script": str(script) if script else None,
        "arguments": list(arguments),
        "env": dict(env),
        "cwd": str(cwd or Path.cwd()),
        "timeout_s": timeout_s,
    }
    return _servers[at_start].run(order)


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
        atexit.register(self.end)

    def end(self) -> None:
        """End it, as the end of its input does."""
        atexit.unregister(self.end)
        self._process.communicate()

    def run(self, order: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory(prefix="bench-warm-") as folder:
            outputs = [f"{folder}/stdout", f"{folder}/stderr"]
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps({**order, "outputs": outputs}) + "\n")
            self._process.stdin.flush()
            code = json.loads(self._process.stdout.readline())
            stdout, stderr = (Path(path).read_text(encoding="utf-8") for path in outputs)
        if code is None:
            raise subprocess.TimeoutExpired(order["arguments"], order["timeout_s"], stdout, stderr)
        return subprocess.CompletedProcess(order["arguments"], code, stdout, stderr)


def _serve() -> None:
    import bench.cli
    import bench.preload
    import bench.report.render
    import bench.report.theme
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
    import bench.cli

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
        first = str(Path(order["script"]).parent) if order["script"] else order["cwd"]
        sys.path[:] = [first, *given, *sys.path]
        sys.argv = [order["script"] or "bench", *order["arguments"]]
        if order["script"]:
            runpy.run_path(order["script"], run_name="__main__")
        else:
            _fork_runs()
            bench.cli.main()
        code = 0
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

    def begin_forking(self: LocalLauncher, preload: Sequence[str] = ()) -> None:
        begin(self, preload)
        self._context = multiprocessing.get_context("fork")

    LocalLauncher.__init__ = begin_forking  # type: ignore[method-assign]
    LocalLauncher.warm = lambda self: None  # type: ignore[method-assign]
    for value in vars(catalog).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


if __name__ == "__main__":
    _serve()
