"""One plan on many GPUs: eight stub GPUs of two models under real processes, locks and an unmodified torch."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

import bench
from tests import plugins
from tests.oracle.stub import StubDriver

HOST = ("h200",) * 5 + ("a100-40gb",) * 3
CONFIG = """
name = "many"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = 16
[measure]
repeats = 5
warmup_steps = 1
measured_steps = 3
min_window = "1 ms"
[data]
fetch = false
"""

pytestmark = pytest.mark.slow


def environment(driver: StubDriver, folder: Path, **settings: str) -> dict[str, str]:
    env = {**os.environ, **driver.environment(devices=HOST, nvml=1, **settings), "BENCH_CUDNN_WORKSPACES": "off"}
    env["BENCH_LOCK_DIR"] = str(folder / "locks")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), env.get("PYTHONPATH"))))
    return env


def test_every_gpu_of_a_host_works_on_one_plan(stub_driver: StubDriver, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    env = environment(stub_driver, tmp_path)
    command = ["sweep", tmp_path / "c.toml", "--device", "all", "--parallel", "8", "--out", tmp_path / "out"]
    done = plugins.bench(*command, env=env)
    assert done.returncode == 0, done.stderr
    assert "NVIDIA H200: 5 devices" in done.stderr and "NVIDIA A100-SXM4-40GB: 3 devices" in done.stderr
    assert "the environment changed" not in done.stderr
    frame = bench.load(tmp_path / "out")
    assert len(frame) == 10 and set(frame["status"]) == {"ok"} and set(frame["parallel"]) == {8}
    cards = frame.groupby("gpu_name")["gpu_uuid_hash"].nunique().to_dict()
    assert cards == {"NVIDIA H200": 5, "NVIDIA A100-SXM4-40GB": 3}
    assert frame["environment_key"].nunique() == 2
    memory = frame.groupby("gpu_name")["gpu_total_bytes"].unique().map(list).to_dict()
    assert memory == {"NVIDIA H200": [150_754_820_096], "NVIDIA A100-SXM4-40GB": [42_297_786_368]}
    assert (frame["trace_peak_allocated_bytes"] == frame["peak_allocated_bytes"]).all()
    for _, runs in frame.sort_values("started_unix_s").groupby("gpu_uuid_hash"):
        spans = list(zip(runs["started_unix_s"], runs["wall_window_s"], strict=True))
        assert all(start + length <= after for (start, length), (after, _) in itertools.pairwise(spans))
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "ran on several of 5 equal devices (NVIDIA H200)" in report

    some = plugins.bench(
        "sweep",
        tmp_path / "c.toml",
        "--device",
        "cuda:7,GPU-00000005",
        "--parallel",
        "2",
        "--no-report",
        "--out",
        tmp_path / "some",
        env=env,
    )
    assert some.returncode == 0, some.stderr
    assert set(bench.load(tmp_path / "some")["gpu_name"]) == {"NVIDIA A100-SXM4-40GB"}


def test_a_launchers_process_wants_exactly_one_gpu_and_a_free_one(stub_driver: StubDriver, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    env = environment(stub_driver, tmp_path)
    planned = plugins.bench("plan", tmp_path / "c.toml", "--device", "cuda", "--out", tmp_path / "out", env=env)
    assert planned.returncode == 0, planned.stderr
    refused = plugins.bench("run-planned", tmp_path / "out", "0", env=env)
    assert refused.returncode == 2 and "8 GPUs are visible" in refused.stderr and "--gres=gpu:1" in refused.stderr
    own = {**env, "CUDA_VISIBLE_DEVICES": "GPU-00000006-0000-0000-0000-000000000000"}
    done = plugins.bench("run-planned", tmp_path / "out", "0", env=own)
    assert done.returncode == 0 and "measured ok" in done.stdout, done.stderr
    frame = bench.load(tmp_path / "out")
    ran = frame[frame["status"] == "ok"]
    assert list(ran["gpu_name"]) == ["NVIDIA A100-SXM4-40GB"] and list(ran["spread"]) == ["hosts"]
