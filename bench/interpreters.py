"""Where the Python processes of this package import from: installed packages, not the current folder.

Python puts the current folder ahead of its own library if a program is started with `-m` or `-c`, and reads an empty
part of `PYTHONPATH` as the current folder: a folder `torch`, `random` or `json` there is then imported as the package
of that name. All children of this package are such programs (multiprocessing starts its servers with `-c`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The folder, or the archive, that this package is imported from."""

_SAFE_PATH = "PYTHONSAFEPATH"  # Python 3.11 and newer: the current folder is not put on the path


def leave_current_folder() -> None:
    """Remove the current folder from the path of this process, unless requested, and of all its children.

    Entries of `PYTHONPATH` stay, and so do a script's own folder and what an editable installation adds behind
    Python's library. A package that is run from a checkout without being installed goes on to be imported from there;
    the checkout then comes last in this process, unless another version of the package would be found before it.
    """
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [part for part in given if part]
    here = os.path.realpath(os.curdir)
    script = None if sys.modules["__main__"].__spec__ else Path(sys.argv[0]).parent  # with `-m` there is none
    kept = [os.path.realpath(folder) for folder in (*named, script) if folder is not None]
    if here not in kept:
        library = next((place for place, entry in enumerate(sys.path) if entry in _own_library()), 0)
        sys.path[:library] = [entry for entry in sys.path[:library] if os.path.realpath(entry or os.curdir) != here]
    found = _found_package()
    if found is None or not found.samefile(ROOT):
        sys.path[:] = [str(ROOT), *sys.path] if found else [*sys.path, str(ROOT)]
        named = [str(ROOT), *named]
    os.environ[_SAFE_PATH] = "1"
    os.environ.pop("PYTHONPATH", None)
    if named:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)


@contextmanager
def safe_children() -> Iterator[None]:
    """Keep the current folder off the path of the Python processes that are started within the context."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SAFE_PATH, None)
        else:
            os.environ[_SAFE_PATH] = before


def run_python(
    module: str, function: str | None = None, *, environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Import `module` in a fresh Python with this process's path, and call its `function()`; with what it printed.

    Raises:
        subprocess.TimeoutExpired: It took longer; it is gone by then.
    """
    path = [*(entry for entry in sys.path if entry), str(ROOT)]
    code = f"import sys; sys.path[:] = {json.dumps(path)}; import {module} as m"
    call = f"; m.{function}()" if function else ""
    return subprocess.run(
        [sys.executable, "-P", "-c", code + call],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
        env=environment,
    )


def _own_library() -> set[str]:
    """The entries with which Python's own library begins on the path."""
    folder = Path(sysconfig.get_path("stdlib"))
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    return {str(folder), str(folder.parent / archive), str(folder / "lib-dynload")}


def _found_package() -> Path | None:
    """The folder from which `import` would take this package if it were not loaded yet; None if it finds none."""
    for finder in sys.meta_path:
        spec = finder.find_spec(__package__ or "bench", None)
        if spec is not None and spec.origin:
            return Path(spec.origin).parents[1]
    return None
