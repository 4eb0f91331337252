"""How large may the batch be: the largest that a GPU holds, and one that leaves room."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.devices import Device
from bench.errors import Unsupported
from bench.estimators.memory import trace_peaks
from bench.records import Case

LADDER_START = 16
MAX_BATCH_SIZE = 1 << 20
MULTIPLE = 8  # of a recommended batch: what tensor cores like


@dataclass(frozen=True, slots=True)
class Rung:
    """One batch size on one device.

    Attributes:
        batch_size: Samples a step.
        fits: Whether torch's allocator finds room for every allocation, after giving back what it caches.
        reserved_bytes: At the peak, with nothing given back before the device is full.
        device_bytes: Reserved and context, where the context is known: what the driver will show.
        share_frac: Of the device's memory, `device_bytes` (or `reserved_bytes`) takes.
    """

    batch_size: int
    fits: bool
    reserved_bytes: int
    device_bytes: int | None
    share_frac: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer. `largest_batch_size` is None where not even one sample fits."""

    largest_batch_size: int | None
    recommended_batch_size: int | None
    ladder: tuple[Rung, ...]
    fraction: float
    memory_bytes: int
    context_bytes: int | None


def fit_batch(
    case: Case, device: Device, fraction: float = 0.8, heard: Callable[[int], None] = lambda batch: None
) -> Fit:
    """Find the largest and a recommended batch size for a case on a GPU, without the GPU.

    Args:
        case: Its own batch size makes no difference.
        device: Its file must say how much memory it has.
        fraction: The share of the memory that the recommended batch may take, context included where it is known.
        heard: Called with each batch size that is tried.

    Raises:
        Unsupported: The device's memory or another figure is unknown, or the case cannot be traced.
    """
    memory = device.memory_bytes
    if memory is None:
        raise Unsupported(f"{device.name}: its file does not say how much memory it has")

    @functools.cache
    def climb(batch_size: int) -> Rung:
        heard(batch_size)
        return _rung(replace(case, batch_size=batch_size), device, memory)

    ladder = [climb(LADDER_START)]
    while ladder[-1].fits and ladder[-1].batch_size < MAX_BATCH_SIZE:
        ladder.append(climb(ladder[-1].batch_size * 2))
    largest = _last(lambda batch: climb(batch).fits, ladder)
    room = _last(lambda batch: climb(batch).fits and climb(batch).share_frac <= fraction, ladder)
    recommended = room // MULTIPLE * MULTIPLE if room and room >= MULTIPLE else room
    return Fit(largest, recommended, tuple(ladder), fraction, memory, device.context_bytes)


def _rung(case: Case, device: Device, memory_bytes: int) -> Rung:
    free = trace_peaks(case, device, shared=True)
    capacity = memory_bytes - (device.context_bytes or 0)
    fits = free.replay.peak_reserved_bytes <= capacity
    if not fits:  # near the limit the allocator gives back what it caches and tries again
        fits = trace_peaks(case, device, shared=True, capacity_bytes=capacity).replay.out_of_memory is None
    shown = None if device.context_bytes is None else free.reserved_bytes + device.context_bytes
    share = (shown or free.reserved_bytes) / memory_bytes
    return Rung(case.batch_size, fits, free.reserved_bytes, shown, share)


def _last(holds: Callable[[int], bool], ladder: list[Rung]) -> int | None:
    """The largest batch size for which `holds`, which is true below it and false above."""
    rungs = [rung.batch_size for rung in ladder]
    low, high = 0, rungs[-1] + 1
    for batch in rungs:
        if holds(batch):
            low = batch
        else:
            high = batch
            break
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low or None
