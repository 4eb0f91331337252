"""Out of memory: telling it from other failures, reading what was asked for, and making it fail cleanly on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError, message_of
from bench.units import MIB, format_bytes

_UNIT_FACTORS = {"": 1, "byte": 1, "bytes": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SIZES = (
    # c10/cuda/CUDACachingAllocator.cpp (HIP the same), through format_size: "2.00 GiB", "512 bytes"
    re.compile(r"Tried to allocate (?P<size>\d+(?:\.\d+)?) (?P<unit>[KMGT]iB|bytes)"),
    # c10/core/impl/alloc_cpu.cpp
    re.compile(r"can't allocate memory: you tried to allocate (?P<size>\d+)(?P<unit>) bytes"),
    # numpy/_core/_exceptions.py, `_ArrayMemoryError`
    re.compile(r"Unable to allocate (?P<size>\d+(?:\.\d+)?) (?P<unit>[KMGT]iB|bytes)"),
)
_TEXTS = (
    "CUDA out of memory",
    "HIP out of memory",
    "CUDA error: out of memory",  # from a driver call, outside torch's allocator
    "HIP error: out of memory",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",  # cuBLAS found no room for a handle or workspace
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",  # cuDNN 9 names each cause
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # Windows
    "std::bad_alloc",
)

SMALLEST_HEADROOM_BYTES = 64 * MIB
"""Less room than this above what the process holds already, and its own start-up would fail, not the case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or one that caused it, says that memory ran out, on the device or on the host.

    cuDNN's "unable to find an engine" and `CUDNN_STATUS_NOT_SUPPORTED` are not counted: they follow from a lack of
    memory at times, and from an unsupported layout or type just as well.
    """
    return any(_says_out_of_memory(each) for each in _causes(error))


def parse_out_of_memory(error: BaseException) -> int | None:
    """What the failing allocation asked for, in bytes; None where the message does not say or it is another failure.

    torch's CUDA allocator prints two decimals, so its sizes are right to half a percent; the CPU's are exact.
    """
    for each in _causes(error):
        text = message_of(each)
        match = next((found for pattern in _SIZES if (found := pattern.search(text))), None)
        if match and _says_out_of_memory(each):
            return round(float(match["size"]) * _UNIT_FACTORS[match["unit"].lower()])
    return None


def _says_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in message_of(error) for text in _TEXTS)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


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
        The bytes left below the limit, or None where the system has no such limit (not Linux).

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
            f"memory limit: {format_bytes(limit_bytes)} is too low: a process with torch holds {format_bytes(present)} "
            f"before it runs a step. Allowed: {format_bytes(present + SMALLEST_HEADROOM_BYTES)} and more"
        )
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))
    return headroom


def start_threads() -> None:
    """Have torch start its threads for parallel loops, by running one that is long enough to be shared out."""
    import torch

    torch.ones(1 << 20).sin_().sum()


def read_data_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """The private writable memory of this process in bytes, as RLIMIT_DATA counts it; None where there is no /proc."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
