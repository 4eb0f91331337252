"""`examples/guard`, the action and the hook are what the documents say."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .test_pytest_plugin import run_pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "guard"
GROWTH = ("functional.gelu(self.up(self.norm2(x)))", "(lambda h: h * torch.sigmoid(1.702 * h))(self.up(self.norm2(x)))")


def test_the_example_goes_red_on_a_planted_growth_and_names_the_operator(tmp_path: Path) -> None:
    folder = tmp_path / "guard"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    (baseline,) = (folder / "memory_baselines").iterdir()
    (held,) = json.loads(baseline.read_text())["cases"].values()
    if held["environment"]["torch"] != importlib.metadata.version("torch").partition("+")[0]:
        run_pytest(folder, "--update-memory-baselines")  # another torch may call other kernels
    green = run_pytest(folder)
    assert "1 passed" in green, green
    text = (folder / "model.py").read_text()
    assert text.count(GROWTH[0]) == 1
    (folder / "model.py").write_text(text.replace(*GROWTH))
    red = run_pytest(folder)
    assert "1 failed" in red, red
    assert "forward blocks.0 sigmoid: new" in red and "peak memory" in red


@pytest.mark.parametrize(
    ("path", "schema"),
    [(".github/actions/guard/action.yml", "github-actions"), ("examples/guard/workflow.yml", "github-workflows")],
)
def test_the_action_and_the_workflow_are_valid_by_their_schemas(path: str, schema: str) -> None:
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema, which has the schemas, is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(ROOT / path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_gives_the_action_inputs_that_it_has() -> None:
    action = yaml.safe_load((ROOT / ".github/actions/guard/action.yml").read_text())
    workflow = yaml.safe_load((EXAMPLE / "workflow.yml").read_text())
    (step,) = [each for each in workflow["jobs"]["memory"]["steps"] if "actions/guard@" in each.get("uses", "")]
    required = {name for name, about in action["inputs"].items() if about["required"]}
    assert required <= {*step["with"]} <= {*action["inputs"]}
    assert all((EXAMPLE / step["with"][name]).exists() for name in ("config", "models", "baseline"))


def test_every_input_of_the_action_reaches_its_script_as_a_variable() -> None:
    action = yaml.safe_load((ROOT / ".github/actions/guard/action.yml").read_text())
    (step,) = action["runs"]["steps"]
    script = (ROOT / ".github/actions/guard/guard.sh").read_text()
    assert "${{" not in step["run"]
    assert {*action["inputs"]} - {"working-directory"} == {
        value.removeprefix("${{ inputs.").removesuffix(" }}") for value in step["env"].values()
    }
    assert all(name in script for name in step["env"])


def test_the_script_installs_all_that_is_asked_for_and_quotes_what_it_gives(tmp_path: Path) -> None:
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done >> {said}\n')
    python.chmod(0o755)
    variables = {
        "PYTHON": str(python),
        "INSTALL": "torch\n  stepbench[timm]\n",
        "CONFIG": "my guard.toml",
        "BASELINE": "a;b",
    }
    environment = {"PATH": os.environ["PATH"], **{f"GUARD_{name}": value for name, value in variables.items()}}
    script = ROOT / ".github/actions/guard/guard.sh"
    subprocess.run(["bash", str(script)], env=environment, cwd=tmp_path, check=True)
    installed = ["-m", "pip", "install", "--quiet", "torch", "stepbench[timm]"]
    compared = ["-m", "bench", "guard", "my guard.toml", "--baseline", "a;b", "--format", "github"]
    assert said.read_text().splitlines() == [*installed, *compared]


def test_the_hook_runs_the_command() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["entry"], hook["pass_filenames"]) == ("bench guard", False)
    assert {"id", "name", "language", "entry"} <= {*hook}
