"""The worker, the fork server, the parent and a grandchild are each killed in turn, in the middle of a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from bench.launchers import Answer, LocalLauncher, Outcome
from tests.chaos import work

PARENT = """
import json
from bench.launchers import LocalLauncher
from tests.chaos import work
launcher = LocalLauncher()
launcher.run(work.waits_with_a_child, 600, timeout_s=600, listen=lambda news: print(json.dumps(news), flush=True))
"""


def kill_each_in_turn(seed: int, count: int, folder: Path) -> Counter[str]:
    """Kill each of the four `count` times; the run is called what it is, nothing is left, and the next run is well."""
    launcher, done = LocalLauncher(), Counter[str]()
    for _ in range(count):
        for victim, kill in VICTIMS.items():
            kill(launcher, folder / "log")
            answer = launcher.run(work.answers, None, timeout_s=120)
            if answer.outcome is not Outcome.ANSWERED:
                raise AssertionError(f"after the {victim} was killed the next run ended: {answer.reason}")
            done[f"{victim} killed"] += 1
    return done


def _kill_worker(launcher: LocalLauncher, log: Path) -> None:
    answer, pids = run_and_signal(launcher, work.waits_with_a_child, "pid", log)
    if answer.outcome is not Outcome.DIED or answer.phase != "measure" or "SIGKILL" not in answer.reason:
        raise AssertionError(f"a killed worker is called {answer}")
    check_gone(pids["pid"], pids["grandchild"])


def _kill_server(launcher: LocalLauncher, log: Path) -> None:
    answer, pids = run_and_signal(launcher, work.waits_with_a_child, "server", log)
    if (answer.outcome, answer.phase) != (Outcome.DIED, None) or "fork server was killed" not in answer.reason:
        raise AssertionError(f"a run whose server was killed is called {answer}")
    check_gone(pids["pid"], pids["grandchild"], pids["server"])


def _kill_grandchild(launcher: LocalLauncher, log: Path) -> None:
    answer, pids = run_and_signal(launcher, work.loses_its_loader, "grandchild", log)
    if answer.outcome is not Outcome.DIED or answer.phase != "measure" or "Error: " not in answer.reason:
        raise AssertionError(f"a run whose loader was killed is called {answer}")
    check_gone(pids["pid"], pids["grandchild"])


def _kill_parent(launcher: LocalLauncher, log: Path) -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        told = json.loads(parent.stdout.readline())
        parent.kill()
    check_gone(*told.values())


VICTIMS = {"worker": _kill_worker, "fork server": _kill_server, "grandchild": _kill_grandchild, "parent": _kill_parent}


def run_and_signal(
    launcher: LocalLauncher, task: Any, victim: str, log: Path, number: int = signal.SIGKILL, *, timeout_s: float = 120
) -> tuple[Answer, dict[str, int]]:
    """Run a task that tells who takes part, and signal one of them half a second later."""
    told: dict[str, int] = {}

    def listen(news: dict[str, Any]) -> None:
        told.update(news)
        threading.Timer(0.5, os.kill, (news[victim], number)).start()

    answer = launcher.run(task, 600, timeout_s=timeout_s, log=log, listen=listen)
    return answer, told


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def check_gone(*pids: int, within_s: float = 20.0) -> None:
    """All of these processes end soon. Raises AssertionError."""
    deadline = time.monotonic() + within_s
    while not all(map(is_gone, pids)):
        if time.monotonic() > deadline:
            raise AssertionError(f"still there after {within_s:g} s: {[pid for pid in pids if not is_gone(pid)]}")
        time.sleep(0.05)
