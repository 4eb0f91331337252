"""The pytest plugin in sessions of its own: a baseline, a growth, a refusal; idle it loads nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.pytest_plugin.memory import TrainingMemory

ROOT = Path(__file__).parents[2]
MODEL = """
import torch
from torch import nn
from activation import activate

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(activate(self.body(x)).mean((2, 3)))

def step(model, optimizer, batch):
    images, labels = batch
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()

def reads(model, optimizer, batch):
    if batch[0].sum() > 0:
        step(model, optimizer, batch)
"""
TESTS = """
import pytest, torch
from model import Net, reads, step

OWN = {"step": step, "inputs": ["float32[B,3,32,32]", "int64[B]"]}

@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_usual(training_memory, optimizer):
    memory = training_memory(Net, (3, 32, 32), optimizer=optimizer, batch_size=32)
    memory.assert_unchanged()
    memory.assert_below("1 GiB")

@pytest.mark.training_memory(device="rtx4090", optimizer=torch.optim.SGD, **OWN)
def test_own(training_memory):
    one, two = training_memory(Net, batch_size=8), training_memory(Net(), batch_size=16)
    one.assert_unchanged()
    two.assert_unchanged(allow="1 %")
    assert one.peak_allocated_bytes < two.peak_allocated_bytes <= two.peak_reserved_bytes
    assert one.timeline().peak_allocated_bytes == one.peak_allocated_bytes

def test_refused(training_memory):
    training_memory(Net, **{**OWN, "step": reads})

def test_large(training_memory):
    training_memory(Net, (3, 32, 32), batch_size=32).assert_below("1 KiB")

@pytest.mark.parametrize(
    ("shape", "keywords"),
    [((3, 32, 32), {"optimzer": "sgd"}), (32, {}), (None, {"step": step, "inputs": "int64[B]"})],
)
def test_mistaken(training_memory, shape, keywords):
    training_memory(Net, shape, **keywords)

@pytest.mark.training_memory("rtx4090")
def test_mistaken_marker(training_memory):
    training_memory(Net, (3, 32, 32))

def test_mistaken_size_and_name(training_memory):
    memory = training_memory(Net, (3, 32, 32), batch_size=8, name="one")
    with pytest.raises(pytest.fail.Exception, match='one: assert_below: invalid memory size "much"'):
        memory.assert_below("much")
    training_memory(Net, (3, 32, 32), batch_size=8, name="one")
"""
BEFORE = "from torch.nn import functional\n\ndef activate(x):\n    return functional.relu(x)\n"
AFTER = "import torch\n\ndef activate(x):\n    return x * torch.sigmoid(x)\n"


def run_pytest(folder: Path, *words: str) -> str:
    """A session with this plugin and xdist; its output."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
    }
    command = [sys.executable, "-m", "pytest", "-p", "bench.pytest_plugin", "-p", "xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir", str(folder), "-c", os.devnull, str(folder), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with tests; what its first session said is in `first.txt`."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in (("model.py", MODEL), ("test_memory.py", TESTS), ("activation.py", BEFORE)):
        (folder / name).write_text(text)
    said = run_pytest(folder, "-n", "2", "--update-memory-baselines", "-k", "usual or own")
    (folder / "first.txt").write_text(said)
    return folder


def test_baselines_are_written_by_workers_of_xdist_and_named_at_the_end(project: Path) -> None:
    said = (project / "first.txt").read_text()
    assert "3 passed" in said, said
    names = sorted(path.name for path in (project / "memory_baselines").iterdir())
    stem = "test_memory.test_usual"
    assert names == ["test_memory.test_own.json", f"{stem}[adamw].json", f"{stem}[sgd].json"]
    assert all(f"memory baseline written: {project / 'memory_baselines' / name}" in said for name in names)
    cases = json.loads((project / "memory_baselines" / names[0]).read_text())["cases"]
    assert [*cases] == ["test_own", "test_own #2"]
    assert cases["test_own"]["case"]["device"] == "rtx4090"
    assert cases["test_own"]["environment"]["torch"]


def test_a_growth_a_refusal_a_limit_and_a_mistake_fail_with_their_reasons(project: Path) -> None:
    (project / "activation.py").write_text(AFTER)
    said = run_pytest(project, "-k", "not adamw")
    (project / "activation.py").write_text(BEFORE)
    assert "9 failed" in said, said
    assert "test_usual[sgd]: peak memory" in said and "forward Net sigmoid: new" in said
    assert "test_refused: the step reads values from the device (aten::" in said and "model.py:" in said
    assert "above 1,024 B" in said and "The largest tensors there" in said
    assert 'unknown key "optimzer". Nearest: optimizer' in said
    assert "sample_shape 32: three whole numbers" in said and "inputs 'int64[B]': a list" in said
    assert "mark.training_memory('rtx4090'): keywords alone" in said
    assert "one: two calls have this name" in said
    frames = ("Traceback", "Error:", "During handling", "direct cause", "bench/")
    assert [frame for frame in frames if frame in said] == [], said
    assert "pytest --update-memory-baselines, and commit" in said


def test_what_is_unchanged_passes_and_what_has_no_baseline_fails(project: Path) -> None:
    held = project / "memory_baselines" / "test_memory.test_usual[sgd].json"
    text = held.read_text()
    held.unlink()
    said = run_pytest(project, "-k", "usual")
    held.write_text(text)
    assert "1 failed, 1 passed" in said, said
    assert f"no baseline in {held}" in said


def test_tests_of_one_name_have_a_file_each() -> None:
    class One:
        class Inner:
            pass

    class Two:
        class Inner:
            pass

    def path_of(kind: type | None, name: str = "test_x") -> str:
        memory = TrainingMemory.__new__(TrainingMemory)
        memory._request = SimpleNamespace(node=SimpleNamespace(path=Path("t/test_m.py"), cls=kind, name=name))
        return memory.baseline_path.as_posix()

    assert path_of(None) == "t/memory_baselines/test_m.test_x.json"
    assert (
        len({path_of(One.Inner), path_of(Two.Inner), path_of(None), path_of(None, "test_x/"), path_of(None, "test_x:")})
        == 5
    )


def test_the_idle_plugin_loads_nothing_of_the_package_but_itself() -> None:
    code = (
        "import pytest, sys; before = {*sys.modules}; import bench.pytest_plugin; "
        "print(sorted(name for name in {*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "['bench', 'bench.pytest_plugin']"


def test_the_package_registers_the_plugin() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"stepbench": "bench.pytest_plugin"}
