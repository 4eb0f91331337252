"""Where things lie that are no results: data sets and caches of this account."""

from __future__ import annotations

import getpass
import os
import tempfile
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

    None where `BENCH_TRACE_CACHE` is `off`.
    """
    if os.environ.get("BENCH_TRACE_CACHE") == OFF:
        return None
    return _given("BENCH_TRACE_CACHE") or account_folder("traces")


def _given(variable: str) -> Path | None:
    """The folder that a variable of the environment names; raises BenchError where it names no account's home."""
    given = os.environ.get(variable)
    try:
        return Path(given).expanduser() if given else None
    except RuntimeError as error:
        raise BenchError(f"the environment's {variable}={given}: {error}. Give the whole path") from error


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id: KeyError up to Python 3.12, OSError since
        return str(os.getuid())
