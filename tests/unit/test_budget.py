"""A sweep with a budget stops when it is spent, and its plan has only what was run."""

from __future__ import annotations

import time
from pathlib import Path

import bench
from bench.config import SweepConfig, check_config
from bench.sweep import SweepOptions, run_sweep
from bench.sweep.session import Budget
from bench.terminal import Progress

NEVER = float("inf")


def config(**grid: object) -> SweepConfig:
    axes = {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": [8, 16], **grid}
    measure = {"repeats": 3, "warmup_steps": 1, "measured_steps": 2, "min_window": "1 ms", "threads": 1}
    return check_config({"name": "budget", "grid": axes, "measure": measure, "data": {"fetch": False}}, "test")


def sweep(folder: Path, budget: Budget, wanted: SweepConfig) -> int:
    options = SweepOptions(out=folder, device="cpu", report=False, budget=budget)
    run_sweep(wanted, options, Progress(quiet=True))
    frame = bench.load(folder)
    assert "interrupted" not in set(frame["status"])
    return len(frame)


def test_runs_end_when_the_budget_is_spent_or_the_deadline_is_there_and_go_on_later(tmp_path: Path) -> None:
    assert sweep(tmp_path, Budget(1e-6, NEVER), config()) == 1  # the one that spends it
    assert sweep(tmp_path, Budget(1e-6, NEVER), config()) == 1  # spent by the sweep before
    assert sweep(tmp_path, Budget(600.0, time.monotonic()), config()) == 1
    assert sweep(tmp_path, Budget(600.0, NEVER), config()) == 6


def test_a_case_whose_first_run_measured_nothing_is_not_repeated(tmp_path: Path) -> None:
    limited = config(batch_size=[8], model=["mlp", "mlp:hidden=10000000"])
    limited = limited.model_copy(update={"limits": limited.limits.model_copy(update={"host_memory": 2 << 30})})
    sweep(tmp_path, Budget(600.0, NEVER), limited)
    counts = bench.load(tmp_path).groupby("model")["status"].agg(list).to_dict()
    assert counts["mlp"] == ["ok"] * 3
    assert counts["mlp:hidden=10000000"] == ["oom"]
