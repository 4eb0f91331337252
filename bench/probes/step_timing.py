"""Times of steps: events on a GPU, a monotonic clock on the CPU, and an independent clock over the whole window.

On a GPU, nothing inside the window waits for the device: the host runs ahead as it does in training, and the events,
recorded in stream order, say when the device passed each boundary.

The garbage collector runs before the window and is off inside it: a collection takes milliseconds and strikes at
random. A step that leaves reference cycles behind keeps their memory until the window ends.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.probes.backends import Backend, DeviceEvent, backend

MAX_STEPS = 10_000
"""More steps than this in a window add nothing to a median and make a row of a result file large."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The times of the steps of one window, in order, and the window's length by the wall clock, all in seconds.

    On a GPU the step times are the device's, from boundary to boundary; on the CPU the host's.
    """

    step_times_s: tuple[float, ...]
    wall_window_s: float


def time_steps(step: Callable[[], object], count: int, device_kind: str) -> StepTimes:
    """Run `step` `count` times and time each.

    Args:
        step: One training step. What it returns is dropped; it must not synchronise with the device.
        count: How many steps, at least 1.
        device_kind: `cpu`, or a kind of GPU, as torch calls it.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"a window needs at least 1 step; given {count}")
    device = backend(device_kind)
    events = [event for _ in range(count + 1) if (event := device.event()) is not None]
    with collector_off():
        return _time_by_events(step, events, device) if events else _time_on_cpu(step, count)


def _time_on_cpu(step: Callable[[], object], count: int) -> StepTimes:
    clock = time.perf_counter_ns
    boundaries_ns = [0] * (count + 1)  # an assignment into it costs no allocation
    wall_start_s = time.monotonic()
    boundaries_ns[0] = clock()
    for index in range(1, count + 1):
        step()
        boundaries_ns[index] = clock()
    wall_window_s = time.monotonic() - wall_start_s
    return StepTimes(_differences_s(boundaries_ns), wall_window_s)


def _time_by_events(step: Callable[[], object], events: Sequence[DeviceEvent], device: Backend) -> StepTimes:
    for event in events if device.records_first else ():
        event.record()  # creates the event, which torch puts off until it is first recorded
    device.synchronize()
    wall_start_s = time.monotonic()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    device.synchronize()
    wall_window_s = time.monotonic() - wall_start_s
    milliseconds = [start.elapsed_time(end) for start, end in itertools.pairwise(events)]
    return StepTimes(tuple(each / 1e3 for each in milliseconds), wall_window_s)


def _differences_s(boundaries_ns: Sequence[int]) -> tuple[float, ...]:
    return tuple((boundaries_ns[index + 1] - boundaries_ns[index]) / 1e9 for index in range(len(boundaries_ns) - 1))


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect garbage, then keep the collector off inside the block; it is as it was afterwards."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def plan_step_count(
    warmup_times_s: Sequence[float], measured_steps: int, min_window_s: float, max_steps: int = MAX_STEPS
) -> int:
    """How many steps the measured window takes.

    Args:
        warmup_times_s: The times of the warm-up steps in seconds; the median of their later half stands for a step, as
            the first ones hold what happens once (cuDNN's choices, the allocator's growth).
        measured_steps: At least so many.
        min_window_s: At least so long, in seconds, by that estimate.
        max_steps: At most so many, unless `measured_steps` is more.

    Returns:
        `measured_steps` where no warm-up time is known.
    """
    known = [each for each in warmup_times_s if math.isfinite(each) and each > 0]
    if not known:
        return measured_steps
    expected_s = statistics.median(known[len(known) // 2 :])
    return max(measured_steps, min(max_steps, math.ceil(min_window_s / expected_s)))
