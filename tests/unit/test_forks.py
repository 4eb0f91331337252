"""Forks lose what ends badly in them, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.forks import MOST_HANGS, Lost, Work, work_apart


class Unprintable(Exception):
    """Fails to be printed."""

    def __str__(self) -> str:
        raise SystemExit(3)


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def deeper(depth: int = 0) -> int:
    return deeper(depth + 1)


def prints_to_nowhere() -> Any:
    os.close(2)
    raise ValueError("unheard")


ENDS: dict[str, tuple[Callable[[], Any], str]] = {
    "an exception": (raising(ValueError("first\nsecond")), r"ValueError: first \(test_forks\.py:\d+\)"),
    "no message": (raising(LookupError()), r"LookupError \(test_forks\.py:\d+\)"),
    "memory": (raising(MemoryError()), r"MemoryError \(.*\)"),
    "recursion": (deeper, r"RecursionError: maximum recursion depth exceeded.* \(test_forks\.py:\d+\)"),
    "exit": (raising(SystemExit(0)), r"SystemExit: 0 \(.*\)"),
    "interrupt": (raising(KeyboardInterrupt()), r"KeyboardInterrupt \(.*\)"),
    "stop": (raising(StopIteration()), r"StopIteration \(.*\)"),
    "generator": (raising(GeneratorExit()), r"GeneratorExit \(.*\)"),
    "cancelled": (raising(asyncio.CancelledError()), r"CancelledError \(.*\)"),
    "a group": (raising(ExceptionGroup("two", [ValueError("a")])), r"ExceptionGroup: two \(1 sub-exception\) \(.*\)"),
    "unprintable": (raising(Unprintable()), r"Unprintable: its message cannot be printed \(.*\)"),
    "no text": (raising(ValueError("a \udcff b")), r"ValueError: a \\udcff b \(.*\)"),
    "unheard": (prints_to_nowhere, r"ValueError: unheard \(.*\)"),
    "leaves": (lambda: os._exit(7), "the process exited with code 7"),
    "leaves as if all were well": (lambda: os._exit(0), "the process exited with code 0"),
    "is killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"the process was killed by SIGKILL \(.*\)"),
    "kills its group": (lambda: os.killpg(0, signal.SIGKILL), r"the process was killed by SIGKILL \(.*\)"),
    "a fault": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "the process was killed by SIGSEGV"),
    "closes everything": (lambda: os.closerange(3, 256), "the process exited with code 1"),
    "cannot be handed over": (lambda: lambda: None, r".+"),
}


def work(do: Callable[[Any, bool], Any], timeout_s: float = 60, shares: bool = False, kin: Any = None) -> Work[Any]:
    return Work(do, lambda item: shares, kin or (lambda item: item), str, timeout_s)


def test_whatever_an_item_does_the_others_have_their_answers() -> None:
    def do(item: str, alone: bool) -> str:
        return ENDS[item][0]() if item in ENDS else f"answer to {item}"

    good = [f"good {number}" for number in range(len(ENDS) + 1)]
    mixed = [item for pair in zip(good, [*ENDS, "last"], strict=True) for item in pair]
    answers = dict(work_apart(work(do), [mixed[:7], mixed[7:], ["one more"]], workers=2))
    assert set(answers) == {*mixed, "one more"}
    for item, answer in answers.items():
        if item in ENDS:
            assert isinstance(answer, Lost)
            assert re.fullmatch(ENDS[item][1], answer.reason), answer.reason
        else:
            assert answer == f"answer to {item}"


def test_what_a_neighbour_did_to_the_process_is_not_charged_to_the_next() -> None:
    state: list[str] = []

    def do(item: str, alone: bool) -> str:
        if state:
            raise ValueError(f"{item} found {state}")
        if item == "spoils":
            state.append("a mess")
        return item

    assert dict(work_apart(work(do), [["spoils", "next", "after"]], workers=1)) == {
        "spoils": "spoils",
        "next": "next",
        "after": "after",
    }


def test_what_fails_in_shared_work_is_asked_again_without_it() -> None:
    def do(item: str, alone: bool) -> str:
        if not alone:
            os._exit(1)
        return item

    assert dict(work_apart(work(do, shares=True), [["a", "b"]], workers=2)) == {"a": "a", "b": "b"}


def test_what_hangs_is_ended_with_all_that_it_started_and_says_where(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def do(item: str, alone: bool) -> str:
        if item == "hangs":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (tmp_path / "pid").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
            time.sleep(600)
        return item

    started = time.monotonic()
    answers = dict(work_apart(work(do, timeout_s=2), [["hangs", "next"]], workers=1))
    assert answers == {"hangs": Lost("timed out after 2 s"), "next": "next"}
    assert time.monotonic() - started < 30
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    log = capfd.readouterr().err
    assert "test_forks.py" in log
    assert "--- hangs: timed out after 2 s" in log


def test_items_like_some_that_hung_do_not_cost_their_time_each() -> None:
    def do(item: int, alone: bool) -> int:
        if item < 10:
            time.sleep(600)
        return item

    started = time.monotonic()
    answers = dict(work_apart(work(do, timeout_s=1, kin=lambda item: item < 10), [list(range(12))], workers=1))
    hung = [answer.reason for item, answer in answers.items() if item < 10]
    assert sorted(set(hung)) == [f"not tried: {MOST_HANGS} similar ones timed out after 1 s", "timed out after 1 s"]
    assert hung.count("timed out after 1 s") == MOST_HANGS
    assert (answers[10], answers[11]) == (10, 11)
    assert time.monotonic() - started < 20
