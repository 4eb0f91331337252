"""Finds an environment with the versions of a baseline, and traces there what this command traces."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench.errors import BenchError
from bench.guard.baselines import Guarded, read_baselines
from bench.guard.changes import differing

_PLACES = (".venv*", "venv*", ".nox/*", ".tox/*")
_TIMEOUT_S = 1200.0


def find_python(environment: Mapping[str, str]) -> Path | None:
    """The Python of an environment below the current folder with these versions of Python, torch and torchvision.

    It is read off the names of folders; nothing there is run.
    """
    for place in _PLACES:
        for folder in sorted(Path().glob(place)):
            packages = folder / "lib" / f"python{environment.get('python', '')}" / "site-packages"
            wanted = [(name, environment.get(name, "")) for name in ("torch", "torchvision")]
            if all(_has(packages, name, version) for name, version in wanted):
                return (folder / "bin" / "python").absolute()
    return None


def _has(packages: Path, name: str, version: str) -> bool:
    found = [path.name.removesuffix(".dist-info") for path in packages.glob(f"{name}-*.dist-info")]
    return any(each.partition("+")[0] == f"{name}-{version}" for each in found)


def retrace(python: Path, name: str, environment: Mapping[str, str]) -> Guarded | str:
    """A case as this very command traces it under another Python; or why not.

    Args:
        python: Of an environment that has bench and all that the model needs.
        name: Of the case.
        environment: That of the baseline; another one is an answer to another question.
    """
    try:
        traced = _traced_by(python)
    except BenchError as error:
        return str(error)
    found = traced.get(name)
    if found is None:
        return f"{python} does not trace this case"
    if differs := differing(environment, found.environment):
        return f"{python} has other versions than the baseline ({', '.join(differs)})"
    return found


@functools.cache
def _traced_by(python: Path) -> dict[str, Guarded]:
    """What the command that runs here says under another Python. Raises BenchError."""
    own = iter(sys.argv[1:])
    words: list[str] = []
    for word in own:
        if word in ("--baseline", "--python", "--format", "--summary", "--allow"):
            next(own, None)
        elif word.partition("=")[0] not in (
            "--baseline",
            "--python",
            "--format",
            "--summary",
            "--allow",
            "--explain",
            "--json",
        ):
            words.append(word)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "baseline.json")
        command = [str(python), "-m", "bench", *words, "--baseline", str(path), "--update"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=dict(os.environ)
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"{python} cannot be run: {error}") from error
        if not path.exists():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise BenchError(f"{python} ended with {done.returncode}" + (f": {said[-1]:.300}" if said else ""))
        return read_baselines(path)
