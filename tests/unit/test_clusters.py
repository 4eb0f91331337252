"""What a sweep on a cluster refuses before anything is submitted; tests/engines has the real engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.config import SweepConfig, check_config
from bench.devices import load_device
from bench.devices.calibration import Calibrations
from bench.errors import BenchError, ConfigError, StoreError
from bench.sweep import SweepOptions, slurm
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


def test_a_job_asks_for_a_core_for_each_process_of_a_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 7\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    checked = config(measure={"loader_workers": 8})
    assert (slurm.cores_of(checked, {"synthetic", "loader"}), slurm.cores_of(checked, {"cached"})) == (9, 1)
    scripts = []
    for cpus in (9, 1):
        data = tmp_path / f"data-{cpus}"
        (data / "orders").mkdir(parents=True)
        order = data / "orders" / "order-0.parquet"
        (job,) = slurm.submit(order, [(0, 0), (1, 0)], checked.launcher, "x", on_gpu=True, cpus=cpus)
        assert (job.job_id, job.chunks, slurm.jobs_of(order)) == ("7", [[(0, 0), (1, 0)]], [job])
        (script,) = {path.read_text() for path in data.glob("logs/order-0/*.sh")}  # each task has a link to it
        scripts.append(script)
    assert "#SBATCH --cpus-per-task=9\n" in scripts[0] and " --cpus-per-task=9 " in scripts[0]
    assert "cpus-per-task" not in scripts[1] and "#SBATCH --gpus-per-node=1\n" in scripts[1]


@pytest.mark.parametrize(
    "text", ['{"job_id": "7", "ord', "", "null", '{"job_id": "7"}', '{"job_id": "7", "order": "o", "chunks": [[0]]}']
)
def test_a_damaged_note_of_a_job_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    order = tmp_path / "orders" / "order-0.parquet"
    note = tmp_path / "jobs" / "slurm-7-123.json"
    note.parent.mkdir()
    (note.parent / "slurm-6-122.json").write_text('{"job_id": "6", "order": "order-0.parquet", "chunks": [[[3, 0]]]}')
    assert slurm.jobs_of(order) == [slurm.ArrayJob("6", order.name, [[(3, 0)]])]
    note.write_text(text)
    with pytest.raises(StoreError) as caught:
        slurm.read_queue([order])  # what that job has is unknown: nothing may be submitted twice
    assert str(caught.value).startswith(f"{note}: cannot be read (")
    for words in ("Slurm's job 7", "finished runs are safe", "`scancel 7`", "move the file away", "the same command"):
        assert words in str(caught.value)
    assert note.read_text() == text
