"""The same store gives the same report, to the byte: in another process, time zone, locale and version of Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records import Status
from tests.machines import make_machines
from tests.results import GIB, GPU, make_cases, make_results

ROOT = Path(__file__).parents[2]
RENDER = """
import sys
from pathlib import Path
from bench.report import render_report
render_report([Path(path) for path in sys.argv[2:]], Path(sys.argv[1]))
"""
LIBRARIES = ("numpy", "pandas", "pyarrow", "scipy", "matplotlib", "seaborn", "pillow", "jinja2")
"""What draws and writes; another version of one of them may well give other bytes."""
VERSIONS = f"""
import json, sys
from importlib.metadata import PackageNotFoundError, version
def found(name):
    try: return version(name)
    except PackageNotFoundError: return None
print(json.dumps([list(sys.version_info[:2]), {{name: found(name) for name in {LIBRARIES!r}}}]))
"""
HERE = {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"}
THERE = {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folders of one machine with every status, and of three machines."""
    root = tmp_path_factory.mktemp("results")
    cases = [*make_cases(["imagenet"], ["resnet50", "vit_b_16"], ["adam", "sgd"], [16, 64, 256]), *make_cases()]
    outcomes = {1: Status.FAILED, 2: Status.NAN_LOSS, 4: Status.SKIPPED, 7: Status.TIMEOUT}
    make_results(root / "one" / "data", cases, environment=GPU, trace=True, memory_bytes=30 * GIB, outcomes=outcomes)
    return {"one": [root / "one"], "several": make_machines(root / "several", repeats=2)}


def rendered(
    folders: list[Path], target: Path, environment: dict[str, str], python: str = sys.executable
) -> dict[str, bytes]:
    """Every file of a report that a process of its own renders."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    subprocess.run(
        [python, "-c", RENDER, str(target), *map(str, folders)], check=True, cwd=ROOT, env={**given, **environment}
    )
    return {str(path.relative_to(target)): path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()}


def versions(python: str) -> tuple[list[int], dict[str, str | None]]:
    """The interpreter's version and its libraries'."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True, env=given, timeout=60)
    number, libraries = json.loads(done.stdout)
    return number, libraries


def other_python() -> str:
    """Another version of Python with the same libraries: the one named by `BENCH_OTHER_PYTHON`, or one that is found."""
    named = os.environ.get("BENCH_OTHER_PYTHON")
    own = versions(sys.executable)
    if named:
        number, libraries = versions(named)
        assert number != own[0], f"BENCH_OTHER_PYTHON is Python {number} too"
        assert libraries == own[1], "BENCH_OTHER_PYTHON has other versions of the libraries"
        return named
    for minor in range(11, 20):
        path = shutil.which(f"python3.{minor}")
        if path is None:
            continue
        try:
            number, libraries = versions(path)
        except (subprocess.SubprocessError, ValueError):
            continue
        if number != own[0] and libraries == own[1]:
            return path
    pytest.skip("no second Python with the same libraries; BENCH_OTHER_PYTHON names one")


@pytest.mark.parametrize("which", ["one", "several"])
def test_hash_seed_time_zone_and_locale_leave_no_trace(results, tmp_path, which):
    one = rendered(results[which], tmp_path / "here" / "report", HERE)
    other = rendered(results[which], tmp_path / "there" / "report", THERE)
    figures = {name for name in one if name.startswith("figures/")}
    assert {name.removesuffix(".png") for name in figures if name.endswith(".png")} == {
        name.removesuffix(".csv") for name in figures if name.endswith(".csv")
    }
    assert len(figures) >= 12
    assert {"index.html", "report.md", "table.csv"} <= set(one)
    assert list(one) == list(other)
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize("which", ["one", "several"])
def test_another_version_of_python_leaves_no_trace(results, tmp_path, which):
    python = other_python()
    one = rendered(results[which], tmp_path / "here" / "report", HERE)
    other = rendered(results[which], tmp_path / "there" / "report", THERE, python)
    assert list(one) == list(other)
    assert [name for name in one if one[name] != other[name]] == []
