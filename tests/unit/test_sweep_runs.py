"""What becomes of a run, with a launcher that answers as told instead of starting processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.config import check_config
from bench.errors import InfrastructureError
from bench.launchers import Answer, InProcessLauncher, Job, Outcome
from bench.plan import build_plan
from bench.probes.selection import DeviceChoice
from bench.records import Environment, Measurement, Status
from bench.store import Store
from bench.sweep import runs
from bench.sweep.runs import measure_missing
from bench.sweep.session import Session, SweepOptions
from bench.terminal import Progress

CPU = Environment(device="cpu", estimate_device="cpu")
CONFIG = check_config(
    {
        "name": "t",
        "grid": {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": [1, 2]},
        "measure": {"repeats": 1},
    },
    "test",
)


class Scripted(InProcessLauncher):
    """Answers in the order given, then always well."""

    def __init__(self, answers: Iterable[Answer] = ()) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def perform(self, job: Job) -> Answer:
        self.asked.append(job.argument)
        return self.answers.pop(0) if self.answers else answered(Status.OK)


def answered(status: Status, **fields: Any) -> Answer:
    measurement = Measurement(status=status, step_times_s=(0.1, 0.1), wall_window_s=0.2, **fields)
    return Answer(Outcome.ANSWERED, asdict(measurement), "", None, {}, 0.1, 0.5)


def died(phase: str | None, reason: str = "gone") -> Answer:
    return Answer(Outcome.DIED, {}, reason, phase, {}, None, 0.5)


def session(folder: Path, launcher: Scripted, retry: Iterable[Status] = ()) -> Session:
    store = Store(folder / "data")
    store.create()
    made = Session(
        CONFIG,
        SweepOptions(folder, retry=frozenset(retry)),
        Progress(quiet=True),
        launcher,
        store,
        CPU,
        DeviceChoice("cpu", "told"),
    )
    made.plan = build_plan(CONFIG, "cpu")
    store.write_plan(made.plan, CONFIG.protocol, CPU, {})
    return made


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    first, second = Scripted(), Scripted()
    measure_missing([session(tmp_path, first)])
    measure_missing([session(tmp_path, second)])
    assert (len(first.asked), len(second.asked)) == (2, 0)
    assert list(bench.load(tmp_path)["status"]) == ["ok", "ok"]


def test_a_throttled_run_is_tried_once_more_at_the_end_and_both_are_kept(tmp_path: Path) -> None:
    launcher = Scripted([answered(Status.THROTTLED), answered(Status.OK), answered(Status.THROTTLED)])
    measure_missing([session(tmp_path, launcher)])
    assert [argument["case"].batch_size for argument in launcher.asked][0::2] == [
        launcher.asked[0]["case"].batch_size
    ] * 2
    assert bench.load(tmp_path)[["attempt", "status"]].values.tolist() in (
        [[0, "throttled"], [1, "throttled"], [0, "ok"]],
        [[0, "ok"], [0, "throttled"], [1, "throttled"]],
    )


def test_a_sweep_killed_between_the_two_attempts_makes_the_second(tmp_path: Path) -> None:
    class Killed(Scripted):
        def perform(self, job: Job) -> Answer:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().perform(job)

    with pytest.raises(KeyboardInterrupt):
        measure_missing([session(tmp_path, Killed([answered(Status.THROTTLED)]))])
    resumed = Scripted()
    measure_missing([session(tmp_path, resumed)])
    assert len(resumed.asked) == 1
    assert sorted(bench.load(tmp_path)["status"]) == ["ok", "ok", "throttled"]


def test_a_death_within_the_case_is_its_row_and_costs_one_run(tmp_path: Path) -> None:
    measure_missing([session(tmp_path, Scripted([died("measure", "the process was killed by SIGSEGV")]))])
    frame = bench.load(tmp_path)
    assert sorted(frame["status"]) == ["crashed", "ok"]
    row = frame[frame["status"] == "crashed"].iloc[0]
    assert (row["reason"], row["phase"]) == ("the process was killed by SIGSEGV", "measure")


@pytest.mark.parametrize(
    ("log", "status"),
    [
        ("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n", "oom"),
        (
            "terminate called after throwing ...\n  what():  CUDA error: out of memory\nException raised from ...\n",
            "oom",
        ),
        ("terminate called after throwing ...\n  what():  CUDA error: invalid argument\n", "crashed"),
        ("CUDA out of memory, says the model\n", "crashed"),
        (
            "terminate called after throwing an instance of 'sycl::_V1::exception'\n  what():  Enqueue process failed.\n"
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)\nFatal Python error: Aborted\n",
            "oom",
        ),
        (
            "terminate called ...\n  what():  Enqueue process failed.\nFatal Python error: Aborted\n\n"
            "  CUDA error: out of memory, in a frame's name\n",
            "crashed",
        ),
    ],
)
def test_a_death_by_an_exception_that_nothing_caught_is_what_it_says(tmp_path: Path, log: str, status: str) -> None:
    class Aborts(Scripted):
        def perform(self, job: Job) -> Answer:
            if not self.asked:
                assert job.log is not None
                job.log.parent.mkdir(exist_ok=True)
                job.log.write_text(log, encoding="utf-8")
            super().perform(job)
            return died("measure", "the process was killed by SIGABRT")

    measure_missing([session(tmp_path, Aborts())])
    rows = bench.load(tmp_path / "data").set_index("position")
    assert rows.loc[0, "status"] == status
    assert "the process was killed by SIGABRT" in rows.loc[0, "reason"]


def test_a_death_after_the_run_said_how_it_ends_is_what_it_said(tmp_path: Path) -> None:
    said = {"status": "oom", "reason": "CUDA driver error: out of memory"}
    dead = Answer(Outcome.DIED, {}, "the process was killed by SIGABRT", "warm-up", said, 0.1, 0.5)
    measure_missing([session(tmp_path, Scripted([dead]))])
    row = bench.load(tmp_path / "data").sort_values("position").iloc[0]
    assert (row["status"], row["phase"]) == ("oom", "warm-up")
    assert row["reason"] == "CUDA driver error: out of memory; then the process was killed by SIGABRT"


@pytest.mark.parametrize(
    ("answer", "killed", "status"),
    [
        (died("measure", "the process was killed by SIGKILL"), True, "oom"),
        (died("measure", "the process was killed by SIGKILL"), False, "crashed"),
        (died("measure", "the process was killed by SIGSEGV"), True, "crashed"),
        (answered(Status.FAILED, reason="DataLoader worker (pid 7) is killed by signal: Killed."), True, "oom"),
        (answered(Status.FAILED, reason="DataLoader worker (pid 7) is killed by signal: Killed."), False, "failed"),
        (answered(Status.FAILED, reason="DataLoader worker (pid(s) 7, 8) exited unexpectedly"), True, "oom"),
        (answered(Status.FAILED, reason="another fault"), True, "failed"),
        (answered(Status.OK), True, "ok"),
    ],
)
def test_a_process_that_the_kernel_kills_for_memory_was_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, killed: bool, status: str
) -> None:
    counts = iter([0, int(killed), 9, 9])
    monkeypatch.setattr(runs, "read_oom_kills", lambda: next(counts))
    monkeypatch.setattr(runs, "read_memory_limit_bytes", lambda: 3 << 30)
    measure_missing([session(tmp_path, Scripted([answer]))])
    row = bench.load(tmp_path / "data").sort_values("position").iloc[0]
    assert row["status"] == status
    assert status != "oom" or row["reason"].endswith(
        "; the kernel killed a process of this control group (limit 3.00 GiB) for lack of memory"
    )


def test_a_death_before_the_case_begins_is_tried_again_and_no_row(tmp_path: Path) -> None:
    launcher = Scripted([died("start"), died(None)])
    measure_missing([session(tmp_path, launcher)])
    assert len(launcher.asked) == 4
    assert list(bench.load(tmp_path)["status"]) == ["ok", "ok"]


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.TIMED_OUT])
def test_a_device_that_does_not_start_or_never_answers_is_not_held_against_the_case(
    tmp_path: Path, outcome: Outcome
) -> None:
    launcher = Scripted([Answer(outcome, {}, "the GPU cannot be initialised", "start", {}, 0.1, 0.5)])
    measure_missing([session(tmp_path, launcher)])
    assert len(launcher.asked) == 3
    assert list(bench.load(tmp_path)["status"]) == ["ok", "ok"]


def test_a_stop_names_the_log_only_where_something_stands_in_it(tmp_path: Path) -> None:
    class Logging(Scripted):
        said = ""

        def perform(self, job: Job) -> Answer:
            assert job.log is not None
            job.log.write_text(self.said)
            return super().perform(job)

    launcher = Logging([died("start")] * 6)
    with pytest.raises(InfrastructureError, match=r"Finished runs are kept; see bench env, then"):
        measure_missing([session(tmp_path, launcher)])
    assert not list((tmp_path / "data" / "logs").iterdir())
    launcher.said = "last words"
    with pytest.raises(InfrastructureError, match=r"see \S+\.log and bench env, then"):
        measure_missing([session(tmp_path, launcher)])


@pytest.mark.parametrize(
    ("errors", "asked_without"),
    [
        (["NVML gave no answer to x within 30 s"] * 2, [False, False, True, True]),
        (["NVML gave no answer to x within 30 s", None, "NVML gave no answer to x within 30 s"], [False] * 4),
        (["nvmlDeviceGetClockInfo: Unknown Error"] * 4, [False] * 4),  # it answers: asking costs nothing
    ],
)
def test_a_driver_that_let_two_runs_in_a_row_wait_is_not_asked_again(
    tmp_path: Path, errors: list[str | None], asked_without: list[bool]
) -> None:
    launcher = Scripted([answered(Status.OK, nvml_error=error) for error in errors])
    made = session(tmp_path, launcher)
    made.plan = [replace(run, repeat=repeat) for repeat in range(2) for run in made.plan]
    measure_missing([made])
    assert [argument["nvml_error"] is not None for argument in launcher.asked] == asked_without


def test_a_driver_that_lists_other_gpus_is_not_asked_and_the_run_says_why(tmp_path: Path) -> None:
    launcher = Scripted()
    made = session(tmp_path, launcher)
    made.seats[0].choice = replace(made.seats[0].choice, nvml_error="NVML lists other GPUs than torch")
    measure_missing([made])
    assert {argument["nvml_error"] for argument in launcher.asked} == {"NVML lists other GPUs than torch"}


def test_three_such_deaths_in_a_row_stop_the_sweep_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"^3 worker processes in a row ended before the case began: gone\. "):
        measure_missing([session(tmp_path, Scripted([died("start")] * 3))])
    assert list(bench.load(tmp_path)["status"]) == ["interrupted"] * 2


def test_a_timeout_is_a_row_that_is_run_again_only_when_asked(tmp_path: Path) -> None:
    late = Answer(Outcome.TIMED_OUT, {}, "no answer in time", "measure", {}, 0.1, 9.0)
    measure_missing([session(tmp_path, Scripted([late]))])
    again, asked = Scripted(), Scripted()
    measure_missing([session(tmp_path, again)])
    measure_missing([session(tmp_path, asked, retry=[Status.TIMEOUT])])
    assert (len(again.asked), len(asked.asked)) == (0, 1)
    assert sorted(bench.load(tmp_path)["status"]) == ["ok", "ok", "timeout"]
