# /// script
# requires-python = ">=3.11"
# dependencies = ["nox"]
# ///
"""Everything a user or a developer runs: `nox -s sweep`, `nox -s tests`, and the rest (`nox --list`).

Each session makes its own environment, once. With `nox --no-venv` it uses the environment that is active, with the
torch that is in there, and installs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

# Import names of what each session needs beside the package's own dependencies.
RUNTIME = [
    "click",
    "filelock",
    "jinja2",
    "matplotlib",
    "numpy",
    "pandas",
    "psutil",
    "pyarrow",
    "pydantic",
    "pynvml",
    "rich",
    "scipy",
    "seaborn",
    "torch",
    "torchvision",
]
# Variables that decide which build of torch uv takes.
FLAVOUR = ["UV_TORCH_BACKEND", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX"]
TEST = ["aiohttp", "duckdb", "fsspec", "hypothesis", "pytest", "pytest_benchmark", "pytest_timeout", "rocrate"]
TEST += ["submitit", "timm", "xdist"]


def prepare(session: nox.Session, *groups: str, needs: list[str] = RUNTIME) -> None:
    """Install the package and dependency groups into the session's own environment, or check the active one."""
    if not session.virtualenv.is_sandboxed:
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        if missing:
            session.error(
                f"--no-venv uses the environment of {sys.executable}, which lacks {', '.join(missing)}. Install them "
                "there without touching torch: pip install --no-deps PACKAGE (nvidia-ml-py provides pynvml)"
            )
        return
    project = nox.project.load_toml("pyproject.toml")
    wanted = ["-e", ".", *(name for group in groups for name in nox.project.dependency_groups(project, group))]
    install(session, wanted)


def install(session: nox.Session, wanted: list[str]) -> None:
    """Install once; again only when what is wanted changes, so that a second run needs neither time nor network.

    What is wanted includes the flavour of torch that the user's variables ask for: a change of it replaces torch.
    """
    files = [Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    what = hashlib.sha256(b"".join([*files, " ".join(wanted).encode()])).hexdigest()
    flavour = " ".join(f"{name}={os.environ[name]}" for name in FLAVOUR if os.environ.get(name))
    marker = Path(session.virtualenv.location) / "installed.txt"
    before = marker.read_text().splitlines() if marker.exists() else []
    if before == [what, flavour]:
        return
    again = ["--reinstall-package", "torch", "--reinstall-package", "torchvision"]
    replace_torch = before[1:] not in ([], [flavour]) and session.venv_backend == "uv"
    session.install(*(again if replace_torch else []), "-c", "constraints.txt", *wanted)
    marker.write_text(f"{what}\n{flavour}\n")


def python(session: nox.Session, *arguments: str) -> None:
    """Run the session's own Python; without one, the Python that runs nox, whatever comes first on the PATH."""
    own = session.virtualenv.is_sandboxed
    session.run("python" if own else sys.executable, *arguments, external=not own)


def bench(session: nox.Session, *arguments: str) -> None:
    """Run the command: as installed in the session's own environment, whatever folders lie beside the package here."""
    safe = ["-P"] if session.virtualenv.is_sandboxed else []  # without an environment, the package is run from here
    python(session, *safe, "-m", "bench", *arguments)


@nox.session
def sweep(session: nox.Session) -> None:
    """Run a sweep and render its report; arguments go to `bench sweep` (nox -s sweep -- configs/gpu.toml)."""
    prepare(session)
    bench(session, "sweep", *session.posargs)


@nox.session
def calibrate(session: nox.Session) -> None:
    """Fit the estimates to this machine; arguments go to `bench calibrate` (nox -s calibrate -- --minutes 3)."""
    prepare(session)
    bench(session, "calibrate", *session.posargs)


@nox.session
def noise(session: nox.Session) -> None:
    """Measure this machine's noise; arguments go to `bench noise` (nox -s noise -- --minutes 3)."""
    prepare(session)
    bench(session, "noise", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Render a report again; arguments go to `bench report` (nox -s report -- reports/default)."""
    prepare(session)
    bench(session, "report", *(session.posargs or ["reports/default"]))


@nox.session
def versions(session: nox.Session) -> None:
    """Sweep one configuration under several versions of torch in turn (nox -s versions -- '2.14.*' '2.15.*').

    Each version has an environment of its own. The processes of a case take turns over the versions, which start each
    turn with another one, so that drift of the machine does not look like a difference. Results go to
    OUT/torch-VERSION, and their history to OUT/history. The same command again runs what is missing.
    """
    parser = argparse.ArgumentParser(prog="nox -s versions --")
    parser.add_argument(
        "versions", nargs="+", metavar="VERSION", help="of torch: 2.15.0, or 2.15.* for its newest release"
    )
    parser.add_argument("--config", default="configs/versions.toml", help="what to sweep [%(default)s]")
    parser.add_argument(
        "--out", type=Path, default=Path("reports/versions"), help="folder of the results [%(default)s]"
    )
    parser.add_argument("--repeats", type=int, default=5, help="processes of each case and version [%(default)s]")
    parser.add_argument("--device", default="auto", help="as of bench sweep [%(default)s]")
    given = parser.parse_args(session.posargs)
    if not session.virtualenv.is_sandboxed:
        session.error("versions makes an environment for each version of torch: run it without --no-venv")
    session.install("uv")
    pythons = {f"torch-{version.removesuffix('.*')}": torch_environment(session, version) for version in given.versions}
    names, sweeps = list(pythons), [str(given.out / name) for name in pythons]
    for turn in range(given.repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            options = [
                "--repeats",
                str(turn + 1),
                "--out",
                str(given.out / name),
                "--device",
                given.device,
                "--no-report",
            ]
            sweep = [pythons[name], "-P", "-m", "bench", "sweep", given.config, *options]
            session.run(*sweep, external=True, success_codes=[0, 1])  # a case may fail under a version
    history = ["history", *sweeps, "--out", str(given.out / "history")]
    session.run(pythons[names[-1]], "-P", "-m", "bench", *history, external=True, success_codes=[0, 3])


def torch_environment(session: nox.Session, version: str) -> str:
    """The Python of an environment with the package and that torch; made once, and again if what is wanted changed."""
    if re.fullmatch(r"\d+(\.\d+)*(\.\*)?", version) is None:
        session.error(f'"{version}" is not a version of torch; write 2.15.0, or 2.15.* for the newest release of 2.15')
    place = Path(session.virtualenv.location).resolve() / f"torch-{version.removesuffix('.*')}"
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = ["-c", "constraints.txt", "-e", ".", f"torch=={version}"]
    files = [Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    marker = hashlib.sha256(b"".join([*files, " ".join(wanted).encode()])).hexdigest()
    if not (place / "installed.txt").exists() or (place / "installed.txt").read_text() != marker:
        session.run("uv", "venv", "--quiet", "--clear", "--python", session.python or sys.executable, str(place))
        # runs do not write bytecode, so that torch would be compiled anew in each sweep
        session.run("uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *wanted)
        (place / "installed.txt").write_text(marker)
    return str(python)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, on every core; arguments go to pytest."""
    prepare(session, "test", needs=RUNTIME + TEST)
    session.env["PYTHONDONTWRITEBYTECODE"] = ""  # hundreds of processes would each compile torch and the package anew
    python(session, "-m", "pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    if session.virtualenv.is_sandboxed:
        install(session, list(nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "lint")))
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    prepare(session, "types", needs=[*RUNTIME, "mypy"])
    python(session, "-m", "mypy", *session.posargs)


@nox.session
def speed(session: nox.Session) -> None:
    """Run the benchmarks of the harness itself (pytest-benchmark); arguments go to pytest."""
    prepare(session, "test", needs=RUNTIME + TEST)
    python(
        session, "-m", "pytest", "-o", "addopts=--strict-markers", "--benchmark-only", "tests/speed", *session.posargs
    )


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill, refuse, damage and crowd, for so many minutes; see docs/reliability.md (nox -s chaos -- --minutes 10)."""
    prepare(session, "test", needs=RUNTIME + TEST)
    python(session, "-m", "tests.chaos", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the readers of foreign files, guided by coverage where atheris is (nox -s fuzz -- --minutes 10)."""
    prepare(session, "test", "fuzz", needs=RUNTIME + TEST)
    python(session, "-m", "tests.fuzz", *session.posargs)


@nox.session
def accuracy(session: nox.Session) -> None:
    """Compare every estimate with its ground truth and write docs/accuracy.md (nox -s accuracy -- --quick)."""
    prepare(session, "test", needs=RUNTIME + TEST)
    python(session, "-m", "tools.accuracy", *session.posargs)
