"""Whole sweeps by the real command on a real GPU: what a row, a report and a comparison then hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.probes.gpu_monitor import ENERGY_TOLERANCE_FRAC, LEAST_SAMPLES
from tests import plugins

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

CONFIG = """
name = "gpu"
[grid]
dataset = "cifar10"
model = ["mlp", "resnet18"]
optimizer = "adam"
batch_size = 64
[measure]
repeats = 2
warmup_steps = 5
measured_steps = 10
min_window = "1200 ms"
[data]
fetch = false
"""

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, images, fault):
        super().__init__()
        self.layer, self.steps, self.fault = nn.Linear(3072, images.classes), 0, fault

    def forward(self, images):
        if images.is_cuda:
            self.steps += 1
            self.fault(self.steps, images)
        return self.layer(images.flatten(1))

def quiet(images): return Net(images, lambda step, images: None)
def older(images): return Net(images, lambda step, images: step == 4 and torch.set_float32_matmul_precision("high"))
def newer(images): return Net(images, set_newer)
def greedy(images): return Net(images, lambda step, images: torch.empty(1 << 42, dtype=torch.uint8, device="cuda"))
def large(images): return Net(images, lambda step, images: torch.empty(3 << 30, dtype=torch.uint8, device="cuda"))
def broken(images): return Net(images, lambda step, images: 1 / 0)

def set_newer(step, images):
    if step == 4:
        if hasattr(torch.backends, "fp32_precision"):
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        else:
            torch.backends.cuda.matmul.allow_tf32 = True
"""


def run(*arguments: object, code: int = 0) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *_further_paths()])}
    done = plugins.bench(*arguments, env=env, timeout=300)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return str(done.stdout)


def _further_paths() -> list[str]:
    return [path for path in [os.environ.get("PYTHONPATH", "")] if path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    """Two cases in two processes each, with a report."""
    (folder / "c.toml").write_text(CONFIG, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # before the places of any one test
        for name in ("LOCK_DIR", "DATA", "LOGS"):
            patch.setenv(f"BENCH_{name}", str(folder / name.lower()))
        for name in ("TRACE_CACHE", "CALIBRATIONS", "FIGURES"):
            patch.setenv(f"BENCH_{name}", "off")
        run("sweep", folder / "c.toml", "--device", "cuda", "--out", folder / "first")
    return folder / "first"


@pytest.fixture(scope="module")
def rows(first: Path) -> pd.DataFrame:
    return bench.load(first)


def known(rows: pd.DataFrame, *names: str) -> None:
    missing = [name for name in names if rows[name].isna().any()]
    assert not missing, (missing, rows["nvml_error"].tolist(), rows["device_memory_note"].tolist())


def is_dedicated(rows: pd.DataFrame) -> bool:
    return set(rows["device_memory_kind"]) == {"dedicated"}


def test_every_run_ends_well_and_is_flagged_for_nothing_but_the_machine(rows: pd.DataFrame) -> None:
    assert rows["status"].isin(["ok", "throttled"]).all(), rows[["model", "status", "reason"]].to_dict("records")
    assert len(rows) == 4
    flags = {flag for flags in rows["flags"] for flag in flags}
    assert not flags & {"nvml_silent", "precision_not_in_force", "switch_not_in_force", "nan"}, flags
    assert set(rows["precision_in_force"]) == {"float32"}


def test_rows_hold_the_clocks_temperature_and_link_of_the_window(rows: pd.DataFrame) -> None:
    known(rows, *(f"{name}_clock_{end}_hz" for name in ("sm", "memory") for end in ("start", "end")))
    known(rows, "temperature_start_c", "temperature_end_c", "throttle_reasons_start", "throttle_reasons_end")
    for end in ("start", "end"):
        assert rows[f"sm_clock_{end}_hz"].between(2e8, 4e9).all()
        assert (rows[f"sm_clock_{end}_hz"] <= rows["max_sm_clock_hz"] * 1.001).all()
        assert rows[f"memory_clock_{end}_hz"].between(4e8, 2e10).all()
        assert rows[f"temperature_{end}_c"].between(10, 100).all()


def test_energy_of_the_window_is_between_idling_and_the_boards_limit(rows: pd.DataFrame) -> None:
    if not is_dedicated(rows):
        pytest.skip("the counter is the board's")
    known(rows, "energy_window_j", "power_limit_w", "wall_window_s")
    power_w = rows["energy_window_j"] / rows["wall_window_s"]
    assert power_w.between(10, 1.3 * rows["power_limit_w"].max()).all(), power_w.tolist()
    sampled = (rows["power_sample_count"].fillna(0) >= LEAST_SAMPLES).astype(bool)
    off = (power_w / rows["power_window_w"].astype(float) - 1).abs() > ENERGY_TOLERANCE_FRAC
    unconfirmed = ["energy_unconfirmed" in flags for flags in rows["flags"]]
    assert unconfirmed == (off & sampled).tolist(), (power_w.tolist(), rows["power_window_w"].tolist())


def test_memory_of_every_level_is_inside_that_of_the_next(rows: pd.DataFrame) -> None:
    assert (rows["peak_requested_bytes"] <= rows["peak_allocated_bytes"]).all()
    assert (rows["peak_allocated_bytes"] <= rows["peak_reserved_bytes"]).all()
    if not is_dedicated(rows):
        return
    known(rows, "context_bytes", "device_total_bytes", "device_used_total_bytes", "device_used_before_bytes")
    assert rows["context_bytes"].between(50 << 20, 3 << 30).all(), rows["context_bytes"].tolist()
    used = rows["device_used_bytes"].fillna(rows["device_used_total_bytes"])
    assert (used >= rows["peak_reserved_bytes"]).all()
    assert (rows["device_used_total_bytes"] <= rows["device_total_bytes"]).all()


def test_repeats_of_a_case_take_the_same_memory(rows: pd.DataFrame) -> None:
    assert (rows.groupby("model")["peak_allocated_bytes"].nunique() == 1).all()


def test_the_trace_says_what_an_mlp_takes_to_the_byte_and_a_convnet_within_a_percent(rows: pd.DataFrame) -> None:
    """The goals of docs/accuracy.md: MLPs equal to the byte, convolutions with cuDNN's own workspaces within 1 %."""
    told = rows.groupby("model")[["trace_peak_allocated_bytes", "peak_allocated_bytes", "cold_peak_allocated_bytes"]]
    found = told.first().astype(float)
    error = found["trace_peak_allocated_bytes"] / found["peak_allocated_bytes"] - 1
    print(found.assign(error=error).to_string())  # pytest -s shows it
    assert error["mlp"] == 0, found.loc["mlp"].to_dict()
    assert abs(error["resnet18"]) <= 0.01, found.loc["resnet18"].to_dict()


def test_the_report_of_it_has_its_page_and_its_numbers(first: Path, rows: pd.DataFrame) -> None:
    page = (first / "index.html").read_text(encoding="utf-8")
    assert str(rows["gpu_name"].iloc[0]) in page
    table = pd.read_csv(first / "table.csv")
    assert set(table["model"]) == {"mlp", "resnet18"}
    assert (table["samples_per_s"] > 0).all()


def test_the_same_code_twice_is_not_called_different_and_is_compared_in_cycles(folder: Path, first: Path) -> None:
    run("sweep", folder / "c.toml", "--device", "cuda", "--out", folder / "second", "--no-report")
    text = run("compare", first, folder / "second", "--confidence", "99.9%", "--margin", "5%", "--json")
    found = json.loads(text)
    assert found["regressions"] == []
    assert {row["verdict"] for row in found["cases"]} <= {"same", "unclear"}
    memory = [row for row in found["cases"] if row["metric"] == "peak_allocated_bytes"]
    assert {(row["ratio"], row["verdict"]) for row in memory} == {(1.0, "same")}
    speed = [row for row in found["cases"] if row["metric"] == "samples_per_s"]
    print(*(f"{row['label']}: {row['clocks_reason']}" for row in speed), sep="\n")
    assert len(speed) == 2
    for row in speed:
        assert row["clocks_reason"] and row["clocks_reason"] != "no clock was read"
        if row["clocks"] is not None:
            assert 0.5 < row["clock_ratio"] < 2
            assert row["cycles_ratio"] == pytest.approx(row["clock_ratio"] / row["ratio"])


def own_models(folder: Path, out: str, names: list[str], *arguments: str) -> pd.DataFrame:
    """Rows of a sweep over some of `MODELS`, of which one fails or runs out of memory, by name."""
    (folder / "own.py").write_text(MODELS, encoding="utf-8")
    models = ", ".join(f'"own.py:{name}"' for name in names)
    run(
        *("sweep", folder / "c.toml", "--device", "cuda", "--out", folder / out, "--no-report"),
        *("--models", folder / "own.py", "--set", f"grid.model=[{models}]", "--repeats", "1"),
        *("--set", "measure.min_window=50 ms", *arguments),
        code=1,
    )
    frame = bench.load(folder / out)
    return frame.set_index(frame["model"].str.rpartition(":")[2]).loc[names]


def test_a_card_that_plays_a_smaller_one_runs_out_of_memory_at_its_size(folder: Path) -> None:
    """What runs on the whole card (the test below) does not on a card of 2 GiB."""
    found = own_models(folder, "small", ["quiet", "large"], "--set", "limits.device_memory=2 GiB")
    assert found["status"].tolist() == ["ok", "oom"], found["reason"].tolist()
    allowed = found["device_memory_allowed_bytes"].astype(float)
    assert allowed.between(512 << 20, 2 << 30).all()
    assert (found["peak_reserved_bytes"] <= allowed).all()


def test_what_a_model_does_to_its_run_is_said_in_its_row(folder: Path) -> None:
    """Memory that runs out is `oom` and a fault is not; switches that a model sets are seen, by either interface."""
    found = own_models(folder, "own", ["quiet", "older", "newer", "large", "greedy", "broken"])
    assert found["status"].tolist() == ["ok", "ok", "ok", "ok", "oom", "failed"], found["reason"].tolist()
    assert ["precision_not_in_force" in flags for flags in found["flags"][:3]] == [False, True, True]
    assert found["precision_in_force"].fillna("unknown").tolist()[:3] == ["float32", "unknown", "unknown"]
    assert found["not_in_force"].iloc[1:3].str.contains("set tf32 in matrix products").all()
    asked = found.loc["greedy", "oom_requested_bytes"]
    assert pd.isna(asked) or asked == 1 << 42  # no amount where NVML did not answer torch
    assert found.loc["greedy", "peak_allocated_bytes"] > 0


def test_bench_env_names_the_gpu_and_no_trouble_that_is_not_there() -> None:
    import torch

    found = json.loads(run("env", "--json"))
    environment, properties = found["environment"], torch.cuda.get_device_properties(0)
    assert environment["device"] == "cuda"
    assert environment["gpu_name"] == torch.cuda.get_device_name(0)
    assert environment["gpu_multiprocessors"] == properties.multi_processor_count
    assert environment["gpu_capability"] == f"{properties.major}.{properties.minor}"
    assert environment["torch_version"] == torch.__version__
    if environment["device_memory_kind"] == "dedicated":
        assert environment["gpu_total_bytes"] == pytest.approx(properties.total_memory, rel=0.05)
    errors = [item for item in found["findings"] if item["severity"] == "error"]
    assert not errors, errors
    codes = {item["code"] for item in found["findings"]}
    assert not codes & {"no_nvml", "no_driver", "gpu_hidden", "rocm_not_used"}, found["findings"]
    told = {"unified_memory": environment["device_memory_kind"] == "unified"}
    told["gpu_memory_limit"] = environment["gpu_memory_limit_bytes"] is not None
    assert {name for name in told if name in codes} == {name for name, true in told.items() if true}
