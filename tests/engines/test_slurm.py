"""A sweep on a real Slurm cluster of two nodes on this machine: submit and leave, look, lose what can be lost, resume."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bench
from bench.sweep.standing import State, read_standings
from tests.engines.slurm import SlurmCluster, missing, slurm_cluster
from tests.engines.sweeps import OUT, ROOT, SMALL, assert_same_report, find_order, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

ON_SLURM = (*SMALL, "--launcher", "slurm", "--set", "launcher.chunk=2")

SLEEPY = """
import time
from torch import nn

class Sleepy(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(28 * 28, classes)

    def forward(self, images):
        time.sleep(0.3)
        return self.layer(images.flatten(1))
"""
"""A model whose runs take a while and no processor."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster({"n0": "h100:1", "n1": "h100:1"}, kill_wait_s=30) as started:
        yield started


@pytest.fixture
def run(cluster: SlurmCluster, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bench", *arguments]
        locks = {"BENCH_LOCK_DIR": str(tmp_path / "locks"), "PYTHONPATH": str(ROOT)}
        environment = {**cluster.environment, **locks}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)

    return run


def test_submit_lose_a_node_cancel_and_resume(
    cluster: SlurmCluster, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    refused = run("sweep", *ON_SLURM, "--set", "launcher.partition=gup")
    assert refused.returncode == 1 and "Nearest: gpu" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr

    submitted = run("sweep", *ON_SLURM, "--set", "launcher.partition=gpu", "--set", "launcher.jobs=1")
    assert submitted.returncode == 0, submitted.stderr
    assert "submitted 4 runs in 2 jobs" in submitted.stderr
    order = find_order(tmp_path / OUT)

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

    told = run("sweep", "--status", str(OUT), "--json")
    (counts,) = json.loads(told.stdout)["orders"].values()
    assert counts["done"] == done and counts["lost"] + counts["missing"] == 4 - done

    # the same command starts only what is missing, renders the report, and has nothing to do after that
    resumed = run("sweep", *ON_SLURM, "--wait")
    assert resumed.returncode == 0, resumed.stderr
    assert f"submitted {4 - done} run" in resumed.stderr
    frame = bench.load(tmp_path / OUT)
    assert len(frame) == 4 and set(frame["status"]) == {"ok"} and not frame.duplicated(["case_key", "repeat"]).any()
    local = run("sweep", *SMALL, "--out", "reports/local")
    assert local.returncode == 0, local.stderr
    assert_same_report(tmp_path / OUT, tmp_path / "reports" / "local")
    again = run("sweep", *ON_SLURM, "--no-report")
    assert again.returncode == 0 and "4 done; 0 to do" in again.stderr
    assert not list((order.parents[1] / "claims").iterdir())


def test_a_cancelled_chunk_ends_after_its_run(
    cluster: SlurmCluster, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    long = ("--set", "measure.min_window=1")  # so that the chunk is not over before it hears of its end
    assert run("sweep", *ON_SLURM, "--set", "launcher.chunk=4", *long).returncode == 0
    order = find_order(tmp_path / OUT)
    wait_for(lambda: any(each.state is State.RUNNING for each in read_standings(order)), "no run was claimed")
    cluster.run("scancel", "--signal=USR2", "--user=root")
    wait_for(lambda: not cluster.run("squeue", "-h").strip(), "the job goes on")
    standings = read_standings(order)
    assert {each.state for each in standings} <= {State.DONE, State.MISSING}  # nothing is claimed, nothing is lost
    assert any(each.state is State.DONE for each in standings), standings
    log = "".join(path.read_text() for path in order.parents[1].glob("logs/*/*.out"))
    assert "SIGUSR2" in log


def test_preemption_and_the_time_limit_end_chunks_in_order_and_lose_nothing(
    cluster: SlurmCluster, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    sleepy = (
        *ON_SLURM,
        "--models",
        "sleepy.py",
        "--set",
        'grid.model=["sleepy.py:Sleepy"]',
        "--set",
        "measure.repeats=10",
    )
    sleepy += ("--set", "launcher.chunk=20", "--set", "launcher.gres=gpu:h100:1", "--set", "measure.min_window=4")
    out = {name: tmp_path / "reports" / name for name in ("limited", "preempted")}
    # 2 min for Slurm, SIGUSR2 70 s before; Slurm may send it up to a minute early, but not before the job listens
    limit = {"limited": "140 s", "preempted": "20 min"}
    jobs = {}
    for name, folder in out.items():
        submitted = run("sweep", *sleepy, "--set", f"launcher.time={limit[name]}", "--out", str(folder))
        assert submitted.returncode == 0, submitted.stderr
        (jobs[name],) = re.findall(r"Slurm (\d+)", submitted.stderr)

    def states(name: str) -> set[State]:
        return {each.state for each in read_standings(find_order(out[name]))}

    def is_gone(name: str) -> bool:
        return not cluster.run("squeue", "-h", "-j", jobs[name], check=False).strip()

    wait_for(lambda: State.RUNNING in states("preempted"), "no run was claimed")
    node = cluster.run("squeue", "-h", "-j", jobs["preempted"], "-o", "%N").strip()
    urgent = ("sbatch", "--partition=urgent", "--gres=gpu:h100:1", f"--nodelist={node}", "--output=/dev/null")
    cluster.run(*urgent, "--wrap=true")
    for name, signal in (("preempted", "SIGTERM"), ("limited", "SIGUSR2")):
        wait_for(lambda name=name: is_gone(name), f"the {name} job goes on")  # type: ignore[misc]
        log = "".join(path.read_text() for path in out[name].glob("data/logs/*/*.out"))
        assert f"{signal}" in log and "runs of this chunk are left" in log, log
        assert states(name) <= {State.DONE, State.MISSING} and State.MISSING in states(name)  # nothing is lost
    finished = sum(each.state is State.DONE for each in read_standings(find_order(out["preempted"])))

    # the same command submits the rest, and no run twice
    again = run("sweep", *sleepy, "--set", "launcher.time=20 min", "--out", str(out["preempted"]))
    assert again.returncode == 0 and f"submitted {20 - finished} runs in 1 job" in again.stderr, again.stderr
    cluster.run("scancel", "--user=root")
    wait_for(lambda: not cluster.run("squeue", "-h").strip(), "jobs go on")


def test_a_printed_job_script_is_one_that_slurm_takes(
    cluster: SlurmCluster, run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    request = run("plan", *SMALL, "--emit", "slurm", "--set", "grid.batch_size=16", "--out", "emitted")
    assert request.returncode == 0, request.stderr
    (tmp_path / "job.sh").write_text(request.stdout.replace("--mem=", "--mem=500M #"))  # the nodes have 1000 MB
    cluster.run("sbatch", "--test-only", str(tmp_path / "job.sh"))
