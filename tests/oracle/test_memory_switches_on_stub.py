"""The shipped sweep of the switches on a device that the stub driver plays: memory is true, times mean nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

import bench
from tests import plugins
from tests.oracle.stub import StubDriver

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_switches_are_swept_with_estimates_beside_them(stub_driver: StubDriver, tmp_path: Path) -> None:
    env = {**os.environ, **stub_driver.environment("h200", memory_bytes=4 << 30), "BENCH_CUDNN_WORKSPACES": "off"}
    env["PYTHONPATH"] = str(ROOT)
    small = ("--set", 'grid.model=["resnet18"]', "--set", "measure.repeats=1")
    config = ROOT / "configs" / "memory_switches.toml"
    done = plugins.bench("sweep", config, "--device", "cuda", *small, "--out", tmp_path / "out", env=env)
    assert done.returncode == 0, done.stderr
    frame = bench.load(tmp_path / "out")
    assert set(frame["status"]) == {"ok"}
    assert len(frame) == 8
    for peak in ("allocated", "reserved"):
        assert (frame[f"trace_peak_{peak}_bytes"] == frame[f"peak_{peak}_bytes"]).all()
    drawn = pd.read_csv(tmp_path / "out" / "figures" / "switches.csv")
    assert len(drawn) == 8
    assert drawn["estimated_samples_per_s"].notna().all()
    assert drawn["on_front"].any()
