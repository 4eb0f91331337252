"""Out of memory: telling it from other failures, reading what was requested, and making it fail cleanly on the CPU."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from bench.confined import limit_data, read_data_bytes
from bench.errors import BenchError, describe_failure, message_of
from bench.units import MIB, format_bytes

_UNIT_FACTORS = {"": 1, "byte": 1, "bytes": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_AMOUNT = r"(?P<size>\d+(?:\.\d+)?) ?(?P<unit>[KMGT]i?B|bytes)"
"""As torch's format_size and numpy print sizes; MPS writes GB and means 2^30 bytes (aten/src/ATen/mps)."""
_SIZES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"Tried to allocate {_AMOUNT}",  # c10's allocators of CUDA, HIP and XPU, and that of MPS
        rf"per_process_memory_fraction limit\. Requested size: {_AMOUNT}",  # CUDACachingAllocator.cpp, torch 2.13 on
        rf"Requested\s+: {_AMOUNT}",  # c10/cuda/CUDAMallocAsyncAllocator.cpp
        rf"you tried to allocate {_AMOUNT}",  # c10/core/impl/alloc_cpu.cpp
        rf"unable to mmap {_AMOUNT}",  # MapAllocator.cpp, of a file
        rf"Unable to allocate {_AMOUNT} for an array",  # numpy/_core/_exceptions.py, `_ArrayMemoryError`
        rf"Invalid buffer size: {_AMOUNT}",  # aten/src/ATen/mps/MPSAllocator.mm
        r"Memory not available to allocate buffer: (?P<size>\d+)(?P<unit>)",  # MIOpen/src/hip/handlehip.cpp
    )
)
_SAYS = re.compile(
    "|".join(
        (
            # The caching allocators of torch's backends, whoever raises their words again
            r"\b(?:CUDA|HIP|XPU|NPU|MPS backend) out of memory",
            r"would exceed allowed memory\. \(out of memory\)",  # CUDAMallocAsyncAllocator.cpp
            # It found no memory, and asks NVML who has it; where NVML does not answer, that is the error that comes
            # (torch 2.1 to 2.12; pytorch/pytorch #112377, #122068, #130486)
            r"NVML_SUCCESS == [^\n]*INTERNAL ASSERT FAILED at \"[^\"\n]*CUDACachingAllocator\.cpp\"",
            # From the runtime or the driver, outside the allocator or in its expandable segments (cuMemSetAccess)
            r"\b(?:CUDA|HIP)(?: driver| runtime)? error: (?:\w+: )?out of memory",
            r"\b(?:Triton Error \[(?:CUDA|HIP)\]|(?:cuda|hip)ErrorMemoryAllocation|hipErrorOutOfMemory): out of memory",
            r"\bCUDA_ERROR_OUT_OF_MEMORY\b",
            r"\bCUDA ran out of memory outside PyTorch's allocator",  # torch 2.14 on, of cuDNN
            r"\bCuda failure 2 'out of memory'",  # NCCL
            # Intel's runtime, before torch 2.5 as PI; without OUT_OF_RESOURCES, which has other causes too
            r"\b(?:UR_RESULT|PI|ZE_RESULT)_ERROR_(?:OUT_OF_(?:DEVICE|HOST)_MEMORY|MEM_OBJECT_ALLOCATION_FAILURE)\b",
            r"\bInvalid buffer size: [\d.]+ [KMG]i?B",  # MPS: above what Metal gives one buffer of the memory here
            r"\bkIOGPUCommandBufferCallbackErrorOutOfMemory\b",  # Metal, of a kernel
            # NVIDIA's and AMD's libraries found no room for a handle or a workspace
            r"\b(?:CUBLAS|HIPBLAS|CUSOLVER|HIPSOLVER|CUSPARSE|HIPSPARSE|CUDNN)_STATUS_ALLOC_FAILED\b",
            r"\bCUDNN_STATUS_INTERNAL_ERROR_(?:HOST|DEVICE)_ALLOCATION_FAILED\b",  # cuDNN 9 names each cause
            r"\b(?:CUFFT|HIPFFT)_ALLOC_FAILED\b",
            r"\b(?:rocblas_status_memory_error|miopenStatusAllocFailed)\b|\bMemory not available to allocate buffer: ",
            r"\bNVRTC_ERROR_OUT_OF_MEMORY\b",
            # The host
            r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)",
            r"\bunable to [^\n]*: Cannot allocate memory \(12\)",  # ENOMEM, as MapAllocator.cpp says it
            r"\[Errno 12\] Cannot allocate memory",
            # ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, and the paging file that is too small
            r"\[WinError (?:8|14|1455)\]",
            r"\bUnable to allocate [\d.]+ \w+ for an array with shape",
            r"\bstd::bad_alloc\b",
        )
    )
)
"""Words that are said where memory ran out and nowhere else.

Not among them, for each has other causes too: those of `_MAY_HIDE`, `CUDNN_STATUS_NOT_SUPPORTED`,
`UR_RESULT_ERROR_OUT_OF_RESOURCES`, `CUDA error: unspecified launch failure`, Triton's "out of resource" (a kernel asks
for more shared memory than a multiprocessor has), "can't start new thread", "cannot allocate memory in static TLS
block", and asserts that name cudaErrorMemoryAllocation (they failed because the error was another).
"""
_MAY_HIDE = re.compile(
    # ATen/native/cudnn/Conv_v8.cpp and Conv_v7.cpp try one plan after another, and pass over each whose workspace the
    # allocator refuses; what they raise in the end names neither memory nor the amount
    r"\bunable to find an engine to execute this computation|Unable to find a valid cuDNN algorithm to run convolution|"
    # a handle or a kernel for which the driver had no room comes as one of these as well (of cuFFT: pytorch #119420)
    r"\bCU(?:BLAS|DNN|SOLVER|SPARSE)_STATUS_(?:NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED(?:_CUDA_DRIVER|_CUDART)?)\b|"
    r"\bCUFFT_(?:INTERNAL_ERROR|SETUP_FAILED|EXEC_FAILED)\b"
)
"""Words that are said for lack of memory and for other causes: out of memory only where the allocator was refused
memory, or the device has none left (`CudaMemory.is_exhausted`)."""
_WORKER_SAYS = re.compile(r"^(?:Caught )?MemoryError(?: in |:|$)", re.MULTILINE)
"""A worker of a DataLoader whose exception cannot be made again here comes as a RuntimeError with its traceback."""

SMALLEST_HEADROOM_BYTES = 64 * MIB
"""Less room than this above what the process holds already, and its own start-up would fail, not the case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or one that it came from, says that memory ran out, on the device or on the host."""
    return any(_is_out_of_memory(each) for each in _causes(error))


def says_out_of_memory(text: str) -> bool:
    """Whether a text, of torch's or of a library below it, says that memory ran out."""
    return _SAYS.search(text) is not None


def may_hide_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or one that it came from, is among those that libraries raise for lack of memory, too."""
    return any(isinstance(each, RuntimeError) and _MAY_HIDE.search(message_of(each)) for each in _causes(error))


def parse_out_of_memory(error: BaseException) -> int | None:
    """What the failing allocation asked for, in bytes; None if the message does not say or it is another failure.

    torch's CUDA allocator prints two decimals, so its sizes are right to half a percent; the CPU's are exact.
    """
    for each in _causes(error):
        text = message_of(each)
        match = next((found for pattern in _SIZES if (found := pattern.search(text))), None)
        if match and _is_out_of_memory(each):
            unit = match["unit"].lower()
            return round(float(match["size"]) * _UNIT_FACTORS[unit if unit == "bytes" else unit[:1]])
    return None


def describe_out_of_memory(error: BaseException) -> str:
    """The one line that says it, of `error` or of what it came from; the type and the place where none does."""
    said = next((each for each in _causes(error) if _is_out_of_memory(each)), error)
    lines = (line.strip() for line in message_of(said).splitlines())
    return next((line[:500] for line in lines if says_out_of_memory(line)), None) or describe_failure(said)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if not isinstance(error, RuntimeError | OSError) and not type(error).__module__.startswith(("torch.", "triton.")):
        return False
    text = message_of(error)
    return says_out_of_memory(text) or (text.startswith("Caught ") and _WORKER_SAYS.search(text) is not None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, what it was raised during, and the members of groups; each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting.append(current.__cause__ or (None if current.__suppress_context__ else current.__context__))
        waiting += current.exceptions if isinstance(current, BaseExceptionGroup) else ()


def limit_host_memory(limit_bytes: int) -> int | None:
    """Limit the data of this process: too large an allocation fails as an error instead of waking the OOM killer.

    The limit is RLIMIT_DATA: private writable memory, allocated or not (getrlimit(2), since Linux 4.7). RLIMIT_AS would
    count the address space too, of which torch's CUDA libraries take 2.5 GiB when loaded and a CUDA context reserves
    hundreds of GiB. Tried with torch's CUDA build: its CPU allocator, NumPy and Python fail with errors that
    `is_out_of_memory` knows, and the process works on. Torch's threads are started first, because OpenMP ends the
    process where it cannot start one.

    Args:
        limit_bytes: For the whole process; importing torch takes 0.8 GiB of it (of which half is never touched).

    Returns:
        The bytes left below the limit, or None if the system has no such limit (not Linux).

    Raises:
        BenchError: The process holds nearly as much already.
    """
    present = read_data_bytes()
    if present is None:
        return None
    start_threads()
    present = read_data_bytes() or present
    headroom = limit_bytes - present
    if headroom < SMALLEST_HEADROOM_BYTES:
        raise BenchError(
            f"memory limit: {format_bytes(limit_bytes)} is too low: a process with torch uses {format_bytes(present)} "
            f"before its first step. Allowed: {format_bytes(present + SMALLEST_HEADROOM_BYTES)} or more"
        )
    limit_data(limit_bytes)
    return headroom


def start_threads() -> None:
    """Have torch start its threads for parallel loops, by running one that is long enough to be shared out."""
    import torch

    torch.ones(1 << 20).sin_().sum()
