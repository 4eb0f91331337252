"""Step times: each step in its place, the wall clock around them, no synchronisation inside a CUDA window."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator

import pytest

from bench.probes import step_timing
from bench.probes.step_timing import StepTimes, collector_off, plan_step_count, time_steps


def test_every_step_is_run_and_timed_once() -> None:
    ran: list[int] = []
    times = time_steps(lambda: ran.append(len(ran)), 7, "cpu")
    assert ran == list(range(7))
    assert len(times.step_times_s) == 7


def test_times_lie_at_the_steps_that_took_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    lengths = iter([5_000_000, 1_000_000, 9_000_000])
    monkeypatch.setattr(step_timing.time, "perf_counter_ns", lambda: now_ns[0])
    monkeypatch.setattr(step_timing.time, "monotonic", lambda: now_ns[0] / 1e9)

    def step() -> None:
        now_ns[0] += next(lengths)

    assert time_steps(step, 3, "cpu") == StepTimes((0.005, 0.001, 0.009), 0.015)


def test_wall_clock_covers_the_steps_and_little_else() -> None:
    times = time_steps(lambda: time.sleep(0.004), 10, "cpu")
    assert sum(times.step_times_s) <= times.wall_window_s
    assert times.wall_window_s < sum(times.step_times_s) * 1.5
    assert min(times.step_times_s) >= 0.004


def test_collector_runs_before_the_window_and_is_off_inside_it() -> None:
    inside: list[bool] = []
    collections: list[str] = []

    def watch(phase: str, _: dict[str, int]) -> None:
        collections.append("inside" if inside else "before")

    gc.callbacks.append(watch)
    try:
        time_steps(lambda: inside.append(gc.isenabled()), 3, "cpu")
    finally:
        gc.callbacks.remove(watch)
    assert inside == [False] * 3
    assert "before" in collections
    assert "inside" not in collections
    assert gc.isenabled()


def test_collector_is_as_it_was_after_a_step_that_raises() -> None:
    def step() -> None:
        raise RuntimeError("the model's fault")

    with pytest.raises(RuntimeError, match="the model's fault"):
        time_steps(step, 3, "cpu")
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_window_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step; given 0"):
        time_steps(lambda: None, 0, "cpu")


class FakeCuda:
    """A device whose clock a step advances by its length, while the host's stands still until it waits."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.device_ms = 0.0
        self.host_s = 0.0

    def synchronize(self) -> None:
        self.log.append("synchronize")
        self.host_s = max(self.host_s, self.device_ms / 1e3)

    def event(self, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.at_ms = cuda, math.nan

    def record(self) -> None:
        self.cuda.log.append("record")
        self.at_ms = self.cuda.device_ms

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at_ms - self.at_ms


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    import torch

    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(step_timing.time, "monotonic", lambda: fake.host_s)
    yield fake


def test_cuda_window_is_synchronised_once_at_each_end_and_never_inside(cuda: FakeCuda) -> None:
    def step() -> None:
        cuda.log.append("step")
        cuda.device_ms += 2.0

    times = time_steps(step, 3, "cuda")
    inside = ["record", *["step", "record"] * 3]
    assert cuda.log == ["record"] * 4 + ["synchronize", *inside, "synchronize"]
    assert times.step_times_s == pytest.approx((0.002, 0.002, 0.002))
    assert times.wall_window_s == pytest.approx(0.006)


def test_cuda_step_times_are_the_devices_in_seconds(cuda: FakeCuda) -> None:
    lengths = iter([5.0, 1.0, 9.0])

    def step() -> None:
        cuda.device_ms += next(lengths)

    assert time_steps(step, 3, "cuda").step_times_s == pytest.approx((0.005, 0.001, 0.009))


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        ((), 30),
        ((9.0, 0.1, 0.1, 0.1, 0.1), 30),  # the first step's one-off costs do not count
        ((9.0, 0.001, 0.001, 0.001), 300),  # as many as fill the window
        ((1e-6,), 10_000),  # at most
        ((float("nan"), 0.0), 30),
    ],
)
def test_steps_fill_the_window_between_their_bounds(warmup: tuple[float, ...], expected: int) -> None:
    assert plan_step_count(warmup, measured_steps=30, min_window_s=0.3) == expected


def test_more_measured_steps_than_the_cap_are_kept() -> None:
    assert plan_step_count((1.0,), measured_steps=500, min_window_s=0.3, max_steps=100) == 500


def test_harness_adds_less_than_a_hand_written_loop_scatters() -> None:
    """The overhead of timing a step, as a share of one that takes half a millisecond: a ratio, no time."""

    def step() -> None:
        sum(range(40_000))

    def by_hand(count: int) -> list[float]:
        found = []
        for _ in range(count):
            start = time.perf_counter()
            step()
            found.append(time.perf_counter() - start)
        return found

    time_steps(step, 20, "cpu")
    pairs = [(time_steps(step, 25, "cpu").step_times_s, by_hand(25)) for _ in range(6)]  # interleaved
    ours, hand = (min(min(pair[side]) for pair in pairs) for side in (0, 1))  # the least disturbed step of each
    assert abs(ours / hand - 1) < 0.05  # tests/speed holds 0.5 % of the median on a quiet machine
