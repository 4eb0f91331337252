"""A user's own file of models: named on the command line, loaded in child processes, resumed with and without it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import bench
from tests import plugins

SOURCE = '''
"""Two models and a part of them."""
import os
from pathlib import Path

from torch import nn

from parts_of_mine import flat

Path(__file__).with_name(f"loaded-{os.getpid()}").touch()


class Tiny(nn.Module):
    """One layer."""

    def __init__(self, classes, channels, side=28):
        super().__init__()
        self.layer = nn.Linear(channels * side * side, classes)

    def forward(self, images):
        return self.layer(flat(images))


def build(images, *, width=8):
    """Two layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(images.height * images.width, width), nn.Linear(width, images.classes))


def block(inputs, outputs):
    return nn.Linear(inputs, outputs)


def number(classes):
    return classes
'''
CONFIG = """
[grid]
dataset = "mnist"
model = ["my_models.py:build", "my_models.py:build:width=16"]
optimizer = "sgd"
batch_size = 8
[measure]
repeats = 1
warmup_steps = 1
measured_steps = 2
min_window = 0.01
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "my_models.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "parts_of_mine.py").write_text("def flat(x):\n    return x.flatten(1)\n", encoding="utf-8")
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def says(here: Path, *words: str, **environment: str) -> str:
    """The one line of an error."""
    env = {**os.environ, **environment}
    done = plugins.bench(*words, cwd=here, env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def test_a_sweep_of_an_own_model_has_estimates_and_resumes_only_with_the_file(here: Path) -> None:
    sweep = ("sweep", "c.toml", "--device", "cpu", "--out", "out", "--no-report")
    done = plugins.bench(*sweep, "--models", "my_models.py", cwd=here)
    assert done.returncode == 0, done.stderr
    frame = bench.load(here / "out")
    assert list(frame["model"]) == ["my_models.py:build", "my_models.py:build:width=16"]
    assert list(frame["status"]) == ["ok", "ok"]
    assert frame["formula_bytes"].notna().all() and frame["peak_allocated_bytes"].notna().all()
    loaded = len(list(here.glob("loaded-*")))

    (here / "one.toml").write_text(CONFIG.replace(', "my_models.py:build:width=16"', ""), encoding="utf-8")
    without = says(here, "sweep", "one.toml", "--device", "cpu", "--out", "out", "--no-report")
    assert "my_models.py:build" in without and without.endswith("add --models PATH/my_models.py")
    own = json.dumps({str(here / "my_models.py"): "0"})
    assert "add --models" in says(here, "sweep", "one.toml", "--device", "cpu", "--out", "out", BENCH_MODELS=own)
    assert plugins.bench("report", "out", cwd=here).returncode == 0
    assert len(list(here.glob("loaded-*"))) == loaded  # a configuration or results alone never run the file

    again = plugins.bench(*sweep, "--models", "my_models.py", cwd=here)
    assert "2 runs already finished, 0 to do" in again.stderr
    (here / "parts_of_mine.py").write_text("def flat(x):\n    return x.flatten(1) * 1\n", encoding="utf-8")
    changed = plugins.bench(*sweep, "--models", "my_models.py", cwd=here)
    assert "already finished" not in changed.stderr and changed.returncode == 0


def test_an_own_model_is_estimated_shown_and_listed_by_either_spelling(here: Path) -> None:
    estimate = ("estimate", "--dataset", "mnist", "--batch-size", "8", "--json")
    short = plugins.bench(*estimate, "--model", f"{here}/my_models.py:Tiny", env={**os.environ})
    assert short.returncode == 0, short.stderr
    long = plugins.bench(*estimate, "--models", "my_models.py", "--model", "my_models.py:T*", cwd=here)
    rows = [json.loads(done.stdout)[0] for done in (short, long)]
    assert rows[0]["model"] == rows[1]["model"] == "my_models.py:Tiny"
    assert rows[0]["case_key"] == rows[1]["case_key"]
    assert rows[0]["formula_bytes"] == rows[1]["formula_bytes"] > 4 * 7_850
    assert rows[0]["trace_peak_allocated_bytes"] > 0
    shown = plugins.bench("show", "model", "my_models.py:build:width=4", cwd=here)
    assert "3,190 parameters" in shown.stdout, shown.stderr
    listed = plugins.bench("list", "models", "my_*", "--models", "my_models.py", "--json", cwd=here)
    assert {row["name"]: row["settings"] for row in json.loads(listed.stdout)} == {
        "my_models.py:Tiny": {"side": 28},
        "my_models.py:build": {"width": 8},
        "my_models.py:number": {},
    }


def test_entries_have_the_names_and_settings_that_they_define(here: Path) -> None:
    (here / "mine.py").write_text(
        "from bench.catalog import ModelEntry\nfrom my_models import build\n"
        "ENTRIES = (ModelEntry('narrow', lambda images: build(images, width=2), 'narrow'), ModelEntry('any', build))\n",
        encoding="utf-8",
    )
    listed = plugins.bench("list", "models", "mine*", "--models", "mine.py", "--json", cwd=here)
    assert [row["name"] for row in json.loads(listed.stdout)] == ["mine.py:any", "mine.py:narrow"]
    nearest = says(here, "show", "model", "narrow", "--models", "mine.py")
    assert "Nearest: mine.py:narrow" in nearest
    shown = plugins.bench("show", "model", "mine.py:narrow", cwd=here)
    assert "1,600 parameters" in shown.stdout, shown.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n", r"--models: bad\.py: it has no models\. Define ENTRIES.*images, channels, classes"),
        ("raise ValueError('broken')\n", r"--models: bad\.py: cannot be loaded: ValueError: broken \(bad\.py:1\)"),
        ("import sys; sys.exit(3)\n", r"--models: bad\.py: cannot be loaded: SystemExit: 3 \(bad\.py:1\)"),
        ("def build(:\n", r"--models: bad\.py: cannot be loaded: SyntaxError: .*"),
        ("import os; os._exit(7)\n", r"--models: bad\.py: the process exited with code 7 during loading"),
        ("ENTRIES = 7\n", r"--models: bad\.py: ENTRIES must be a tuple of bench\.catalog\.ModelEntry"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(here: Path, text: str, expected: str) -> None:
    (here / "bad.py").write_text(text, encoding="utf-8")
    assert re.fullmatch(expected, says(here, "plan", "c.toml", "--models", "bad.py"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--models", "absent.py"), r"--models: absent\.py: the file is missing; .*"),
        (("--models", "c.toml"), r"--models: c\.toml: not a Python file; .*"),
        (("--models", "."), r"--models: \.: not a Python file; .*"),
        (("--model", "absent.py:build"), r"--model: absent\.py: the file is missing; .*"),
        (("--model", "my_models.py:biuld"), r'unknown model "my_models\.py:biuld"\. Nearest: my_models\.py:build.*'),
        (
            ("--model", "my_models.py:block"),
            r'unknown model "my_models\.py:block"\. .*list models --models .* without a default are among images, .*',
        ),
        (("--model", "my_models.py:build:wdth=3"), r'.*no setting "wdth"\. Nearest: width\. Allowed: width\.'),
        (("--model", "my_models.py:x*"), r'no model matches "my_models\.py:x\*"\. .*'),
        (("--models", "my_models.py", "--models", "copy/my_models.py"), r".*has the same name.*; rename one"),
    ],
)
def test_a_wrong_use_of_a_file_is_answered_in_one_line(here: Path, words: tuple[str, ...], expected: str) -> None:
    (here / "copy").mkdir()
    (here / "copy" / "my_models.py").write_text("", encoding="utf-8")
    found = says(here, "estimate", "--dataset", "mnist", *words)
    assert re.fullmatch(expected, found), found


def test_a_function_that_returns_no_module_is_told_so(here: Path) -> None:
    found = says(here, "show", "model", "my_models.py:number")
    assert "number returned int, not a torch.nn.Module" in found
