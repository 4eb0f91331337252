"""Many devices on one plan: a sweep over worker slots on the CPU, and units that claim their runs, both killed at random.

Runs are made up and take milliseconds; processes, locks, claims, journal and store are the real ones.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from bench.errors import InfrastructureError
from bench.launchers import LocalLauncher, local
from bench.records import Environment, Measurement, columns
from bench.report import summary_lines
from bench.store import DATA_FOLDER, Store, consolidate, load_notes, load_results
from bench.store.load import newest_plans
from bench.store.parts import notes_of
from bench.sweep import SweepOptions, claims, runs, session, stages
from bench.sweep.standing import CLAIMS
from bench.sweep.unit import Came, find_order, open_unit, read_order
from bench.terminal import Progress
from tests.chaos import work
from tests.chaos.attempts import same_report
from tests.chaos.fake_sweep import FakeLauncher, fake_config
from tests.chaos.places import rows_of

ROOT = Path(__file__).parents[2]
SLOTS = 4
REPEATS = 4
DEVICES = ",".join(f"cpu:{slot}" for slot in range(SLOTS))
KILLS = 0.05  # a run, of workers; the others are killed less often
GONE_S = 30.0
STOPPED = 75
"""The exit code of a sweep that gave up on a device; the same command goes on."""


def sweep_slots(out: Path, cases: int, slots: int = SLOTS, *, conclude: bool = False) -> None:
    """A sweep over worker slots in this process, with real processes and made-up runs."""
    devices = ",".join(f"cpu:{slot}" for slot in range(slots)) if slots > 1 else "cpu"
    with contextlib.ExitStack() as stack:
        for place, name, fake in _FAKES:
            stack.enter_context(mock.patch.object(place, name, fake))
        if not conclude:
            stack.enter_context(mock.patch.object(stages, "conclude", lambda *given: None))
        options = SweepOptions(out, devices, parallel=slots, report=False)
        try:
            stages.run_sweep(fake_config(cases, REPEATS), options, Progress(quiet=True), LocalLauncher())
        except InfrastructureError as error:  # three kills in a row hit one device before a case began
            sys.stderr.write(f"{error}\n")
            sys.exit(STOPPED)


_FAKES: tuple[tuple[Any, str, Any], ...] = (
    (local, "_preloaded", lambda: ["tests.chaos.work", "tests.chaos.fake_sweep", "bench.tasks"]),
    (runs, "measure_task", work.measures),
    (session, "environment_task", work.tells_environment),
    (stages, "estimate_planned", lambda session: None),
)

SWEEP = "import sys; from pathlib import Path; from tests.chaos.devices import {0}; {0}(Path(sys.argv[1]), *map(int, sys.argv[2:]))"


def sweep_killed(seed: int, count: int, folder: Path) -> Counter[str]:
    """`count` runs on several slots; workers, parent and fork server are killed at random, and the sweep resumed.

    Raises:
        AssertionError: A run is missing or there twice, two runs had one device at one moment, or the report is another
            than that of the same parts written one after the other.
    """
    generator, done = random.Random(seed), Counter[str]()
    cases, out, log = max(1, count // REPEATS), folder / "swept" / "out", folder / "log"
    with _logged(log):
        while True:
            parent = subprocess.Popen(
                [sys.executable, "-c", SWEEP.format("sweep_slots"), str(out), str(cases)], cwd=ROOT
            )
            killed = _kill_family(parent, generator, done, log, most=count * KILLS)
            done["sweeps started"] += 1
            if parent.returncode == STOPPED and done["sweeps stopped"] < done["kills"]:
                done["sweeps stopped"] += 1
            elif not killed:
                break
    if parent.returncode:
        raise AssertionError(f"the sweep ended with {parent.returncode}")
    frame = _all_rows(out, cases)
    if strange := set(frame["status"]) - {"ok", "crashed"}:
        raise AssertionError(f"{out}: {strange}")
    ok = frame[frame["status"] == "ok"]
    _check_apart(
        {
            slot: list(zip(rows["started_unix_s"], rows["warmup_times_s"].str[0], strict=True))
            for slot, rows in ok.groupby("cpu_slot")
        }
    )
    done["intervals on a device"] += _check_log(log)
    if (frame.groupby("case_key")["cpu_slot"].nunique() != SLOTS).any():
        raise AssertionError("repeats of a case were not spread over the devices")
    _write_in_turn(out, folder / "in-turn" / "out")
    consolidate(out / DATA_FOLDER)
    again = load_results(folder / "in-turn" / "out" / DATA_FOLDER)
    if rows_of(again) != rows_of(frame) or summary_lines(again, None) != summary_lines(frame, None):
        raise AssertionError("the same parts read otherwise where they were written one after the other")
    same_report(folder / "swept", folder / "in-turn")
    done["runs"] += len(frame)
    done["runs whose worker was killed"] += int((frame["status"] == "crashed").sum())
    return done


def _kill_family(
    parent: subprocess.Popen[bytes], generator: random.Random, done: Counter[str], log: Path, most: float
) -> bool:
    """Kill workers, and at last a server or the parent, until the sweep ends; whether its parent was killed."""
    while parent.poll() is None:
        time.sleep(generator.uniform(0.1, 0.5))
        family = _family(parent.pid)
        workers = [member for member in family if _is_worker(member, family)]
        if done["kills"] >= most or not workers:
            continue
        victim = generator.choices(["worker", "fork server", "parent"], [6, 1, 1])[0]
        target = {"worker": generator.choice(workers).pid, "parent": parent.pid}.get(victim)
        if victim == "fork server":
            target = generator.choice(workers).ppid()
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            os.kill(int(target or 0), signal.SIGKILL)
            done["kills"] += 1
            done[f"{victim} killed"] += 1
        if victim == "parent":
            parent.wait()
            _wait_gone(family)
            return True
    return False


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_worker(member: psutil.Process, family: list[psutil.Process]) -> bool:
    """Whether a process was forked by another of the family: by the server."""
    with contextlib.suppress(psutil.Error):
        return member.ppid() in {other.pid for other in family}
    return False


def _wait_gone(family: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(family, timeout=GONE_S)
    if left:
        raise AssertionError(f"still there {GONE_S:g} s after the parent was killed: {left}")


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    with mock.patch.dict(os.environ, {work.LOG: str(path)}):
        yield


def _check_apart(spans: Mapping[str, list[tuple[float, float]]]) -> None:
    """No two spans (start, length) of one device overlap. Raises AssertionError."""
    for device, own in spans.items():
        own.sort()
        for (start, length), (following, _) in itertools.pairwise(own):
            if start + length > following:
                raise AssertionError(f"two runs at once on {device}: {start} for {length} s, and {following}")


def _check_log(path: Path) -> int:
    """Of those that said begin and end while they held the device, none did so within another's. Returns how many."""
    open_on: dict[str, tuple[str, float]] = {}
    lines = [line.split() for line in path.read_text().splitlines()]
    for what, device, pid, at in sorted(lines, key=lambda line: float(line[3])):
        if what == "end" and open_on.get(device, ("", 0.0))[0] != pid:
            raise AssertionError(f"{pid} had {device} until {at} although {open_on.get(device)} came later")
        if what == "begin":  # one that was killed never said end
            open_on[device] = (pid, float(at))
    return len(lines)


def _write_in_turn(source: Path, target: Path) -> None:
    """Write what a folder holds into another, in the order of the plan, as one device after the other would have."""
    store = Store(target / DATA_FOLDER)
    store.create()
    ((_, plan),) = newest_plans(source / DATA_FOLDER)
    notes = notes_of(plan)
    (target / DATA_FOLDER / "plan-0001.parquet").write_bytes((source / DATA_FOLDER / "plan-0001.parquet").read_bytes())
    frame = load_results(source / DATA_FOLDER)
    config = fake_config(int(frame["case_key"].nunique()), REPEATS)
    planned = {(run.case.key, run.repeat): run for run in stages.build_plan(config, "cpu")}
    assert notes["name"] == config.name
    for row in frame.sort_values("position").to_dict("records"):
        known = {name: _plain(value) for name, value in row.items()}
        environment = Environment(**{name: known[name] for name in columns(Environment)})
        measurement = Measurement(**{name: known[name] for name in columns(Measurement)})
        store.write_run(
            planned[row["case_key"], row["repeat"]], row["attempt"], config.protocol, measurement, environment
        )


def _plain(value: Any) -> Any:
    """A value of a frame as records have it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(value)
    return None if value is None or value != value or str(value) == "<NA>" else value


def work_on_order(out: Path, slot: int) -> None:
    """Do the runs of an order, in their order, on one slot: what one job of an array does."""

    class Slow(FakeLauncher):
        def perform(self, job: Any) -> Any:
            if job.task is runs.measure_task:
                value = work.measures(dict(job.argument), lambda news: None)
                return replace(super().perform(job), value=value)
            return super().perform(job)

    launcher = Slow(failing=False)
    order = read_order(find_order(out), launcher)
    with open_unit(order, launcher, Progress(quiet=True), device=f"cpu:{slot}") as unit:
        left = True
        while left:
            came = [unit.run(index).came for index in range(len(order.runs))]
            left = Came.CLAIMED in came or Came.BUSY in came


def units_killed(seed: int, count: int, folder: Path) -> Counter[str]:
    """`count` runs of an order by several processes that know nothing of each other, killed at random and replaced.

    Raises:
        AssertionError: A run is missing or there twice, a device was shared, or a claim is left.
    """
    done = Counter[str]()
    cases, out, log = max(1, count // REPEATS), folder / "out", folder / "log"
    stages.store_orders(fake_config(cases, REPEATS), out, "cpu", Progress(quiet=True))
    with _logged(log):
        _work_and_kill(out, random.Random(seed), done, most=count * KILLS)
    frame = _all_rows(out, cases)
    if set(frame["status"]) != {"ok"} or len(load_notes(out)) != 1:
        raise AssertionError(f"{out}: {set(frame['status'])}")
    if left := list((out / DATA_FOLDER / CLAIMS).iterdir()):
        raise AssertionError(f"claims of finished runs: {left}")
    if frame["lost_tries"].max() >= claims.MOST_TRIES:
        raise AssertionError("more tries than there may be")
    done["intervals on a device"] += _check_log(log)
    done["runs"] += len(frame)
    done["tries lost and told"] += int(frame["lost_tries"].sum())
    return done


def _work_and_kill(out: Path, generator: random.Random, done: Counter[str], most: float) -> None:
    """Have every slot at work on an order, kill some and start others in their place, until all is done."""
    jobs = {slot: _start_job(out, slot) for slot in range(SLOTS)}
    while jobs:
        time.sleep(generator.uniform(0.05, 0.3))
        if done["kills"] < most and any((out / DATA_FOLDER / "runs").glob("*.parquet")):
            jobs[generator.choice(list(jobs))].kill()
            done["kills"] += 1
        for slot, job in list(jobs.items()):
            if job.poll() == 0:
                del jobs[slot]
            elif job.returncode == -signal.SIGKILL:
                jobs[slot] = _start_job(out, slot)
            elif job.returncode is not None:
                raise AssertionError(f"a job ended with {job.returncode}")


def _all_rows(out: Path, cases: int) -> Any:
    """The frame of a folder in which every planned run is there once. Raises AssertionError."""
    frame = load_results(out / DATA_FOLDER)
    if len(frame) != cases * REPEATS or not frame["planned"].all() or frame["run_key"].duplicated().any():
        raise AssertionError(f"{out}: {len(frame)} rows of {cases * REPEATS}")
    return frame


def _start_job(out: Path, slot: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SWEEP.format("work_on_order"), str(out), str(slot)], cwd=ROOT)
