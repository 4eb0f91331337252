"""A folder named like a package, where a command is started: what is installed is imported, and not what lies about."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import bench
from bench import interpreters

ROOT = Path(__file__).parents[2]
CONFIG = """
name = "folder"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = 8
input = ["synthetic", "loader"]
[measure]
repeats = 1
warmup_steps = 1
measured_steps = 2
min_window = "1 ms"
loader_workers = 1
[data]
fetch = false
"""
FAULT = "raise RuntimeError('a folder of the user, not the package')\n"
SHADOWS = (
    "bench",
    "torch",
    "torchvision",
    "random",
    "numpy",
    "json",
    "signal",
    "psutil",
    "click",
    "pandas",
    "multiprocessing",
)
ONLY_IN_CHILDREN = tuple(name for name in SHADOWS if name not in ("bench", "json", "signal", "multiprocessing"))
"""What Python itself imports before it runs a module's code, and the module, are out of our reach."""


def lay_out(folder: Path, names: Sequence[str], how: str = "package") -> Path:
    folder.mkdir()
    for name in names:
        if how == "module":
            (folder / f"{name}.py").write_text(FAULT, encoding="utf-8")
        else:
            (folder / name).mkdir()
            if how == "package":
                (folder / name / "__init__.py").write_text(FAULT, encoding="utf-8")
    (folder / "c.toml").write_text(CONFIG, encoding="utf-8")
    return folder


def environment(**more: str) -> dict[str, str]:
    """The tests' own, with this checkout found as an editable installation's is."""
    unwanted = ("PYTHONPATH", "PYTHONSAFEPATH")
    return (
        {name: value for name, value in os.environ.items() if name not in unwanted} | {"PYTHONPATH": str(ROOT)} | more
    )


def run(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)


SCRIPT = "import sys\nfrom bench.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("started", "how"),
    [("script", "package"), ("module", "module"), ("module", "namespace"), ("empty part of PYTHONPATH", "package")],
)
def test_a_sweep_imports_what_is_installed(tmp_path: Path, started: str, how: str) -> None:
    names = SHADOWS if started == "script" else ONLY_IN_CHILDREN
    folder = lay_out(tmp_path / "here", names, how)
    command, env = [sys.executable, "-m", "bench"], environment()
    if started == "script":
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "bench").write_text(SCRIPT, encoding="utf-8")
        command = [sys.executable, str(tmp_path / "bin" / "bench")]
    if started == "empty part of PYTHONPATH":
        env = environment(PYTHONPATH=f"{ROOT}{os.pathsep}")
        command = [sys.executable, "-P", "-m", "bench"]
    done = run([*command, "sweep", "c.toml", "--device", "cpu", "--no-report", "--out", "out"], folder, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(bench.load(folder / "out")["status"]) == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize("started", [["-m", "bench"], ["-P", "-m", "bench"]])
def test_facts_of_torch_come_from_the_torch_that_is_installed(tmp_path: Path, started: list[str]) -> None:
    folder = lay_out(tmp_path / "here", ONLY_IN_CHILDREN)
    done = run([sys.executable, *started, "env", "--json"], folder, environment())
    assert "not the package" not in done.stdout + done.stderr
    assert '"torch_version"' in done.stdout or '"version"' in done.stdout, done.stdout + done.stderr


PATHS = """
import json, sys
from bench.interpreters import leave_current_folder
leave_current_folder()
import os
print(json.dumps([sys.path, os.environ.get("PYTHONPATH"), os.environ["PYTHONSAFEPATH"]]))
"""


def paths(folder: Path, *arguments: str, **more: str) -> tuple[list[str], str | None]:
    import json

    done = run([sys.executable, *arguments], folder, environment(**more))
    assert done.returncode == 0, done.stderr
    entries, given, safe = json.loads(done.stdout)
    assert safe == "1"
    return entries, given


def test_a_checkout_that_is_not_installed_goes_on_from_the_current_folder(tmp_path: Path) -> None:
    """As with `nox --no-venv`; it comes last, so that folders beside the package pass for no library."""
    (tmp_path / "bench").symlink_to(ROOT / "bench", target_is_directory=True)
    (tmp_path / "shown.py").write_text(PATHS, encoding="utf-8")
    lonely = [sys.executable, "-S", "-m", "shown"]  # without site: nothing is installed
    done = run(lonely, tmp_path, {**environment(), "PYTHONPATH": ""})
    entries, given, _ = __import__("json").loads(done.stdout)
    assert entries[-1] == str(tmp_path)
    assert entries.count(str(tmp_path)) == 1
    assert given == str(tmp_path)


def test_what_the_user_put_on_the_path_stays(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(PATHS, encoding="utf-8")
    extra = tmp_path / "extra"
    extra.mkdir()
    given = os.pathsep.join([str(ROOT), str(extra), str(tmp_path)])
    entries, after = paths(tmp_path, "-m", "shown", PYTHONPATH=given)
    assert {str(ROOT), str(extra), str(tmp_path)} <= set(entries)
    assert after == given
    entries, after = paths(tmp_path, "-m", "shown", PYTHONPATH=os.pathsep.join([str(ROOT), "", str(extra)]))
    assert str(tmp_path) not in entries
    assert after == os.pathsep.join([str(ROOT), str(extra)])


def test_a_script_keeps_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(PATHS, encoding="utf-8")
    entries, _ = paths(tmp_path, "shown.py")
    assert str(tmp_path) in entries


def test_an_archive_keeps_its_place(tmp_path: Path) -> None:
    archive = tmp_path / "bench.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (ROOT / "bench").rglob("*.py"):
            file.write(path, path.relative_to(ROOT))
        file.writestr("__main__.py", PATHS)
    (tmp_path / "random").mkdir()
    entries, given = paths(tmp_path, str(archive), PYTHONPATH="")
    assert entries[0] == str(archive)
    assert given is None


def test_a_command_of_ours_runs_with_the_path_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_out(tmp_path / "here", SHADOWS)
    monkeypatch.chdir(folder)
    done = interpreters.run_python("bench.interpreters", "leave_current_folder", environment=os.environ, timeout_s=60)
    assert (done.returncode, done.stderr) == (0, "")
