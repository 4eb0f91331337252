"""Ten thousand cases: the parent's memory and the start of a run, from the first to the last."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from bench.launchers.tasks import measure_task
from tests.chaos.fake_sweep import FakeLauncher, fake_config, run_fake_sweep

FLAT_WITHIN_BYTES = 20 << 20
SETTLED_AFTER = 0.1  # of the runs: what is imported late, and memory that the allocator keeps, is there by then


class _Watching(FakeLauncher):
    """Notes when each run is asked for, and now and then what this process takes."""

    def __init__(self, every: int) -> None:
        super().__init__(failing=False)
        self.every = every
        self.asked_s: list[float] = []
        self.rss_bytes: list[tuple[int, int]] = []

    def run(self, task: Any, argument: dict[str, Any], **named: Any) -> Any:
        if task is measure_task:
            self.asked_s.append(time.perf_counter())
            if len(self.asked_s) % self.every == 0:
                self.rss_bytes.append((len(self.asked_s), psutil.Process().memory_info().rss))
        return super().run(task, argument, **named)


def sweep_many_cases(seed: int, count: int, folder: Path) -> Counter[str]:
    """One sweep of `count` cases; figures, and AssertionError where memory grows by more than 20 MiB."""
    launcher = _Watching(every=max(1, count // 100))
    run_fake_sweep(folder / "out", fake_config(cases=count, repeats=1), launcher, conclude=False)
    between_s = [after - before for before, after in zip(launcher.asked_s, launcher.asked_s[1:], strict=False)]
    settled = [rss for number, rss in launcher.rss_bytes if number > SETTLED_AFTER * count]
    grown = max(settled) - settled[0]
    tenth = max(1, count // 10)
    first, last = statistics.median(between_s[:tenth]), statistics.median(between_s[-tenth:])
    if grown > FLAT_WITHIN_BYTES:
        raise AssertionError(f"the parent grew by {grown >> 20} MiB between run {count // 10} and run {count}")
    return Counter({
        "cases": count, "grown since a tenth of them, in KiB": grown >> 10,
        "grown from the first run on, in KiB": (max(rss for _, rss in launcher.rss_bytes) - launcher.rss_bytes[0][1]) >> 10,
        "first tenth, us a run": round(first * 1e6), "last tenth, us a run": round(last * 1e6),
    })  # fmt: skip
