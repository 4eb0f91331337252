"""How many runs a host can do at once: neighbours share cores, memory bandwidth, power and air.

Before a sweep on several devices, short runs of a case are measured alone on each device, and then with the others
busy. Where they differ by more than the target, the workers are kept on disjoint cores close to their devices; where
that does not help, fewer run at once, and at last one at a time. Runs with neighbours are then as good as runs without,
or there are none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.config import TARGETS_FRAC
from bench.launchers import Job, Outcome
from bench.plan import build_plan
from bench.probes.cpus import cpus_near, share_cpus, spell_cpu_list, usable_cpus
from bench.probes.nvml import pci_bus_ids
from bench.records import Case, Status
from bench.store import load_notes
from bench.sweep.session import Seat, Session, lock_key
from bench.tasks import measure_task
from bench.units import counted

ROUNDS = 3
"""Runs of a case on each device, alone and with neighbours: their median counts."""

WARMUP_STEPS, STEPS, WINDOW_S = 3, 10, 0.5
"""Of such a run: long enough that the processes overlap, which start within tenths of a second."""

Cpus = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Together:
    """How runs share a host.

    Attributes:
        parallel: The most at one time.
        cpus: The processors of each device's runs; None where they are not kept on any.
        slowdown_frac: How much slower short runs were so than alone, on the worst device: 0.01 is 1 %; None if nobody
            measured it.
    """

    parallel: int
    cpus: tuple[Cpus, ...]
    slowdown_frac: float | None = None

    def note(self, seats: Sequence[Seat]) -> dict[str, Any]:
        """For the notes of a plan, from which `known_together` reads it."""
        names = [lock_key(seat.choice) for seat in seats]
        return {"devices": names, "parallel": self.parallel, "cpus": self.cpus, "slowdown_frac": self.slowdown_frac}


def settle(seats: Sequence[Seat], session: Session, parallel: int | str) -> Together:
    """How the runs of a sweep share the host.

    Args:
        seats: Every device; two or more.
        session: The sweep, before it has a plan.
        parallel: A number of runs, which is then taken as it is, or `auto`: as an earlier sweep into this folder found
            on the same devices, or by a check now.
    """
    free: tuple[Cpus, ...] = (None,) * len(seats)
    if parallel != "auto":
        return Together(min(int(parallel), len(seats)), free)
    known = _known(seats, session)
    return known or _check(seats, session)


def _known(seats: Sequence[Seat], session: Session) -> Together | None:
    """What the newest plan of the folder says, if it was made for these devices."""
    devices = [lock_key(seat.choice) for seat in seats]
    if not any(session.store.folder.glob("plan-*.parquet")):
        return None
    for notes in reversed(load_notes(session.store.folder)):
        note = notes.values.get("together") or {}
        if note.get("devices") == devices:
            cpus = tuple(tuple(own) if own is not None else None for own in note["cpus"])
            return Together(note["parallel"], cpus, note["slowdown_frac"])
    return None


def _check(seats: Sequence[Seat], session: Session) -> Together:
    """Measure, and step back until neighbours do not matter."""
    say = session.progress.say
    kind = session.environment.device
    target = session.config.measure.target_frac(kind) or TARGETS_FRAC[kind]
    cases = _short_cases(session, kind)
    free: tuple[Cpus, ...] = (None,) * len(seats)
    if not cases:
        return Together(len(seats), free)
    say(f"neighbours: short runs alone and together on {counted(len(seats), 'device')}, target {_percent(target)}")
    alone: dict[tuple[Cpus, ...], dict[Any, float]] = {}
    for parallel, cpus in _ways(seats, free):
        if cpus not in alone:
            alone[cpus] = _rates(session, seats, cases, cpus, 1)
        together = _rates(session, seats, cases, cpus, parallel) if parallel > 1 else alone[cpus]
        slowdown = _worst(alone[cpus], together)
        how = f"{parallel} at once{', on processors of their own' if cpus != free else ''}"
        if slowdown is None:
            say(f"neighbours: the short runs failed, so nothing is known of them: {how}")
            return Together(parallel, cpus)
        if parallel == 1:
            say("neighbours: one run at a time")
            return Together(1, cpus, 0.0)
        if slowdown <= target:
            say(f"neighbours: {how}: {_percent(slowdown)} slower than alone")
            return Together(parallel, cpus, slowdown)
        say(f"neighbours: {how}: {_percent(slowdown)} slower than alone, which is more than {_percent(target)}")
    raise AssertionError("unreachable: one at a time is always taken")


def _ways(seats: Sequence[Seat], free: tuple[Cpus, ...]) -> Iterator[tuple[int, tuple[Cpus, ...]]]:
    """Ways to share the host, the fastest first; the last one has no neighbours."""
    yield len(seats), free
    ids = pci_bus_ids([seat.choice.uuid for seat in seats if seat.choice.uuid])
    near = [cpus_near(ids.get(seat.choice.uuid or "")) for seat in seats]
    shares = share_cpus(near, usable_cpus())
    pinned = free if shares is None else tuple(shares)
    parallel = len(seats)
    if pinned != free:
        yield parallel, pinned
    while (parallel := parallel // 2) > 1:
        yield parallel, pinned
    yield 1, free


def _short_cases(session: Session, kind: str) -> list[Case]:
    """The smallest case of each way that batches come: what the host does differs between them."""
    smallest: dict[str, Case] = {}
    for run in build_plan(session.config, kind):
        case = run.case
        best = smallest.get(case.input)
        if run.skip_reason is None and (best is None or _size(case) < _size(best)):
            smallest[case.input] = case
    return list(smallest.values())


def _size(case: Case) -> tuple[int, str]:
    return case.batch_size * max(case.image_size, 1) ** 2, case.key


def _rates(
    session: Session, seats: Sequence[Seat], cases: Sequence[Case], cpus: tuple[Cpus, ...], parallel: int
) -> dict[Any, float]:
    """Samples per second of each case on each device, the median of `ROUNDS` runs; without those that failed.

    Args:
        session: The sweep.
        seats: Every device.
        cases: What to run.
        cpus: The processors of each device's runs.
        parallel: How many run the same case at the same time.
    """
    found: dict[Any, list[float]] = {}
    for case in cases:
        for _ in range(ROUNDS):
            for first in range(0, len(seats), parallel):
                group = range(first, min(first + parallel, len(seats)))
                handles = {session.launcher.submit(_job(session, seats[at], case, cpus[at])): at for at in group}
                for handle in session.launcher.as_ended(list(handles)):
                    assert handle.answer is not None
                    value = handle.answer.value
                    measured = handle.answer.outcome is Outcome.ANSWERED and value.get("status") == Status.OK
                    if measured and value.get("wall_window_s"):
                        rate = case.batch_size * len(value["step_times_s"]) / value["wall_window_s"]
                        at = handles[handle]
                        found.setdefault((case.key, seats[at].environment.gpu_name, at), []).append(rate)
    return {key: statistics.median(rates) for key, rates in found.items() if len(rates) == ROUNDS}


def _job(session: Session, seat: Seat, case: Case, cpus: Cpus) -> Job:
    protocol = replace(session.config.protocol, warmup_steps=WARMUP_STEPS, measured_steps=STEPS, min_window_s=WINDOW_S)
    argument = {
        "case": replace(case, input="synthetic") if case.input == "cached" else case,
        "protocol": replace(protocol, gradient_noise=False, compiled=False),
        "device": session.environment.device,
        **seat.argument,
        "cpus": cpus,
        "host_memory_bytes": None,
    }
    return Job(measure_task, argument, session.config.limits.run_timeout, device=argument["lock"])


def _worst(alone: dict[Any, float], together: dict[Any, float]) -> float | None:
    """The slowdown of the case and model of GPU that suffer most; None where nothing was measured both ways.

    The mean over equal devices counts: single runs differ by more than neighbours do.
    """
    logs: dict[Any, list[float]] = {}
    for key in sorted(alone.keys() & together.keys(), key=str):
        logs.setdefault(key[:2], []).append(math.log(alone[key] / together[key]))
    return max((math.expm1(statistics.fmean(values)) for values in logs.values()), default=None)


def _percent(frac: float) -> str:
    return f"{frac * 100:.1f} %"


def spelled(cpus: Cpus) -> str | None:
    """Processors as rows have them."""
    return None if cpus is None else spell_cpu_list(cpus)
