"""A sweep on a real Ray cluster of several nodes on this machine: a node lost in mid-sweep, the driver killed, resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bench
from bench.errors import BenchError, InfrastructureError
from bench.sweep.ray_cluster import _connected, _count_slots, _slots, _whole_node, do_run
from bench.sweep.standing import State, read_standings
from tests.chaos.fake_sweep import fake_config
from tests.engines.sweeps import OUT, SMALL, assert_same_report, wait_for


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    ray_cluster = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", str(Path(bench.__file__).parents[1]))
    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
    started = ray_cluster.Cluster()
    add_patiently(started, **head)
    yield started
    started.shutdown()


def add_patiently(cluster: Any, **settings: Any) -> Any:
    """Add a node; Ray gives it 30 s, which a busy machine may not have."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return cluster.add_node(**settings)
    return cluster.add_node(**settings)


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench", "sweep", *SMALL, *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_state(folder: Path, *states: State) -> None:
    wait_for(
        lambda: any(
            each.state in states
            for order in folder.glob("data/orders/order-*.parquet")
            for each in read_standings(order)
        ),
        f"no run is {' or '.join(states)}",
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_and_a_killed_driver_lose_nothing(cluster: Any, tmp_path: Path) -> None:
    node = add_patiently(cluster, num_cpus=1)
    on_ray = ("--launcher", "ray", "--address", cluster.address)

    unfit = start(tmp_path, *on_ray, "--set", "launcher.resources={H100=1}")
    _, words = unfit.communicate(timeout=400)
    assert unfit.returncode == 2 and "1 H100" in words and "Traceback" not in words

    driver = start(tmp_path, *on_ray)
    wait_for_state(tmp_path / OUT, State.RUNNING, State.DONE)  # a busy machine may miss that a short run is running
    cluster.remove_node(node, allow_graceful=False)
    add_patiently(cluster, num_cpus=1)
    wait_for_state(tmp_path / OUT, State.DONE)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()

    again = start(tmp_path, *on_ray)
    out, words = again.communicate(timeout=600)
    assert again.returncode == 0, (out, words)
    frame = bench.load(tmp_path / OUT)
    assert len(frame) == 4 and set(frame["status"]) == {"ok"} and not frame.duplicated(["case_key", "repeat"]).any()
    # what Ray does to its workers is undone, and in the rows
    assert set(frame["niceness"]) == {0 if os.geteuid() == 0 else 15}
    assert not frame["speed_variables"].astype(str).str.contains("OMP_NUM_THREADS").any()

    local = start(tmp_path, "--out", "reports/local")
    out, words = local.communicate(timeout=600)
    assert local.returncode == 0, (out, words)
    assert_same_report(tmp_path / OUT, tmp_path / "reports" / "local")


@pytest.mark.slow
def test_a_node_without_the_folder_sends_its_part_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.sweep import stages
    from bench.sweep.ray_cluster import _Driver
    from bench.terminal import Progress

    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONPATH", str(Path(bench.__file__).parents[1]))
    (order,) = stages.store_orders(fake_config(cases=2, repeats=2), tmp_path / "out", "cpu", Progress(quiet=True))
    answer = do_run(order.name, order.read_bytes(), "/nowhere", 1, 0, (), "cpu", True)
    assert "error" not in answer, answer
    result = json.loads(answer["result"])
    assert result["came"] == "measured" and answer["part"][:4] == b"PAR1" and len(answer["plans"]) == 1
    driver = object.__new__(_Driver)
    driver._order, driver._plans = order, set()
    for _ in range(2):  # a second time changes nothing
        driver._keep(result, answer)
    frame = bench.load(tmp_path / "out")
    assert frame.loc[frame["status"] == "ok", "position"].tolist() == [1] and len(frame) == 4
    assert frame["formula_bytes"].notna().all()  # the node made the estimates too, for all cases
    assert driver._plans == {hashlib.sha256(answer["plans"][0]).hexdigest()}
    assert len(list((tmp_path / "out" / "data").glob("plan-*.parquet"))) == 1


def test_what_no_node_has_is_named() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0, "node:10.0.0.1": 1.0, "accelerator_type:A100": 1.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}},
    ]
    assert _count_slots(nodes, {"CPU": 1.0, "GPU": 1.0}) == 2
    wanted = {"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": 1.0}
    told = r"1 CPU, 1 GPU, 1 accelerator_type:H100.*Nodes have: 8 CPU, 2 GPU, 1 acc.*such a node$"
    with pytest.raises(BenchError, match=told):
        _count_slots(nodes, wanted)
    with pytest.raises(BenchError, match=r"or add such a node\. To measure on CPUs instead: --device cpu"):
        _count_slots([{"Alive": True, "Resources": {"CPU": 8.0}}], {"CPU": 1.0, "GPU": 1.0})


def test_a_run_on_the_cpu_has_a_node_to_itself() -> None:
    nodes = [{"Alive": alive, "Resources": {"CPU": cpus}} for alive, cpus in ((True, 4.0), (True, 8.0), (False, 16.0))]
    assert _slots(nodes, _whole_node(nodes, {})) == [0, 1]
    nodes[0]["Resources"]["fast"] = 1.0
    assert _whole_node(nodes, {"fast": 1.0}) == {"CPU": 4.0}
    assert _whole_node(nodes, {"H100": 1.0}) == {"CPU": 1.0}


@pytest.mark.parametrize(
    ("address", "asked", "words"),
    [(None, "local", "Ray starts no cluster on this host: OSError"), ("auto", "auto", "no Ray cluster at auto")],
)
def test_without_an_address_a_new_cluster_starts_and_what_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, address: str | None, asked: str, words: str
) -> None:
    heard = list[str]()

    def init(address: str, **_: object) -> None:
        heard.append(address)
        raise OSError

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(InfrastructureError, match=words), _connected(address):
        pass
    assert heard == [asked]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_nobody_listens_at_is_told_before_ray_tries_it(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    heard = list[str]()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda address, **_: heard.append(address)))
    monkeypatch.setattr(sys.modules["ray"], "shutdown", lambda: None, raising=False)
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as open_:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        deaf, listening = (f"{scheme}127.0.0.1:{each.getsockname()[1]}" for each in (closed, open_))
        with pytest.raises(InfrastructureError, match=f"no Ray cluster at {deaf} can be used: .*refused"):
            _connected(deaf).__enter__()
        with _connected(listening):
            pass
    assert heard == [listening]
