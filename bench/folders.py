"""The folders of data sets, caches and logs of this account."""

from __future__ import annotations

import contextlib
import getpass
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError

OFF = "off"


def account_folder(name: str) -> Path:
    """A folder for `name` under `~/.cache/bench`; it need not exist.

    An account without a home folder gets one of its own under the system's folder for temporary files.
    """
    try:
        return Path.home() / ".cache" / "bench" / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"bench-{name}-{_account()}"


def data_folder(given: str | None = None) -> Path:
    """The folder of the data sets: the one given, the environment's `BENCH_DATA`, else `~/.cache/bench/data`."""
    return Path(given).expanduser() if given else _given("BENCH_DATA") or account_folder("data")


def trace_cache_folder() -> Path | None:
    """The folder of recorded steps: the environment's `BENCH_TRACE_CACHE`, else `~/.cache/bench/traces`.

    None if `BENCH_TRACE_CACHE` is `off`.
    """
    if os.environ.get("BENCH_TRACE_CACHE") == OFF:
        return None
    return _given("BENCH_TRACE_CACHE") or account_folder("traces")


def calibrations_folder() -> Path | None:
    """The folder of this account's calibrations: the environment's `BENCH_CALIBRATIONS`, else below `~/.cache/bench`.

    None if `BENCH_CALIBRATIONS` is `off`.
    """
    if os.environ.get("BENCH_CALIBRATIONS") == OFF:
        return None
    return _given("BENCH_CALIBRATIONS") or account_folder("calibrations")


def remote_folder() -> Path:
    """The folder of copies of results at addresses: the environment's `BENCH_REMOTE`, else `~/.cache/bench/remote`."""
    return _given("BENCH_REMOTE") or account_folder("remote")


def figures_folder() -> Path | None:
    """The folder of drawn figures of reports: the environment's `BENCH_FIGURES`, else `~/.cache/bench/figures`.

    None if `BENCH_FIGURES` is `off`.
    """
    if os.environ.get("BENCH_FIGURES") == OFF:
        return None
    return _given("BENCH_FIGURES") or account_folder("figures")


MOST_LOGS = 50
"""Logs that the account keeps; the oldest go first."""


@contextlib.contextmanager
def account_log(command: str) -> Iterator[Path]:
    """A new log for what a command's children print, outside of a results folder; deleted if nothing was printed.

    It is in the environment's `BENCH_LOGS`, else in `~/.cache/bench/logs`, or where that cannot be written, in the
    system's folder for temporary files.
    """
    folder = _given("BENCH_LOGS") or account_folder("logs")
    name = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / name
        path.touch(mode=0o600)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="bench-")) / name
        path.touch(mode=0o600)
    for old in sorted(path.parent.glob("*.log"), key=lambda log: log.name.split("-", 1)[-1])[:-MOST_LOGS]:
        old.unlink(missing_ok=True)
    try:
        yield path
    finally:
        drop_empty(path)


def drop_empty(log: Path) -> None:
    """Delete an empty log."""
    with contextlib.suppress(OSError):
        if not log.stat().st_size:
            log.unlink()


def _given(variable: str) -> Path | None:
    """The folder that a variable of the environment names; raises BenchError if `~` cannot be resolved."""
    given = os.environ.get(variable)
    try:
        return Path(given).expanduser() if given else None
    except RuntimeError as error:
        raise BenchError(f"environment variable {variable}={given}: {error}. Give the full path") from error


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id: KeyError up to Python 3.12, OSError since
        return str(os.getuid())
