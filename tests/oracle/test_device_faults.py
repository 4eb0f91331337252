"""A device that fails under a run, with the stub driver as the device: the row says how, and the next run starts clean."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
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
    (0, "timeout", "timed out during warm-up"),  # a kernel without an end
)
LAUNCH = 20
"""Of a kernel, in a run: after the model is on the device."""

ENDED_WITHIN_S = 10.0
"""The fork server and what it started end when they see that the sweep has, which is a moment later."""

FREE_BYTES = """
import ctypes
total, free, memory = ctypes.c_size_t(), ctypes.c_size_t(), (ctypes.c_ulonglong * 6)()
driver = ctypes.CDLL("libcuda.so.1")
driver.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
found = [free.value, total.value]
driver.nvmlInitWithFlags(0)
for name, at in (("nvmlDeviceGetMemoryInfo", 0), ("nvmlDeviceGetMemoryInfo_v2", 2)):  # total first, then free and used
    getattr(driver, name)(ctypes.c_void_p(1), memory)
    found += [memory[at + 1], memory[at + 2]]
print(*found)
"""


def test_each_fault_of_the_device_is_one_row_and_the_next_run_starts_clean(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    """Twelve runs of one case: each fault in turn, and behind each a run without one."""
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    codes = ",-,".join(str(code) for code, *_ in FAULTS)
    env = {
        **os.environ,
        **stub_driver.environment("h200", fault_at=LAUNCH, fault_code=codes, fault_mark=str(tmp_path / "mark")),
        "BENCH_STUB_ALONE": str(tmp_path / "alone"),
        "BENCH_CUDNN_WORKSPACES": "off",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    arguments = ("sweep", config, "--device", "cuda", "--no-report", "--out", tmp_path / "out")
    done = plugins.bench(*arguments, env=env, timeout=900, fresh=True)  # its marks are seen where a process begins
    assert not _still_there(tmp_path), "something of the sweep lives on"
    assert (tmp_path / "alone").exists()
    assert not (tmp_path / "alone.met").exists(), "two processes had memory of the device at once"
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


@pytest.mark.parametrize("call", ["cuMemAddressReserve:2", "cuMemCreate:4", "cuMemMap:4", "cuMemSetAccess:4"])
def test_memory_that_a_call_for_expandable_segments_does_not_find_is_out_of_memory(
    stub_driver: StubDriver, tmp_path: Path, call: str
) -> None:
    """Of these, torch expects it of cuMemCreate alone; it raises the others' as errors of the driver."""
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    settings = stub_driver.environment("h200", allocator="expandable_segments:True", call_fault=call)
    env = {**os.environ, **settings, "BENCH_CUDNN_WORKSPACES": "off", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = plugins.bench(
        "sweep",
        config,
        "--device",
        "cuda",
        "--no-report",
        "--out",
        tmp_path / "out",
        "--repeats",
        "1",
        "--set",
        "grid.model=resnet18",
        "--set",
        "grid.dataset=cifar10",
        env=env,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (row,) = bench.load(tmp_path / "out").to_dict("records")
    expected = "CUDA out of memory. Tried" if "Create" in call else "CUDA driver error: out of memory"
    assert row["status"] == "oom"
    assert row["reason"].startswith(expected)
    assert row["peak_allocated_bytes"] > 0


def test_a_device_that_others_hold_whole_has_nothing_free(stub_driver: StubDriver) -> None:
    total = 8 << 30
    settings = {"memory_bytes": total, "context_bytes": 1 << 20, "nvml": 1}
    for others, free in ((total - (1 << 30), 1 << 30), (total, 0), (2 * total, 0)):
        env = stub_driver.environment("h200", others_bytes=others, **settings)
        done = subprocess.run([sys.executable, "-c", FREE_BYTES], env=env, capture_output=True, text=True, check=True)
        left = max(0, free - (1 << 20))  # to CUDA; NVML counts the context of a process that holds memory
        assert [int(value) for value in done.stdout.split()] == [left, total, *([free, total - free] * 2)]


def _still_there(folder: Path) -> list[str]:
    """What was started with the sweep's marks in its environment, which all its descendants have, and does not end."""
    deadline = time.monotonic() + ENDED_WITHIN_S
    while (found := _marked(str(folder / "mark"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("BENCH_STUB_FAULT_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found
