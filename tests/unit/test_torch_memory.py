"""Exact CPU peaks against tensors counted by hand, CUDA counters against a stand-in, resident memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.errors import DeviceError
from bench.probes.rss import reset_rss_peak, rss_peak_bytes
from bench.probes.torch_memory import (
    Allocation,
    CpuPeak,
    CudaMemory,
    MemoryMark,
    TorchPeaks,
    measure_cpu_peak,
    memory_kind,
    replay,
    start_gpu,
)

Run = Callable[[Callable[[], None]], None]
MLP_PARAMETERS_BYTES = 101_770 * 4


def mlp_steps(batch_size: int, steps: int, momentum: float = 0.0) -> Run:
    """The founding MNIST MLP: builds model, batch and SGD, then trains."""

    def run(mark: Callable[[], None]) -> None:
        layers = [torch.nn.Flatten(), torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)]
        model = torch.nn.Sequential(*layers)
        images, labels = torch.randn(batch_size, 1, 28, 28), torch.zeros(batch_size, dtype=torch.int64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        for _ in range(steps):
            mark()
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return run


def test_peak_of_tensors_counted_by_hand() -> None:
    def run(mark: Callable[[], None]) -> None:
        first = torch.empty(1000)  # 4,000 B
        second = torch.empty(3000)  # 16,000 B with the first
        del first
        third = torch.empty(2000)  # 20,000 B with the second
        del second
        fourth = torch.empty(100, dtype=torch.float64)  # 8,800 B with the third
        del third, fourth

    assert measure_cpu_peak(run) == CpuPeak(20_000, (), 0)


def test_peak_of_the_founding_mlp_is_parameters_gradients_batch_and_hidden_layer() -> None:
    batch = 64 * 784 * 4 + 64 * 8  # images and labels
    hidden = 64 * 128 * 4  # its gradient, while the first layer's weight gradient is made
    loss = 4 + 4  # the loss and its gradient
    peak = measure_cpu_peak(mlp_steps(64, steps=2))
    assert peak.total_bytes == 2 * MLP_PARAMETERS_BYTES + batch + hidden + loss
    assert peak.phase_bytes == (peak.total_bytes,) * 2
    assert peak.end_bytes == 0


def test_optimizer_state_shows_from_the_second_step_on() -> None:
    peak = measure_cpu_peak(mlp_steps(1, steps=2, momentum=0.9))
    plain = measure_cpu_peak(mlp_steps(1, steps=2))
    assert peak.warm_bytes - plain.warm_bytes == MLP_PARAMETERS_BYTES
    assert peak.phase_bytes[0] <= peak.warm_bytes == peak.total_bytes


def test_peak_is_the_same_when_measured_again() -> None:
    run = mlp_steps(8, steps=2, momentum=0.9)
    assert measure_cpu_peak(run) == measure_cpu_peak(run)


def test_peak_of_a_convolutional_model_is_at_least_its_tensors() -> None:
    from torchvision.models import resnet18

    def run(mark: Callable[[], None]) -> None:
        model = resnet18()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        images = torch.randn(2, 3, 64, 64)
        for _ in range(2):
            mark()
            optimizer.zero_grad(set_to_none=True)
            model(images).sum().backward()
            optimizer.step()

    parameters_bytes = 11_689_512 * 4
    peak = measure_cpu_peak(run)
    assert 3 * parameters_bytes < peak.warm_bytes < 3.4 * parameters_bytes  # with gradients and momentum
    assert peak.end_bytes == 0


def test_earlier_pass_with_tensors_freed_unseen_does_not_count() -> None:
    kept: list[torch.Tensor] = []
    measure_cpu_peak(lambda mark: kept.append(torch.empty(1_000_000)))
    kept.clear()
    assert measure_cpu_peak(lambda mark: kept.append(torch.empty(1000))).total_bytes == 4000


def test_tensor_from_before_that_is_freed_inside_is_not_negative() -> None:
    kept: list[torch.Tensor] = []
    measure_cpu_peak(lambda mark: kept.append(torch.empty(1_000_000)))

    def run(mark: Callable[[], None]) -> None:
        kept.clear()
        kept.append(torch.empty(1000))

    assert measure_cpu_peak(run).total_bytes == 4000


def test_what_is_alive_at_a_mark_counts_in_its_phase() -> None:
    def run(mark: Callable[[], None]) -> None:
        held = torch.empty(1000)
        mark()
        mark()
        torch.empty(500)
        del held

    assert measure_cpu_peak(run).phase_bytes == (4000, 6000)


def test_error_inside_the_run_comes_through() -> None:
    def run(mark: Callable[[], None]) -> None:
        raise ValueError("the model's fault")

    with pytest.raises(ValueError, match="the model's fault"):
        measure_cpu_peak(run)
    assert measure_cpu_peak(lambda mark: None).total_bytes == 64  # the probe's own sixteen floats


def test_replay_counts_frees_by_address() -> None:
    events = [
        Allocation(1, 10),
        MemoryMark(),
        Allocation(2, 5),
        Allocation(1, -10),
        Allocation(9, -99),
        MemoryMark(),
        Allocation(2, 7),
    ]
    # the free of 9 was never seen allocated; 2 is allocated again, so it was freed unseen
    assert replay(events) == CpuPeak(15, (15, 7), 7)


def test_replay_of_nothing_is_nothing() -> None:
    assert replay([]) == CpuPeak(0, (), 0)
    assert replay([]).warm_bytes == 0


def test_measuring_the_cpu_leaves_cuda_alone() -> None:
    measure_cpu_peak(lambda mark: None)
    assert not torch.cuda.is_initialized()


STATS = {
    "allocated_bytes.all.peak": 100,
    "requested_bytes.all.peak": 90,
    "reserved_bytes.all.peak": 200,
    "reserved_bytes.all.current": 150,
    "num_alloc_retries": 3,
}


def fake_allocator(
    monkeypatch: pytest.MonkeyPatch, stats: dict[str, Any], backend: str = "native", **properties: Any
) -> None:
    known = SimpleNamespace(**{"name": "NVIDIA A100-SXM4-80GB", "is_integrated": 0, **properties})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: known)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda index: stats)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (600, 1000))


def test_cuda_peaks_come_under_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.records import Measurement, columns

    fake_allocator(monkeypatch, STATS)
    memory = CudaMemory()
    assert memory.peaks() == {"peak_allocated_bytes": 100, "peak_requested_bytes": 90, "peak_reserved_bytes": 200}
    assert {*memory.peaks(), *memory.device_fields()} <= set(columns(Measurement))
    assert {f"cold_{name}" for name in memory.peaks()} <= set(columns(Measurement))


def test_what_an_allocator_does_not_count_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_allocator(monkeypatch, STATS, backend="cudaMallocAsync")
    assert CudaMemory().read_peaks() == TorchPeaks(100, None, 200)
    fake_allocator(monkeypatch, {})
    assert CudaMemory().read_peaks() == TorchPeaks(None, None, None)
    fake_allocator(monkeypatch, dict.fromkeys([*STATS, "allocated_bytes.all.allocated"], 0))  # no cache
    assert CudaMemory().read_peaks() == TorchPeaks(None, None, None)


def test_context_is_what_is_used_beyond_torch_and_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_allocator(monkeypatch, STATS)
    assert CudaMemory().device_fields() == {"device_total_bytes": 1000, "alloc_retries": 3, "context_bytes": 250}
    assert CudaMemory().device_fields(used_before_bytes=100)["context_bytes"] == 150
    assert CudaMemory().device_fields(used_before_bytes=400)["context_bytes"] is None  # others gave memory back


def test_a_gpu_that_takes_host_memory_has_no_size_and_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_allocator(monkeypatch, STATS, is_integrated=1, name="NVIDIA GB10")
    assert CudaMemory().device_fields() == {"device_total_bytes": None, "alloc_retries": 3, "context_bytes": None}


@pytest.mark.parametrize(
    ("properties", "kind"),
    [
        ({"name": "NVIDIA A100-SXM4-80GB", "is_integrated": 0}, "dedicated"),
        ({"name": "NVIDIA GH200 480GB", "is_integrated": 0}, "dedicated"),
        ({"name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "is_integrated": 0}, "slice"),
        ({"name": "NVIDIA GB10", "is_integrated": 1}, "unified"),
        ({"name": "Orin", "is_integrated": 1}, "unified"),
        ({"name": "NVIDIA Thor MIG 2g.0gb", "is_integrated": 1}, "unified"),  # a slice of the host's
        ({"name": "AMD Instinct MI300A", "is_integrated": 1}, "unified"),
    ],
    ids=lambda each: str(each),
)
def test_the_kind_of_memory_is_cudas_word(properties: dict[str, Any], kind: str) -> None:
    assert memory_kind(SimpleNamespace(**properties)) == kind


@pytest.mark.parametrize(
    ("ooms", "free", "exhausted"), [(0, 600 << 20, False), (1, 600 << 20, True), (0, 1 << 20, True)]
)
def test_a_device_is_exhausted_once_it_refused_memory_or_has_none(
    monkeypatch: pytest.MonkeyPatch, ooms: int, free: int, exhausted: bool
) -> None:
    fake_allocator(monkeypatch, {**STATS, "num_ooms": ooms})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free, 1 << 30))
    assert CudaMemory().is_exhausted() is exhausted


def test_a_lost_context_is_not_an_exhausted_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(index: int | None) -> tuple[int, int]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    fake_allocator(monkeypatch, STATS)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    assert not CudaMemory().is_exhausted()


def test_reset_is_for_the_watched_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    CudaMemory(1).reset()
    assert asked == [1]


def test_resident_peak_keeps_what_was_touched_and_freed_until_it_is_reset() -> None:
    program = (
        "from bench.probes.rss import *\n"
        "before = rss_peak_bytes()\n"
        "block = bytearray(b'x') * (64 << 20); del block\n"
        "after = rss_peak_bytes()\n"
        "print(before, after, reset_rss_peak(), rss_peak_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    before, after, was_reset, later = done.stdout.split()
    assert int(after) - int(before) > 48 << 20
    if was_reset == "True":
        assert int(later) < int(after) - (48 << 20)


def test_resident_peak_is_the_kernels_kilobytes_in_bytes(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n")
    assert rss_peak_bytes(status) == 2 << 20
    status.write_text("Name:\tkernel thread\n")
    assert rss_peak_bytes(status) is None


def test_resident_peak_without_proc_comes_from_rusage(tmp_path: Path) -> None:
    found = rss_peak_bytes(tmp_path / "nothing")
    assert found is None or found > 1 << 20


def test_reset_that_the_kernel_refuses_is_said(tmp_path: Path) -> None:
    assert not reset_rss_peak(tmp_path / "no" / "clear_refs")


@pytest.mark.parametrize(("used", "said"), [(5 << 30, " (5.00 GiB of it already in use)"), (None, ""), (0, "")])
def test_a_gpu_that_does_not_start_is_said_with_what_others_hold_of_it(
    monkeypatch: pytest.MonkeyPatch, used: int | None, said: str
) -> None:
    def refuse() -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    with pytest.raises(DeviceError) as caught:
        start_gpu(used)
    assert str(caught.value) == f"the GPU cannot be initialised{said}: CUDA error: out of memory"
