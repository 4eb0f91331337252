"""`bench calibrate` on a CUDA device: memory is true, times mean nothing, and every stage runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.devices import load_device_file
from bench.recordings import read_recording
from tests import plugins
from tests.oracle.stub import StubDriver

CONFIG = """
name = "stub"
[grid]
dataset = "cifar10"
model = ["mlp", "resnet18"]
optimizer = "sgd_momentum"
batch_size = [8, 32]
precision = ["float32", "bf16"]
[measure]
warmup_steps = 2
measured_steps = 3
min_window = "1 ms"
[data]
fetch = false
"""
CONTEXT_BYTES = 300 << 20

pytestmark = pytest.mark.slow


def test_every_stage_runs_and_memory_is_exact(stub_driver: StubDriver, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    env = {**os.environ, **stub_driver.environment("h200", context_bytes=CONTEXT_BYTES)}
    env |= {"BENCH_CUDNN_WORKSPACES": "off", "BENCH_CALIBRATIONS": str(tmp_path / "kept")}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    arguments = ("--device", "cuda", "--minutes", "3", "--repeats", "2", "--out", tmp_path / "out", "--json")
    done = plugins.bench("calibrate", config, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["runs"].keys() == {"ok"} and len(found["cases"]) == 8
    memory = {row["estimate"]: row for row in found["memory"]}
    assert memory["trace, allocated"]["before"]["worst"] == 0
    assert memory["trace, reserved"]["before"]["worst"] == 0
    assert found["context"]["median_bytes"] == CONTEXT_BYTES
    assert found["precisions"] == ["float32", "tf32", "bf16", "fp16"]
    assert {"float32", "fp16"} <= {each["precision"] for each in found["workspaces"]}
    assert {each["way"] for each in found["workspaces"]} == {"forward", "backward"}
    assert found["speed"]["before"]["n"] == found["speed"]["left_out"]["n"] == 8

    files = sorted((tmp_path / "out" / "recordings").glob("*.parquet"))
    assert len(files) == sum(found["recordings"].values()) > 0
    assert read_recording(files[0]).facts.gpu.name == "NVIDIA H200"

    device = load_device_file(tmp_path / "out" / "nvidia-h200.toml")
    assert device.calibration == found["device"]["calibration"]
    assert device.context_bytes == CONTEXT_BYTES
    assert device.peak_bf16_flop_per_s == 9.89e14
    assert device.calibrated_bf16_flop_per_s and device.calibrated_tf32_flop_per_s is None
    assert device.gpu_uuid_hash == found["environment"]["gpu_uuid_hash"]

    (row,) = json.loads(
        plugins.bench(
            *("estimate", "--model", "resnet18", "--dataset", "cifar10", "--device", "h200", "--json"),
            *("--calibration", tmp_path / "out" / "nvidia-h200.toml"),
            env=env,
        ).stdout
    )
    assert found["device"]["calibration"] in row["estimated_speed_basis"]
    assert row["estimated_device_bytes"] == row["trace_peak_reserved_bytes"] + CONTEXT_BYTES
