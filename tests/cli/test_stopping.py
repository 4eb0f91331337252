"""Repeats that follow the intervals, as a user runs them."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

import bench
from bench.cli import cli
from tests import plugins
from tests.cli.test_sweep import CONFIG


def written(folder: Path) -> Path:
    path = folder / "c.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def test_the_plan_says_how_many_runs_there_are_at_least_and_at_most(tmp_path: Path) -> None:
    arguments = ["plan", str(written(tmp_path)), "--device", "cpu"]
    fixed = CliRunner().invoke(cli, arguments)
    assert fixed.output.endswith("t: 4 cases, 0 skipped; 8 runs (2 repeats per case) on cpu\n")
    aimed = CliRunner().invoke(
        cli, [*arguments, "--set", "measure.target_interval=auto", "--set", "measure.time_budget=2 h"]
    )
    assert aimed.output.endswith(
        "t: 4 cases, 0 skipped; at least 20 runs, at most 80 (5 per case, and up to 20 until its interval is within "
        "±5 %, or 2 h 00 min in total) on cpu\n"
    )


def test_a_sweep_adds_rounds_and_names_what_did_not_converge(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (
        "sweep",
        written(tmp_path),
        "--device",
        "cpu",
        "--out",
        out,
        "--set",
        "grid.optimizer=sgd",
        "--set",
        "grid.batch_size=16",
        "--set",
        "measure.target_interval=1e-9",
        "--set",
        "measure.max_repeats=7",
    )
    done = plugins.bench(*arguments)
    assert done.returncode == 0, done.stderr
    assert "round 1: one more run of 1 case; 1 case not settled within ±1e-07 %" in done.stderr
    assert " left in round 2)" in done.stderr
    assert "[7/7] " in done.stderr
    assert "not_converged: 1 case did not reach ±1e-07 %; max_repeats (7) allow no more runs" in done.stderr
    assert "not converged" in done.stdout or "not_converged" in done.stdout
    assert len(bench.load(out)) == 7
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "did not come within the ±1e-07 % asked for in 1 of 1 case, after 7 processes" in report
    again = plugins.bench(*arguments)
    assert "7 runs already finished, 0 to do" in again.stderr
    assert (out / "report.md").read_text(encoding="utf-8") == report
