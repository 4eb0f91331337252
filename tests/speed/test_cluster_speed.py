"""What a chunk saves on Slurm: the same short runs in one job, and in a job each, one at a time on a real cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import bench
from bench.sweep.standing import State, read_standings
from tests.engines.slurm import SlurmCluster, missing, slurm_cluster

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

RUNS = int(os.environ.get("CHUNKED_RUNS", "10"))

CONFIG = f"""
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = 16
[measure]
repeats = {RUNS}
warmup_steps = 1
measured_steps = 3
min_window = 0.01
[data]
fetch = false
[launcher]
kind = "slurm"
device = "cpu"
jobs = 1
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster({"n0": "h100:1"}) as started:
        yield started


@pytest.mark.parametrize("chunk", [RUNS, 1])
def test_short_runs_in_jobs_of_so_many(
    benchmark: BenchmarkFixture, cluster: SlurmCluster, tmp_path: Path, chunk: int
) -> None:
    (tmp_path / "short.toml").write_text(CONFIG + f"chunk = {chunk}\n")
    environment = {
        **cluster.environment,
        "BENCH_LOCK_DIR": str(tmp_path / "locks"),
        "PYTHONPATH": str(Path(bench.__file__).parents[1]),
    }
    command = [sys.executable, "-m", "bench", "sweep", "short.toml"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)  # submits, and returns
    (order,) = tmp_path.glob("reports/short/data/orders/order-*.parquet")

    def wait() -> None:
        while not all(each.state is State.DONE for each in read_standings(order)):
            time.sleep(0.2)

    benchmark.pedantic(wait, rounds=1)
    assert all(each.status == "ok" for each in read_standings(order))
    submitted = next((order.parents[1] / "jobs").iterdir()).stat().st_mtime
    ended = max(part.stat().st_mtime for part in (order.parents[1] / "runs").iterdir())
    benchmark.extra_info["submitted_to_last_part_s"] = round(ended - submitted, 1)
