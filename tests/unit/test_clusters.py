"""What a sweep on a cluster refuses before anything is submitted; tests/engines has the real engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.config import SweepConfig, check_config
from bench.devices import load_device
from bench.devices.calibration import Calibrations
from bench.errors import BenchError, ConfigError
from bench.sweep import SweepOptions
from bench.sweep.clusters import run_on_cluster
from bench.terminal import Progress


def config(**more: Any) -> SweepConfig:
    grid = {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": 8}
    values = {"name": "x", "grid": grid, "data": {"fetch": False}, "launcher": {"kind": "slurm", "device": "cpu"}}
    return check_config({**values, **more}, "x")


def test_what_a_cluster_cannot_do_is_refused_at_once(tmp_path: Path) -> None:
    calibrations = Calibrations((load_device("cpu"),))
    options = SweepOptions(tmp_path, device="cuda:1", parallel=2, in_process=True, calibrations=calibrations)
    with pytest.raises(ConfigError) as caught:
        run_on_cluster(config(measure={"target_interval": 0.01}), options, Progress(quiet=True))
    told = ("the scheduler chooses", "target_interval", "--in-process", "--parallel", "--calibration")
    assert len(caught.value.faults) == len(told)
    assert not [words for words in told if words not in str(caught.value)]
    assert not list(tmp_path.iterdir())


def test_no_sbatch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="login node"):
        run_on_cluster(config(), SweepOptions(tmp_path / "out"), Progress(quiet=True))
