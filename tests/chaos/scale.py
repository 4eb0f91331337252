"""Ten thousand cases: the parent's memory and its work for a run, from the first to the last."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.launchers import Answer, Job
from bench.tasks import measure_task
from tests.chaos.fake_sweep import FakeLauncher, fake_config, run_fake_sweep

FLAT_WITHIN_BYTES = 20 << 20
SLOWER_AT_MOST = 1.5  # the last tenth of the runs, of the first
SETTLED_AFTER = 0.1  # of the runs: what is imported late, and memory that the allocator keeps, is there by then
LEAST_RUNS = 20  # of a tenth, for its median to mean something
BLOCKS = 5
REFERENCE_ROUNDS = 2_000


class _Watching(FakeLauncher):
    """Notes when each run is asked for, and now and then what this process takes."""

    def __init__(self, every: int) -> None:
        super().__init__(failing=False)
        self.every = every
        self.wall_s: list[float] = []
        self.work_s: list[float] = []
        self.reference_s: list[float] = []
        self.rss_bytes: list[tuple[int, int]] = [(0, psutil.Process().memory_info().rss)]
        self._went_on_s = (0.0, 0.0)

    def perform(self, job: Job) -> Answer:
        if job.task is not measure_task:
            return super().perform(job)
        wall_s, work_s = self._went_on_s
        self.wall_s.append(time.perf_counter() - wall_s)
        self.work_s.append(time.process_time() - work_s)
        if len(self.wall_s) % self.every == 0:
            self.rss_bytes.append((len(self.wall_s), psutil.Process().memory_info().rss))
        answer = super().perform(job)
        self.reference_s.append(_reference_s())
        self._went_on_s = time.perf_counter(), time.process_time()
        return answer


def sweep_many_cases(seed: int, count: int, folder: Path) -> Counter[str]:
    """One sweep of `count` cases; its figures.

    The parent's work for a run is its processor time between an answer and the next question, in units of a fixed piece
    of work done beside each run: a machine whose other users come and go slows both.

    Raises:
        AssertionError: The parent's memory grows by more than 20 MiB after the first tenth of the runs, or its work for
            a run is more than 1.5 times as much in the last tenth as in the first.
    """
    launcher = _Watching(every=max(1, count // 100))
    run_fake_sweep(folder / "out", fake_config(cases=count, repeats=1), launcher, conclude=False)
    settled = [rss for number, rss in launcher.rss_bytes if number > SETTLED_AFTER * count]
    grown = max(settled) - settled[0]
    if grown > FLAT_WITHIN_BYTES:
        raise AssertionError(f"the parent grew by {grown >> 20} MiB between run {count // 10} and run {count}")
    tenth = max(LEAST_RUNS, count // 10)
    wall_s = launcher.wall_s[1:]  # nothing comes before the first
    work = [own / reference for own, reference in zip(launcher.work_s, launcher.reference_s, strict=True)][1:]
    slower = _steady(work[-tenth:]) / _steady(work[:tenth])
    if slower > SLOWER_AT_MOST:
        raise AssertionError(f"the parent's work for a run is {slower:.2f} times that of the first {tenth} in the last")
    return Counter(
        {
            "cases": count,
            "grown since the first tenth, in KiB": grown >> 10,
            "grown since the start, in KiB": (max(rss for _, rss in launcher.rss_bytes) - launcher.rss_bytes[0][1])
            >> 10,
            "first tenth, us a run": round(statistics.median(wall_s[:tenth]) * 1e6),
            "last tenth, us a run": round(statistics.median(wall_s[-tenth:]) * 1e6),
            "work for a run in the last tenth, in % of the first": round(slower * 100),
        }
    )


def _steady(work: Sequence[float]) -> float:
    """The least of the medians of five blocks: what disturbs the machine for a while spares one of them."""
    size = -(-len(work) // BLOCKS)
    return min(statistics.median(work[at : at + size]) for at in range(0, len(work), size))


def _reference_s() -> float:
    """The processor time of a fixed piece of work, in seconds."""
    started = time.process_time()
    sorted(str(number) for number in range(REFERENCE_ROUNDS))
    return time.process_time() - started
