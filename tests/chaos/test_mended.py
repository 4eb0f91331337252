"""Faults that the campaigns found, each with the smallest case that shows it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest

from bench.errors import BusyError, StoreError
from bench.launchers import LocalLauncher, Outcome
from bench.launchers.conversation import Conversation
from bench.locks import device_lock_path, hold
from bench.records import Case, Choice, Estimate, Measurement, Planned, Protocol, Status
from bench.store import Store, parts
from tests.chaos import work
from tests.chaos.fake_sweep import CPU, fake_config, run_fake_sweep
from tests.chaos.processes import PARENT, check_gone, run_and_signal

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
    with mock.patch.object(pq, "ParquetFile", side_effect=refusal), pytest.raises(StoreError) as caught:
        store.finished_runs()
    assert str(caught.value) == f"{part}: cannot be read (Input/output error); nothing was changed"
    assert [path.name for path in store.runs_folder.iterdir()] == [part.name]


def test_a_folder_called_newer_version_does_not_keep_damage_from_being_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "a newer version")
    store.create()
    store.write_run(RUN, 0, Protocol(), OK, CPU)
    (part,) = store.runs_folder.iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="set aside"):
        assert store.finished_runs() == {}


def test_damaged_estimates_are_made_again_and_not_taken_for_written(store: Store) -> None:
    made = [Estimate(case_key=CASE.key, estimate_device="cpu", formula_bytes=7)]
    store.write_estimates(made, "e" * 16)
    (part,) = store.estimates_folder.iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="set aside"):
        assert store.estimated("e" * 16) == set()
    store.write_estimates(made, "e" * 16)
    assert store.estimated("e" * 16) == {(CASE.key, "cpu")}


def test_a_damaged_plan_does_not_stop_the_sweep(store: Store) -> None:
    (plan,) = store.folder.glob("plan-*.parquet")
    plan.write_bytes(plan.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="set aside"):
        store.write_plan([RUN], Protocol(), CPU, {"name": "t"})
    assert parts.read(store.folder / "plan-0002.parquet", "plan").num_rows == 1


def test_a_damaged_part_in_a_folder_that_takes_no_changes_is_a_typed_error(store: Store) -> None:
    (part,) = store.runs_folder.iterdir()
    part.write_bytes(b"")
    refusal = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with (
        mock.patch.object(Path, "rename", side_effect=refusal),
        pytest.warns(UserWarning, match="set aside"),
        pytest.raises(StoreError, match="choose another --out"),
    ):
        store.finished_runs()


def test_a_changed_note_is_noticed(store: Store) -> None:
    (plan,) = store.folder.glob("plan-*.parquet")
    data = plan.read_bytes()
    assert data.count(b'"cpu_model": "Made-up Four"') >= 1
    plan.write_bytes(data.replace(b'"cpu_model": "Made-up Four"', b'"cpu_model": "Made-up Five"'))
    with pytest.raises(StoreError, match="its notes differ from the hash"):
        parts.read(plan, "plan")


def test_two_hosts_that_plan_at_once_both_have_their_plan(store: Store) -> None:
    other = replace(CPU, host_hash="1" * 16)
    with mock.patch("bench.store.folder.parts", return_value=[]):  # it looked before the first plan was there
        store.write_plan([RUN], Protocol(), other, {"name": "t"})
    assert [path.name for path in parts.parts(store.folder, "plan-*.parquet")] == [
        "plan-0001.parquet", "plan-0002.parquet"
    ]  # fmt: skip


def test_what_killed_writers_left_goes_and_a_writer_at_work_keeps_its_file(tmp_path: Path) -> None:
    config = fake_config(1, 1)
    run_fake_sweep(tmp_path, config, conclude=False)
    old, new = (tmp_path / "data" / "runs" / f".tmp-{name}" for name in ("old", "new"))
    for path, age_s in ((old, 7200), (new, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    run_fake_sweep(tmp_path, config, conclude=False)
    assert (old.exists(), new.exists()) == (False, True)


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
    class Never:
        def warm(self) -> None: ...

        def run(self, *arguments: Any, **named: Any) -> Any:
            raise AssertionError("a process was started")

    with hold(device_lock_path("cpu-0"), "x"), pytest.raises(BusyError, match=r"^the device cpu is in use by process"):
        run_fake_sweep(tmp_path, fake_config(1, 1), Never())  # type: ignore[arg-type]


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

    def __init__(self) -> None:
        self.sentinel, self._other = os.pipe()


def test_an_answer_given_in_time_counts_though_it_is_heard_late() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    os.write(sender.fileno(), b'{"outcome": "answered", "value": {"done": 1}}\n')
    conversation = Conversation(time.monotonic() - 3600, lambda news: None)
    assert not conversation.follow(receiver, _Alive(), 1.0, from_last_word=False)  # type: ignore[arg-type]
    assert conversation.answer(False, 0, None).value == {"done": 1}


def test_a_child_that_never_stops_talking_meets_its_deadline() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def listen(news: dict[str, Any]) -> None:
        os.write(sender.fileno(), b'{"again": 1}\n')

    os.write(sender.fileno(), b'{"again": 1}\n')
    started = time.monotonic()
    assert Conversation(started, listen).follow(receiver, _Alive(), 0.2, from_last_word=False)  # type: ignore[arg-type]
    assert time.monotonic() - started < 30


def test_nothing_that_a_run_started_outlives_a_parent_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        told = json.loads(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    check_gone(*told.values())
