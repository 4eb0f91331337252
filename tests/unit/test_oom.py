"""Out of memory: told apart from other failures, its size read, and made an error by a limit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench.errors import BenchError
from bench.probes import oom
from bench.probes.oom import is_out_of_memory, limit_host_memory, parse_out_of_memory, read_data_bytes

CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 1.17 GiB is "
    "free. Including non-PyTorch memory, this process has 78.07 GiB memory in use. "
    "Of the allocated memory 76.90 GiB is "
    "allocated by PyTorch, and 693.00 MiB is reserved by PyTorch but unallocated."
)
CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1099511627776 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError(CUDA_TEXT), 2 << 30),
        (RuntimeError(CUDA_TEXT.replace("CUDA", "HIP").replace("2.00 GiB", "512 bytes")), 512),
        (RuntimeError(CUDA_TEXT.replace("2.00 GiB", "20.00 MiB")), 20 << 20),
        (RuntimeError(CUDA_TEXT.replace("2.00 GiB", "1.50 KiB")), 1536),
        (RuntimeError(CPU_TEXT), 1 << 40),
        (
            MemoryError("Unable to allocate 2.00 GiB for an array with shape (268435456,) and data type float64"),
            2 << 30,
        ),
    ],
)
def test_size_asked_for_is_read_in_bytes(error: BaseException, expected: int) -> None:
    assert is_out_of_memory(error)
    assert parse_out_of_memory(error) == expected


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_failures_without_a_size_are_out_of_memory_of_unknown_size(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert parse_out_of_memory(error) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("model said: Tried to allocate 2.00 GiB"),  # a size alone is no proof
        ValueError(CUDA_TEXT),
        KeyError("memory"),
    ],
)
def test_other_failures_are_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert parse_out_of_memory(error) is None


def test_cause_is_found_below_what_wraps_it() -> None:
    try:
        try:
            raise torch.cuda.OutOfMemoryError(CUDA_TEXT)
        except RuntimeError as error:
            raise ValueError("layer 3 failed") from error
    except ValueError as error:
        assert parse_out_of_memory(error) == 2 << 30


def test_out_of_memory_that_was_dealt_with_does_not_count() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("something else") from None
    except ValueError as error:
        assert not is_out_of_memory(error)


def test_causes_in_a_circle_end() -> None:
    error = ValueError("a")
    error.__cause__ = other = ValueError("b")
    other.__cause__ = error
    assert not is_out_of_memory(error)


def test_torchs_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert parse_out_of_memory(caught.value) == 1 << 60


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts allocations on Linux only")

LIMITED = """
import numpy, torch
from bench.probes.oom import *
from bench.probes.oom import read_data_bytes
limit = read_data_bytes() + (512 << 20)
headroom = limit_host_memory(limit)
assert 0 < headroom <= 512 << 20, headroom
too_large = (lambda: torch.empty(1 << 28), lambda: numpy.ones(1 << 28), lambda: bytearray(1 << 30))
for allocate in too_large:
    try:
        allocate()
    except Exception as error:
        print(is_out_of_memory(error), parse_out_of_memory(error))
kept = []
try:
    while True:
        kept.append(torch.ones(4 << 20))
except RuntimeError as error:
    print(is_out_of_memory(error), parse_out_of_memory(error), len(kept) > 4)
kept.clear()
model = torch.nn.Linear(512, 512)
model(torch.randn(64, 512)).sum().backward()
print("works on")
"""


@needs_linux
def test_limit_makes_every_allocator_fail_cleanly_and_the_process_works_on() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"True {1 << 30}",
        f"True {2 << 30}",
        "True None",
        f"True {16 << 20} True",
        "works on",
    ]


@needs_linux
def test_limit_below_what_torch_holds_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(BenchError, match=r"memory limit: 1\.00 MiB is too low: .* Allowed: .*iB and more"):
        limit_host_memory(1 << 20)


def test_limit_is_left_alone_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "read_data_bytes", lambda: None)
    assert limit_host_memory(1) is None


@needs_linux
def test_data_of_the_process_grows_with_what_it_holds() -> None:
    before = read_data_bytes()
    block = torch.empty(64 << 20, dtype=torch.uint8)
    after = read_data_bytes()
    assert before is not None and after is not None
    assert after - before >= 60 << 20
    del block
