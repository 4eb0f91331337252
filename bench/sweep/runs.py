"""Runs: which are missing, what becomes of each, and when to stop."""

from __future__ import annotations

from collections import deque
from typing import Any

from bench.errors import InfrastructureError
from bench.launchers import Answer, Outcome
from bench.launchers.tasks import measure_task
from bench.probes.host import available_memory_bytes
from bench.records import MEASURED, Measurement, Planned, Status, run_key
from bench.store.folder import group_of, part_name
from bench.sweep.session import Session, gpu_of
from bench.units import format_bytes, format_rate

HOST_MEMORY_SHARE = 0.9  # of what is free, for a worker on the CPU unless the configuration says
MAX_ATTEMPTS = 2  # of a run that was throttled: once more, both kept


def measure_missing(session: Session) -> None:
    """Run what is missing, in the plan's order; what was throttled goes to the end of the queue once."""
    queue = deque(_missing(session))
    finished = sum(run.skip_reason is None for run in session.plan) - len(queue)
    if finished:
        session.progress.say(f"{finished} runs are finished already, {len(queue)} to do")
    session.progress.start(len(queue))
    while queue:
        run, attempt = queue.popleft()
        session.progress.begin(f"{run.case} (repeat {run.repeat + 1})")
        measurement = _measure_one(session, run, attempt)
        session.store.write_run(run, attempt, session.config.protocol, measurement, session.environment)
        session.progress.finish(_line(run, measurement))
        if measurement.status is Status.THROTTLED and attempt + 1 < MAX_ATTEMPTS:
            queue.append((run, attempt + 1))


def _missing(session: Session) -> list[tuple[Planned, int]]:
    """Every run without a part, and those whose status is to be tried again, each with its attempt."""
    statuses = session.store.run_statuses()
    todo = []
    for run in session.plan:
        if run.skip_reason is not None:
            continue
        done: list[Status] = []
        while (name := _part(session, run, len(done))) in statuses:
            done.append(statuses[name])
        throttled = done == [Status.THROTTLED]  # the sweep ended before its second attempt
        if not done or throttled or done[-1] in session.options.retry:
            todo.append((run, len(done)))
    return todo


def _part(session: Session, run: Planned, attempt: int) -> str:
    group = group_of(run, session.config.protocol, session.environment)
    return part_name(run, attempt, run_key(run.case.key, group, run.repeat, attempt))


def _measure_one(session: Session, run: Planned, attempt: int) -> Measurement:
    """One run in a fresh process, whatever comes of it."""
    argument = {
        "case": run.case, "protocol": session.config.protocol, "device": session.environment.device,
        **gpu_of(session.choice), "host_memory_bytes": _host_memory(session),
    }  # fmt: skip
    log = session.store.logs_folder / f"{_part(session, run, attempt)}.log"
    while True:
        answer = session.launcher.run(measure_task, argument, timeout_s=session.config.limits.run_timeout, log=log)
        if answer.outcome is not Outcome.DIED or answer.phase not in (None, "start"):
            session.starts_failed = 0
            break
        session.starts_failed += 1  # it never came as far as the case: the cause lies outside
        if session.starts_failed >= session.config.limits.infrastructure_failures:
            raise InfrastructureError(
                f"{session.starts_failed} worker processes in a row died before their case began: {answer.reason}. "
                f"What is finished is kept; see {log} and bench env, then run the same command again"
            )
    if log.exists() and not log.stat().st_size:
        log.unlink()
    return _measurement(answer)


def _host_memory(session: Session) -> int | None:
    if session.environment.device != "cpu":
        return None
    return session.config.limits.host_memory or int(available_memory_bytes() * HOST_MEMORY_SHARE)


def _measurement(answer: Answer) -> Measurement:
    """The answer of a run as a measurement; a process that was killed or died gets its status here."""
    status = {Outcome.TIMED_OUT: Status.TIMEOUT, Outcome.DIED: Status.CRASHED, Outcome.REFUSED: Status.FAILED}
    fields: dict[str, Any] = {**answer.news, "phase": answer.phase, "reason": answer.reason}
    if answer.outcome is Outcome.ANSWERED:
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in answer.value.items()}
    fields["status"] = Status(fields["status"]) if answer.outcome is Outcome.ANSWERED else status[answer.outcome]
    return Measurement(**{**fields, "duration_s": answer.duration_s, "process_start_s": answer.start_s})


def _line(run: Planned, measurement: Measurement) -> str:
    """One run in one line."""
    what = f"{run.case} #{run.repeat + 1}: {measurement.status}"
    if measurement.status not in MEASURED:
        return f"{what}: {(measurement.reason or '')[:160]}"
    samples_per_s = run.case.batch_size * len(measurement.step_times_s) / (measurement.wall_window_s or float("nan"))
    return f"{what}, {format_rate(samples_per_s, 'samples')}, peak {format_bytes(measurement.peak_allocated_bytes)}"
