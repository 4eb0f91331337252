"""`bench noise` on a CUDA device: times mean nothing, and every stage runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import bench
from tests import plugins
from tests.oracle.stub import StubDriver

pytestmark = pytest.mark.slow


def test_a_short_run_says_what_can_be_seen_and_is_kept(stub_driver: StubDriver, tmp_path: Path) -> None:
    env = {**os.environ, **stub_driver.environment("h200"), "BENCH_CALIBRATIONS": str(tmp_path / "kept")}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    case = ("--model", "mlp", "--dataset", "mnist", "--batch-size", "8")
    arguments = ("--device", "cuda", "--minutes", "2", "--repeats", "3", "--out", tmp_path / "out", "--json")
    done = plugins.bench("noise", *case, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["device"], found["measured_runs"]) == ("NVIDIA H200", 3)
    assert [each["processes"] for each in found["noise"]["visible"]] == [3, 5, 10]
    assert found["metrics"]["peak_allocated_bytes"]["visible"][0][1] == pytest.approx(0.01)
    assert Path(found["kept"]).is_file()
    frame = bench.load(tmp_path / "out")
    assert set(frame["status"]) == {"ok"} and frame["host_others_window_frac"].notna().all()
