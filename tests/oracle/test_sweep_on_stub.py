"""The whole sweep on a CUDA device, with the stub driver under an unmodified torch: memory is true, times mean nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import bench
from bench.records import TRACE_PARTS
from tests import plugins
from tests.oracle.stub import StubDriver

CONFIG = """
name = "stub"
[grid]
dataset = "cifar10"
model = "resnet18"
optimizer = "adam"
batch_size = [8, 4096]
precision = ["float32", "bf16", "fp16"]
memory_format = ["contiguous", "channels_last"]
[[include]]
reason = "the other data paths"
model = "mlp"
batch_size = 8
precision = "tf32"
memory_format = "contiguous"
input = ["cached", "loader"]
[measure]
repeats = 1
warmup_steps = 2
measured_steps = 4
min_window = "1 ms"
[data]
fetch = false
"""

NO_WORKSPACES = {"BENCH_CUDNN_WORKSPACES": "off"}
"""The stub's cuDNN asks for none."""

pytestmark = pytest.mark.slow


def test_every_precision_layout_and_path_runs_and_too_large_a_batch_is_an_oom(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    env = {**os.environ, **stub_driver.environment("h200", memory_bytes=1 << 30), **NO_WORKSPACES}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), env.get("PYTHONPATH"))))
    done = plugins.bench("sweep", config, "--device", "cuda", "--out", tmp_path / "out", env=env)
    assert done.returncode == 1, done.stderr
    frame = bench.load(tmp_path / "out")
    assert len(frame) == 14
    assert frame.groupby("batch_size")["status"].agg(set).to_dict() == {8: {"ok"}, 4096: {"oom"}}
    assert set(frame["device"]) == {"cuda"}
    assert set(frame["gpu_name"]) == {"NVIDIA H200"}

    ran = frame[frame["status"] == "ok"]
    assert (ran["peak_requested_bytes"] <= ran["peak_allocated_bytes"]).all()
    assert (ran["peak_allocated_bytes"] <= ran["peak_reserved_bytes"]).all()
    assert (ran["cold_peak_allocated_bytes"] > 0).all()
    assert (ran["peak_reserved_bytes"] % (2 << 20) == 0).all()

    out = frame[frame["status"] == "oom"]
    assert (out["oom_requested_bytes"] > 0).all()
    assert (out["peak_allocated_bytes"] > 1 << 29).all()
    assert (out["formula_bytes"] > 900 << 20).all()
    assert out["reason"].str.startswith("CUDA out of memory. Tried to allocate").all()


def test_a_case_after_an_out_of_memory_starts_from_a_clean_device(stub_driver: StubDriver, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        CONFIG.replace('["float32", "bf16", "fp16"]', '"float32"').replace(
            '["contiguous", "channels_last"]', '"contiguous"'
        ),
        encoding="utf-8",
    )
    env = {**os.environ, **stub_driver.environment("h200", memory_bytes=1 << 30), **NO_WORKSPACES}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    arguments = (
        "sweep",
        config,
        "--device",
        "cuda",
        "--set",
        "include=[]",
        "--set",
        "measure.order=sequential",
        "--no-report",
    )
    plugins.bench(*arguments, "--set", "grid.batch_size=[4096, 8]", "--out", tmp_path / "after", env=env)
    plugins.bench(*arguments, "--set", "grid.batch_size=[8]", "--out", tmp_path / "alone", env=env)
    after, alone = bench.load(tmp_path / "after").set_index("batch_size"), bench.load(tmp_path / "alone")
    assert after["status"].to_dict() == {4096: "oom", 8: "ok"}
    assert after.loc[8, "peak_reserved_bytes"] == alone["peak_reserved_bytes"].item()
    assert after.loc[8, "alloc_retries"] == 0


def test_on_a_known_device_the_trace_beside_each_run_is_right(stub_driver: StubDriver, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.replace("[8, 4096]", "[8, 256]"), encoding="utf-8")
    env = {**os.environ, **stub_driver.environment("h200"), **NO_WORKSPACES}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), env.get("PYTHONPATH"))))
    arguments = ("--device", "cuda", "--out", tmp_path / "out", "--set", 'grid.precision=["float32", "bf16"]')
    done = plugins.bench("sweep", config, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    frame = bench.load(tmp_path / "out")
    assert set(frame["estimate_device"]) == {"h200"}
    held = frame[frame["input"] == "synthetic"]  # a batch of the loader lives beside the one before it
    exact = held[held["memory_format"] == "contiguous"]
    for name in ("allocated", "reserved", "requested"):
        assert (exact[f"trace_peak_{name}_bytes"] == exact[f"peak_{name}_bytes"]).all(), name
        assert (held[f"trace_peak_{name}_bytes"] / held[f"peak_{name}_bytes"]).between(0.995, 1.005).all(), name
    assert (sum(held[f"trace_{part}_bytes"] for part in TRACE_PARTS) == held["trace_peak_allocated_bytes"]).all()
    assert (held["estimated_samples_per_s"] > 0).all()
    assert sorted(set(held["peak_flop_per_s"])) == [6.690816e13, 9.89e14]
    assert (held[["step_flop", "mfu_frac", "roofline_frac"]] > 0).all(axis=None)
    assert "trace" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


GPUS = (
    {
        "name": "NVIDIA A40-48Q",  # a virtual one
        "multiprocessors": 84,
        "capability_major": 8,
        "capability_minor": 6,
        "threads_per_multiprocessor": 1536,
        "memory_bytes": 50_962_169_856,
        "clock_khz": 1_800_000,
        "memory_clock_khz": 8_001_000,
        "memory_bus_bits": 384,
    },
    {
        "name": "NVIDIA GeForce RTX 3060",
        "multiprocessors": 28,
        "capability_major": 8,
        "capability_minor": 6,
        "threads_per_multiprocessor": 1536,
        "memory_bytes": 8 << 30,
    },
    {
        "name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "multiprocessors": 14,
        "capability_major": 8,
        "capability_minor": 0,
        "threads_per_multiprocessor": 2048,
        "memory_bytes": 5_100_273_664,
    },
    {
        "name": "NVIDIA GeForce RTX 4090 Laptop GPU",
        "multiprocessors": 76,
        "capability_major": 8,
        "capability_minor": 9,
        "threads_per_multiprocessor": 1536,
        "memory_bytes": 17_170_956_288,
    },
)
"""None of which a device file is for; the second has the name of one."""


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: str(gpu["name"]))
def test_a_gpu_without_a_device_file_is_traced_by_its_own_properties(
    stub_driver: StubDriver, tmp_path: Path, gpu: dict[str, int | str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.replace("[8, 4096]", "[8, 256]"), encoding="utf-8")
    env = {**os.environ, **stub_driver.environment("h200", **{"memory_clock_khz": 0, **gpu}), **NO_WORKSPACES}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    narrow = ("--set", "include=[]", "--set", "grid.memory_format=contiguous", "--set", "grid.precision=float32")
    arguments = ("sweep", config, "--device", "cuda", "--out", tmp_path / "out", *narrow)
    done = plugins.bench(*arguments, env=env)
    assert done.returncode == 0, done.stderr
    assert f"{gpu['name']}: " in done.stderr
    assert "The estimates use what the GPU reports" in done.stderr
    frame = bench.load(tmp_path / "out")
    assert set(frame["estimate_device"]) == {f"{gpu['name']} (read from the GPU)"}
    for name in ("allocated", "reserved", "requested"):
        assert (frame[f"trace_peak_{name}_bytes"] == frame[f"peak_{name}_bytes"]).all(), name
    assert frame["estimated_samples_per_s"].notna().all() == ("memory_clock_khz" in gpu)
    if "memory_clock_khz" not in gpu:
        assert frame["estimate_note"].str.contains("memory_bandwidth_bytes_per_s is unknown").all()

    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "The estimates use what the GPU reports" in text
    elsewhere = plugins.bench("report", tmp_path / "out" / "data", "--out", tmp_path / "elsewhere")
    assert elsewhere.returncode == 0, elsewhere.stderr
    described = tmp_path / "elsewhere" / "device.toml"
    assert described.read_bytes() == (tmp_path / "out" / "device.toml").read_bytes()
    axes = ("--model", "resnet18", "--dataset", "cifar10", "--optimizer", "adam", "--batch-size", "256")
    again = plugins.bench("estimate", *axes, "--device-file", described, "--json", env={**os.environ, **NO_WORKSPACES})
    (row,) = json.loads(again.stdout)
    stored = frame[frame["batch_size"] == 256].iloc[0]
    for name in ("trace_peak_allocated_bytes", "trace_peak_reserved_bytes", "estimated_fit"):
        assert row[name] == stored[name], name


def test_a_device_file_given_later_is_used_for_the_runs_that_are_there(stub_driver: StubDriver, tmp_path: Path) -> None:
    config, gpu = tmp_path / "c.toml", GPUS[0]
    config.write_text(CONFIG.replace("[8, 4096]", "8"), encoding="utf-8")
    env = {**os.environ, **stub_driver.environment("h200", **gpu), **NO_WORKSPACES}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    narrow = ("--set", "include=[]", "--set", "grid.memory_format=contiguous", "--set", "grid.precision=float32")
    arguments = ("sweep", config, "--device", "cuda", "--out", tmp_path / "out", *narrow)
    assert plugins.bench(*arguments, env=env).returncode == 0
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'gpu_name = "NVIDIA A40-48Q"\nkind = "cuda"\ncontext_bytes = 123_456_789\n'
        '[sources]\ncontext_bytes = "a test"\n',
        encoding="utf-8",
    )
    done = plugins.bench(*arguments, "--device-file", mine, env=env)
    assert done.returncode == 0, done.stderr
    assert "1 run already finished, 0 to do" in done.stderr
    row = bench.load(tmp_path / "out").iloc[0]
    assert row["estimate_device"] == "mine"
    assert row["estimated_device_bytes"] == row["trace_peak_reserved_bytes"] + 123_456_789
    mine.write_text(mine.read_text(encoding="utf-8").replace("A40-48Q", "A40-24Q"), encoding="utf-8")
    done = plugins.bench(*arguments, "--device-file", mine, env=env)
    assert done.returncode == 2
    assert "the GPU here is NVIDIA A40-48Q, but mine is for NVIDIA A40-24Q" in done.stderr
    done = plugins.bench("sweep", config, "--device", "cpu", "--out", tmp_path / "cpu", "--device-file", mine)
    assert done.returncode == 2
    assert "--device-file describes a GPU, but runs would use the CPU" in done.stderr
