"""The probes on a real GPU: what NVML and torch say of the same card and the same steps must agree."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.probes.diagnosis import diagnose
from bench.probes.environment import measure_environment
from bench.probes.machine_facts import read_machine_facts
from bench.probes.nvml import GpuMonitor, find_gpu, list_gpus, window_fields
from bench.probes.oom import is_out_of_memory, parse_out_of_memory
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


def test_the_kind_of_memory_is_known_and_its_columns_go_with_it() -> None:
    found = measure_environment("cuda")
    unified = bool(torch.cuda.get_device_properties(0).is_integrated)
    assert found.device_memory_kind == ("unified" if unified else "slice" if found.mig else "dedicated")
    assert (found.gpu_total_bytes is None) == unified
    if found.device_memory_note is None:
        assert not unified
        assert (found.gpu_memory_limit_bytes or 1) <= (found.gpu_total_bytes or 1)
    memory = CudaMemory()
    torch.empty(1, device="cuda")
    fields = memory.device_fields()
    assert (fields["device_total_bytes"] is None) == unified
    assert not memory.is_exhausted()


def test_nvml_counts_memory_that_torch_takes_as_the_devices_and_as_this_processs() -> None:
    torch.empty(1, device="cuda")
    torch.cuda.empty_cache()  # memory cached by an earlier test would serve the block, and the device's would not change
    with GpuMonitor(uuid_of_current_gpu()) as monitor:
        before = monitor.snapshot()
        block = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
        after = monitor.snapshot()
    if before.used_total_bytes is None or after.used_total_bytes is None:
        pytest.skip("NVML gives no memory of this GPU, and the row says why")
    assert after.used_total_bytes - before.used_total_bytes >= 480 << 20  # others may give some back meanwhile
    if before.used_process_bytes is not None and after.used_process_bytes is not None:
        assert after.used_process_bytes - before.used_process_bytes == pytest.approx(512 << 20, abs=4 << 20)
    del block
    torch.cuda.empty_cache()


def test_memory_of_nvml_is_at_least_what_cuda_shows_where_nothing_limits_it() -> None:
    """A GPU's limit is NVML's total below CUDA's: without a control group's limit there must be none."""
    found = measure_environment("cuda")
    with GpuMonitor(uuid_of_current_gpu()) as monitor:
        static = monitor.static()
    if static.total_bytes is None or static.allowed_bytes != static.total_bytes:
        pytest.skip("NVML gives no memory of this GPU, or a limit on it")
    assert found.gpu_memory_limit_bytes is None


def test_too_large_a_tensor_is_out_of_memory_with_its_size() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 42, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)
    assert parse_out_of_memory(caught.value) in (1 << 42, None)  # no amount where NVML did not answer torch
    assert CudaMemory().is_exhausted()


ELSEWHERE = """
import torch
from bench.probes.oom import is_out_of_memory
blocks = []
size = 1 << 30
while size >= 2 << 20:  # leaves less than the driver needs for anything
    try:
        blocks.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
from bench.probes.torch_memory import CudaMemory
assert CudaMemory().is_exhausted()
try:
    small = blocks.pop().view(torch.float32)[: 64 * 64].view(64, 64)  # memory that torch has: cuBLAS needs the driver's
    small @ small
    torch.cuda.synchronize()
    print("worked")
except RuntimeError as error:
    from bench.probes.oom import may_hide_out_of_memory
    print("oom" if is_out_of_memory(error) or may_hide_out_of_memory(error) else f"other: {error}")
"""


def test_a_library_that_finds_the_device_full_says_so_in_words_that_are_known() -> None:
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() in ("worked", "oom"), done.stdout + done.stderr


def test_a_slice_or_a_limit_is_told_by_bench_env() -> None:
    facts = read_machine_facts()
    codes = [finding.code for finding in diagnose(facts)]
    found = measure_environment("cuda")
    assert ("unified_memory" in codes) == (found.device_memory_kind == "unified")
    assert any(code.startswith("mig_slice") for code in codes) == (found.device_memory_kind == "slice")
    assert ("gpu_memory_limit" in codes) == (found.gpu_memory_limit_bytes is not None)


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
