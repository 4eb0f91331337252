"""Many runs at once: one on each device, each run on the device that the plan gives it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from bench.analysis import judge
from bench.comparison.joining import _name_machines
from bench.errors import DeviceError, InfrastructureError
from bench.launchers import Answer, Handle, Job, Outcome
from bench.probes.machine_facts import MachineFacts
from bench.probes.nvml import Gpu, GpuListing
from bench.probes.selection import expected_devices, usable_devices
from bench.probes.torch_facts import TorchFacts
from bench.records import Environment
from bench.sweep import SweepOptions, stages
from bench.tasks import environment_task, measure_task
from bench.terminal import Progress
from tests.chaos.fake_sweep import CPU, FakeLauncher, fake_config


class Beside(FakeLauncher):
    """Keeps jobs in flight until it is waited for, and ends the last one first.

    Attributes:
        most: The most jobs that were in flight at one time.
        order: The cases and repeats that each device had, in order.
    """

    def __init__(self, slowed: float = 0.0, **options: Any) -> None:
        super().__init__(failing=False, **options)
        self.slowed = slowed
        self.flying: list[Handle] = []
        self.most = 0
        self.order: dict[str, list[tuple[str, int]]] = defaultdict(list)

    def submit(self, job: Job) -> Handle:
        if job.task is not measure_task:
            return super().submit(job)
        handle = Handle(job)
        assert job.device not in {other.job.device for other in self.flying}, "two runs on one device"
        self.flying.append(handle)
        self.most = max(self.most, len(self.flying))
        assert job.device is not None
        self.order[job.device].append((job.argument["case"].key, job.argument.get("repeat", -1)))
        return handle

    def wait(self, handles: Collection[Handle], timeout_s: float | None = None) -> list[Handle]:
        if any(handle.answer is not None for handle in handles):
            return [handle for handle in handles if handle.answer is not None]
        crowd = len(self.flying)
        handle = self.flying.pop()
        job = replace(handle.job, log=handle.job.log or Path("short.log"))
        handle.answer = self.slow(self.perform(replace(job, argument={"repeat": 0, **job.argument})), crowd)
        return [handle] if handle in handles else []

    def slow(self, answer: Answer, crowd: int) -> Answer:
        window_s = answer.value["wall_window_s"] * (1 + self.slowed * (crowd - 1))
        return replace(answer, value={**answer.value, "wall_window_s": window_s})

    def cancel(self, handles: Collection[Handle]) -> None:
        self.flying = [handle for handle in self.flying if handle not in handles]


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))


def swept(out: Path, launcher: FakeLauncher, slots: int = 3, **options: Any) -> Any:
    devices = ",".join(f"cpu:{slot}" for slot in range(slots))
    given = {"parallel": slots, "report": False, **options}
    stages.run_sweep(
        fake_config(cases=4, repeats=3), SweepOptions(out, devices, **given), Progress(quiet=True), launcher
    )
    return bench.load(out)


def test_the_repeats_of_a_case_are_spread_over_equal_devices_by_the_plan_alone(tmp_path: Path) -> None:
    launcher, other = Beside(), Beside()
    frame = swept(tmp_path / "one", launcher)
    assert launcher.most == 3 and len(frame) == 12 and frame["environment_key"].nunique() == 1
    assert (frame.groupby("case_key")["cpu_slot"].nunique() == 3).all()
    assert frame.groupby("cpu_slot").size().tolist() == [4, 4, 4]
    swept(tmp_path / "other", other)
    assert other.order == launcher.order
    for runs in launcher.order.values():  # each device keeps to the order of the plan
        turns = frame.set_index(["case_key", "repeat"])["position"]
        assert [turns[turn] for turn in runs] == sorted(turns[turn] for turn in runs)


def test_no_more_runs_than_allowed_are_in_flight(tmp_path: Path) -> None:
    launcher = Beside()
    frame = swept(tmp_path, launcher, parallel=1)
    assert launcher.most == 1 and set(frame["parallel"]) == {1}


def test_a_killed_sweep_goes_on_with_what_is_missing_on_the_devices_that_are_left(tmp_path: Path) -> None:
    class Killed(Beside):
        def wait(self, handles: Collection[Handle], timeout_s: float | None = None) -> list[Handle]:
            if len(self.asked) == 5:
                raise KeyboardInterrupt
            return super().wait(handles, timeout_s)

    killed = Killed()
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path, killed)
    assert not killed.flying, "runs were left in flight"
    again = Beside()
    frame = swept(tmp_path, again)
    assert len(again.asked) == 7 and len(frame) == 12 and set(frame["status"]) == {"ok"}


def test_each_device_runs_the_whole_plan_where_that_is_asked_for(tmp_path: Path) -> None:
    frame = swept(tmp_path, Beside(), per_device=True)
    assert len(frame) == 36 and frame["environment_key"].nunique() == 3 and frame["spread"].isna().all()


def test_devices_of_two_kinds_run_the_whole_plan_each(tmp_path: Path) -> None:
    class Mixed(Beside):
        def perform(self, job: Job) -> Answer:
            if job.task is environment_task:
                self.environment = replace(
                    CPU, cpu_model="Other" if "slot-0" in job.argument["lock"] else "Made-up Four"
                )
            return super().perform(job)

    frame = swept(tmp_path, Mixed())
    rows = frame.groupby("cpu_model")
    assert rows.size().to_dict() == {"Made-up Four": 12, "Other": 12}
    assert rows["cpu_slot"].nunique().to_dict() == {"Made-up Four": 2, "Other": 1}
    assert rows["spread"].agg(lambda values: values.notna().all()).to_dict() == {"Made-up Four": True, "Other": False}


def test_runs_that_do_not_begin_count_against_their_device_alone(tmp_path: Path) -> None:
    class Broken(Beside):
        def __init__(self, fails: dict[str, int]) -> None:
            super().__init__()
            self.fails = fails

        def wait(self, handles: Collection[Handle], timeout_s: float | None = None) -> list[Handle]:
            ended = super().wait(handles, timeout_s)
            for handle in ended:
                if self.fails.get(str(handle.job.device), 0):
                    self.fails[str(handle.job.device)] -= 1
                    handle.answer = Answer(Outcome.DIED, {}, "the GPU is lost", "start", {}, None, 0.1)
            return ended

    twice = {f"cpu-slot-{slot}": 2 for slot in range(3)}  # as where the fork server dies, under all at once
    assert set(swept(tmp_path / "all", Broken(twice))["status"]) == {"ok"}
    with pytest.raises(InfrastructureError, match=r"3 worker processes in a row .* on cpu:1: the GPU is lost"):
        swept(tmp_path / "one", Broken({"cpu-slot-1": 3}))


def test_neighbours_that_do_not_disturb_are_told_and_not_measured_again(tmp_path: Path) -> None:
    first, again = Beside(), Beside()
    frame = swept(tmp_path, first, parallel=None)
    assert first.most == 3 and set(frame["parallel"]) == {3}
    assert (frame["neighbour_slowdown_frac"] < 0.05).all()
    swept(tmp_path, again, parallel=None)
    assert not again.asked, "the check was done again"


def test_neighbours_that_disturb_leave_one_run_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Beside(slowed=0.5)
    devices = "cpu:0,cpu:1,cpu:2"
    stages.run_sweep(fake_config(4, 3), SweepOptions(tmp_path, devices, report=False), Progress(), launcher)
    said = capsys.readouterr().err
    assert "3 at once: 44.2 % slower than alone, which is more than 5.0 %" in said and "one run at a time" in said
    frame = bench.load(tmp_path)
    assert set(frame["parallel"]) == {1} and frame["pinned_cpus"].isna().all()


def facts(count: int = 3, seen: int | None = None, *, mig: bool = False) -> MachineFacts:
    kind = "MIG" if mig else "GPU"
    gpus = tuple(
        Gpu(f"{kind}-{number}aa", "NVIDIA H200", number, capability=(9, 0), mig=mig) for number in range(count)
    )
    torch = TorchFacts(
        version="2.9.0",
        cuda_version="13.0",
        available=True,
        device_count=count if seen is None else seen,
        arch_list=("sm_90",),
    )
    return MachineFacts(listing=GpuListing(gpus, "580.1"), visible=gpus, torch=torch)


def test_all_are_all_and_lists_are_what_they_name() -> None:
    assert [choice.uuid for choice in usable_devices("all", facts())] == ["GPU-0aa", "GPU-1aa", "GPU-2aa"]
    assert [choice.gpu_index for choice in usable_devices("cuda:2,cuda:0", facts())] == [2, 0]
    assert [choice.gpu_index for choice in usable_devices("GPU-1", facts())] == [1]
    assert [choice.uuid for choice in expected_devices("cuda:2,GPU-0aa", facts())] == ["GPU-0aa", "GPU-2aa"]
    assert [choice.slot for choice in usable_devices("cpu:3,cpu:1", MachineFacts())] == ["cpu:3", "cpu:1"]


def test_every_slice_counts_though_cuda_shows_a_process_one() -> None:
    sliced = facts(seen=1, mig=True)
    assert [choice.uuid for choice in usable_devices("all", sliced)] == ["MIG-0aa", "MIG-1aa", "MIG-2aa"]
    assert [choice.uuid for choice in usable_devices("MIG-2aa", sliced)] == ["MIG-2aa"]


def test_every_device_that_is_not_there_is_named() -> None:
    with pytest.raises(DeviceError) as caught:
        usable_devices("cuda:1,cuda:7,MIG-9", facts())
    assert "cuda:7" in str(caught.value) and "MIG-9" in str(caught.value) and "GPU-2aa" in str(caught.value)
    with pytest.raises(DeviceError, match="GPU-1aa is named twice"):
        usable_devices("cuda:1,GPU-1aa", facts())
    with pytest.raises(DeviceError, match="several GPUs match"):
        usable_devices("GPU-", facts())


def test_what_spreads_is_left_out_of_the_key_and_nothing_else() -> None:
    one = Environment(device="cuda", gpu_name="H200", gpu_uuid_hash="a", host_hash="h", spread="gpus")
    assert replace(one, gpu_uuid_hash="b").key == one.key != replace(one, host_hash="i").key
    wide = replace(one, spread="hosts")
    assert replace(wide, gpu_uuid_hash="b", host_hash="i").key == wide.key != one.key
    alone = replace(one, spread=None)
    assert replace(alone, gpu_uuid_hash="b").key != alone.key
    assert one.changes_since(
        {**{"gpu_uuid_hash": "z"}, "device": "cuda", "gpu_name": "H100", "host_hash": "h", "spread": "gpus"}
    ) == ["gpu_name H100 -> H200"]


def test_runs_that_overlap_on_a_node_of_a_cluster_are_neighbours(tmp_path: Path) -> None:
    frame = swept(tmp_path, Beside()).assign(parallel=None, spread="hosts", duration_s=2.5, process_start_s=0.5)
    apart = frame.assign(started_unix_s=[1.7e9 + 2.5 * place for place in range(len(frame))])  # one after the other
    assert "neighbours" not in {finding.code for finding in judge(apart)}
    beside = apart.assign(started_unix_s=[1.7e9 + 2.5 * (place // 3) for place in range(len(frame))])
    found = {finding.code: finding for finding in judge(beside)}
    assert "all 12 runs had up to 2 runs beside them" in found["neighbours"].text
    other_hosts = beside.assign(host_hash=[f"host-{place % 3}" for place in range(len(frame))])
    assert "neighbours" not in {finding.code for finding in judge(other_hosts)}
    assert "neighbours" not in {finding.code for finding in judge(beside.assign(spread=None))}  # a sweep of its own


def test_what_neighbours_cost_stands_against_publishing_where_it_is_much_or_unknown(tmp_path: Path) -> None:
    frame = swept(tmp_path, Beside())
    found = {finding.code: finding for finding in judge(frame)}
    assert {"cpu_slots", "neighbours"} <= found.keys() and "disturbed" not in found
    assert "all 12 runs had up to 2 runs beside them" in found["neighbours"].text
    known = {finding.code: finding for finding in judge(frame.assign(neighbour_slowdown_frac=0.2))}
    assert "neighbours" not in known and "up to 20.0 %" in known["disturbed"].text
    little = {finding.code for finding in judge(frame.assign(neighbour_slowdown_frac=0.03, cpu_slot=None))}
    assert not little & {"cpu_slots", "neighbours", "disturbed"}
    alone = {finding.code for finding in judge(frame.assign(parallel=1))}
    assert "neighbours" not in alone


def test_a_comparison_names_the_devices_of_a_side_that_has_several() -> None:
    runs = pd.DataFrame({"gpu_uuid_hash": ["a", "b", "a"], "host_hash": ["h"] * 3, "gpu_name": ["H200"] * 3})
    assert _name_machines("baseline", runs) == "The baseline was measured on H200: 2 GPUs (a, b), 1 host (h)."
    assert _name_machines("baseline", runs[:1]) is None


def test_a_lower_priority_is_another_environment_and_stands_against_publishing(tmp_path: Path) -> None:
    usual = Environment(device="cpu", niceness=0)
    assert usual.key == Environment(device="cpu").key != replace(usual, niceness=15).key
    frame = swept(tmp_path, Beside())
    assert "low_priority" not in {finding.code for finding in judge(frame.assign(niceness=0))}
    found = {finding.code: finding for finding in judge(frame.assign(niceness=15))}
    assert "niceness of up to 15" in found["low_priority"].text
