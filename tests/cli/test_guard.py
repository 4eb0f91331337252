"""`bench guard` as a user runs it: a baseline, an unchanged model, a planted growth, and every form of the answer."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins import bench

ROOT = Path(__file__).parents[2]
MODEL = """
import torch
from torch import nn
from activation import activate

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32, classes)

    def forward(self, x):
        return self.head(activate(self.body(x)).mean((2, 3)))

def net(classes):
    return Net(classes)

def reads(classes):
    class Reads(Net):
        def forward(self, x):
            return super().forward(x) * (2 if x.sum() > 0 else 1)
    return Reads(classes)
"""
BEFORE = "from torch.nn import functional\n\ndef activate(x):\n    return functional.relu(x)\n"
AFTER = "import torch\n\ndef activate(x):\n    return x * torch.sigmoid(x)\n"
CASE = "model.py:net on cifar10, sgd, batch 64, 32 px on h100_sxm"
CONFIG = """
name = "guard"
[grid]
dataset = "cifar10"
model = "model.py:net"
optimizer = "sgd"
batch_size = 64
"""


class Project:
    """A folder with a model, and the command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "BENCH_TRACE_CACHE": str(folder / "kept"),
            "BENCH_LOCK_DIR": str(folder / "locks"),
            "BENCH_LOGS": str(folder / "logs"),
            "NO_COLOR": "1",
            "PYTHONPATH": os.pathsep.join([str(folder / "first"), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        (folder / "first").mkdir()
        self.write("model.py", MODEL)
        self.write("activation.py", BEFORE)
        self.write("guard.toml", CONFIG)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def guard(self, *words: str, config: str = "guard.toml") -> subprocess.CompletedProcess[str]:
        named = [config] if config else []
        arguments = ["guard", *named, "--models", "model.py", "--baseline", "memory.json", *words]
        return bench(*arguments, env=self.environment, cwd=self.folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose baseline is written."""
    made = Project(tmp_path_factory.mktemp("project"))
    done = made.guard("--update")
    assert done.returncode == 0, done.stderr
    assert "memory.json: 1 case, written" in done.stdout
    return made


@pytest.fixture(scope="module")
def grown(project: Project) -> Iterator[Project]:
    """The same with a growth in a file that the model imports."""
    project.write("activation.py", AFTER)
    yield project
    project.write("activation.py", BEFORE)


def test_nothing_changed_says_so_without_torch(project: Project) -> None:
    done = project.guard()
    assert done.returncode == 0, done.stderr
    assert "1 unchanged" in done.stdout and CASE in done.stdout
    project.write("first/torch.py", "raise RuntimeError('torch was imported')\n")
    try:
        words = ["guard", "guard.toml", "--models", "model.py", "--baseline", "memory.json"]
        kept = bench(*words, env=project.environment, cwd=project.folder, fresh=True)
    finally:
        (project.folder / "first" / "torch.py").unlink()
    assert kept.returncode == 0, kept.stderr
    assert "1 unchanged" in kept.stdout


def test_a_case_of_the_baseline_that_is_skipped_now_does_not_pass(project: Project) -> None:
    baseline, skipped = project.folder / "memory.json", CASE.replace("model.py:net", "inception_v3")
    kept = baseline.read_text()
    tree = json.loads(kept)
    tree["cases"][skipped] = tree["cases"][CASE]
    baseline.write_text(json.dumps(tree))
    models = ["--set", 'grid.model=["model.py:net", "inception_v3"]']
    try:
        done = project.guard(*models, "--json")
    finally:
        baseline.write_text(kept)
    found = {case["name"]: case for case in json.loads(done.stdout)["cases"]}
    assert done.returncode == 1, done.stderr
    assert found[CASE]["status"] == "unchanged"
    assert found[skipped]["status"] == "cannot be traced" and "too few pixels" in found[skipped]["reason"]
    assert "1 unchanged" in project.guard(*models).stdout  # what is skipped, and was never guarded, is none of it


def test_growth_in_an_imported_file_is_code_3_and_names_the_operator(grown: Project) -> None:
    done = grown.guard("--json")
    assert done.returncode == 3, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)["cases"]
    assert (found["name"], found["status"]) == (CASE, "grew")
    assert found["difference_bytes"] > 0
    assert "sigmoid" in [parting["operator"] for parting in found["partings"]]
    assert found["cause"] is None


def test_growth_that_is_allowed_is_no_failure(grown: Project) -> None:
    done = grown.guard("--allow", "100 %")
    assert done.returncode == 0
    assert "grew within what is allowed" in done.stdout


def test_annotations_are_workflow_commands_on_one_line(grown: Project) -> None:
    done = grown.guard("--format", "github", "--summary", "summary.md")
    assert done.returncode == 3
    line = done.stdout.splitlines()[0]
    assert line.startswith("::error title=Training memory::") and "%0A" in line and "sigmoid" in line
    summary = (grown.folder / "summary.md").read_text()
    assert "| case | before | after | difference |" in summary and "sigmoid" in summary


def test_markdown_has_the_table_and_the_operators(grown: Project) -> None:
    done = grown.guard("--format", "markdown", "--partings", "9")
    assert "|---|---:|" in done.stdout and "forward Net sigmoid: new" in done.stdout


def test_the_action_runs_in_a_clean_checkout_and_fails_on_growth(grown: Project, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(grown.folder, checkout, ignore=shutil.ignore_patterns("kept", "locks", "logs", "*.md"))
    environment = {
        **grown.environment,
        "GUARD_CONFIG": "guard.toml",
        "GUARD_BASELINE": "memory.json",
        "GUARD_MODELS": "model.py",
        "GUARD_PYTHON": os.sys.executable,  # type: ignore[attr-defined]
        "GUARD_ALLOW": "0 B",
        "GUARD_DEVICE": "h100_sxm",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    script = ROOT / ".github" / "actions" / "guard" / "guard.sh"
    done = subprocess.run(
        ["bash", str(script)], cwd=checkout, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "::error title=Training memory::" in done.stdout
    assert "sigmoid" in (tmp_path / "summary.md").read_text()


def test_other_versions_are_told_from_a_changed_model(grown: Project, tmp_path: Path) -> None:
    baseline = grown.folder / "memory.json"
    kept = baseline.read_text()
    tree = json.loads(kept)
    now = tree["cases"][CASE]["environment"]["torch"]
    tree["cases"][CASE]["environment"]["torch"] = "2.5.9"
    baseline.write_text(json.dumps(tree))
    again = tmp_path / "again.json"  # what the baseline's versions make of the changed model: 100 bytes more
    tree["cases"][CASE]["peak_allocated_bytes"] += 100
    again.write_text(json.dumps(tree))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nwhile [ "$1" != --baseline ]; do shift; done\ncp {again} "$2"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    try:
        none = grown.guard("--explain", "--json")
        told = grown.guard("--explain", "--python", str(python), "--json")
    finally:
        baseline.write_text(kept)
    assert f"torch 2.5.9 -> {now}" in none.stdout and "no environment below this folder" in none.stdout
    found = json.loads(told.stdout)
    assert "and so does the code" in found["cases"][0]["cause"]
    assert "the code makes +100 B and the versions" in found["notes"][0]


def test_a_model_that_cannot_be_traced_fails_with_the_operator_and_the_reason(project: Project) -> None:
    axes = ["--model", "model.py:reads", "--dataset", "cifar10"]
    done = project.guard(*axes, config="")
    assert done.returncode == 1
    assert "reads values" in done.stdout and "model.py:" in done.stdout
    assert "note: " + CASE in done.stdout  # it is in the baseline, and no case of this


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--baseline", "none.json"], 2, "Write it with --update"),
        (["--allow", "much"], 2, "16 MiB, or a percentage"),
        (["--device", "cpu"], 2, "traces steps on GPUs"),
        (["--python", "model.py"], 2, "--python goes with --explain"),
        (["--set", "grid.optimizer=adam"], 1, "no baseline"),
    ],
)
def test_mistakes_have_one_line_and_a_code(project: Project, words: list[str], code: int, said: str) -> None:
    done = project.guard(*words)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_annotations_keep_to_one_line_whatever_a_name_holds() -> None:
    from bench.cli.guard import github_lines
    from bench.guard import Change, Course

    changes = [
        Change("50 %\n::set-env", Course.REFUSED, None, None, "it\r\nreads"),
        Change("a", Course.NEW, None, None),
    ]
    lines = list(github_lines(changes, 3, ["100 %"]))
    assert lines[0] == "::error title=Training memory::50 %25%0A::set-env: cannot be traced: it?%0Areads"
    assert lines[1] == "::error title=Training memory::a: no baseline"
    assert lines[2] == "::warning title=Training memory::100 %25"
    assert [line for line in lines if "\n" in line] == []
