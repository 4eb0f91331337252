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
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.config import SweepConfig
from bench.errors import InfrastructureError
from bench.launchers import Answer, Handle, Job, Outcome
from bench.plan import order_round
from bench.probes.cgroup import read_memory_limit_bytes, read_oom_kills
from bench.probes.host import available_memory_bytes
from bench.probes.nvml_session import NO_ANSWER
from bench.probes.oom import says_out_of_memory
from bench.records import MEASURED, Measurement, Planned, Status
from bench.stats import geometric_interval
from bench.sweep.estimates import key_of
from bench.sweep.journal import MAX_ATTEMPTS, Journal
from bench.sweep.session import Budget, Seat, Session
from bench.tasks import measure_task
from bench.units import counted, format_bytes, format_duration, format_rate

FIRST_LOOK_FRAC = 0.5  # of the requested width: what ends a case at its first look
CONFIRMING_REPEATS = 2  # between the first narrow interval and the one that ends a case
FEWEST_RATES = 2  # a case needs before more runs are useful: one that always fails is not repeated


@dataclass(frozen=True, slots=True)
class Round:
    """One more run of some cases.

    Attributes:
        runs: In the order of execution; empty if no case is to be repeated.
        unsettled: How many cases are not settled, including those that are allowed no more runs.
        wide: How many of them have an interval that is wider than requested.
        spent_s: The duration of all runs so far, in seconds.
    """

    runs: list[Planned]
    unsettled: int
    wide: int
    spent_s: float


def next_round(plan: Sequence[Planned], config: SweepConfig, device: str, journal: Journal) -> Round:
    """The round that follows a plan whose runs are all finished.

    A case whose next run already exists keeps it, whatever its interval is now (a retried run may have changed it):
    measurements are never dropped. Under a time budget, a round takes the cases in its random order
    for as long as their runs, by the mean of those they have had, fit into what is left.

    Args:
        plan: All runs so far, every one finished.
        config: The sweep; without `target_interval` there are no rounds.
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
        rates: Samples per second, one per process, in the order of the repeats.
        target_frac: The target half-width of the interval, as a fraction of its middle.
        least: The number of runs before the first look.
    """
    count = len(rates)
    if count < least or not _within(rates, target_frac):
        return False
    if _within(rates[:least], target_frac * FIRST_LOOK_FRAC):
        return True
    return any(_within(rates[:size], target_frac) for size in range(least, count - CONFIRMING_REPEATS + 1))


def rates_of(journal: Journal, runs: Iterable[Planned]) -> list[float]:
    """Samples per second of a case's runs, in the order of the repeats.

    Those that ended `ok`, or the throttled ones if there are no others, as in the summary of a report.
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
    """The runs of each case that is not skipped, in the order of the repeats."""
    cases: dict[str, list[Planned]] = {}
    for run in sorted(plan, key=lambda run: run.repeat):
        if run.skip_reason is None:
            cases.setdefault(run.case.key, []).append(run)
    return cases


def _durations_s(journal: Journal, runs: Iterable[Planned]) -> list[float]:
    """The duration of each run of a case, over all its attempts."""
    return [sum(attempt.duration_s for attempt in journal.attempts(run)) for run in runs]


def _after(run: Planned) -> Planned:
    """The next repeat; its position is not decided yet."""
    return replace(run, repeat=run.repeat + 1)


_LOG_TAIL_BYTES = 4096
_MESSAGE_LINES = 4  # of the message of a C++ exception
IN_PROCESS = "in_process"
"""The flag of a run that had no process of its own."""
SILENT_RUNS = 2  # in a row, after which NVML is no longer queried
HOST_MEMORY_SHARE = 0.9  # of the free memory, for a worker on the CPU, or on a GPU that takes it, unless configured


def measure_missing(sessions: Sequence[Session], parallel: int | None = None) -> None:
    """Run the missing runs of the plans, then rounds of further repeats until no case needs one.

    Runs that were finished in an earlier sweep and are to be retried run once, before the rounds.

    Args:
        sessions: One for each kind of device; they run beside each other.
        parallel: The most runs at one time; as many as there are devices if None.
    """
    lanes = [(session, session.journal.missing(session.plan, session.options.retry)) for session in sessions]
    for session, todo in lanes:
        finished = sum(run.skip_reason is None for run in session.plan) - len(todo)
        if finished:
            session.progress.say(f"{counted(finished, 'run')} already finished, {len(todo)} to do")
    while lanes:
        _measure(lanes, parallel)
        lanes = [(session, todo) for session, _ in lanes if (todo := _next_lane(session))]


def _next_lane(session: Session) -> list[tuple[Planned, int]]:
    """The runs of the round that follows; empty if no case needs one."""
    found = extend_plan(session)
    if found.runs:
        write_plan(session)
        _say_round(session, found)
        return session.journal.missing(session.plan)
    if found.wide:
        _say_not_converged(session, found)
    return []


def extend_plan(session: Session) -> Round:
    """Plan rounds of further repeats until a run is missing; returns the last round, empty if none follows.

    Rounds that an earlier sweep decided are decided again, from the same runs and with the same result.
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
    """Store the current plan; report it if the folder's runs were measured in another environment."""
    target_frac = session.config.measure.target_frac(session.environment.device)
    before = session.store.write_plan(
        session.plan,
        session.config.protocol,
        session.environment,
        session.notes,
        target_frac=target_frac,
        estimate_key=key_of(session),
    )
    if before is not None and all(other.changes_since(before) for other in session.beside):
        changes = session.environment.changes_since(before)
        session.progress.say(
            f"the environment changed since {session.options.out} was created ({', '.join(changes)}). New runs are "
            "stored separately; undo the change to resume the old ones, or choose another --out"
        )


def _say_round(session: Session, found: Round) -> None:
    """Report how many cases a round repeats, and why."""
    budget = session.config.measure.time_budget
    spent = f"; {format_duration(found.spent_s)} of {format_duration(budget)} spent" if budget else ""
    session.progress.say(
        f"round {session.rounds}: one more run of {counted(len(found.runs), 'case')}; "
        f"{counted(found.unsettled, 'case')} not settled within {_target(session)}{spent}"
    )


def _say_not_converged(session: Session, found: Round) -> None:
    """Report the cases that did not converge within the repeats or the time allowed."""
    measure = session.config.measure
    budget = f" or time_budget ({format_duration(measure.time_budget)})" if measure.time_budget else ""
    session.progress.say(
        f"not_converged: {counted(found.wide, 'case')} did not reach {_target(session)}; max_repeats "
        f"({measure.max_repeats}){budget} allow no more runs"
    )


def _target(session: Session) -> str:
    return f"±{(session.config.measure.target_frac(session.environment.device) or 0.0) * 100:g} %"


def _measure(lanes: Sequence[tuple[Session, Iterable[tuple[Planned, int]]]], parallel: int | None = None) -> None:
    """Run these, on each device in the order of the plan; a throttled run goes to the end of its device's queue once.

    Args:
        lanes: Each session with its missing runs.
        parallel: The most runs at one time; as many as there are devices if None.
    """
    queues = _Queues()
    for session, todo in lanes:
        queues.extend(session, todo)
    session = lanes[0][0]
    launcher, progress, budget = session.launcher, session.progress, session.options.budget
    spent_s = sum(sum(_durations_s(each.journal, each.plan)) for each, _ in lanes) if budget else 0.0
    progress.start(len(queues), f"round {session.rounds}" if session.rounds else "")
    flying: dict[Handle, Flight] = {}
    try:
        while queues or flying:
            if queues and _is_spent(budget, spent_s):
                progress.say(f"the time for runs is spent; {counted(len(queues), 'further run')} not begun")
                queues = _Queues()
            busy = {id(flight.seat) for flight in flying.values()}
            while (parallel is None or len(flying) < parallel) and (turn := queues.take(busy)):
                if (flight := _begin(*turn)) is not None:
                    busy.add(id(flight.seat))
                    flying[launcher.submit(flight.job)] = flight
            for handle in launcher.wait(flying):
                flight = flying.pop(handle)
                assert handle.answer is not None
                if (measurement := flight.land(handle.answer)) is None:
                    flying[launcher.submit(flight.job)] = flight  # the device is still this run's
                    continue
                spent_s += measurement.duration_s or 0.0
                if _finish(flight.session, flight.seat, flight.run, flight.attempt, measurement):
                    queues.append(flight.session, flight.seat, flight.run, flight.attempt + 1)
    finally:
        launcher.cancel(flying)
    if budget:
        _drop_not_begun([each for each, _ in lanes])


def _is_spent(budget: Budget | None, spent_s: float) -> bool:
    return budget is not None and (spent_s >= budget.seconds or time.monotonic() >= budget.deadline)


def _drop_not_begun(sessions: Iterable[Session]) -> None:
    """Take from the plans what a budget left no time for."""
    for session in sessions:
        if session.journal.missing(session.plan):
            session.plan = [run for run in session.plan if run.skip_reason is not None or session.journal.attempts(run)]
            write_plan(session)


def _measured_first(session: Session, run: Planned) -> bool:
    """Whether the first run of the case measured anything; where not, a budget is not spent on further ones."""
    first = session.journal.attempts(replace(run, repeat=0))
    return bool(first) and first[-1].status in MEASURED


_Turn = tuple[Session, Seat, Planned, int]


class _Queues:
    """The runs that wait for each device, in order.

    Which device has which run follows from the plan and from what devices there are, never from who is free first. In
    the order of each repeat, cases go to the equal devices in turn; with each repeat, every case goes one device on.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, deque[_Turn]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def extend(self, session: Session, todo: Iterable[tuple[Planned, int]]) -> None:
        """Add missing runs of a session."""
        places: dict[str, int] = {}
        for run in session.plan:
            places.setdefault(run.case.key, len(places))
        for run, attempt in todo:
            seat = session.seats[(places.get(run.case.key, 0) + run.repeat) % len(session.seats)]
            self.append(session, seat, run, attempt)

    def append(self, session: Session, seat: Seat, run: Planned, attempt: int) -> None:
        """Add a run at the end of a device's queue."""
        self._waiting.setdefault(id(seat), deque()).append((session, seat, run, attempt))

    def take(self, busy: Collection[int]) -> _Turn | None:
        """The first run in the order of the plan among those whose device is free; None if there is none."""
        free = [queue for seat, queue in self._waiting.items() if queue and seat not in busy]
        return min(free, key=lambda queue: queue[0][2].position).popleft() if free else None


def _begin(session: Session, seat: Seat, run: Planned, attempt: int) -> Flight | None:
    """A run about to start; None if its case was refused in its first process, which is then this run's row too.

    None as well where a budget is not to be spent on a case whose first run measured nothing.
    """
    if session.options.budget and run.repeat and not _measured_first(session, run):
        session.progress.advance()
        return None
    session.progress.begin(f"{session.name(run.case)} (repeat {run.repeat + 1})")
    refused = session.journal.refusal(run)
    if refused is not None:
        _finish(session, seat, run, attempt, Measurement(status=Status.SKIPPED, reason=refused))
        return None
    return Flight(session, seat, run, attempt)


def _finish(session: Session, seat: Seat, run: Planned, attempt: int, measurement: Measurement) -> bool:
    """Write a run; whether another attempt follows."""
    session.journal.write(run, attempt, measurement, seat.environment)
    _note_silence(session, measurement)
    session.progress.finish(_line(session.name(run.case), run, measurement))
    known = len(session.journal.attempts(run))  # a later one may be there: this one was damaged, and is made again
    return measurement.status is Status.THROTTLED and known == attempt + 1 < MAX_ATTEMPTS


class Flight:
    """One run in a fresh process, whatever its outcome."""

    def __init__(self, session: Session, seat: Seat, run: Planned, attempt: int) -> None:
        """Take the run and the device that it has to itself."""
        self.session, self.seat, self.run, self.attempt = session, seat, run, attempt
        self._log = session.store.logs_folder / f"{session.journal.part(run, attempt)}.log"
        self._kills: int | None = None

    @property
    def job(self) -> Job:
        """The run for its launcher."""
        session = self.session
        argument = {
            "case": self.run.case,
            "protocol": session.config.protocol,
            "device": session.environment.device,
            "repeat": self.run.repeat,
            "nvml_error": session.silence or self.seat.choice.nvml_error,
            "data": self.run.data,
            **self.seat.argument,
            "host_memory_bytes": _host_memory(session),
        }
        self._kills = read_oom_kills()
        limit_s = session.config.limits.run_timeout
        return Job(measure_task, argument, limit_s, log=self._log, device=argument["lock"])

    def land(self, answer: Answer) -> Measurement | None:
        """The run's measurement; None if it must be started again.

        Raises:
            InfrastructureError: Its device has lost so many runs in a row before their case began.
        """
        session, seat, log = self.session, self.seat, self._log
        if _ended_before_its_case(answer):
            seat.starts_failed += 1
            if seat.starts_failed < session.config.limits.infrastructure_failures:
                return None
            see = f"{log} and " if _is_written(log) else ""
            where = f" on {seat.name}" if len(session.seats) > 1 or session.beside else ""
            raise InfrastructureError(
                f"{counted(seat.starts_failed, 'worker process', 'worker processes in a row')} ended before "
                f"the case began{where}: {answer.reason}. Finished runs are kept; see {see}bench env, then run the "
                "same command again, with --retry failed if runs failed for the same reason"
            )
        seat.starts_failed = 0
        written = _is_written(log)
        killed = self._kills is not None and (read_oom_kills() or 0) > self._kills
        measurement = _measurement(answer, _uncaught(log) if written else "", killed_for_memory=killed)
        flags = (*measurement.flags, IN_PROCESS) if session.options.in_process else measurement.flags
        return replace(measurement, flags=flags)


def _is_written(log: Path) -> bool:
    """Whether a run wrote to its log; an empty log is deleted."""
    if log.exists() and not log.stat().st_size:
        log.unlink()
    return log.exists()


def _ended_before_its_case(answer: Answer) -> bool:
    """Whether a run never reached its case: it died, or the device does not start or does not respond."""
    return answer.outcome is not Outcome.ANSWERED and answer.phase in (None, "start")


def _note_silence(session: Session, measurement: Measurement) -> None:
    """Stop querying a driver that timed out in two runs in a row: every further run would wait as long."""
    gone = measurement.nvml_error is not None and measurement.nvml_error.startswith(NO_ANSWER)
    session.silent_runs = session.silent_runs + 1 if gone else 0
    if session.silent_runs == SILENT_RUNS and session.silence is None:
        session.silence = measurement.nvml_error
        session.progress.say(
            f"{measurement.nvml_error} in {SILENT_RUNS} runs in a row: the remaining runs do without its readings and "
            "are flagged nvml_silent"
        )


def _host_memory(session: Session) -> int | None:
    takes_it = session.environment.device == "cpu" or session.environment.device_memory_kind == "unified"
    if not takes_it or session.options.in_process:
        return None
    share = HOST_MEMORY_SHARE / (session.environment.parallel or 1)
    return session.config.limits.host_memory or int(available_memory_bytes() * share)


def _measurement(answer: Answer, uncaught: str = "", *, killed_for_memory: bool = False) -> Measurement:
    """The result of a run as a measurement; a process that was killed or died gets its status and reason here.

    Args:
        answer: What the process returned.
        uncaught: The message of the C++ exception that ended the process; empty if none did.
        killed_for_memory: Whether the kernel killed a process of this control group for memory in the meantime.
    """
    if answer.outcome is Outcome.ANSWERED:
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in answer.value.items()}
        worker_killed = Status(fields["status"]) is Status.FAILED and _KILLED_WORKER.search(fields["reason"] or "")
        if killed_for_memory and worker_killed:
            fields |= {"status": Status.OOM, "reason": f"{fields['reason']}; {_killer()}"}
    else:
        status, reason = _end(answer, uncaught, killed_for_memory)
        fields = {**answer.news, "phase": answer.phase, "status": status, "reason": reason}
    fields["status"] = Status(fields["status"])
    return Measurement(**{**fields, "duration_s": answer.duration_s, "process_start_s": answer.start_s})


_KILLED_WORKER = re.compile(r"killed by signal: Killed|DataLoader worker \(pid\(s\) [\d, ]+\) exited unexpectedly")
"""torch's messages for a loader's worker killed by SIGKILL: the second where its watch is slower than the loader's."""
_STATUSES = {Outcome.TIMED_OUT: Status.TIMEOUT, Outcome.DIED: Status.CRASHED, Outcome.REFUSED: Status.FAILED}


def _end(answer: Answer, uncaught: str, killed_for_memory: bool) -> tuple[Status, str]:
    """Status and reason of a run without a result. If it reported its failure before it died, that counts."""
    reason = answer.reason or f"no reason given (during {answer.phase or 'start'})"
    if "status" in answer.news:
        return Status(answer.news["status"]), f"{answer.news['reason']}; then {reason}"
    if answer.outcome is Outcome.DIED and says_out_of_memory(uncaught):
        return Status.OOM, f"{uncaught}: {reason}"
    if answer.outcome is Outcome.DIED and killed_for_memory and "SIGKILL" in reason:
        return Status.OOM, f"{reason}; {_killer()}"
    return _STATUSES[answer.outcome], reason


def _killer() -> str:
    limit = read_memory_limit_bytes()
    allowed = f" (limit {format_bytes(limit)})" if limit is not None else ""
    return f"the kernel killed a process of this control group{allowed} for lack of memory"


def _uncaught(log: Path) -> str:
    """The message of the C++ exception that ended a process, from the end of its log; empty if there is none.

    Its lines end before Python's report of the fatal signal. Intel's runtime names the cause on the second.
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        messages = re.split(r"what\(\): +", file.read().decode(errors="replace"))[1:]
    lines = re.split(r"\n\s*\n|\nFatal Python error", messages[-1])[0].splitlines()[:_MESSAGE_LINES] if messages else []
    said = next((line for line in lines if says_out_of_memory(line)), lines[0] if lines else "")
    return said.strip()[:300]


def _line(name: str, run: Planned, measurement: Measurement) -> str:
    """One run in one line."""
    what = f"{name} #{run.repeat + 1}: {measurement.status}"
    if measurement.status not in MEASURED:
        return f"{what}: {(measurement.reason or '')[:160]}"
    samples_per_s = run.case.batch_size * len(measurement.step_times_s) / (measurement.wall_window_s or float("nan"))
    return f"{what}, {format_rate(samples_per_s, 'samples')}, peak {format_bytes(measurement.peak_allocated_bytes)}"
