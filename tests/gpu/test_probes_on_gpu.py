"""The probes on a real GPU: what NVML and torch say of the same card and the same steps must agree."""

from __future__ import annotations

import pytest

from bench.probes.environment import measure_environment
from bench.probes.nvml import GpuMonitor, find_gpu, list_gpus, window_fields
from bench.probes.selection import usable_device
from bench.probes.step_timing import time_steps
from bench.probes.torch_memory import CudaMemory

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu


def uuid_of_current_gpu() -> str:
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def test_torchs_gpu_is_found_by_uuid_with_the_same_memory() -> None:
    gpu = find_gpu(uuid_of_current_gpu(), list_gpus())
    assert gpu is not None
    assert gpu.capability == torch.cuda.get_device_capability()
    assert gpu.total_bytes is not None
    assert abs(gpu.total_bytes / torch.cuda.get_device_properties(0).total_memory - 1) < 0.05


def test_gpu_is_chosen_where_torch_can_use_it() -> None:
    assert usable_device("auto").kind == "cuda"


def test_snapshot_under_load_reads_clocks_and_energy_grows() -> None:
    square = torch.randn(4096, 4096, device="cuda")
    with GpuMonitor(uuid_of_current_gpu()) as monitor:
        for _ in range(200):
            square @ square
        start = monitor.snapshot()
        for _ in range(200):
            square @ square
        torch.cuda.synchronize()
        end = monitor.snapshot()
    found = window_fields(start, end)
    assert start.error is None and end.error is None
    assert (found["sm_clock_end_hz"] or 0) > 1e8
    assert found["energy_window_j"] is None or found["energy_window_j"] >= 0
    assert (end.used_total_bytes or 0) > 4096 * 4096 * 4


def test_environment_of_the_gpu_is_filled() -> None:
    found = measure_environment("cuda")
    assert None not in (found.gpu_name, found.gpu_uuid_hash, found.gpu_total_bytes, found.driver_version)
    assert uuid_of_current_gpu() not in str(found)


def test_events_and_wall_clock_agree_on_steps_that_fill_the_device() -> None:
    square = torch.randn(4096, 4096, device="cuda")

    def step() -> None:
        for _ in range(4):
            square @ square

    time_steps(step, 10, "cuda")
    times = time_steps(step, 30, "cuda")
    assert abs(sum(times.step_times_s) / times.wall_window_s - 1) < 0.02


def test_peaks_are_rounded_requests_inside_reserved_segments() -> None:
    memory = CudaMemory()
    torch.cuda.empty_cache()
    memory.reset()
    before = memory.read_peaks()
    block = torch.empty(1000, dtype=torch.uint8, device="cuda")
    after = memory.read_peaks()
    assert (after.requested_bytes or 0) - (before.requested_bytes or 0) == 1000
    assert (after.allocated_bytes or 0) - (before.allocated_bytes or 0) == 1024
    assert (after.reserved_bytes or 0) >= (after.allocated_bytes or 0)
    context = memory.device_fields()["context_bytes"]
    assert context is None or context > 10 << 20
    del block
