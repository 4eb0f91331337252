"""SIGKILL at random moments of a sweep."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path

from bench.config import SweepConfig
from tests.chaos.attempts import attempt, check_folder, prepare, same_parts, same_report
from tests.chaos.fake_sweep import fake_config

SPARED_SHARE = 0.1  # of the attempts, which then end their sweep


def kill_at_random(seed: int, count: int, folder: Path) -> Counter[str]:
    """Kill `count` attempts; every sweep is resumed until it ends, then held against one that nobody disturbed."""
    generator, done = random.Random(seed), Counter[str]()
    config = fake_config(cases=16, repeats=3)
    prepare(config)
    alone, started = folder / "undisturbed", time.monotonic()
    attempt(alone, config)
    whole_s = time.monotonic() - started
    while done["kills"] < count:
        disturbed = folder / f"sweep-{done['sweeps']}"
        _one_sweep(disturbed, config, generator, whole_s, done, count)
        same_parts(disturbed, alone)
        done["sweeps"] += 1
        if done["kills"] >= count:  # parts that agree to the byte make the same report: rendered for the last only
            same_report(disturbed, alone)
            done["reports compared"] += 1
        shutil.rmtree(disturbed)
    return done


def _one_sweep(
    folder: Path, config: SweepConfig, generator: random.Random, whole_s: float, done: Counter[str], most: int
) -> None:
    """Start and kill until an attempt ends by itself; checks the folder after every kill."""
    acknowledged: set[str] = set()
    seen: dict[Path, bytes] = {}
    while True:
        spared = done["kills"] >= most or generator.random() < SPARED_SHARE
        moment = None if spared else _moment(generator, whole_s)
        tried = attempt(folder, config, moment, conclude=not spared)  # loading is to be killed as well
        if repeated := acknowledged & set(tried.begun):
            raise AssertionError(f"{folder}: acknowledged and run again: {sorted(repeated)}")
        in_flight = len(tried.begun) - len(tried.finished)
        if in_flight > 1:
            raise AssertionError(f"{folder}: {in_flight} runs in flight at once")
        acknowledged |= set(tried.finished)
        check_folder(folder, acknowledged, seen)
        done["runs begun"] += len(tried.begun)
        done["kills with a run in flight"] += in_flight
        if not tried.killed:
            return
        done["kills"] += 1


def _moment(generator: random.Random, whole_s: float) -> float:
    """When to kill, in seconds: mostly in the first runs of an attempt, now and then anywhere in it."""
    return generator.uniform(0, whole_s * generator.choice([0.2, 0.2, 0.2, 1.0]))
