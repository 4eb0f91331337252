"""A precision and a switch that are not in force, in whole sweeps with the stub driver as the card."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.analysis import judge
from tests import plugins
from tests.oracle.stub import StubDriver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONFIG = """
name = "in-force"
[grid]
dataset = "cifar10"
model = ["mlp"]
optimizer = "sgd"
batch_size = 8
[measure]
repeats = 1
warmup_steps = 2
measured_steps = 3
min_window = "1 ms"
[data]
fetch = false
"""


def sweep(
    stub: StubDriver, folder: Path, *arguments: str, variables: dict[str, str] | None = None, **card: int | str
) -> pd.DataFrame:
    config = folder / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    env = {**os.environ, **stub.environment("h200", **card), "BENCH_CUDNN_WORKSPACES": "off"}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), **(variables or {})}
    done = plugins.bench(
        "sweep", config, "--device", "cuda", "--no-report", "--out", folder / "out", *arguments, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return bench.load(folder / "out")


PRECISIONS = ("--set", 'grid.precision=["float32", "tf32", "bf16", "fp16"]')


def test_a_precision_that_the_card_lacks_is_flagged_and_not_publishable(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    frame = sweep(stub_driver, tmp_path, *PRECISIONS, capability_major=7, capability_minor=5, name="Tesla T4")
    rows = frame.set_index("precision")
    flagged = {name for name, flags in rows["flags"].items() if "precision_not_in_force" in flags}
    assert flagged == {"tf32", "bf16"}
    assert rows["precision_in_force"].to_dict() == {
        "float32": "float32",
        "tf32": "float32",
        "bf16": "bf16, emulated",
        "fp16": "fp16",
    }
    (finding,) = [finding for finding in judge(frame).blocking if finding.code == "precision_not_in_force"]
    assert "tf32: Tesla T4 (compute capability 7.5) has no TF32" in finding.text
    assert set(finding.run_keys) == set(rows.loc[["tf32", "bf16"], "run_key"])


def test_a_variable_that_overrules_the_precision_is_flagged_and_in_the_key(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    sweep(stub_driver, tmp_path, *PRECISIONS)
    frame = sweep(stub_driver, tmp_path, *PRECISIONS, variables={"NVIDIA_TF32_OVERRIDE": "0"})
    assert frame["environment_key"].nunique() == 2
    flagged = frame[["precision_not_in_force" in flags for flags in frame["flags"]]]
    assert flagged["precision"].tolist() == ["tf32"]
    assert flagged["speed_variables"].str.contains("NVIDIA_TF32_OVERRIDE=0").all()
    assert flagged["not_in_force"].tolist() == ["tf32: NVIDIA_TF32_OVERRIDE=0 switches TF32 off"]


MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, images, when, switch):
        super().__init__()
        self.layer, self.seen, self.when, self.switch = nn.Linear(3072, images.classes), 0, when, switch
        if when == 0:
            self.set()

    def set(self):
        if self.switch == "new":
            torch.backends.fp32_precision = "tf32"
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        else:
            torch.backends.cuda.matmul.allow_tf32 = True

    def forward(self, images):
        self.seen += 1
        if self.seen == self.when:
            self.set()
        return self.layer(images.flatten(1))

def quiet(images): return Net(images, -1, "new")
def built(images): return Net(images, 0, "new")
def built_old(images): return Net(images, 0, "old")
def late(images): return Net(images, 4, "new")
"""


def test_a_model_that_changes_tf32_runs_and_is_flagged_whenever_it_does(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(MODELS, encoding="utf-8")
    names = ["quiet", "built", "built_old", "late"]
    models = ", ".join(f'"own.py:{name}"' for name in names)
    frame = sweep(stub_driver, tmp_path, "--models", str(file), "--set", f"grid.model=[{models}]", "--repeats", "1")
    rows = frame.set_index(frame["model"].str.rpartition(":")[2]).loc[names]
    assert rows["status"].tolist() == ["ok"] * 4
    assert [("precision_not_in_force" in flags) for flags in rows["flags"]] == [False, True, True, True]
    assert rows["precision_in_force"].fillna("unknown").tolist() == ["float32", "unknown", "unknown", "unknown"]
    assert "set tf32 in matrix products" in rows.loc["late", "not_in_force"]


def test_deterministic_is_torchs_and_what_has_no_such_form_is_skipped_by_its_name(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    arguments = ("--set", "measure.deterministic=true", "--set", 'grid.model=["mlp", "vgg11", "resnet18"]')
    rows = sweep(stub_driver, tmp_path, *arguments).set_index("model")
    assert rows["status"].to_dict() == {"mlp": "ok", "vgg11": "skipped", "resnet18": "ok"}
    assert rows.loc["vgg11", "reason"] == (
        "deterministic is on, but torch has no deterministic form of adaptive_avg_pool2d_backward_cuda; "
        "turn measure.deterministic off here"
    )
    assert set(rows["cublas_workspace_config"]) == {":4096:8"}
    small = sweep(stub_driver, tmp_path, *arguments, variables={"CUBLAS_WORKSPACE_CONFIG": ":16:8"})
    small = small[small["cublas_workspace_config"] == ":16:8"].set_index("model")
    assert small.loc["mlp", "peak_allocated_bytes"] < rows.loc["mlp", "peak_allocated_bytes"] - (30 << 20)
