"""A full /dev/shm, through which a loader's workers hand over batches: how to tell, and what to do about it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.errors import message_of
from bench.units import format_bytes

SHARED_MEMORY = Path("/dev/shm")

_FULL = re.compile(
    # torch's DataLoader.cpp, where the memory was promised and then was not there; raised wherever the process is
    r"killed by signal: Bus error|(?:out of|insufficient) shared memory|"
    # ATen's MapAllocator.cpp, which asks for the room first where the file system can tell (ENOSPC)
    r"(?:\(shm\)|shared memory|</torch_)[^\n]*No space left on device"
)
_REMEDY = "start the container with --shm-size=8g or --ipc=host, or set measure.loader_workers = 0"


def is_shared_memory_full(error: BaseException) -> bool:
    """Whether `error`, or one that it came from, is what torch raises when there is no shared memory left."""
    return any(isinstance(each, RuntimeError) and _FULL.search(message_of(each)) for each in _origins(error))


def shared_memory_advice(place: Path = SHARED_MEMORY) -> str:
    """How large /dev/shm is, what of it is free at this moment, and how to get more or do without."""
    try:
        usage = shutil.disk_usage(place)
    except OSError:  # no Linux, or a container without one
        return f"{place} is full or missing; {_REMEDY}"
    size, free = format_bytes(usage.total), format_bytes(usage.free)
    return f"{place} is or was full: {size} in total, {free} free now; {_REMEDY}"


def shared_memory_hint(error: BaseException) -> str:
    """`; ` and the advice, to end the reason of a run that failed by `error`; empty if it is another failure.

    Empty too where the message gives the advice already.
    """
    return f"; {shared_memory_advice()}" if is_shared_memory_full(error) and _REMEDY not in message_of(error) else ""


def _origins(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and all(current is not each for each in seen):
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__
