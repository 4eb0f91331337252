"""Runs: which are missing, what becomes of each, and when a case has been repeated often enough.

After the planned runs come rounds of one more run for each case that is not settled. Repeats end when the interval of a
case's throughput is as narrow as asked, when the case has had its most runs, or when the time allowed is spent; never
because a difference has become, or has ceased to be, significant. What is decided follows from the finished runs alone,
so a sweep that was killed decides the same again.

Looking after every run and stopping at the first narrow interval stops too often where the processes happened to agree.
With nothing against it, normal logarithms of throughput and at most 20 runs, only 89.9 % of the 95 % intervals hold the
truth when looking begins at 3 runs, and 91.7 % when it begins at 5, in the worst case (a spread between processes of
1.8 or 2 times the half-width asked for). Hence three rules: looking begins at `LEAST_REPEATS` runs; there, only an
interval of at most `FIRST_LOOK_FRAC` of the width asked for ends it; later, a case is settled where its interval is
narrow enough and was so `CONFIRMING_REPEATS` runs earlier already, so that the runs in between have been added whatever
they said. At least 93.1 % of the intervals then hold the truth, whatever the spread; `tests/unit/test_stopping.py`
simulates it, with the rules and without.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.config import SweepConfig
from bench.errors import InfrastructureError
from bench.launchers import Answer, Outcome
from bench.launchers.tasks import measure_task
from bench.plan import order_round
from bench.probes.cgroup import read_memory_limit_bytes, read_oom_kills
from bench.probes.host import available_memory_bytes
from bench.probes.nvml_session import NO_ANSWER
from bench.probes.oom import says_out_of_memory
from bench.records import MEASURED, Measurement, Planned, Status
from bench.stats import geometric_interval
from bench.sweep.estimates import key_of
from bench.sweep.journal import MAX_ATTEMPTS, Journal
from bench.sweep.session import Session, gpu_of
from bench.units import format_bytes, format_duration, format_rate

FIRST_LOOK_FRAC = 0.5  # of the width asked for: what ends a case at its first look
CONFIRMING_REPEATS = 2  # between the first narrow interval and the one that ends a case
FEWEST_RATES = 2  # that a case must have for more runs to be of use: one that always fails is not repeated


@dataclass(frozen=True, slots=True)
class Round:
    """One more run of some cases.

    Attributes:
        runs: In the order of execution; empty where no case is to be repeated.
        unsettled: How many cases are not settled, those that no more runs are allowed for included.
        wide: How many of them have an interval that is wider than asked.
        spent_s: What all runs so far have taken.
    """

    runs: list[Planned]
    unsettled: int
    wide: int
    spent_s: float


def next_round(plan: Sequence[Planned], config: SweepConfig, device: str, journal: Journal) -> Round:
    """The round that follows a plan whose runs are all finished.

    A case whose next run exists already keeps it, whatever its interval says now (a run that was tried again may have
    changed it): what was measured is never dropped. Under a time budget, a round takes the cases in its random order
    for as long as their runs, by the mean of those they have had, fit into what is left.

    Args:
        plan: All runs so far, every one finished.
        config: The sweep; with no `target_interval` there is no round.
        device: `cpu` or `cuda`.
        journal: The finished runs.
    """
    target, measure = config.measure.target_frac(device), config.measure
    cases = _by_case(plan)
    durations = {key: _durations_s(journal, runs) for key, runs in cases.items()}
    spent_s = sum(sum(values) for values in durations.values())
    if target is None:
        return Round([], 0, 0, spent_s)
    rates = {key: values for key, runs in cases.items() if len(values := rates_of(journal, runs)) >= FEWEST_RATES}
    unsettled = {key for key, values in rates.items() if not is_settled(values, target, measure.least_repeats)}
    open_runs = [runs[-1] for runs in cases.values() if len(runs) < measure.most_repeats]
    wanted = [run for run in open_runs if run.case.key in unsettled or journal.attempts(_after(run))]
    left_s = float("inf") if measure.time_budget is None else measure.time_budget - spent_s
    runs: list[Planned] = []
    for run in order_round(wanted, config, len(plan)):
        had_s = durations[run.case.key]
        cost_s = sum(had_s) / len(had_s)
        if cost_s <= left_s or journal.attempts(_after(run)):
            left_s -= cost_s
            runs.append(replace(_after(run), position=len(plan) + len(runs)))
    return Round(runs, len(unsettled), sum(not _within(rates[key], target) for key in unsettled), spent_s)


def is_settled(rates: Sequence[float], target_frac: float, least: int) -> bool:
    """Whether a case needs no more runs.

    Args:
        rates: Samples per second, one a process, in the order of the repeats.
        target_frac: Half the width that the interval is to have, as a fraction of its middle.
        least: How many runs come before the first look.
    """
    count = len(rates)
    if count < least or not _within(rates, target_frac):
        return False
    if _within(rates[:least], target_frac * FIRST_LOOK_FRAC):
        return True
    return any(_within(rates[:size], target_frac) for size in range(least, count - CONFIRMING_REPEATS + 1))


def rates_of(journal: Journal, runs: Iterable[Planned]) -> list[float]:
    """Samples per second of a case's runs, in the order of the repeats.

    Those that ended `ok`, or the throttled ones where there is no other, as in the summary of a report.
    """
    last = [attempts[-1] for run in runs if (attempts := journal.attempts(run))]
    for status in (Status.OK, Status.THROTTLED):
        rates = [run.samples_per_s for run in last if run.status is status and run.samples_per_s]
        if rates:
            return rates
    return []


def _within(rates: Sequence[float], target_frac: float) -> bool:
    width = geometric_interval(rates).half_width_frac
    return width is not None and width <= target_frac


def _by_case(plan: Sequence[Planned]) -> dict[str, list[Planned]]:
    """The runs of each case that runs at all, in the order of the repeats."""
    cases: dict[str, list[Planned]] = {}
    for run in sorted(plan, key=lambda run: run.repeat):
        if run.skip_reason is None:
            cases.setdefault(run.case.key, []).append(run)
    return cases


def _durations_s(journal: Journal, runs: Iterable[Planned]) -> list[float]:
    """What each run of a case took, all its attempts together."""
    return [sum(attempt.duration_s for attempt in journal.attempts(run)) for run in runs]


def _after(run: Planned) -> Planned:
    """The repeat that follows; its position is not settled yet."""
    return replace(run, repeat=run.repeat + 1)


_LOG_TAIL_BYTES = 4096
SILENT_RUNS = 2  # in a row, after which NVML is not asked any more
HOST_MEMORY_SHARE = 0.9  # of what is free, for a worker on the CPU unless the configuration says


def measure_missing(session: Session) -> None:
    """Run what the plan names and is missing, then rounds of further repeats until no case is to have one.

    What was finished in an earlier sweep and is to be tried again is tried once, before the rounds.
    """
    todo = session.journal.missing(session.plan, session.options.retry)
    finished = sum(run.skip_reason is None for run in session.plan) - len(todo)
    if finished:
        session.progress.say(f"{finished} runs are finished already, {len(todo)} to do")
    _measure(session, todo)
    while (found := extend_plan(session)).runs:
        write_plan(session)
        _say_round(session, found)
        _measure(session, session.journal.missing(session.plan))
    if found.wide:
        _say_not_converged(session, found)


def extend_plan(session: Session) -> Round:
    """Plan rounds of further repeats until something is missing; returns the last, empty where none is to follow.

    Rounds that an earlier sweep decided are decided again, from the same runs and to the same end.
    """
    found = Round([], 0, 0, 0.0)
    while not session.journal.missing(session.plan):
        found = next_round(session.plan, session.config, session.environment.device, session.journal)
        if not found.runs:
            break
        session.rounds += 1
        session.plan = [*session.plan, *found.runs]
    return found


def write_plan(session: Session) -> None:
    """Store the plan as it stands; say so where what is in the folder was measured in another environment."""
    target_frac = session.config.measure.target_frac(session.environment.device)
    before = session.store.write_plan(
        session.plan,
        session.config.protocol,
        session.environment,
        session.notes,
        target_frac=target_frac,
        estimate_key=key_of(session),
    )
    if before is not None:
        changes = session.environment.changes_since(before)
        session.progress.say(
            f"{session.options.out} was begun in another environment, whose runs are kept apart from those made now: "
            f"{', '.join(changes)}. To go on with those, undo the change; to keep this apart, name another --out"
        )


def _say_round(session: Session, found: Round) -> None:
    """Say how many cases a round repeats, and why."""
    budget = session.config.measure.time_budget
    spent = f"; {format_duration(found.spent_s)} of {format_duration(budget)} spent" if budget else ""
    session.progress.say(
        f"round {session.rounds}: one more run of {_cases(len(found.runs))}; {_cases(found.unsettled)} not settled "
        f"within {_target(session)}{spent}"
    )


def _say_not_converged(session: Session, found: Round) -> None:
    """Say what the repeats or the time allowed did not bring about."""
    measure = session.config.measure
    budget = f" or time_budget ({format_duration(measure.time_budget)})" if measure.time_budget else ""
    session.progress.say(
        f"not_converged: {_cases(found.wide)} did not come within {_target(session)}; max_repeats "
        f"({measure.max_repeats}){budget} allows no more runs"
    )


def _target(session: Session) -> str:
    return f"±{(session.config.measure.target_frac(session.environment.device) or 0.0) * 100:g} %"


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"


def _measure(session: Session, todo: Iterable[tuple[Planned, int]]) -> None:
    """Run these in their order; what was throttled goes to the end of the queue once."""
    queue = deque(todo)
    session.progress.start(len(queue), f"round {session.rounds}" if session.rounds else "")
    while queue:
        run, attempt = queue.popleft()
        session.progress.begin(f"{session.name(run.case)} (repeat {run.repeat + 1})")
        refused = session.journal.refusal(run)  # no process of its own to find out again what the first one did
        told = Measurement(status=Status.SKIPPED, reason=refused) if refused is not None else None
        measurement = told or _measure_one(session, run, attempt)
        session.journal.write(run, attempt, measurement)
        _note_silence(session, measurement)
        session.progress.finish(_line(session.name(run.case), run, measurement))
        if measurement.status is Status.THROTTLED and attempt + 1 < MAX_ATTEMPTS:
            queue.append((run, attempt + 1))


def _measure_one(session: Session, run: Planned, attempt: int) -> Measurement:
    """One run in a fresh process, whatever comes of it."""
    argument = {
        "case": run.case,
        "protocol": session.config.protocol,
        "device": session.environment.device,
        "repeat": run.repeat,
        "nvml_error": session.silence,
        "data": run.data,
        **gpu_of(session.choice),
        "host_memory_bytes": _host_memory(session),
    }
    log = session.store.logs_folder / f"{session.journal.part(run, attempt)}.log"
    while True:
        kills = read_oom_kills()
        answer = session.launcher.run(measure_task, argument, timeout_s=session.config.limits.run_timeout, log=log)
        if not _ended_before_its_case(answer):
            session.starts_failed = 0
            break
        session.starts_failed += 1
        if session.starts_failed >= session.config.limits.infrastructure_failures:
            told = f"{log} and " if _is_written(log) else ""
            raise InfrastructureError(
                f"{session.starts_failed} worker processes in a row ended before their case began: {answer.reason}. "
                f"What is finished is kept; see {told}bench env, then run the same command again, with --retry failed "
                "where runs failed for the same reason"
            )
    written = _is_written(log)
    killed = kills is not None and (read_oom_kills() or 0) > kills
    return _measurement(answer, _uncaught(log) if written else "", killed_for_memory=killed)


def _is_written(log: Path) -> bool:
    """Whether a run left anything in its log; an empty one is deleted."""
    if log.exists() and not log.stat().st_size:
        log.unlink()
    return log.exists()


def _ended_before_its_case(answer: Answer) -> bool:
    """Whether a run never came as far as its case: it died, or the device does not start, or never answers."""
    return answer.outcome is not Outcome.ANSWERED and answer.phase in (None, "start")


def _note_silence(session: Session, measurement: Measurement) -> None:
    """Stop asking a driver that let two runs in a row wait: each would wait as long."""
    gone = measurement.nvml_error is not None and measurement.nvml_error.startswith(NO_ANSWER)
    session.silent_runs = session.silent_runs + 1 if gone else 0
    if session.silent_runs == SILENT_RUNS and session.silence is None:
        session.silence = measurement.nvml_error
        session.progress.say(
            f"{measurement.nvml_error}, {SILENT_RUNS} runs in a row: the runs from here on go without its readings, "
            "flagged nvml_silent"
        )


def _host_memory(session: Session) -> int | None:
    if session.environment.device != "cpu":
        return None
    return session.config.limits.host_memory or int(available_memory_bytes() * HOST_MEMORY_SHARE)


def _measurement(answer: Answer, uncaught: str = "", *, killed_for_memory: bool = False) -> Measurement:
    """The answer of a run as a measurement; a process that was killed or died gets its status and reason here.

    Args:
        answer: What came back.
        uncaught: The message of the C++ exception that ended the process; empty where none did.
        killed_for_memory: Whether the kernel killed a process of this control group for memory meanwhile.
    """
    if answer.outcome is Outcome.ANSWERED:
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in answer.value.items()}
        worker_killed = Status(fields["status"]) is Status.FAILED and _KILLED_WORKER in (fields["reason"] or "")
        if killed_for_memory and worker_killed:
            fields |= {"status": Status.OOM, "reason": f"{fields['reason']}; {_killer()}"}
    else:
        status, reason = _end(answer, uncaught, killed_for_memory)
        fields = {**answer.news, "phase": answer.phase, "status": status, "reason": reason}
    fields["status"] = Status(fields["status"])
    return Measurement(**{**fields, "duration_s": answer.duration_s, "process_start_s": answer.start_s})


_KILLED_WORKER = "killed by signal: Killed"  # torch's words for a loader's worker that met SIGKILL
_STATUSES = {Outcome.TIMED_OUT: Status.TIMEOUT, Outcome.DIED: Status.CRASHED, Outcome.REFUSED: Status.FAILED}


def _end(answer: Answer, uncaught: str, killed_for_memory: bool) -> tuple[Status, str]:
    """Status and reason of a run that gave no answer. What it said of its end before it died counts."""
    reason = answer.reason or f"no reason given in the phase {answer.phase or 'start'}"
    if "status" in answer.news:
        return Status(answer.news["status"]), f"{answer.news['reason']}; then {reason}"
    if answer.outcome is Outcome.DIED and says_out_of_memory(uncaught):
        return Status.OOM, f"{uncaught}: {reason}"
    if answer.outcome is Outcome.DIED and killed_for_memory and "SIGKILL" in reason:
        return Status.OOM, f"{reason}; {_killer()}"
    return _STATUSES[answer.outcome], reason


def _killer() -> str:
    limit = read_memory_limit_bytes()
    allowed = f", which may hold {format_bytes(limit)}" if limit is not None else ""
    return f"the kernel killed a process of this control group{allowed}, for memory"


def _uncaught(log: Path) -> str:
    """What the C++ exception says that ended a process, by the end of its log; empty where none is told of."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        told = re.findall(r"what\(\): +(.+)", file.read().decode(errors="replace"))
    return told[-1].strip()[:300] if told else ""


def _line(name: str, run: Planned, measurement: Measurement) -> str:
    """One run in one line."""
    what = f"{name} #{run.repeat + 1}: {measurement.status}"
    if measurement.status not in MEASURED:
        return f"{what}: {(measurement.reason or '')[:160]}"
    samples_per_s = run.case.batch_size * len(measurement.step_times_s) / (measurement.wall_window_s or float("nan"))
    return f"{what}, {format_rate(samples_per_s, 'samples')}, peak {format_bytes(measurement.peak_allocated_bytes)}"
