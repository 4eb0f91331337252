"""The switches that save memory, on a CUDA device under the stub driver: what is measured is what was estimated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bench
from bench.records import SWITCHES
from tests import plugins
from tests.oracle.stub import StubDriver
from tests.oracle.test_sweep_on_stub import NO_WORKSPACES

CONFIG = """
name = "switches"
[grid]
dataset = "cifar10"
model = "resnet18"
optimizer = "adam"
batch_size = 128
[[include]]
reason = "one switch"
accumulation = 4
[[include]]
reason = "one switch"
checkpointing = "blocks"
[[include]]
reason = "one switch"
update = "in_backward"
[[include]]
reason = "one switch"
zero_grad = "zeros"
[[include]]
reason = "one switch"
allocator = ["expandable", "max_split_size_mb:32,roundup_power2_divisions:4"]
[[include]]
reason = "two switches"
checkpointing = "blocks"
accumulation = 2
precision = "bf16"
[measure]
repeats = 1
warmup_steps = 5
measured_steps = 2
min_window = "1 ms"
[data]
fetch = false
"""

pytestmark = pytest.mark.slow


def test_each_switch_takes_the_memory_that_was_estimated(stub_driver: StubDriver, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    env = {**os.environ, **stub_driver.environment("h200", memory_bytes=8 << 30), **NO_WORKSPACES}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), env.get("PYTHONPATH"))))
    done = plugins.bench("sweep", config, "--device", "cuda", "--out", tmp_path / "out", env=env)
    assert done.returncode == 0, done.stderr
    frame = bench.load(tmp_path / "out").set_index("case_key")
    assert len(frame) == 8
    assert set(frame["status"]) == {"ok"}
    for word in ("allocated", "reserved", "requested"):
        assert (frame[f"peak_{word}_bytes"] == frame[f"trace_peak_{word}_bytes"]).all(), frame[
            ["accumulation", "checkpointing", "update", "allocator", f"peak_{word}_bytes", f"trace_peak_{word}_bytes"]
        ].to_string()
    told = frame[frame["allocator_in_force"].notna()]
    assert dict(zip(told["allocator"], told["allocator_in_force"], strict=True)) == {
        "expandable": "expandable_segments:True",
        "max_split_size_mb:32,roundup_power2_divisions:4": "max_split_size_mb:32,roundup_power2_divisions:4",
    }
    assert frame["not_in_force"].isna().all()
    peaks = frame["peak_allocated_bytes"]
    (plain,) = (peaks[key] for key, row in frame.iterrows() if all(row[name] == SWITCHES[name] for name in SWITCHES))
    assert peaks[frame["checkpointing"] == "blocks"].max() < plain
    assert peaks[frame["accumulation"] == 4].max() < plain
