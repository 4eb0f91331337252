"""One attempt at a fake sweep in a child that may be killed, and what must hold of the folder afterwards.

The process that uses this imports everything once and forks a child for every attempt; the child tells through a pipe
what it begins and what it has acknowledged.
"""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import fingerprint
from bench.config import SweepConfig
from bench.errors import BenchError
from bench.plan import build_plan
from bench.records import Environment
from bench.store.parts import parts, read
from tests.chaos.fake_sweep import BRIEF, CPU, FakeLauncher, bytes_of, run_fake_sweep

OUT = Path("out")  # the same name for all, so that reports agree to the byte
_REFUSED = 10


@dataclass(frozen=True)
class Attempt:
    """What became of an attempt.

    Attributes:
        begun: Parts whose runs were started.
        finished: Parts whose runs were acknowledged.
        killed: Whether SIGKILL ended it.
        error: The message of the BenchError that ended it; empty where there was none.
    """

    begun: list[str]
    finished: list[str]
    killed: bool
    error: str


def prepare(config: SweepConfig) -> None:
    """Read the harness's own source once: its keys are then those of all attempts, whoever edits files meanwhile."""
    build_plan(config, "cpu")
    fingerprint.code_key(fingerprint.ESTIMATE_CODE)


def attempt(
    folder: Path,
    config: SweepConfig,
    kill_after_s: float | None = None,
    *,
    conclude: bool = True,
    before: Callable[[], None] = lambda: None,
    environment: Environment = CPU,
) -> Attempt:
    """Run or resume the sweep of `folder` in a child.

    Args:
        folder: The sweep writes to `out` below it.
        config: What to sweep.
        kill_after_s: When to kill the child; None to let it end.
        conclude: Whether the attempt loads its results at the end.
        before: Called in the child before the sweep.
        environment: What the machine says it is.

    Raises:
        AssertionError: It ended otherwise than well, killed, or by a BenchError.
    """
    import bench.report  # noqa: F401 - and pandas with it, so that no child imports them anew

    folder.mkdir(parents=True, exist_ok=True)
    listen, speak = os.pipe()
    child = os.fork()
    if not child:
        os.close(listen)

        def sweep() -> None:
            os.chdir(folder)
            before()
            launcher = FakeLauncher(environment, tell)
            run_fake_sweep(OUT, config, launcher, tell=tell, conclude=conclude)

        def tell(line: str) -> None:
            os.write(speak, f"{line}\n".encode())

        _live(sweep, tell)
    os.close(speak)
    said = _hear(listen, child, kill_after_s)
    os.close(listen)
    _, code = os.waitpid(child, 0)
    exit_code = os.waitstatus_to_exitcode(code)
    if exit_code not in (0, _REFUSED, -signal.SIGKILL):
        raise AssertionError(f"{folder}: an attempt ended with {exit_code}; its traceback stands above")
    words = said.split("\n")
    begun = [line.removeprefix("begin ") for line in words if line.startswith("begin ")]
    finished = [words[at - 1].removeprefix("begin ") for at, line in enumerate(words) if line == "done"]
    error = said.partition("refused ")[2].strip() if exit_code == _REFUSED else ""
    return Attempt(begun, finished, exit_code == -signal.SIGKILL, error)


def _hear(listen: int, child: int, kill_after_s: float | None) -> str:
    """All that the child says, which is killed meanwhile where that is asked for."""
    deadline = None if kill_after_s is None else time.monotonic() + kill_after_s
    said = b""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([listen], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            deadline = None
        elif piece := os.read(listen, 1 << 16):
            said += piece
        else:
            return said.decode()


def _live(sweep: Callable[[], None], tell: Callable[[str], None]) -> None:
    """The child's whole life."""
    code = 1
    try:
        sweep()
        code = 0
    except BenchError as error:
        tell(f"refused {error}")
        code = _REFUSED
    except BaseException:  # noqa: BLE001 - a child ends here, whatever happened
        traceback.print_exc()
    os._exit(code)


def check_folder(folder: Path, acknowledged: set[str], seen: dict[Path, bytes] | None = None) -> None:
    """No acknowledged run lost, none twice, every part readable, and none changed since it was `seen` last.

    Raises:
        AssertionError: One of them is not so.
    """
    runs = parts(folder / OUT / "data" / "runs")
    if lost := acknowledged - {path.stem for path in runs}:
        raise AssertionError(f"{folder}: acknowledged and lost: {sorted(lost)}")
    if len({path.stem.rpartition("-")[2] for path in runs}) != len(runs):  # the run's key, which the hash vouches for
        raise AssertionError(f"{folder}: a run is there twice")
    seen = {} if seen is None else seen
    for path in [*runs, *parts(folder / OUT / "data", "plan-*.parquet")]:
        data = path.read_bytes()
        if path not in seen:
            read(path, "plan" if path.name.startswith("plan-") else "run")
        if seen.setdefault(path, data) != data:
            raise AssertionError(f"{path}: changed after it was written")
    if aside := sorted((folder / OUT).rglob("*.damaged")):
        raise AssertionError(f"{folder}: set aside, and nothing had damaged it: {aside}")


def same_parts(folder: Path, expected: Path) -> None:
    """Both hold the same parts to the byte. Raises AssertionError."""
    found, wanted = bytes_of(folder / OUT), bytes_of(expected / OUT)
    if found != wanted:
        differ = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise AssertionError(f"{folder}: its parts differ from those of the undisturbed sweep: {differ}")


def same_report(folder: Path, expected: Path) -> None:
    """Both make the same report to the byte. Raises AssertionError."""
    if os.environ.get(BRIEF):
        return
    found, wanted = _rendered(folder), _rendered(expected)
    if found != wanted:
        differ = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise AssertionError(f"{folder}: its report differs from that of the undisturbed sweep: {differ}")


def _rendered(folder: Path) -> dict[str, bytes]:
    from bench.report import render_report

    before = Path.cwd()
    os.chdir(folder)
    try:
        render_report([OUT / "data"], OUT)
    finally:
        os.chdir(before)
    files = [path for path in sorted((folder / OUT).rglob("*")) if path.is_file() and "data" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name[0] != "."}
