"""A device that fails under a run, with the stub driver as the device: the row says how, and the next run starts clean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bench
from tests import plugins
from tests.oracle.stub import StubDriver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CONFIG = """
name = "faults"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = [8]
[measure]
repeats = 12
warmup_steps = 2
measured_steps = 4
min_window = "1 ms"
order = "sequential"
[limits]
run_timeout = "25 s"
[data]
fetch = false
"""

FAULTS = (
    (710, "failed", "CUDA error: device-side assert triggered"),
    (700, "failed", "CUDA error: an illegal memory access was encountered"),
    (214, "failed", "CUDA error: uncorrectable ECC error encountered"),
    (46, "failed", "CUDA error: CUDA-capable device(s) is/are busy or unavailable"),  # the GPU is lost
    (702, "failed", "CUDA error: the launch timed out and was terminated"),
    (0, "timeout", "no answer in time; it was in the phase warm-up"),  # a kernel without an end
)
LAUNCH = 20
"""Of a kernel, in a run: after the model is on the device."""


def test_each_fault_of_the_device_is_one_row_and_the_next_run_starts_clean(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    """Twelve runs of one case: each fault in turn, and behind each a run without one."""
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    codes = ",-,".join(str(code) for code, *_ in FAULTS)
    env = {**os.environ, **stub_driver.environment("h200", fault_at=LAUNCH, fault_code=codes, fault_mark=str(tmp_path / "mark")),
           "BENCH_CUDNN_WORKSPACES": "off", "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    done = plugins.bench(
        "sweep", config, "--device", "cuda", "--no-report", "--out", tmp_path / "out", env=env, timeout=900
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    frame = bench.load(tmp_path / "out").sort_values("position").reset_index(drop=True)
    faulty, clean = frame.iloc[::2].reset_index(drop=True), frame.iloc[1::2]
    assert list(faulty["status"]) == [status for _, status, _ in FAULTS]
    for row, (_, _, reason) in zip(faulty.itertuples(), FAULTS, strict=True):
        assert reason in row.reason
        assert row.phase in ("build", "warm-up", "measure")
    assert faulty["peak_allocated_bytes"].isna().all()
    assert set(clean["status"]) == {"ok"}
    for column in ("peak_allocated_bytes", "peak_reserved_bytes"):
        assert (clean[column] == clean[f"trace_{column}"]).all(), column
    assert clean["cold_peak_allocated_bytes"].nunique() == 1
    assert (clean["alloc_retries"] == 0).all()
