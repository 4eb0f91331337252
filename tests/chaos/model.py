"""The sweep as a state machine: several folders, three programs, and everything that can happen to them, in any order.

Plan, run, kill, resume, change the configuration or the machine, install an older or a newer program, damage, put a part of
a newer format in, merge, report. What must hold is known from a model in memory (`places`): the parts that were
acknowledged, what they said, and the newest plan of each machine. Killing happens in a forked child, as in the other
campaigns.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bench.bundles import merge_results
from bench.config import SweepConfig
from bench.errors import StoreError
from bench.plan import build_plan
from bench.records import Environment
from bench.report import render_report, summary_lines
from tests.chaos.attempts import OUT, Attempt, attempt, prepare, same_report
from tests.chaos.fake_sweep import BRIEF, CPU, fake_config
from tests.chaos.merges import contradict, merge_places
from tests.chaos.places import Place, rows_of, turn_of
from tests.chaos.programs import PRESENT, PROGRAMS, Program, write_newer

MACHINES = (CPU, replace(CPU, torch_version="2.16.0"), replace(CPU, host_hash="1" * 16))
MOST_PLACES = 4
RENDERED = 12
"""One history of so many ends with its reports rendered, which takes seconds."""

STEPS = Counter[str]()
"""What all machines together have done."""

PLACES = st.integers(0, MOST_PLACES - 1)
GRIDS = {"cases": st.integers(1, 4), "repeats": st.integers(1, 3)}
Settings = tuple[int, int, int, Program]
SETTINGS = st.tuples(*GRIDS.values(), st.integers(0, len(MACHINES) - 1), st.sampled_from(PROGRAMS))
"""Cases, repeats, the machine's number and the program of a folder's first sweep."""


class SweepMachine(RuleBasedStateMachine):
    """Results folders and all that can happen to them."""

    @initialize(both=st.tuples(SETTINGS, SETTINGS))
    def begin(self, both: tuple[Settings, Settings]) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="chaos-model-"))
        self.numbers = itertools.count(1)
        self.places: list[Place] = []
        self.touched: list[Place] = []
        self.program = PRESENT
        prepare(fake_config())
        for chosen in both:
            self.another_folder(chosen)

    @property
    def config(self) -> SweepConfig:
        return fake_config(self.cases, self.repeats)

    @property
    def environment(self) -> Environment:
        return MACHINES[self.machine]

    @precondition(lambda self: len(self.places) < MOST_PLACES)
    @rule(chosen=SETTINGS)
    def another_folder(self, chosen: Settings) -> None:
        """Sweep into a new folder, as another user of another machine would."""
        self.cases, self.repeats, self.machine, program = chosen
        self.change_program(program)
        self.places.append(Place(self._new_folder()))
        self.run(len(self.places) - 1)
        STEPS["another folder"] += 1

    @rule(at=PLACES)
    def run(self, at: int) -> None:
        """Run, or resume, to the end: what is missing, and nothing else. A program that is too old refuses."""
        place = self._place(at)
        wanted = self._plan()
        done = place.turns(self.environment.key)
        tried = self._attempt(place, None)
        if tried is None:
            return
        begun = {turn_of(name) for name in tried.begun}
        assert wanted - done <= begun <= wanted, "not what was missing"
        assert not place.damaged, "what was damaged stands in the way"
        again = self._attempt(place, None)
        assert again is not None and not again.begun, "a finished sweep ran something again"

    @rule(at=PLACES, times_s=st.lists(st.floats(0, 0.15), min_size=1, max_size=3))
    def kill(self, at: int, times_s: list[float]) -> None:
        """Run and kill, some times over."""
        for after_s in times_s:
            self._attempt(self._place(at), after_s)

    @rule(**GRIDS)
    def change_configuration(self, cases: int, repeats: int) -> None:
        """Another grid, from the next run on."""
        self.cases, self.repeats = cases, repeats
        STEPS["change configuration"] += 1

    @rule(machine=st.sampled_from(range(len(MACHINES))))
    def change_machine(self, machine: int) -> None:
        """An upgrade of torch, or another host, or back."""
        self.machine = machine
        STEPS["change machine"] += 1

    @rule(program=st.sampled_from(PROGRAMS))
    def change_program(self, program: Program) -> None:
        """An upgrade of the harness, or back."""
        if program != self.program:
            up = PROGRAMS.index(program) > PROGRAMS.index(self.program)
            STEPS["upgrade the schema" if up else "downgrade the schema"] += 1
        self.program = program
        self.touched += self.places

    @rule(at=PLACES, data=st.data())
    def damage(self, at: int, data: st.DataObject) -> None:
        """Cut a part of a run short."""
        place = self._place(at)
        if whole := place.whole("run"):
            place.damage(data.draw(st.sampled_from(whole), "part"))
            STEPS["damage"] += 1

    @rule(at=PLACES, name=st.sampled_from("09"))
    def newer_file(self, at: int, name: str) -> None:
        """A part of a newer format: all refuse and change nothing, until it goes or the program is upgraded."""
        place, program = self._place(at), self.program.reader
        if place.damaged or place.newer(program):
            return
        for kind in ("run", "plan", "estimates"):
            for model in place.whole(kind)[:1]:
                path = model.with_name(f"plan-{name * 4}.parquet" if kind == "plan" else f"{name * 16}.parquet")
                write_newer(model, kind, path, program.version + 1)
                place.versions[path] = program.version + 1
                self._refused(place, path)
                place.check_upgraded(replace(program, version=program.version + 1), kind)
                del place.versions[path]
                path.unlink()
                STEPS[f"newer {kind}"] += 1

    @rule(chosen=st.lists(PLACES, min_size=2, max_size=3, unique=True), keep=st.booleans())
    def merge(self, chosen: list[int], keep: bool) -> None:
        """Any folders in any order into a new one, which holds what they hold; nothing else is changed."""
        sources = list({id(place): place for place in map(self._place, chosen)}.values())
        before = [place.files() for place in sources]
        merged = self._merged(sources)
        assert [place.files() for place in sources] == before, "a source was changed"
        if merged is None:
            return
        backwards, again = self._merged(sources[::-1]), self._merged([merged, *sources])
        assert backwards is not None and again is not None
        assert backwards.rows == again.rows == merged.rows == {k: v for place in sources for k, v in place.rows.items()}
        frames = [place.load(self.program.reader) for place in (merged, backwards, again)]
        for frame in frames[1:]:
            assert rows_of(frame) == rows_of(frames[0]), "it matters how the same results were merged"
            assert summary_lines(frame, None) == summary_lines(frames[0], None)
        assert {*merged.files()} == {merged.data / path.relative_to(again.data) for path in again.files()}
        if keep and len(self.places) < MOST_PLACES:
            self.places.append(merged)
            self.touched.append(merged)
        STEPS["merge"] += 1
        STEPS["merge of several"] += len(sources) > 1

    @rule(at=PLACES, data=st.data())
    def contradiction(self, at: int, data: st.DataObject) -> None:
        """A copy of a folder merges with it; once a run in it says otherwise, under a hash that fits, it does not."""
        place = self._place(at)
        if place.damaged or place.newer(self.program.reader) or not place.rows:
            return
        copy = self._new_folder()
        shutil.copytree(place.folder, copy)
        other = Place(copy)
        other.look()
        merged = self._merged([place, other])
        assert merged is not None and merged.rows == place.rows
        contradict(other, data.draw(st.sampled_from(sorted(other.rows)), "part"))
        assert self._merged([place, other]) is None and self._merged([other, place]) is None
        STEPS["contradiction"] += 1

    @rule(at=PLACES)
    def report(self, at: int) -> None:
        """What a report says first is the same each time."""
        place, reader = self._place(at), self._reader(self._place(at))
        assert summary_lines(place.load(reader), None) == summary_lines(place.load(reader), None)
        STEPS["report"] += 1

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every acknowledged run is there, once and as it was, and every planned run has a row."""
        for place in getattr(self, "places", ()):
            place.look()
        touched, self.touched = getattr(self, "touched", []), []
        for place in {id(place): place for place in touched}.values():
            place.check(self.program)

    def teardown(self) -> None:
        if not hasattr(self, "root"):
            return
        STEPS["histories"] += 1
        if STEPS["histories"] % RENDERED == 1 and not os.environ.get(BRIEF):
            place = self.places[-1]
            with self._reader(place).running():
                same_report(place.folder, place.folder)
            STEPS["rendered twice"] += 1
        shutil.rmtree(self.root)

    def _place(self, at: int) -> Place:
        place = self.places[at % len(self.places)]
        self.touched.append(place)
        return place

    def _reader(self, place: Place) -> Program:
        return PROGRAMS[-1] if place.newer(self.program.reader) else self.program.reader

    def _new_folder(self) -> Path:
        return self.root / f"folder-{next(self.numbers)}"

    def _plan(self) -> set[tuple[str, int]]:
        return {(run.case.key, run.repeat) for run in build_plan(self.config, self.environment.device)}

    def _attempt(self, place: Place, kill_after_s: float | None) -> Attempt | None:
        """Run, or resume, what is configured; None where the program was too old for the folder."""
        before, plans = place.files(), place.whole("plan")
        tried = attempt(
            place.folder,
            self.config,
            kill_after_s,
            conclude=False,
            before=self.program.become,
            environment=self.environment,
        )
        if refusals := place.newer(self.program, place.folder):
            assert tried.killed or tried.error in refusals, f"downgraded, and not refused: {tried.error}"
            assert not tried.begun
            place.look()
            assert {path: data for path, data in before.items() if path.exists()} == place.files()
            STEPS["refused after a downgrade"] += not tried.killed
            return None
        assert not tried.error, tried.error
        STEPS["killed" if tried.killed else "ran to the end"] += 1
        STEPS["ran in a merged folder"] += any(place.inherited.values())
        assert not place.acknowledged & set(tried.begun), "acknowledged and run again"
        assert len(tried.begun) - len(tried.finished) <= 1
        if not tried.killed or tried.begun or place.whole("plan") != plans:
            place.own[self.environment.key] = self._plan()
        place.look()
        place.acknowledged |= set(tried.finished)
        return tried

    def _refused(self, place: Place, path: Path) -> None:
        """Sweep, load, merge and report say the same sentence about a part that is too new, and change nothing."""
        before, ((sentence,), (short,)) = place.files(), (place.newer(self.program, at) for at in (None, place.folder))
        tried = attempt(
            place.folder, self.config, conclude=False, before=self.program.become, environment=self.environment
        )
        assert (tried.error, tried.begun) == (short, []), "swept over a part of a newer format"
        target = self._new_folder() / OUT
        with self.program.reader.running():
            for use in (
                lambda: merge_results(target, [place.data]),
                lambda: render_report([place.data], target),
                lambda: summary_lines(place.load(self.program.reader), None),
            ):
                with pytest.raises(StoreError) as caught:
                    use()
                assert str(caught.value) == sentence
        assert place.files() == before and path in before, "refused, and yet something was changed"
        assert not target.parent.exists(), "refused, and yet something was left"

    def _merged(self, sources: Sequence[Place]) -> Place | None:
        place, outcome = merge_places(self._new_folder(), sources, self.program.reader)
        if place is None:
            STEPS[f"merge refused: {outcome}"] += 1
        return place


def explore(seed_number: int, count: int, folder: Path) -> Counter[str]:
    """`count` histories of up to 16 steps."""
    STEPS.clear()
    tempfile.tempdir = str(folder)
    chosen = settings(
        max_examples=count,
        stateful_step_count=16,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(seed_number)(SweepMachine), settings=chosen)  # type: ignore[no-untyped-call]
    return +STEPS
