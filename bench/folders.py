"""Where things lie that are no results: data sets and caches of this account."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

OFF = "off"


def account_folder(name: str) -> Path:
    """A folder for `name` under `~/.cache/bench`; it need not exist.

    An account without a home folder gets one of its own under the system's folder for temporary files.
    """
    try:
        return Path.home() / ".cache" / "bench" / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"bench-{name}-{_account()}"


def data_folder() -> Path:
    """The folder that holds the data sets: the environment's `BENCH_DATA`, else `~/.cache/bench/data`."""
    given = os.environ.get("BENCH_DATA")
    return Path(given).expanduser() if given else account_folder("data")


def trace_cache_folder() -> Path | None:
    """The folder of recorded steps: the environment's `BENCH_TRACE_CACHE`, else `~/.cache/bench/traces`.

    None where `BENCH_TRACE_CACHE` is `off`.
    """
    given = os.environ.get("BENCH_TRACE_CACHE")
    if given == OFF:
        return None
    return Path(given).expanduser() if given else account_folder("traces")


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id: KeyError up to Python 3.12, OSError since
        return str(os.getuid())
