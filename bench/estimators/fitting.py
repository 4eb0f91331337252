"""How large may the batch be: the largest that a GPU holds, and one that leaves room."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.devices import Device
from bench.devices.context import context_of
from bench.errors import Unsupported
from bench.estimators.device_memory import Verdict, device_interval, judge_fit
from bench.estimators.memory import room_bytes, trace_peaks
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.trace_events import TracePeaks
from bench.records import Case

LADDER_START = 16
MAX_BATCH_SIZE = 1 << 20
MULTIPLE = 8  # of a recommended batch: what tensor cores like


@dataclass(frozen=True, slots=True)
class Rung:
    """One batch size on one device.

    Attributes:
        batch_size: Samples a step.
        fits: Whether torch's allocator finds room for every allocation beside the context, after giving back what it
            caches.
        verdict: `fits` or `does not fit` where that holds at both ends of the context's interval, else `may not fit`.
        reserved_bytes: At the peak, with nothing given back before the device is full.
        device_bytes: Reserved and context: what the driver will show.
        device_low_bytes: With the least that the context may be; None where its spread is unknown.
        device_high_bytes: With the most that it may be; None where its spread is unknown.
        share_frac: Of the device's memory, `device_bytes` takes.
    """

    batch_size: int
    fits: bool
    verdict: Verdict
    reserved_bytes: int
    device_bytes: int
    device_low_bytes: int | None
    device_high_bytes: int | None
    share_frac: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer; batch sizes are None where not even one sample fits.

    Attributes:
        largest_batch_size: With the context's point.
        largest_batch_size_low: That fits whatever the context is within its interval.
        largest_batch_size_high: That fits if the context is as small as its interval allows.
        recommended_batch_size: Within `fraction` of the memory, in steps of `MULTIPLE`.
        ladder: From `LADDER_START` up, doubling, to the first that does not fit.
        fraction: As asked for.
        memory_bytes: Of the device.
        context_bytes: What was reckoned with.
        context_low_bytes: Its low end; None where its spread is unknown.
        context_high_bytes: Its high end; None where its spread is unknown.
        context_basis: Where it comes from, in words.
    """

    largest_batch_size: int | None
    largest_batch_size_low: int | None
    largest_batch_size_high: int | None
    recommended_batch_size: int | None
    ladder: tuple[Rung, ...]
    fraction: float
    memory_bytes: int
    context_bytes: int
    context_low_bytes: int | None
    context_high_bytes: int | None
    context_basis: str


def fit_batch(
    case: Case,
    device: Device,
    fraction: float = 0.8,
    heard: Callable[[int], None] = lambda batch: None,
    *,
    workspaces: bool = True,
) -> Fit:
    """Find the largest and a recommended batch size for a case on a GPU, without the GPU.

    Args:
        case: Its own batch size makes no difference.
        device: Its file must say how much memory it has.
        fraction: The share of the memory that the recommended batch may take, context included.
        heard: Called with each batch size that is tried.
        workspaces: Whether to count cuDNN's workspaces.

    Raises:
        Unsupported: The device is no GPU, its memory or another figure is unknown, or the case cannot be traced.
    """
    memory = device.memory_bytes
    if memory is None or device.kind != "cuda":
        raise Unsupported(f"{device.name}: its file does not say how much memory it has")
    context = context_of(device)
    trial = _Trial(case, device, memory, heard, workspaces)
    low, high = (context.point_bytes if end is None else end for end in (context.low_bytes, context.high_bytes))

    ladder = [LADDER_START]
    while trial.fits(ladder[-1], context.point_bytes) and ladder[-1] < MAX_BATCH_SIZE:
        ladder.append(ladder[-1] * 2)
    largest, surely, perhaps = (
        _last(functools.partial(trial.fits, context_bytes=taken)) for taken in (context.point_bytes, high, low)
    )
    room = _last(lambda batch: trial.fits(batch, context.point_bytes) and trial.share_frac(batch) <= fraction)
    return Fit(
        largest_batch_size=largest, largest_batch_size_low=surely, largest_batch_size_high=perhaps,
        recommended_batch_size=room // MULTIPLE * MULTIPLE if room and room >= MULTIPLE else room,
        ladder=tuple(map(trial.rung, ladder)), fraction=fraction, memory_bytes=memory,
        context_bytes=context.point_bytes, context_low_bytes=context.low_bytes, context_high_bytes=context.high_bytes,
        context_basis=context.basis,
    )  # fmt: skip


class _Trial:
    """A case on a device at batch sizes that are tried; each replay is made once."""

    def __init__(
        self, case: Case, device: Device, memory_bytes: int, heard: Callable[[int], None], workspaces: bool
    ) -> None:
        self._peaks = functools.partial(trace_peaks, device=device, shared=True, workspaces=workspaces)
        self._case, self._device, self._memory_bytes, self._heard = case, device, memory_bytes, heard
        self._settings = settings_in_force()
        self._free: dict[int, TracePeaks] = {}
        self._known: dict[tuple[int, int], bool] = {}

    def fits(self, batch_size: int, context_bytes: int) -> bool:
        """Whether every allocation finds room beside a context of that size."""
        key = (batch_size, context_bytes)
        if key not in self._known:
            capacity = self._memory_bytes - context_bytes
            room = room_bytes(self._device, context_bytes, self._settings)
            self._known[key] = self.free(batch_size).replay.peak_reserved_bytes <= room or (
                capacity > 0 and self._squeezed(batch_size, capacity)
            )
        return self._known[key]

    def _squeezed(self, batch_size: int, capacity_bytes: int) -> bool:
        """Whether it fits once the allocator gives back what it caches, as it does near the limit."""
        case = replace(self._case, batch_size=batch_size)
        peaks = self._peaks(case, capacity_bytes=capacity_bytes)
        return peaks.replay.out_of_memory is None

    def free(self, batch_size: int) -> TracePeaks:
        """The peaks on a device without limit."""
        if batch_size not in self._free:
            self._heard(batch_size)
            case = replace(self._case, batch_size=batch_size)
            self._free[batch_size] = self._peaks(case)
        return self._free[batch_size]

    def share_frac(self, batch_size: int) -> float:
        """Reserved and context over the device's memory."""
        shown = device_interval(self.free(batch_size).reserved_bytes, self._device)
        return shown["estimated_device_bytes"] / self._memory_bytes

    def rung(self, batch_size: int) -> Rung:
        """All that is said of a batch size."""
        context = context_of(self._device)
        verdict = judge_fit(functools.partial(self.fits, batch_size), context)
        reserved = self.free(batch_size).reserved_bytes
        shown = device_interval(reserved, self._device)
        return Rung(
            batch_size, self.fits(batch_size, context.point_bytes), verdict, reserved,
            shown["estimated_device_bytes"], shown["estimated_device_low_bytes"], shown["estimated_device_high_bytes"],
            self.share_frac(batch_size),
        )  # fmt: skip


def _last(holds: Callable[[int], bool]) -> int | None:
    """The largest batch size up to `MAX_BATCH_SIZE` for which `holds`, which is true below it and false above."""
    low, high = 0, LADDER_START
    while high <= MAX_BATCH_SIZE and holds(high):
        low, high = high, high * 2
    high = min(high, MAX_BATCH_SIZE + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low or None
