"""A sweep on a real Slurm cluster of two nodes on this machine: submit and leave, look, lose what can be lost, resume."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bench
from bench.errors import ConfigError
from bench.sweep.standing import State, read_standings
from tests.engines.slurm import SlurmCluster, missing, slurm_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

CONFIG = """
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = [16, 32]

[measure]
repeats = 2
warmup_steps = 1
measured_steps = 3
min_window = 0.01

[data]
fetch = false

[launcher]
kind = "slurm"
device = "cpu"
chunk = 2
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster({"n0": "h100:1", "n1": "h100:1"}) as started:
        yield started


@pytest.fixture
def run(cluster: SlurmCluster, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    (tmp_path / "small.toml").write_text(CONFIG)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bench", *arguments]
        locks = {"BENCH_LOCK_DIR": str(tmp_path / "locks"), "PYTHONPATH": str(Path(bench.__file__).parents[1])}
        environment = {**cluster.environment, **locks}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)

    return run


def wait_for(seen: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
    end = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < end, f"{what} after {timeout_s:.0f} s"
        time.sleep(0.5)


def order_in(folder: Path) -> Path:
    (order,) = folder.glob("reports/small/data/orders/order-*.parquet")
    return order


def test_submit_lose_a_node_cancel_and_resume(
    cluster: SlurmCluster, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    refused = run("sweep", "small.toml", "--set", "launcher.partition=gup")
    assert refused.returncode == 1 and "Nearest: gpu" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr

    submitted = run("sweep", "small.toml", "--set", "launcher.partition=gpu", "--set", "launcher.jobs=1")
    assert submitted.returncode == 0, submitted.stderr
    assert "submitted 4 runs in 2 jobs" in submitted.stderr
    order = order_in(tmp_path)

    def states() -> list[State]:
        return [each.state for each in read_standings(order)]

    # a node goes down in the middle of a run: what it had finished stays, and the run is lost
    wait_for(lambda: State.RUNNING in states(), "no run was claimed")
    (where,) = {line.split("|")[1] for line in cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%i|%N").split()}
    cluster.kill_node(where)
    cluster.run("scancel", "--user=root", "--state=PENDING")
    wait_for(lambda: State.RUNNING not in states(), "the run of the dead node is still taken for alive")
    done = states().count(State.DONE)
    assert done < 4
    cluster.start_node(where)
    cluster.wait_idle(60)

    told = run("sweep", "--status", "reports/small", "--json")
    (counts,) = json.loads(told.stdout)["orders"].values()
    assert counts["done"] == done and counts["lost"] + counts["missing"] == 4 - done

    # the same command starts only what is missing, renders the report, and has nothing to do after that
    resumed = run("sweep", "small.toml", "--wait")
    assert resumed.returncode == 0, resumed.stderr
    assert f"submitted {4 - done} run" in resumed.stderr
    frame = bench.load(tmp_path / "reports" / "small")
    assert len(frame) == 4 and set(frame["status"]) == {"ok"} and not frame.duplicated(["case_key", "repeat"]).any()
    assert (tmp_path / "reports" / "small" / "report.md").exists()
    again = run("sweep", "small.toml", "--no-report")
    assert again.returncode == 0 and "4 done; 0 to do" in again.stderr
    assert not list((order.parents[1] / "claims").iterdir())


def test_a_cancelled_chunk_ends_after_its_run(
    cluster: SlurmCluster, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert run("sweep", "small.toml", "--set", "launcher.chunk=4").returncode == 0
    order = order_in(tmp_path)
    wait_for(lambda: any(each.state is State.RUNNING for each in read_standings(order)), "no run was claimed")
    cluster.run("scancel", "--signal=USR2", "--user=root")
    wait_for(lambda: not cluster.run("squeue", "-h").strip(), "the job goes on")
    standings = read_standings(order)
    assert {each.state for each in standings} <= {State.DONE, State.MISSING}  # nothing is claimed, nothing is lost
    assert any(each.state is State.DONE for each in standings), standings
    log = "".join(path.read_text() for path in order.parents[1].glob("logs/*/*.out"))
    assert "SIGUSR2" in log


def test_a_printed_job_script_is_one_that_slurm_takes(
    cluster: SlurmCluster, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    request = run("plan", "small.toml", "--emit", "slurm", "--set", "grid.batch_size=16")
    assert request.returncode == 0, request.stderr
    (tmp_path / "job.sh").write_text(request.stdout.replace("--mem=", "--mem=500M #"))  # the nodes have 1000 MB
    cluster.run("sbatch", "--test-only", str(tmp_path / "job.sh"))


def test_what_a_cluster_cannot_do_is_refused(tmp_path: Path) -> None:
    from bench.config import check_config
    from bench.sweep import SweepOptions
    from bench.sweep.clusters import run_on_cluster
    from bench.terminal import Progress

    grid = {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": 8}
    config = check_config(
        {"name": "x", "grid": grid, "measure": {"target_interval": 0.01}, "launcher": {"kind": "slurm"}}, "x"
    )
    with pytest.raises(ConfigError, match="the scheduler chooses") as caught:
        run_on_cluster(config, SweepOptions(tmp_path, device="cuda:1"), Progress(quiet=True))
    assert "target_interval" in str(caught.value)


def test_no_sbatch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.config import check_config
    from bench.errors import BenchError
    from bench.sweep import SweepOptions
    from bench.sweep.clusters import run_on_cluster
    from bench.terminal import Progress

    monkeypatch.setenv("PATH", str(tmp_path))
    grid = {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": 8}
    settings = {"kind": "slurm", "device": "cpu"}
    config = check_config({"name": "x", "grid": grid, "data": {"fetch": False}, "launcher": settings}, "x")
    with pytest.raises(BenchError, match="login node"):
        run_on_cluster(config, SweepOptions(tmp_path / "out"), Progress(quiet=True))
