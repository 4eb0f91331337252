"""The same code twice on this machine's CPU, interleaved: nothing may be called different."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench
from bench.comparison import compare

REPEATS = 5
CONFIG = """
name = "aa"
[grid]
dataset = ["mnist"]
model = ["mlp"]
optimizer = ["sgd"]
batch_size = [32, 128]
[measure]
repeats = 1
warmup_steps = 3
measured_steps = 8
min_window = "100 ms"
"""


@pytest.mark.slow
def test_the_same_code_twice_on_this_machine_is_not_called_different(tmp_path: Path) -> None:
    """As docs/statistics.md tells users to interleave: one more process a side at a time, the order turned each time."""
    from bench.config import load_config
    from bench.sweep import SweepOptions, run_sweep
    from bench.terminal import Progress

    path = tmp_path / "aa.toml"
    path.write_text(CONFIG, encoding="utf-8")
    sides = [tmp_path / "one", tmp_path / "two"]
    for repeat in range(1, REPEATS + 1):
        config = load_config(path, (f"measure.repeats={repeat}",))
        for out in sides if repeat % 2 else reversed(sides):
            run_sweep(config, SweepOptions(out=out, device="cpu", report=False), Progress(quiet=True))
    frames = [bench.load(out) for out in sides]
    assert all((frame["status"] == "ok").all() for frame in frames), [frame["reason"].tolist() for frame in frames]
    found = compare(*frames)
    print(found.cases[["label", "metric", "ratio", "low", "high", "verdict"]].to_string())  # pytest -s shows it
    assert set(found.cases["n_baseline"]) == set(found.cases["n_candidate"]) == {REPEATS}
    assert set(found.cases["verdict"]) <= {"same", "unclear"}
    assert len(found.regressions) == 0
    assert {row.field for row in found.differences if row.kind in ("flags", "code")} == set()
    memory = found.cases[found.cases["metric"] == "peak_allocated_bytes"]
    assert set(memory["verdict"]) == {"same"}
