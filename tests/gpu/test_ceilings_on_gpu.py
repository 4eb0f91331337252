"""What a real GPU reaches lies below what it is rated at, and not far below."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.probes.ceilings import measure_ceilings
from tests import plugins

pytestmark = pytest.mark.gpu


def test_ceilings_are_plausible_and_tensor_cores_are_faster() -> None:
    found = measure_ceilings("cuda", most_s=1.0)
    values = found["values"]
    assert 2e10 < values["reachable_bandwidth_bytes_per_s"] < 2e13
    assert 5e11 < values["reachable_float32_flop_per_s"] < 2e14
    assert 2e-7 < values["host_dispatch_s"] < 1e-4
    assert 2e-7 < values.get("launch_overhead_s", 2e-6) < 1e-4
    if "bf16" in found["precisions"]:
        assert values["reachable_bf16_flop_per_s"] > 1.5 * values["reachable_float32_flop_per_s"]
    assert any(each["bytes"] > 0 for each in found["workspaces"])


def test_a_short_calibration_is_better_than_none(tmp_path: Path) -> None:
    env = {**os.environ, "BENCH_CALIBRATIONS": str(tmp_path / "kept")}
    done = plugins.bench(
        *("calibrate", "--device", "cuda", "--minutes", "1.5", "--out", tmp_path / "out", "--json"),
        env=env,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kept"] is not None, found["not_kept"]
    assert found["speed"]["left_out"]["median_abs"] <= found["speed"]["before"]["median_abs"]
    assert found["context"]["median_bytes"] > 50 << 20
