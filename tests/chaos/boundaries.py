"""Every call to the operating system that a sweep makes below its folder: killed at it, or refused by it."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.config import SweepConfig
from tests.chaos import shim
from tests.chaos.attempts import OUT, attempt, check_folder, prepare, same_parts, same_report
from tests.chaos.fake_sweep import fake_config
from tests.chaos.shim import Action

Fault = tuple[Action, int]
KILLS: tuple[Fault, ...] = ((Action.KILL_BEFORE, 0), (Action.KILL_AFTER, 0))
REFUSALS: tuple[Fault, ...] = (
    (Action.FAIL, errno.ENOSPC),
    (Action.FAIL, errno.EIO),
    (Action.FAIL, errno.EINTR),
    (Action.SHORT, 0),
    (Action.FAIL_ON, errno.ENOSPC),
    (Action.FAIL_ON, errno.EROFS),
)
"""One call that fails, a write that is short, and a disk that is full, or read-only, from one call on."""


def kill_at_every_call(seed: int, count: int, folder: Path) -> Counter[str]:
    """Kill before and after each call of a small sweep, or at `count` of these points where there are more."""
    return _strike_all(seed, count, folder, KILLS)


def refuse_every_call(seed: int, count: int, folder: Path) -> Counter[str]:
    """Refuse each call of a small sweep in every way of `REFUSALS`, or in `count` of these where there are more."""
    return _strike_all(seed, count, folder, REFUSALS)


def _strike_all(seed: int, count: int, folder: Path, faults: Iterable[Fault]) -> Counter[str]:
    config, striker = fake_config(cases=2, repeats=1), shim.Shim()
    alone, done = folder / "undisturbed", Counter[str]()
    prepare(config)
    first = fake_config(cases=1, repeats=1)  # what the folder holds already, so that there is something to read
    for place in (alone, folder / "before"):
        attempt(place, first, conclude=False)
    attempt(alone, config, conclude=False)
    shutil.copytree(folder / "before", folder / "counted")
    calls = _calls(folder / "counted", config, striker)
    done["of them reads"] = calls.count("read")
    points = [(at, fault) for at in range(1, len(calls) + 1) for fault in faults]
    done["calls"] = len(calls)
    if len(points) > count:
        points = random.Random(seed).sample(points, count)
    disturbed = folder / "disturbed"
    for at, fault in points:
        shutil.copytree(folder / "before", disturbed)
        try:
            _strike(disturbed, config, striker, at, fault, done)
            same_parts(disturbed, alone)
        except AssertionError as error:
            raise AssertionError(f"call {at} ({calls[at - 1]}), {fault[0].name} {fault[1]}: {error}") from error
        done["points"] += 1
        if done["points"] == len(points):
            same_report(disturbed, alone)
        shutil.rmtree(disturbed)
    return done


def _calls(folder: Path, config: SweepConfig, striker: shim.Shim) -> list[str]:
    """The calls of an undisturbed sweep, in order; counted in a child of this process, where the shim is armed."""
    listen, speak = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(folder)
        striker.arm(OUT)
        from tests.chaos.fake_sweep import run_fake_sweep

        run_fake_sweep(OUT, config, conclude=False)
        os.write(speak, "\n".join(striker.disarm()).encode())
        os._exit(0)
    os.close(speak)
    with os.fdopen(listen) as file:
        calls = file.read().split("\n")
    os.waitpid(child, 0)
    return calls


def _strike(folder: Path, config: SweepConfig, striker: shim.Shim, at: int, fault: Fault, done: Counter[str]) -> None:
    """One attempt that is struck, what must hold then, and one that resumes it."""
    struck = attempt(folder, config, conclude=False, before=lambda: striker.arm(OUT, at, *fault))
    check_folder(folder, set(struck.finished))
    if struck.killed:
        done["killed"] += 1
    elif struck.error:
        done["refused with a sentence"] += 1
        if fault[1] == errno.ENOSPC and "No space left" not in struck.error:
            raise AssertionError(f"the message does not say that the disk is full: {struck.error}")
    else:
        done["went on"] += 1
    resumed = attempt(folder, config, conclude=False)
    if again := set(struck.finished) & set(resumed.begun):
        raise AssertionError(f"acknowledged and run again: {sorted(again)}")
    if resumed.error or resumed.killed:
        raise AssertionError(f"not to be resumed: {resumed.error}")
