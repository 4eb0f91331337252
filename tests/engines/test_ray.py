"""A sweep on a real Ray cluster of several nodes on this machine: a node lost in mid-sweep, the driver killed, resumed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.errors import BenchError
from bench.sweep.ray_cluster import _count_slots, do_run
from bench.sweep.standing import State, read_standings

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
kind = "ray"
device = "cpu"
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    ray_cluster = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", str(Path(bench.__file__).parents[1]))
    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
    started = ray_cluster.Cluster(initialize_head=True, head_node_args=head)
    yield started
    started.shutdown()


def start(folder: Path, address: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench", "sweep", "small.toml", "--address", address, *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_state(folder: Path, state: State, timeout_s: float = 240.0) -> list[State]:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        for order in folder.glob("reports/small/data/orders/order-*.parquet"):
            states = [each.state for each in read_standings(order)]
            if state in states:
                return states
        time.sleep(0.3)
    raise AssertionError(f"no run is {state} after {timeout_s:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_and_a_killed_driver_lose_nothing(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(CONFIG)
    node = cluster.add_node(num_cpus=1)

    unfit = start(tmp_path, cluster.address, "--set", "launcher.resources={H100=1}")
    _, words = unfit.communicate(timeout=120)
    assert unfit.returncode == 2 and "1 H100" in words and "Traceback" not in words

    driver = start(tmp_path, cluster.address)
    wait_for_state(tmp_path, State.RUNNING)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    wait_for_state(tmp_path, State.DONE)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()

    again = start(tmp_path, cluster.address)
    out, words = again.communicate(timeout=600)
    assert again.returncode == 0, (out, words)
    frame = bench.load(tmp_path / "reports" / "small")
    assert len(frame) == 4 and set(frame["status"]) == {"ok"} and not frame.duplicated(["case_key", "repeat"]).any()
    assert (tmp_path / "reports" / "small" / "report.md").exists()


@pytest.mark.slow
def test_a_node_without_the_folder_sends_its_part_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.sweep import stages
    from bench.sweep.ray_cluster import _Driver
    from bench.terminal import Progress

    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONPATH", str(Path(bench.__file__).parents[1]))
    (tmp_path / "small.toml").write_text(CONFIG)
    from bench.config import load_config

    (order,) = stages.store_orders(load_config(tmp_path / "small.toml"), tmp_path / "out", "cpu", Progress(quiet=True))
    answer = do_run(order.name, order.read_bytes(), "/nowhere", 1, 0, (), "cpu", False)
    assert "error" not in answer, answer
    result = json.loads(answer["result"])
    assert result["came"] == "measured" and answer["part"][:4] == b"PAR1" and len(answer["plans"]) == 1
    driver = object.__new__(_Driver)
    driver._order, driver._plans = order, set()
    for _ in range(2):  # a second time changes nothing
        driver._keep(result, answer)
    frame = bench.load(tmp_path / "out")
    assert frame.loc[frame["status"] == "ok", "position"].tolist() == [1] and len(frame) == 4
    assert driver._plans == {hashlib.sha256(answer["plans"][0]).hexdigest()}
    assert len(list((tmp_path / "out" / "data").glob("plan-*.parquet"))) == 1


def test_what_no_node_has_is_named() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0, "node:10.0.0.1": 1.0, "accelerator_type:A100": 1.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}},
    ]
    assert _count_slots(nodes, {"CPU": 1.0, "GPU": 1.0}) == 2
    with pytest.raises(BenchError, match=r"1 CPU, 1 GPU, 1 accelerator_type:H100.*Nodes have: 8 CPU, 2 GPU, 1 acc"):
        _count_slots(nodes, {"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": 1.0})
