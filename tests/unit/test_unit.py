"""The unit of sweeps on clusters: one run of a stored order, on whatever machine, exactly once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import bench
from bench.errors import BenchError, BusyError, DeviceError, StoreError
from bench.launchers import Answer, InProcessLauncher, Job, Outcome
from bench.locks import device_lock_path, hold
from bench.probes.machine_facts import MachineFacts
from bench.probes.nvml import Gpu, GpuListing
from bench.probes.torch_facts import TorchFacts
from bench.records import Status
from bench.store import Store
from bench.sweep import SweepOptions, claims, stages, unit
from bench.sweep.standing import CLAIMS, State, find_orders, read_standings
from bench.sweep.unit import Came, RunUnit, find_order, open_unit, read_order
from bench.tasks import measure_task
from bench.terminal import Progress
from tests.chaos.fake_sweep import CPU, FakeLauncher, fake_config
from tests.unit.test_claims import dead


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))


@pytest.fixture
def order(tmp_path: Path) -> Path:
    (made,) = stages.store_orders(fake_config(cases=3, repeats=2), tmp_path / "out", "cpu", Progress(quiet=True))
    return made


@contextmanager
def opened(order: Path, launcher: InProcessLauncher | None = None) -> Iterator[RunUnit]:
    launcher = launcher or FakeLauncher(failing=False)
    with open_unit(read_order(order, launcher), launcher, Progress(quiet=True)) as made:
        yield made


def test_each_run_is_done_once_and_the_folder_is_that_of_a_sweep(order: Path) -> None:
    with opened(order) as made:
        assert [made.run(index).came for index in (3, 0, 1)] == [Came.MEASURED] * 3
    launcher = FakeLauncher(failing=False)
    with opened(order, launcher) as made:
        assert [made.run(index).came for index in range(6)] == [Came.PRESENT] * 2 + [Came.MEASURED] + [Came.PRESENT] + [
            Came.MEASURED
        ] * 2
    frame = bench.load(order.parents[2])
    assert frame["planned"].all() and set(frame["status"]) == {"ok"} and len(frame) == 6
    assert frame["position"].tolist() == list(range(6)) and set(frame["spread"]) == {"hosts"}
    assert not list((order.parents[1] / CLAIMS).iterdir())


def test_equal_hosts_share_a_plan_and_others_do_not(order: Path) -> None:
    hosts = [CPU, replace(CPU, host_hash="1" * 16), replace(CPU, torch_version="2.16.0")]
    for index, host in enumerate(hosts):
        with opened(order, FakeLauncher(host, failing=False)) as made:
            made.run(index)
    frame = bench.load(order.parents[2])
    assert frame["environment_key"].nunique() == 2
    assert frame.loc[frame["status"] == "ok", "host_hash"].nunique() == 2
    assert len(list(order.parents[1].glob("plan-*.parquet"))) == 2


def test_a_throttled_run_has_a_second_attempt_and_no_third(order: Path) -> None:
    class Hot(FakeLauncher):
        def perform(self, job: Job) -> Answer:
            answer = super().perform(job)
            hot = {**answer.value, "status": "throttled"} if job.task is measure_task else answer.value
            return replace(answer, value=hot)

    with opened(order, Hot(failing=False)) as made:
        results = [made.run(0) for _ in range(3)]
    assert [result.came for result in results] == [Came.MEASURED, Came.MEASURED, Came.PRESENT]
    assert bench.load(order.parents[2])["attempt"].tolist()[:2] == [0, 1]


def test_a_lost_try_is_told_and_too_many_are_a_row(order: Path) -> None:
    with opened(order) as made:
        part = made.session.journal.part(made.order.runs[0], 0)
        folder = order.parents[1] / CLAIMS
        for number in range(claims.MOST_TRIES):
            lost = claims.claim_run(folder, part)
            assert lost is not None and lost.number == number
            assert made.run(0).came is Came.CLAIMED
            dead(lost.path)
        result = made.run(0)
    assert (result.came, result.status) == (Came.MEASURED, Status.CRASHED)
    row = bench.load(order.parents[2]).iloc[0]
    assert row["lost_tries"] == claims.MOST_TRIES and "lost" in row["reason"]


def test_a_busy_device_is_no_row_and_leaves_no_claim(order: Path) -> None:
    class Busy(FakeLauncher):
        def perform(self, job: Job) -> Answer:
            if job.task is measure_task:
                return Answer(Outcome.BUSY, {}, "the device is in use by process 7", "start", {}, None, 0.0)
            return super().perform(job)

    with opened(order, Busy()) as made:
        result = made.run(0)
    assert result.came is Came.BUSY and "process 7" in (result.reason or "")
    assert not list((order.parents[1] / CLAIMS).iterdir()) and not list((order.parents[1] / "runs").iterdir())
    with hold(device_lock_path("cpu-0"), "the device"), pytest.raises(BusyError), opened(order):
        pass


def test_an_interrupted_run_can_be_claimed_at_once(order: Path) -> None:
    class Interrupted(FakeLauncher):
        def perform(self, job: Job) -> Answer:
            if job.task is measure_task:
                raise KeyboardInterrupt
            return super().perform(job)

    with pytest.raises(KeyboardInterrupt), opened(order, Interrupted()) as made:
        made.run(0)
    with opened(order) as made:
        assert made.run(0).came is Came.MEASURED
    assert bench.load(order.parents[2]).iloc[0]["lost_tries"] == 0


def test_one_who_comes_back_late_overwrites_nothing(order: Path) -> None:
    with opened(order) as made:
        part = order.parents[1] / "runs" / f"{made.session.journal.part(made.order.runs[0], 0)}.parquet"

        class Late(FakeLauncher):
            def perform(self, job: Job) -> Answer:
                if job.task is measure_task:
                    part.write_bytes(b"of another")
                return super().perform(job)

        made.session.launcher = Late()
        assert made.run(0).came is Came.PRESENT
    assert part.read_bytes() == b"of another"


def test_a_claim_of_one_who_was_killed_behind_its_part_is_taken_away(order: Path) -> None:
    with opened(order) as made:
        assert made.run(0).came is Came.MEASURED
        left = claims.claim_run(order.parents[1] / CLAIMS, made.session.journal.part(made.order.runs[0], 0))
        assert left is not None
        dead(left.path)
        assert made.run(0).came is Came.PRESENT
    assert not list((order.parents[1] / CLAIMS).iterdir())


def test_other_code_is_refused(order: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "case_code_key", lambda case: "other")
    with pytest.raises(BenchError, match="other code"), opened(order):
        pass


def test_an_index_that_is_not_there_and_orders_that_are_not_one_are_refused(order: Path, tmp_path: Path) -> None:
    with opened(order) as made, pytest.raises(BenchError, match="no run 6; it has 0 to 5"):
        made.run(6)
    assert find_order(tmp_path / "out") == find_order(order) == order
    with pytest.raises(StoreError, match="holds no order"):
        find_order(tmp_path / "nowhere")
    (other,) = stages.store_orders(fake_config(cases=1), tmp_path / "out", "cpu", Progress(quiet=True))
    with pytest.raises(StoreError, match="2 orders; name one"):
        find_order(tmp_path / "out")
    assert other != order


def test_the_same_plan_is_the_same_order(order: Path, tmp_path: Path) -> None:
    (again,) = stages.store_orders(fake_config(cases=3, repeats=2), tmp_path / "out", "cpu", Progress(quiet=True))
    assert again == order and json.loads(json.dumps(str(order)))


def test_a_large_plan_has_several_orders_and_one_set_of_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "MOST_RUNS", 4)
    out = tmp_path / "out"

    def store(cases: int = 3, repeats: int = 2, to: Path = out) -> list[Path]:
        return stages.store_orders(fake_config(cases=cases, repeats=repeats), to, "cpu", Progress(quiet=True))

    orders = store()
    assert [order.parents[1].name for order in orders] == ["part-000", "part-001"]
    assert store() == orders == find_orders(out / "data")
    for order in orders:
        count = len(read_standings(order))
        with opened(order) as made:
            for index in range(count):
                made.run(index)
        assert {each.state for each in read_standings(order)} == {State.DONE}
    frame = bench.load(out)
    assert len(frame) == 6 and not frame.duplicated(["case_key", "repeat"]).any() and frame["planned"].all()
    assert set(bench.load(out).groupby("case_key")["repeat"].agg(tuple).map(sorted).map(tuple)) == {(0, 1)}
    outcome = stages.conclude(Store(out / "data"), SweepOptions(out, report=False))
    assert sum(outcome.counts.values()) == 6
    for other in ({"cases": 2}, {"cases": 4}):  # one order in a folder that has several; several others
        with pytest.raises(BenchError, match="another plan"):
            store(**other)
    store(cases=1, to=tmp_path / "small")
    with pytest.raises(BenchError, match="another plan"):
        store(to=tmp_path / "small")


def test_several_visible_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    gpus = tuple(Gpu(f"GPU-{number}", "NVIDIA H200", number, capability=(9, 0)) for number in range(2))
    torch = TorchFacts(version="2.9.0", cuda_version="13.0", available=True, device_count=2, arch_list=("sm_90",))
    facts = MachineFacts(listing=GpuListing(gpus, "580.1"), visible=gpus, torch=torch)
    with pytest.raises(DeviceError, match=r"2 GPUs are visible.*0,1"):
        unit._only_device("cuda", facts)
    one = replace(facts, visible=gpus[:1], torch=replace(torch, device_count=1))
    assert unit._only_device("cuda", one).uuid == "GPU-0"
