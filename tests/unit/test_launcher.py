from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.errors import BenchError, InfrastructureError
from bench.launchers import ForkLauncher, Handle, InProcessLauncher, Job, LocalLauncher, Outcome

Send = Callable[[dict[str, Any]], None]


def answers(argument: Any, send: Send) -> dict[str, Any]:
    send({"phase": "work", "progress": 1})
    return {"argument": argument, "pid": os.getpid(), "group": os.getpgrp(), "torch": "torch" in sys.modules}


def refuses(argument: Any, send: Send) -> dict[str, Any]:
    raise BenchError("no such thing; use another")


def raises(argument: Any, send: Send) -> dict[str, Any]:
    raise ValueError("a bug")


def dies(argument: Any, send: Send) -> dict[str, Any]:
    send({"phase": "work", "reached": 7})
    os.kill(os.getpid(), argument)
    return {}


def hangs_with_a_child(argument: Any, send: Send) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    Path(argument).write_text(str(child.pid), encoding="ascii")
    send({"phase": "hanging"})
    time.sleep(600)
    return {}


def speaks_now_and_then(argument: Any, send: Send) -> dict[str, Any]:
    for number in range(4):
        time.sleep(0.5)
        send({"number": number})
    return {}


def cuda_is_untouched(argument: Any, send: Send) -> dict[str, Any]:
    import torch

    return {"initialised": torch.cuda.is_initialized(), "bad_fork": torch.cuda._is_in_bad_fork()}


def leaves_a_lock(argument: Any, send: Send) -> dict[str, Any]:
    """As tqdm does, which torch.compile uses where it is installed."""
    LEFT.append(multiprocessing.RLock())
    return {"name_for_the_tracker": LEFT[0]._semlock.name}


LEFT: list[Any] = []


def tells_its_variables(argument: Any, send: Send) -> dict[str, Any]:
    return {name: os.environ.get(name) for name in argument} | {"server": os.getppid()}


@pytest.fixture(scope="module")
def launcher() -> LocalLauncher:
    return LocalLauncher()


def test_each_task_has_a_fresh_process_of_its_own_group_with_torch_there(launcher: LocalLauncher) -> None:
    first, second = (launcher.run(answers, number, timeout_s=120) for number in (1, 2))
    assert first.outcome is second.outcome is Outcome.ANSWERED
    assert (first.value["argument"], second.value["argument"]) == (1, 2)
    assert first.value["pid"] == first.value["group"] != second.value["pid"]
    assert first.value["torch"]
    assert (first.phase, first.news) == ("work", {"progress": 1})
    assert first.start_s is not None
    assert first.start_s <= first.duration_s


def test_a_fork_of_the_server_has_cuda_untouched(launcher: LocalLauncher) -> None:
    assert launcher.run(cuda_is_untouched, None, timeout_s=120).value == {"initialised": False, "bad_fork": False}


def test_a_lock_that_a_task_leaves_is_not_reported_when_the_server_ends(launcher: LocalLauncher) -> None:
    assert launcher.run(leaves_a_lock, None, timeout_s=120).value == {"name_for_the_tracker": None}


def test_a_variable_set_after_the_server_started_reaches_the_task(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["BENCH_LOGS", "PYTORCH_ALLOC_CONF"]
    server = launcher.run(tells_its_variables, names, timeout_s=120).value["server"]
    monkeypatch.setenv("BENCH_LOGS", "/elsewhere")
    assert launcher.run(tells_its_variables, names, timeout_s=120).value == {
        "BENCH_LOGS": "/elsewhere",
        "PYTORCH_ALLOC_CONF": None,
        "server": server,
    }
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # torch, which the server imported, reads it
    after = launcher.run(tells_its_variables, names, timeout_s=120).value
    assert after["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert after["server"] != server


def test_a_message_for_the_user_comes_back_as_such(launcher: LocalLauncher) -> None:
    answer = launcher.run(refuses, None, timeout_s=120)
    assert (answer.outcome, answer.reason) == (Outcome.REFUSED, "no such thing; use another")


def test_an_exception_ends_the_process_and_is_the_reason(launcher: LocalLauncher, tmp_path: Path) -> None:
    answer = launcher.run(raises, None, timeout_s=120, log=tmp_path / "log")
    assert answer.outcome is Outcome.DIED
    assert re.fullmatch(r"ValueError: a bug \(test_launcher\.py:\d+\)", answer.reason)
    assert "Traceback" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_signal_is_named_and_what_was_said_before_is_kept(launcher: LocalLauncher, number: signal.Signals) -> None:
    answer = launcher.run(dies, number, timeout_s=120)
    assert answer.outcome is Outcome.DIED
    assert answer.reason.startswith(f"the process was killed by {number.name}")
    assert (answer.phase, answer.news) == ("work", {"reached": 7})


def test_a_task_that_hangs_is_killed_with_everything_it_started(launcher: LocalLauncher, tmp_path: Path) -> None:
    started = time.monotonic()
    answer = launcher.run(hangs_with_a_child, str(tmp_path / "pid"), timeout_s=4)
    assert answer.outcome is Outcome.TIMED_OUT
    assert answer.reason == "timed out during hanging"
    assert time.monotonic() - started < 30
    child = int((tmp_path / "pid").read_text(encoding="ascii"))
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_deadline_may_count_from_the_last_word(launcher: LocalLauncher) -> None:
    heard: list[dict[str, Any]] = []
    answer = launcher.run(speaks_now_and_then, None, timeout_s=1.5, from_last_word=True, listen=heard.append)
    assert answer.outcome is Outcome.ANSWERED
    assert [news["number"] for news in heard] == [0, 1, 2, 3]
    assert launcher.run(speaks_now_and_then, None, timeout_s=1.5).outcome is Outcome.TIMED_OUT


@pytest.mark.parametrize(("failures", "ends"), [(2, "answered"), (3, "refused")])
def test_a_server_that_dies_while_it_is_asked_is_asked_again_a_few_times(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch, failures: int, ends: str
) -> None:
    real, left = launcher._context.Process, [failures]

    def dying(**named: Any) -> Any:
        process = real(**named)
        if left[0]:
            left[0] -= 1

            def start() -> None:
                raise EOFError("unexpected EOF")

            process.start = start
        return process

    monkeypatch.setattr(launcher._context, "Process", dying)
    monkeypatch.setattr("bench.launchers.faults.start_fault", lambda module: None)  # torch can be imported
    if ends == "answered":
        assert launcher.run(answers, None, timeout_s=120).outcome is Outcome.ANSWERED
    else:
        with pytest.raises(InfrastructureError, match=r"^the fork server does not respond \(unexpected EOF\)"):
            launcher.run(answers, None, timeout_s=120)


def test_the_server_is_started_again_when_it_was_killed(launcher: LocalLauncher) -> None:
    pid = launcher.run(answers, None, timeout_s=120).value["pid"]
    (server,) = [process for process in psutil.Process().children() if "forkserver" in " ".join(process.cmdline())]
    assert server.pid != pid
    server.kill()
    deadline = time.monotonic() + 10  # not waited for: that is for multiprocessing to do, which then starts another
    while server.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert launcher.run(answers, None, timeout_s=120).outcome is Outcome.ANSWERED


# several in flight


def works(argument: float, send: Send) -> dict[str, Any]:
    send({"began_s": time.monotonic()})
    time.sleep(argument)
    return {"ended_s": time.monotonic()}


def tells_its_pid(argument: Any, send: Send) -> dict[str, Any]:
    send({"pid": os.getpid()})
    time.sleep(600)
    return {}


def submit(launcher: LocalLauncher, task: Any, argument: Any = None, **named: Any) -> Handle:
    return launcher.submit(Job(task, argument, **{"timeout_s": 120, **named}))


def spans(handles: Iterable[Handle]) -> list[tuple[float, float]]:
    return [(handle.answer.news["began_s"], handle.answer.value["ended_s"]) for handle in handles if handle.answer]


def test_jobs_of_different_devices_overlap_and_those_of_one_take_turns(launcher: LocalLauncher) -> None:
    first, same, other = (submit(launcher, works, 1.5, device=name) for name in ("cuda:0", "cuda:0", "cuda:1"))
    assert [handle.answer for handle in (first, same, other)] == [None] * 3
    assert {id(handle) for handle in launcher.as_ended([first, same, other])} == {id(first), id(same), id(other)}
    (a, b, c) = spans((first, same, other))
    assert max(a[0], c[0]) < min(a[1], c[1])
    assert a[1] <= b[0] or b[1] <= a[0]


def test_waiting_ends_with_the_first_that_has_ended_or_when_time_is_up(launcher: LocalLauncher) -> None:
    slow, quick = submit(launcher, works, 600), submit(launcher, works, 0)
    assert launcher.wait([slow, quick], timeout_s=60) == [quick]
    assert launcher.wait([slow], timeout_s=0.1) == []
    launcher.cancel([slow])
    assert slow.answer is not None
    assert slow.answer.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("end", ["killed", "out of time", "interrupted", "cancelled"])
def test_the_end_of_one_leaves_the_others_right(launcher: LocalLauncher, end: str) -> None:
    said: dict[str, Any] = {}
    lost = submit(launcher, tells_its_pid, listen=said.update, timeout_s=10 if end == "out of time" else 120)
    well = submit(launcher, works, 3)
    while "pid" not in said and lost.answer is None:
        launcher.wait([lost, well], timeout_s=0.1)
    if end == "cancelled":
        launcher.cancel([lost])
    elif end != "out of time":
        os.kill(said["pid"], signal.SIGKILL if end == "killed" else signal.SIGINT)
    assert set(launcher.as_ended([lost, well])) == {lost, well}
    assert lost.answer is not None
    assert (lost.answer.outcome, lost.answer.reason.split(" (")[0]) == {
        "killed": (Outcome.DIED, "the process was killed by SIGKILL"),
        "out of time": (Outcome.TIMED_OUT, "timed out during start"),
        "interrupted": (Outcome.DIED, "KeyboardInterrupt"),
        "cancelled": (Outcome.CANCELLED, "cancelled during start"),
    }[end]
    assert not psutil.pid_exists(said["pid"])
    assert well.answer is not None
    assert (well.answer.outcome, len(spans([well]))) == (Outcome.ANSWERED, 1)


def test_ctrl_c_while_several_are_in_flight_leaves_none_running(launcher: LocalLauncher) -> None:
    pids: list[int] = []

    def listen(news: dict[str, Any]) -> None:
        pids.append(news["pid"])
        if len(pids) == 2:
            raise KeyboardInterrupt

    handles = [submit(launcher, tells_its_pid, listen=listen) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        list(launcher.as_ended(handles))
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert launcher.run(answers, None, timeout_s=120).outcome is Outcome.ANSWERED


def test_a_job_that_waits_for_its_device_can_be_cancelled(launcher: LocalLauncher) -> None:
    first, second = (submit(launcher, works, 1, device="cuda:0") for _ in range(2))
    launcher.cancel([second])
    assert launcher.wait([first]) == [first]
    assert second.answer is not None
    assert (second.answer.outcome, second.answer.start_s) == (Outcome.CANCELLED, None)


# the calling program

BARE = """
import sys, threading
from bench.launchers import local
kinds = [type(local._bare_context()).__name__]
sys.modules["torch"] = sys
kinds.append(type(local._bare_context()).__name__)
del sys.modules["torch"]
done = threading.Event()
threading.Thread(target=done.wait).start()
kinds.append(type(local._bare_context()).__name__)
done.set()
print(*kinds)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
def test_a_bare_process_is_a_fork_unless_torch_or_a_thread_could_harm_it() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ForkContext", "SpawnContext", "SpawnContext"]


SCRIPT = """
from bench.launchers import LocalLauncher
from tests.unit.test_launcher import answers
print("the script runs", flush=True)
launcher = LocalLauncher()
print([launcher.run(answers, None, timeout_s=120, bare=bare).outcome.value for bare in (True, False)])
"""


def test_a_script_without_a_guard_is_not_run_again_in_each_child(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="ascii")
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        timeout=240,
    )
    assert done.stdout.splitlines() == ["the script runs", "['answered', 'answered']"]


# forks and this process


def test_a_fork_of_this_process_needs_nothing_that_can_be_imported_or_pickled() -> None:
    here = [os.getpid()]

    def task(argument: Any, send: Send) -> dict[str, Any]:
        here.append(os.getpid())
        return {"here": here, "argument": argument()}

    answer = ForkLauncher(lambda: here.append(0)).run(task, lambda: 7, timeout_s=60)
    assert answer.outcome is Outcome.ANSWERED, answer.reason
    assert answer.value["argument"] == 7
    assert answer.value["here"][:2] == [os.getpid(), 0]
    assert answer.value["here"][2] != os.getpid()
    assert here == [os.getpid()]


@pytest.mark.parametrize("launcher_type", [ForkLauncher, LocalLauncher])
def test_a_process_that_may_not_have_children_is_told_so(
    launcher_type: type[LocalLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.raises(InfrastructureError, match=r"^this process is a daemonic child of multiprocessing"):
        launcher_type().run(answers, None, timeout_s=60, bare=True)


def sets_a_variable(argument: dict[str, int], send: Send) -> dict[str, Any]:
    os.environ["BENCH_TEST_VARIABLE"] = "set"
    argument.pop("left")
    send({"phase": "work"})
    send({"pair": (1, 2)})
    return {"pid": os.getpid(), "pair": (1, 2)}


def test_in_this_process_a_task_answers_as_it_would_in_another_and_leaves_no_variables() -> None:
    heard: list[dict[str, Any]] = []
    argument = {"left": 1}
    answer = InProcessLauncher().run(sets_a_variable, argument, timeout_s=0, listen=heard.append)
    assert (answer.outcome, answer.phase, answer.news) == (Outcome.ANSWERED, "work", {"pair": [1, 2]})
    assert answer.value == {"pid": os.getpid(), "pair": [1, 2]}
    assert heard == [{"pair": [1, 2]}]
    assert argument == {"left": 1}
    assert "BENCH_TEST_VARIABLE" not in os.environ


def test_in_this_process_failures_are_answers_too(capfd: pytest.CaptureFixture[str]) -> None:
    launcher = InProcessLauncher()
    assert launcher.run(refuses, None, timeout_s=1).outcome is Outcome.REFUSED
    died = launcher.run(raises, None, timeout_s=1)
    assert died.outcome is Outcome.DIED
    assert re.fullmatch(r"ValueError: a bug \(test_launcher\.py:\d+\)", died.reason)
    assert "Traceback" in capfd.readouterr().err


def takes_all_for_a_result(argument: Any, send: Send) -> dict[str, Any]:
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    return {}


def test_ctrl_c_in_this_process_is_nobodys_result() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        InProcessLauncher().run(takes_all_for_a_result, None, timeout_s=1)
    assert signal.getsignal(signal.SIGINT) is before
