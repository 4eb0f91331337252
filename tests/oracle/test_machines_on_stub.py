"""MIG slices, GPUs that take host memory and limits of control groups, with the stub as the device: whole sweeps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from bench.analysis import gpu_memory_bytes, judge
from bench.locks import device_lock_path, hold
from bench.probes.environment import UNIFIED
from bench.probes.nvml import hash_uuid
from tests import plugins
from tests.oracle.devices import DEVICES
from tests.oracle.stub import StubDriver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UUID = "GPU-11111111-2222-3333-4444-555555555555"
SLICES = tuple(f"MIG-{k:08x}-0000-0000-0000-000000000000" for k in range(2))
CUT_UP: dict[str, Any] = {"devices": ("a100-1g.5gb", "a100-1g.5gb"), "board": "a100-40gb"}
CONTEXT = 300 << 20
CONFIG = """
name = "machines"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = [8]
[measure]
repeats = 1
warmup_steps = 2
measured_steps = 4
min_window = "1 ms"
order = "sequential"
[data]
fetch = false
"""


@pytest.fixture
def sweep(stub_driver: StubDriver, tmp_path: Path) -> Any:
    """Run `bench sweep` under the stub with NVML and the settings given, into one folder."""
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")

    def run(*arguments: str, device: str = "h200", **settings: Any) -> Any:
        env = {
            **os.environ,
            **stub_driver.environment(device, nvml=1, context_bytes=CONTEXT, **settings),
            "BENCH_CUDNN_WORKSPACES": "off",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        done = plugins.bench("sweep", config, "--no-report", "--out", tmp_path / "out", *arguments, env=env)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run


def rows(tmp_path: Path) -> pd.DataFrame:
    """What came of it, in the order of the plan."""
    return bench.load(tmp_path / "out").sort_values("position").reset_index(drop=True)


def test_a_slice_is_a_device_of_its_own(sweep: Any, tmp_path: Path) -> None:
    with hold(device_lock_path(hash_uuid(SLICES[0])), "the other slice"):  # which has its own lock
        refused = sweep("--device", SLICES[0][:12], **CUT_UP)
        assert (refused.returncode, "is in use" in refused.stderr) == (2, True)
        done = sweep("--device", SLICES[1][:12], **CUT_UP)
    assert done.returncode == 0, done.stderr
    frame = rows(tmp_path)
    (row,) = frame.to_dict("records")
    board, own = DEVICES["a100-40gb"], DEVICES["a100-1g.5gb"]
    assert row["gpu_uuid_hash"] == hash_uuid(SLICES[1])
    assert (row["device_memory_kind"], row["mig"]) == ("slice", True)
    assert row["gpu_total_bytes"] == row["device_total_bytes"] == own["memory_bytes"] != board["memory_bytes"]
    assert row["gpu_multiprocessors"] == own["multiprocessors"]
    assert (row["device_used_before_bytes"], row["context_bytes"]) == (0, CONTEXT)  # half of the board is in use
    assert row["device_used_total_bytes"] == row["device_used_bytes"] == row["peak_reserved_bytes"] + CONTEXT
    assert row["other_process_count"] == 0
    assert pd.isna(row["energy_window_j"])  # the board's cover every slice
    assert pd.isna(row["power_end_w"])
    assert (row["sm_clock_end_hz"], row["temperature_end_c"], row["power_limit_w"]) == (1755e6, 55.0, 700.0)
    assert row["estimate_device"] == f"{own['name']} (read from the GPU)"
    assert gpu_memory_bytes(frame).tolist() == [own["memory_bytes"]]
    assert row["peak_reserved_bytes"] == row["trace_peak_reserved_bytes"]


def test_where_nvml_shows_the_board_alone_its_figures_are_not_the_slices(sweep: Any, tmp_path: Path) -> None:
    done = sweep("--device", "cuda", board_only=1, sampled_milliwatt=400_000, **CUT_UP)
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path).to_dict("records")
    assert (row["device_memory_kind"], row["gpu_total_bytes"]) == ("slice", DEVICES["a100-1g.5gb"]["memory_bytes"])
    assert row["device_total_bytes"] == DEVICES["a100-1g.5gb"]["memory_bytes"]
    memory = ("device_used_bytes", "device_used_total_bytes", "device_used_before_bytes")
    for column in (*memory, "sm_clock_end_hz", "power_end_w", "power_window_w", "energy_window_j"):
        assert pd.isna(row[column]), column


def test_a_gpu_that_takes_host_memory_is_kept_within_its_limit(sweep: Any, tmp_path: Path) -> None:
    limit = ("--set", 'limits.host_memory="1400 MiB"', "--set", "grid.batch_size=[8, 400000]")
    done = sweep("--device", "cuda", *limit, device="gb10", uuid=UUID)
    assert done.returncode == 1, done.stderr
    frame = rows(tmp_path)
    assert list(frame["status"]) == ["ok", "oom"]
    assert set(frame["device_memory_kind"]) == {"unified"}
    assert set(frame["device_memory_note"]) == {UNIFIED}
    assert set(frame["host_memory_limit_bytes"]) == {1400 << 20}
    assert (frame["device_memory_allowed_bytes"] < 1400 << 20).all()  # beside the process itself
    assert frame["reason"][1].startswith(
        "1.17 GiB requested, the process may use 1.37 GiB (limits.host_memory, or 90 %"
    )
    for column in (
        *("gpu_total_bytes", "gpu_memory_limit_bytes", "device_total_bytes", "context_bytes"),
        *("device_used_bytes", "device_used_total_bytes", "device_used_before_bytes"),
    ):
        assert frame[column].isna().all(), column
    assert (frame["peak_allocated_bytes"] > 0).all()
    assert set(frame["estimate_device"]) == {"gb10 as a card of 1400 MiB"}
    assert frame["estimated_fit"][1] == "does not fit"
    assert gpu_memory_bytes(frame).tolist() == [1400 << 20] * 2
    lacking = [finding.text for finding in judge(frame) if finding.code == "missing_disclosure"]
    assert not any("gpu_total_bytes" in text for text in lacking)


def test_a_limit_of_the_control_group_is_the_capacity(sweep: Any, tmp_path: Path) -> None:
    allowed = 1 << 30
    sizes = ("--set", "grid.batch_size=[8, 400000]")
    done = sweep("--device", "cuda", *sizes, uuid=UUID, allowed_bytes=allowed)
    assert done.returncode == 1, done.stderr
    frame = rows(tmp_path)
    assert list(frame["status"]) == ["ok", "oom"]
    assert set(frame["gpu_total_bytes"]) == {DEVICES["h200"]["memory_bytes"]}
    assert set(frame["gpu_memory_limit_bytes"]) == {allowed}
    assert set(frame["device_memory_kind"]) == {"dedicated"}
    assert set(frame["estimate_device"]) == {"h200 as a card of 1 GiB"}
    assert frame["estimated_fit"][1] == "does not fit"
    assert gpu_memory_bytes(frame).tolist() == [allowed] * 2
