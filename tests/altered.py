"""Results that were written honestly and then lied to: parts replaced through the store, their hashes made to fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.records import Protocol
from bench.store import schema
from bench.store.parts import build_table, commit, parts, read
from tests.results import GPU, make_cases, make_results, unsynced

PROTOCOL = Protocol(warmup_steps=3, measured_steps=12, min_window_s=0.001)


def honest(folder: Path, **settings: Any) -> Path:
    """Results on a GPU against which nothing stands at ±5 %."""
    settings = {"environment": GPU, "protocol": PROTOCOL, "repeats": 5, "trace": True, **settings}
    cases = settings.pop("cases", make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64, 256]))
    return make_results(folder, cases, **settings)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], only: str = "") -> list[str]:
    """Replace fields of runs: `change` answers a row with the fields to set. Returns the run keys that changed.

    `only` is a part of the names of the parts to change.
    """
    changed = []
    for path in parts(folder / "runs"):
        if only not in path.name:
            continue
        (row,) = read(path, "run").to_pylist()
        new = {**row, **change(dict(row))}
        if new != row:
            path.unlink()
            with unsynced():
                commit(build_table([new], schema.RUN, "run"), path)
            changed.append(row["run_key"])
    return changed
