from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.errors import BenchError, InfrastructureError
from bench.launchers import LocalLauncher, Outcome

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
