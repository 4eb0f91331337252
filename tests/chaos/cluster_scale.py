"""A sweep as large as a cluster's, from its plan to its report: what each step costs for a run, and in memory.

Everything is real but the measuring (`fake_sweep`) and Slurm (`sbatch` only counts). Times are of this process's
processor, so that they say the same on a busy machine; what the disk takes is on the clock.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from bench.config import LauncherSettings
from bench.report import render_report
from bench.store import DATA_FOLDER, load_results
from bench.sweep import slurm
from bench.sweep.stages import store_orders
from bench.sweep.standing import State, read_standings, to_do
from bench.sweep.unit import open_unit, read_order
from bench.terminal import Progress
from tests.chaos.fake_sweep import FakeLauncher, fake_config

REPEATS = 5
CHUNK = 50
SBATCH = """#!/bin/sh
echo >> "{0}/count"
echo "Submitted batch job $(wc -l < "{0}/count")"
"""


class _Steps:
    """The figures of one sweep after the other."""

    def __init__(self, runs: int) -> None:
        self.found = Counter({"runs": runs})

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        own, clock = time.process_time(), time.perf_counter()
        yield
        self.found[f"{name}, processor, ms"] = round((time.process_time() - own) * 1e3)
        self.found[f"{name}, clock, ms"] = round((time.perf_counter() - clock) * 1e3)
        self.found[f"{name}, most memory so far, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def order_cluster(seed: int, count: int, folder: Path) -> Counter[str]:
    """Plan, store and submit `count` runs, 5 of each case, and begin one process of the last order; its figures."""
    step = _Steps(count)
    orders = _submit(step, count, folder)
    launcher = FakeLauncher(failing=False)
    for name in ("first process of an order", "another process"):
        with step(name), open_unit(read_order(orders[-1], launcher), launcher, Progress(quiet=True)):
            pass
    return step.found


def sweep_cluster(seed: int, count: int, folder: Path) -> Counter[str]:
    """One sweep of `count` runs, 5 of each case; its figures.

    Raises:
        AssertionError: A run is missing, or there twice.
    """
    step, out, quiet = _Steps(count), folder / "out", Progress(quiet=True)
    orders = _submit(step, count, folder)
    launcher = FakeLauncher(failing=False)
    with step("runs"):
        for order in orders:
            with open_unit(read_order(order, launcher), launcher, quiet) as unit:
                for index in range(len(unit.order.runs)):
                    unit.run(index)
    for name in ("first status", "status"):
        with step(name):
            states = {each.state for order in orders for each in read_standings(order)}
        if states != {State.DONE}:
            raise AssertionError(f"runs are {states}")
    with step("load"):
        frame = load_results(out)
    if len(frame) != count or frame.duplicated(["case_key", "repeat"]).any():
        raise AssertionError(f"{len(frame)} rows of {count} runs")
    del frame
    with step("report"):
        render_report([out / DATA_FOLDER], out)
    parts = list((out / DATA_FOLDER).rglob("runs/*.parquet"))
    step.found["parts, KiB"] = sum(part.stat().st_size for part in parts) >> 10
    return step.found


def _submit(step: _Steps, count: int, folder: Path) -> list[Path]:
    """The orders of a sweep that was submitted to nobody."""
    config = fake_config(cases=max(1, count // REPEATS), repeats=REPEATS)
    with step("plan and orders"):
        orders = store_orders(config, folder / "out", "cpu", Progress(quiet=True))
    programs = folder / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH.format(programs))
    (programs / "sbatch").chmod(0o755)
    settings = LauncherSettings(kind="slurm", chunk=CHUNK)
    with mock.patch.dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}"), step("submit"):
        for order in orders:
            slurm.submit(order, to_do(read_standings(order)), settings, "scale", on_gpu=True)
    step.found["orders"] = len(orders)
    return orders
