"""Faults that the campaigns found, each with the smallest case that shows it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bench.bundles import merge_results, write_bundle
from bench.errors import BusyError, StoreError
from bench.launchers import Job, LocalLauncher, Outcome
from bench.launchers.local import _Conversation
from bench.locks import device_lock_path, hold
from bench.records import Case, Choice, Estimate, Measurement, Planned, Protocol, Status
from bench.store import Store, load_results, parts
from bench.store.load import results_folders
from tests.chaos import work
from tests.chaos.fake_sweep import CPU, FakeLauncher, bytes_of, fake_config, run_fake_sweep
from tests.chaos.processes import PARENT, check_gone, run_and_signal
from tests.results import make_cases, make_results

CASE = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 16, image_size=28)
RUN = Planned(CASE, 0, 0)
OK = Measurement(status=Status.OK, step_times_s=(0.1,), wall_window_s=0.1)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "data")
    made.create()
    made.write_plan([RUN], Protocol(), CPU, {"name": "t"})
    made.write_run(RUN, 0, Protocol(), OK, CPU)
    return made


def test_a_part_that_the_disk_does_not_give_is_not_taken_for_damaged(store: Store) -> None:
    (part,) = store.runs_folder.iterdir()
    refusal = OSError(errno.EIO, os.strerror(errno.EIO), str(part))
    with mock.patch.object(Path, "read_bytes", side_effect=refusal), pytest.raises(StoreError) as caught:
        store.finished_runs()
    assert str(caught.value) == f"{part}: cannot be read (Input/output error); nothing was changed"
    assert [path.name for path in store.runs_folder.iterdir()] == [part.name]


def test_a_folder_called_newer_version_does_not_keep_damage_from_being_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "a newer version")
    store.create()
    store.write_run(RUN, 0, Protocol(), OK, CPU)
    (part,) = store.runs_folder.iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="moved aside"):
        assert store.finished_runs() == {}


def test_damaged_estimates_are_made_again_and_not_taken_for_written(store: Store) -> None:
    made = [Estimate(case_key=CASE.key, estimate_device="cpu", formula_bytes=7)]
    store.write_estimates(made, "e" * 16)
    (part,) = store.estimates_folder.iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="moved aside"):
        assert store.estimated("e" * 16) == set()
    store.write_estimates(made, "e" * 16)
    assert store.estimated("e" * 16) == {(CASE.key, "cpu")}


def test_a_damaged_plan_does_not_stop_the_sweep_and_stays_as_it_may_be_another_machines(store: Store) -> None:
    (plan,) = store.folder.glob("plan-*.parquet")
    plan.write_bytes(plan.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"^skipped: .*plan-0001\.parquet: damaged"):
        store.write_plan([RUN], Protocol(), replace(CPU, torch_version="2.16.0"), {"name": "t"})
    assert parts.read(store.folder / "plan-0002.parquet", "plan").num_rows == 1
    with pytest.warns(UserWarning, match=r"^skipped: .*plan-0001\.parquet: damaged"):
        load_results(store.folder)


def test_a_damaged_part_in_a_folder_that_takes_no_changes_is_a_typed_error(store: Store) -> None:
    (part,) = store.runs_folder.iterdir()
    part.write_bytes(b"")
    refusal = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with (
        mock.patch.object(Path, "rename", side_effect=refusal),
        pytest.warns(UserWarning, match="moved aside"),
        pytest.raises(StoreError, match="choose another --out"),
    ):
        store.finished_runs()


def test_a_changed_note_is_noticed(store: Store) -> None:
    (plan,) = store.folder.glob("plan-*.parquet")
    data = plan.read_bytes()
    assert data.count(b'"cpu_model": "Made-up Four"') >= 1
    plan.write_bytes(data.replace(b'"cpu_model": "Made-up Four"', b'"cpu_model": "Made-up Five"'))
    with pytest.raises(StoreError, match="its notes do not match their hash"):
        parts.read(plan, "plan")


@pytest.mark.parametrize("kind", ["plan", "estimates"])
def test_a_sweep_into_a_folder_that_a_newer_version_wrote_into_changes_nothing(tmp_path: Path, kind: str) -> None:
    from tests.chaos.programs import write_newer

    run_fake_sweep(tmp_path, fake_config(1, 1), conclude=False)
    (tmp_path / "data" / "estimates" / "of-other-code.parquet").touch()  # damaged: that alone stops nothing
    model = next(
        (tmp_path / "data").rglob("plan-*.parquet" if kind == "plan" else "estimates/*-????????????????.parquet")
    )
    newer = model.with_name("plan-0000.parquet" if kind == "plan" else "newer.parquet")
    write_newer(model, kind, newer, 2)
    before = bytes_of(tmp_path)
    launcher = FakeLauncher(failing=False)
    with pytest.raises(StoreError) as caught:
        run_fake_sweep(tmp_path, fake_config(2, 1), launcher, conclude=False)
    assert str(caught.value) == f"{newer}: written by a newer version (format 2; this one reads up to 1)"
    assert (bytes_of(tmp_path), launcher.asked) == (before, [])
    newer.unlink()
    run_fake_sweep(tmp_path, fake_config(2, 1), launcher, conclude=False)
    assert len(launcher.asked) == 1


def test_two_hosts_that_plan_at_once_both_have_their_plan(store: Store) -> None:
    other = replace(CPU, host_hash="1" * 16)
    with mock.patch("bench.store.folder.parts", return_value=[]):  # it looked before the first plan was there
        store.write_plan([RUN], Protocol(), other, {"name": "t"})
    assert [path.name for path in parts.parts(store.folder, "plan-*.parquet")] == [
        "plan-0001.parquet",
        "plan-0002.parquet",
    ]


def test_what_killed_writers_left_goes_and_a_writer_at_work_keeps_its_file(tmp_path: Path) -> None:
    config = fake_config(1, 1)
    run_fake_sweep(tmp_path, config, conclude=False)
    old, new = (tmp_path / "data" / "runs" / f".tmp-{name}" for name in ("old", "new"))
    for path, age_s in ((old, 7200), (new, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    run_fake_sweep(tmp_path, config, conclude=False)
    assert (old.exists(), new.exists()) == (False, True)


MERGE = """
import shutil, sys
from pathlib import Path
from bench.bundles import merge_results, write_bundle
target, source = map(Path, sys.argv[1:])
whole, copied = shutil.copyfile, []
def copy(*names):
    copied.append(whole(*names))
    if len(copied) == 2:
        print("in the middle", flush=True)
        sys.stdin.readline()
shutil.copyfile = copy
merge_results(target, [source])
"""


def merge_half(target: Path, source: Path) -> subprocess.Popen[str]:
    """A merge in a process of its own that stops in the middle until it is given a line."""
    command = [sys.executable, "-c", MERGE, str(target), str(source)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert started.stdout is not None and started.stdout.readline() == "in the middle\n"
    return started


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_results(tmp_path / "source", make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64]), repeats=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("target", ["both", "another"])
def test_what_a_killed_merge_left_goes_with_the_next_one(tmp_path: Path, source: Path, target: str) -> None:
    with merge_half(tmp_path / "both", source) as merge:
        merge.kill()
    left = [name for name in names(tmp_path) if name.startswith(".tmp-")]
    assert merge.returncode == -signal.SIGKILL and len(left) == 1
    shutil.copy(source / "plan-0001.parquet", tmp_path / left[0] / "merged" / "data")  # as if killed a moment later
    assert results_folders([tmp_path]) == [source]  # nobody takes it for results
    merge_results(tmp_path / target, [source])
    assert names(tmp_path) == sorted([target, "source"])
    assert len(load_results(tmp_path / target)) == 4


def test_a_merge_does_not_delete_what_another_one_is_writing(tmp_path: Path, source: Path) -> None:
    with merge_half(tmp_path / "slow", source) as slow:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            os.utime(path, (time.time() - 7200,) * 2)  # as after a night in which the machine slept
        merge_results(tmp_path / "fast", [source])
        slow.communicate("go on\n", timeout=60)
    assert slow.returncode == 0
    assert names(tmp_path) == ["fast", "slow", "source"]
    assert len(load_results(tmp_path / "slow")) == 4


@pytest.mark.parametrize(("age_s", "stays"), [(7200, False), (60, True)])
def test_without_locks_the_age_tells_which_merge_is_dead(
    tmp_path: Path, source: Path, age_s: float, stays: bool
) -> None:
    place = tmp_path / f".tmp-bench-merge-{'0' * 32}"
    (place / "merged").mkdir(parents=True)
    (place / "merged" / "part").touch()
    for path in (place, place / "merged"):
        os.utime(path, (time.time() - 7200,) * 2)
    os.utime(place / "merged" / "part", (time.time() - age_s,) * 2)  # what was written last counts
    with mock.patch("bench.locks.FileLock.acquire", side_effect=NotImplementedError("no flock here")):
        merge_results(tmp_path / "both", [source])
    assert place.exists() is stays
    assert len(load_results(tmp_path / "both")) == 4


def test_what_only_looks_like_an_unfinished_merge_stays(tmp_path: Path, source: Path) -> None:
    (tmp_path / ".tmp-of-another-program").mkdir()
    (tmp_path / ".tmp-bench-merge-0").symlink_to(source)
    for path in (tmp_path / ".tmp-of-another-program", source):
        os.utime(path, (time.time() - 7200,) * 2)
    merge_results(tmp_path / "both", [source])
    assert names(tmp_path) == [".tmp-bench-merge-0", ".tmp-of-another-program", "both", "source"]
    assert load_results(source)["planned"].all()


def test_a_holder_that_was_killed_is_not_named_for_the_one_after_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    me = {"pid": gone.pid, "host": socket.gethostname(), "command": "bench sweep"}
    with hold(path, "the device"):
        path.with_name("x.lock.holder").write_text(json.dumps(me), encoding="utf-8")
        with pytest.raises(BusyError, match=r"^the device is in use by another process\."), hold(path, "the device"):
            pass


def test_locks_that_the_file_system_does_not_know_are_a_typed_error(tmp_path: Path) -> None:
    with (
        mock.patch("bench.locks.FileLock.acquire", side_effect=NotImplementedError("no flock here")),
        pytest.raises(BusyError, match=r"^the device cannot be locked .*no flock here\); nothing was changed$"),
        hold(tmp_path / "x.lock", "the device"),
    ):
        pass


def test_a_folder_of_locks_that_cannot_be_made_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "file" / "locks"))
    with pytest.raises(BusyError, match=r"BENCH_LOCK_DIR$"):
        device_lock_path("cpu-0")


def test_a_busy_device_is_said_before_anything_is_started(tmp_path: Path) -> None:
    class Never(FakeLauncher):
        def warm(self) -> None:
            raise AssertionError("a server was started")

        def perform(self, job: Job) -> Any:
            raise AssertionError("a process was started")

    with hold(device_lock_path("cpu-0"), "x"), pytest.raises(BusyError, match=r"^the device cpu is in use by process"):
        run_fake_sweep(tmp_path, fake_config(1, 1), Never())


@pytest.fixture(scope="module")
def launcher() -> LocalLauncher:
    return LocalLauncher()


def test_a_run_whose_server_was_killed_is_not_held_against_its_case(launcher: LocalLauncher, tmp_path: Path) -> None:
    answer, told = run_and_signal(launcher, work.waits_with_a_child, "server", tmp_path / "log")
    assert (answer.outcome, answer.phase) == (Outcome.DIED, None)
    assert answer.reason == "the fork server was killed, and the run with it"
    check_gone(told["pid"], told["grandchild"])


def test_a_child_that_stops_in_the_middle_of_a_message_does_not_outlast_its_deadline(launcher: LocalLauncher) -> None:
    answer = launcher.run(work.stops_in_the_middle_of_a_word, None, timeout_s=3)
    assert answer.outcome is Outcome.TIMED_OUT


def test_an_answer_larger_than_the_pipe_comes_whole(launcher: LocalLauncher) -> None:
    answer = launcher.run(work.answers_at_length, 200_000, timeout_s=120)
    assert answer.value == {"values": list(range(200_000))}


class _Alive:
    """A process that lives."""

    sentinel, _other = os.pipe()  # nothing is ever written to it


def test_an_answer_given_in_time_counts_though_it_is_heard_late() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    os.write(sender.fileno(), b'{"outcome": "answered", "value": {"done": 1}}\n')
    conversation = _Conversation(Job(work.answers, None, 1.0), time.monotonic() - 3600)
    assert conversation.is_over(receiver, _Alive())  # type: ignore[arg-type]
    assert not conversation.timed_out
    assert conversation.answer(0).value == {"done": 1}


def test_a_child_that_never_stops_talking_meets_its_deadline() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def listen(news: dict[str, Any]) -> None:
        os.write(sender.fileno(), b'{"again": 1}\n')

    os.write(sender.fileno(), b'{"again": 1}\n')
    started = time.monotonic()
    conversation = _Conversation(Job(work.answers, None, 0.2, listen=listen), started)
    while not conversation.is_over(receiver, _Alive()):  # type: ignore[arg-type]
        pass
    assert conversation.timed_out
    assert time.monotonic() - started < 30


def test_nothing_that_a_run_started_outlives_a_parent_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        told = json.loads(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    check_gone(*told.values())


def test_what_a_killed_bundling_left_is_deleted_by_the_next_and_nobody_elses_file(tmp_path: Path) -> None:
    left, fresh, foreign = (tmp_path / name for name in (".tmp-bench-bundle-1", ".tmp-bench-bundle-2", ".tmp-mine"))
    for path in (left, fresh, foreign):
        path.touch()
    for path in (left, foreign):
        os.utime(path, (time.time() - 7200,) * 2)
    write_bundle(tmp_path / "results.zip", "results", {"a.txt": b"a"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, foreign.name, "results.zip"]


def test_estimates_beside_a_run_do_not_follow_the_order_of_merging(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        store, key = Store(tmp_path / name / "data"), name * 16
        store.create()
        store.write_estimates([Estimate(case_key=CASE.key, estimate_device="cpu", formula_bytes=number)], key)
        store.write_plan([RUN], Protocol(), CPU, {"name": "t"}, estimate_key=key)
        store.write_run(RUN, 0, Protocol(), OK, CPU)
    beside = set()
    for order in ("ab", "ba"):
        merge_results(tmp_path / order, [tmp_path / name for name in order])
        beside.update(load_results(tmp_path / order)["formula_bytes"].tolist())
    assert len(beside) == 1
