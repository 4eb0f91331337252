"""Out of memory: told apart from other failures, its size read, and made an error by a limit."""

from __future__ import annotations

import errno
import re
import subprocess
import sys

import pytest
import torch

from bench.errors import BenchError, describe_failure
from bench.probes import oom
from bench.probes.oom import (
    describe_out_of_memory,
    is_out_of_memory,
    limit_host_memory,
    may_hide_out_of_memory,
    parse_out_of_memory,
    read_data_bytes,
)

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


NVML_ASSERT = 'INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830, please report a bug to PyTorch. '
FROM_WORKER = 'Caught {kind} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x.py"\n{last}\n'

TEXTS = (
    # text, bytes asked for where it says, where it comes from (torch's version)
    (CUDA_TEXT, 2 << 30, "c10/cuda/CUDACachingAllocator.cpp (1.0 on)"),
    (
        "CUDA out of memory. Allocation was preemptively rejected because it would exceed per_process_memory_fraction "
        "limit. Requested size: 1.50 GiB. Already allocated: 2.00 GiB",
        3 << 29,
        "CUDACachingAllocator.cpp (2.15)",
    ),
    ("CUDA out of memory. Tried to allocate more than 1EB memory.", None, "CUDACachingAllocator.cpp (1.7 on)"),
    (
        "Allocation on device 0 would exceed allowed memory. (out of memory)\nCurrently allocated     : 1.00 GiB\n"
        "Requested               : 2.00 GiB\nDevice limit            : 2.50 GiB",
        2 << 30,
        "CUDAMallocAsyncAllocator.cpp (2.0 on)",
    ),
    ("HIP out of memory. Tried to allocate 512 bytes. GPU 0 has ...", 512, "the same file, hipified"),
    (
        "XPU out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ...",
        20 << 20,
        "c10/xpu/XPUCachingAllocator.cpp (2.3 on)",
    ),
    (
        "MPS backend out of memory (MPS allocated: 18.00 GB, other allocations: 384.00 KB, max allowed: 18.13 GB). "
        "Tried to allocate 256.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 ...",
        256 << 20,
        "aten/src/ATen/mps/MPSAllocator.mm (1.13 on)",
    ),
    (
        "MPS backend out of memory (MPS allocated: 1024.00 MiB, other allocations: 384.00 KiB, max allowed: 511.18 MiB). "
        "Tried to allocate 256.00 MiB on shared pool. Use ...",
        256 << 20,
        "the same file (2.9 on)",
    ),
    ("NVML_SUCCESS == r " + NVML_ASSERT, None, "CUDACachingAllocator.cpp (2.1 on), pytorch/pytorch #112377, #122068"),
    ("NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() " + NVML_ASSERT, None, "the same, pytorch/pytorch #130486"),
    ("CUDA driver error: out of memory", None, "c10/cuda/driver_api.h (2.1 on), pytorch/pytorch #188008"),
    (
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "c10/cuda/CUDACachingAllocator.cpp":1154, please report a bug to '
        "PyTorch. ",
        None,
        "CUDACachingAllocator.cpp (2.1), a MIG slice in a container, pytorch/pytorch #112377, #197312",
    ),
    (
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "c10/cuda/CUDACachingAllocator.cpp":995, ...',
        None,
        "CUDACachingAllocator.cpp (2.5 to 2.12), Jetson, pytorch/pytorch #185240; a warning instead since #185946",
    ),
    (
        "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 255.98 GiB of which 244.65 GiB is "
        "free. 1.05 GiB allowed; Of the allocated memory ...",
        2 << 20,
        "CUDACachingAllocator.cpp (2.2 on), under a memory fraction",
    ),
    (
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        None,
        "SYCL's runtime below torch 2.5 and newer, pytorch/pytorch #177714",
    ),
    (
        "Native API failed. Native API returns: -6 (PI_ERROR_OUT_OF_HOST_MEMORY) -6 (PI_ERROR_OUT_OF_HOST_MEMORY)",
        None,
        "SYCL's runtime below torch 2.3 and 2.4",
    ),
    (
        "Invalid buffer size: 9.75 GB",
        round(9.75 * (1 << 30)),
        "aten/src/ATen/mps/MPSAllocator.mm (1.12 on), pytorch/pytorch #78042",
    ),
    ("Invalid buffer size: 19.38 GiB", round(19.38 * (1 << 30)), "the same file (2.9 on)"),
    (
        "Execution of the command buffer was aborted due to an error during execution. Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        None,
        "Metal, below torch 1.12 and newer",
    ),
    (
        "MIOpen Error: /data/repo/MIOpen/src/hip/handlehip.cpp:70: Memory not available to allocate buffer: 655360000",
        655360000,
        "MIOpen, ROCm/MIOpen #47",
    ),
    ("HIP error: hipErrorOutOfMemory: out of memory", None, "c10/cuda/CUDAException.cpp, hipified"),
    (
        '[WinError 1455] The paging file is too small for this operation to complete. Error loading "torch_cuda.dll"',
        None,
        "Windows, of the host",
    ),
    (
        "Caught RuntimeError in pin memory thread for device 0.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: CUDA error: out of memory",
        None,
        "torch/utils/data/_utils/pin_memory.py (1.2 on)",
    ),
    (
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        None,
        "c10/cuda/CUDAException.cpp",
    ),
    (
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/ ...",
        None,
        "CUDAException.cpp (2.9 on)",
    ),
    ("HIP error: out of memory", None, "the same file, hipified"),
    (
        "parallel_for failed: cudaErrorMemoryAllocation: out of memory",
        None,
        "thrust, as torch's sort and unique use it",
    ),
    ("Triton Error [CUDA]: out of memory", None, "triton/backends/nvidia/driver.c (triton 2.1 on)"),
    (
        "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic shapes, cuDNN may need "
        "additional device memory",
        None,
        "ATen/cudnn (2.15)",
    ),
    (
        "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, unhandled cuda error\nLast error:\n"
        "Cuda failure 2 'out of memory'",
        None,
        "NCCL 2.19",
    ),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", None, "ATen/cuda/CUDABlas.cpp"),
    ("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `...`", None, "ATen/cuda/CUDASolver.cpp"),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", None, "ATen/cudnn/Exceptions.h, cuDNN 8"),
    ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", None, "the same, cuDNN 9"),
    ("cuFFT error: CUFFT_ALLOC_FAILED", None, "ATen/native/cuda/CuFFTUtils.h"),
    (CPU_TEXT, 1 << 40, "c10/core/impl/alloc_cpu.cpp (1.10 on)"),
    (
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate "
        "4294967296 bytes.",
        4 << 30,
        "the same file on Windows",
    ),
    ("unable to mmap 4096 bytes from file </torch_1_2_3>: Cannot allocate memory (12)", 4096, "ATen/MapAllocator.cpp"),
    ("std::bad_alloc", None, "C++"),
    (
        FROM_WORKER.format(kind="RuntimeError", last="RuntimeError: " + CPU_TEXT),
        1 << 40,
        "torch/_utils.py, ExceptionWrapper",
    ),
    (
        FROM_WORKER.format(
            kind="_ArrayMemoryError",
            last="numpy._core._exceptions._ArrayMemoryError: Unable to allocate "
            "3.50 GiB for an array with shape (1, 2) and data type uint8",
        ),
        7 << 29,
        "ExceptionWrapper, which cannot make numpy's",
    ),
)


@pytest.mark.parametrize(("text", "expected", "source"), TEXTS, ids=[source for *_, source in TEXTS])
def test_each_way_to_say_it_is_known_with_its_size(text: str, expected: int | None, source: str) -> None:
    error = RuntimeError(text)
    assert is_out_of_memory(error), source
    assert parse_out_of_memory(error) == expected
    assert describe_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("Unable to allocate 2.00 GiB for an array with shape (1,) and data type float64"), 2 << 30),
        (MemoryError(), None),
        (MemoryError("std::bad_alloc"), None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
        (OSError(FROM_WORKER.format(kind="OSError", last="OSError: [Errno 12] Cannot allocate memory")), None),
        (MemoryError(FROM_WORKER.format(kind="MemoryError", last="MemoryError")), None),
    ],
)
def test_each_type_that_says_it_is_known(error: BaseException, expected: int | None) -> None:
    assert is_out_of_memory(error)
    assert parse_out_of_memory(error) == expected


def test_torchs_own_type_is_known_alone_and_in_a_group() -> None:
    group = ExceptionGroup("two", [ValueError("x"), torch.OutOfMemoryError(CUDA_TEXT)])
    assert all(map(is_out_of_memory, (torch.OutOfMemoryError("whatever it says"), group)))
    assert parse_out_of_memory(torch.OutOfMemoryError("whatever it says")) is None
    assert parse_out_of_memory(torch.cuda.OutOfMemoryError(CUDA_TEXT)) == parse_out_of_memory(group) == 2 << 30


def test_what_the_compiler_wraps_is_seen_through() -> None:
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor import exc

    inner = torch.OutOfMemoryError(CUDA_TEXT)
    if hasattr(exc, "InductorError"):  # torch 2.7 on: of autotuning, and of constants that are folded
        assert parse_out_of_memory(exc.InductorError(inner, None)) == 2 << 30
        assert not is_out_of_memory(exc.InductorError(ValueError("a fault of the compiler's"), None))
    assert parse_out_of_memory(BackendCompilerFailed("inductor", inner, None)) == 2 << 30  # its text has the inner's
    try:
        try:
            raise inner
        except RuntimeError:
            raise TypeError("while the graph was made")  # noqa: B904 - the chain as Python makes it
    except TypeError as error:
        assert parse_out_of_memory(error) == 2 << 30


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA driver error: unknown error"),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
        RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/PeerToPeerAccess.cpp":83, ...'),
        RuntimeError(
            'params.err == cudaErrorMemoryAllocation INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1902'
        ),
        RuntimeError('!handles_.at(i) INTERNAL ASSERT FAILED at "c10/cuda/CUDACachingAllocator.cpp":487'),
        RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
        RuntimeError("No valid triton configs. OutOfResources: out of resource: triton_mm Required: 147456"),
        RuntimeError("Unsupported memory format supported only contiguous, channels_last"),
        RuntimeError("can't start new thread"),
        RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
        RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),  # by whom, the control group tells
        RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
        RuntimeError("MIOpen Error: popen() failed"),
        RuntimeError("Placeholder buffer size is not large enough to contain the Tensor storage of size 12"),
        RuntimeError("Invalid buffer size"),
        RuntimeError("nvmlDeviceGetMemoryInfo: Not Supported"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("model said: Tried to allocate 2.00 GiB"),  # a size alone is no proof
        RuntimeError("index out of range in self"),
        RuntimeError(
            "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback ...\nValueError: MemoryError"
        ),
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
        OSError(28, "No space left on device"),
        ValueError(CUDA_TEXT),
        KeyError("memory"),
    ],
    ids=str,
)
def test_other_failures_are_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert parse_out_of_memory(error) is None


@pytest.mark.parametrize(
    ("text", "hides"),
    [
        ("GET was unable to find an engine to execute this computation", True),  # Conv_v8.cpp (1.12 on)
        ("FIND was unable to find an engine to execute this computation", True),
        ("Unable to find a valid cuDNN algorithm to run convolution", True),  # Conv_v7.cpp (1.5 on)
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`", True),
        ("CUDA error: CUSPARSE_STATUS_NOT_INITIALIZED when calling `cusparseCreate(handle)`", True),
        ("cuFFT error: CUFFT_INTERNAL_ERROR", True),  # pytorch/pytorch #119420, on a device that is nearly full
        ("cuFFT error: CUFFT_INVALID_SIZE", False),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED", False),
        ("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling ...", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_words_behind_which_lack_of_memory_may_stand_are_known_as_such(text: str, hides: bool) -> None:
    error = RuntimeError(text)
    assert may_hide_out_of_memory(error) is hides
    assert not may_hide_out_of_memory(ValueError(text))
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError(
                "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB"
            ),
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB",
        ),
        (MemoryError(), "MemoryError"),
        (
            MemoryError(FROM_WORKER.format(kind="MemoryError", last="MemoryError")),
            "MemoryError (in DataLoader worker process 0)",
        ),
    ],
)
def test_the_line_that_says_it_is_given(error: BaseException, line: str) -> None:
    assert describe_out_of_memory(error) == line


def test_a_place_stands_for_a_message_that_there_is_not() -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        assert re.fullmatch(r"MemoryError \(test_oom\.py:\d+\)", describe_out_of_memory(error))


def test_an_exception_that_cannot_say_what_it_is_has_a_reason() -> None:
    class Mute(RuntimeError):
        def __str__(self) -> str:
            raise ValueError("no")

    assert not is_out_of_memory(Mute())
    assert describe_failure(Mute()) == "Mute: its message cannot be printed"
    assert describe_failure(AssertionError(" \n ")) == "AssertionError"
    assert describe_failure(KeyError("x")) == "KeyError: 'x'"
    wrapped = RuntimeError(FROM_WORKER.format(kind="Odd", last="some.where.Odd: what it says\nin two lines"))
    assert describe_failure(wrapped) == "Odd: what it says (in DataLoader worker process 0)"


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
    with pytest.raises(BenchError, match=r"memory limit: 1\.00 MiB is too low: .* Allowed: .*iB or more"):
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
