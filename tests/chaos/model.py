"""The sweep as a state machine: plan, run, kill, resume, change the configuration, damage, merge, report, in any order.

What must hold is known from a model in memory: the parts that were acknowledged, and the newest plan of each machine.
Killing happens in a forked child, as in the other campaigns.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bench.analysis import last_attempts
from bench.bundles import merge_results
from bench.config import SweepConfig
from bench.records import Environment
from bench.report import summary_lines
from bench.store import load_results
from bench.store.parts import parts
from tests.chaos.attempts import OUT, attempt, check_folder, prepare
from tests.chaos.fake_sweep import CPU, fake_config

MACHINES = (CPU, replace(CPU, torch_version="2.16.0"))
STEPS = Counter[str]()
"""What all machines together have done."""


class SweepMachine(RuleBasedStateMachine):
    """One results folder and all that can happen to it."""

    @initialize(cases=st.integers(1, 4), repeats=st.integers(1, 3))
    def begin(self, cases: int, repeats: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-model-"))
        self.cases, self.repeats, self.machine = cases, repeats, 0
        self.acknowledged: set[str] = set()
        self.expected: dict[str, int] = {}  # rows planned, by environment
        self.damaged = False
        prepare(self.config)
        self.run()

    @property
    def config(self) -> SweepConfig:
        return fake_config(self.cases, self.repeats)

    @property
    def environment(self) -> Environment:
        return MACHINES[self.machine]

    @rule()
    def run(self) -> None:
        """Run, or resume, to the end."""
        tried = self._attempt(None)
        missing = self.cases * self.repeats - len({name.partition("-a")[0] for name in tried.begun})
        assert missing >= 0
        self.damaged = False
        frame = self._load()
        here = last_attempts(frame[frame["planned"] & (frame["environment_key"] == self.environment.key)])
        assert not set(here["status"]) & {"interrupted"}, "a sweep that ended left runs out"
        assert not self._attempt(None).begun, "a finished sweep ran something again"

    @rule(after_s=st.floats(0, 0.15))
    def kill(self, after_s: float) -> None:
        """Run and kill."""
        self._attempt(after_s)

    @rule(cases=st.integers(1, 4), repeats=st.integers(1, 3))
    def change_configuration(self, cases: int, repeats: int) -> None:
        """Another grid in the same folder, from the next run on."""
        self.cases, self.repeats = cases, repeats
        STEPS["change configuration"] += 1

    @rule(machine=st.sampled_from(range(len(MACHINES))))
    def change_machine(self, machine: int) -> None:
        """An upgrade of torch, or back."""
        self.machine = machine
        STEPS["change machine"] += 1

    @precondition(lambda self: self.acknowledged)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Cut a part short: its run is missing from now on."""
        path = data.draw(st.sampled_from(parts(self._data / "runs")), "part")
        path.write_bytes(path.read_bytes()[:-20])
        self.acknowledged.discard(path.stem)
        self.damaged = True
        STEPS["damage"] += 1

    @precondition(lambda self: not self.damaged)
    @rule()
    def merge(self) -> None:
        """Merged with itself or alone, the folder loads as before."""
        target = self.folder / "merged"
        merge_results(target, [self._data])
        keys = load_results(target)["run_key"].dropna().tolist()
        assert sorted(keys) == sorted(self._load()["run_key"].dropna().tolist())
        shutil.rmtree(target)
        STEPS["merge"] += 1

    @rule()
    def report(self) -> None:
        """What a report says first is the same each time."""
        assert summary_lines(self._load(), None) == summary_lines(self._load(), None)
        STEPS["report"] += 1

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every acknowledged run is there, once, and every planned run has a row."""
        if not hasattr(self, "folder"):
            return
        if not self.damaged:
            check_folder(self.folder, self.acknowledged)
        frame = self._load()
        assert not frame["run_key"].dropna().duplicated().any(), "a run is there twice"
        for key, rows in self.expected.items():
            planned = frame[frame["planned"] & (frame["environment_key"] == key)]
            assert len(last_attempts(planned)) == rows, "planned is not rows"

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @property
    def _data(self) -> Path:
        return self.folder / OUT / "data"

    def _load(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged parts are named; that is tested elsewhere
            return load_results(self._data)

    def _attempt(self, kill_after_s: float | None) -> Any:
        before = parts(self._data, "plan-*.parquet")
        tried = attempt(self.folder, self.config, kill_after_s, conclude=False, environment=self.environment)
        STEPS["killed" if tried.killed else "ran to the end"] += 1
        assert not self.acknowledged & set(tried.begun), "acknowledged and run again"
        assert len(tried.begun) - len(tried.finished) <= 1
        self.acknowledged |= set(tried.finished)
        for aside in self.folder.rglob("*.damaged"):  # set aside rightly, if `damage` did it
            assert self.damaged or aside.stem not in self.acknowledged
            aside.unlink()
        if not tried.killed or len(parts(self._data, "plan-*.parquet")) > len(before) or tried.begun:
            self.expected[self.environment.key] = self.cases * self.repeats
        return tried


def explore(seed_number: int, count: int, folder: Path) -> Counter[str]:
    """`count` histories of up to 12 steps."""
    STEPS.clear()
    tempfile.tempdir = str(folder)
    chosen = settings(
        max_examples=count, stateful_step_count=12, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(seed(seed_number)(SweepMachine), settings=chosen)  # type: ignore[no-untyped-call]
    return STEPS + Counter({"histories": count})
