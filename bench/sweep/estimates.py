"""Estimates of what is planned, made in a process of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench import fingerprint
from bench.launchers.tasks import estimate_task
from bench.records import Case, Estimate, stable_hash
from bench.sweep.session import Session


def estimate_planned(session: Session) -> None:
    """Store the estimates that are missing; an estimator that fails leaves its columns null and says why."""
    key = stable_hash([fingerprint.code_key(fingerprint.ESTIMATE_CODE), session.environment.torch_version,
                       session.environment.torchvision_version])  # fmt: skip
    device = session.environment.estimate_device
    known = session.store.estimated(key)
    cases = list(
        dict.fromkeys(
            run.case for run in session.plan if run.skip_reason is None and (run.case.key, device) not in known
        )
    )
    if not cases:
        return
    session.store.write_estimates(list(_estimates(session, cases, device)), key)


def _estimates(session: Session, cases: Sequence[Case], device: str | None) -> Iterator[Estimate]:
    """An estimate for each case; where a model hangs or kills the estimator, its cases get the reason instead."""
    todo = list(cases)
    while todo:
        made: list[dict[str, Any]] = []
        answer = session.launcher.run(
            estimate_task, {"cases": todo, "device": device}, timeout_s=session.config.limits.run_timeout,
            from_last_word=True, log=session.store.logs_folder / "estimates.log", listen=made.append,
        )  # fmt: skip
        yield from (Estimate(**news["estimate"]) for news in made)
        todo = todo[len(made) :]
        if todo:
            culprit = todo[0].model
            session.progress.say(f"no estimate for {culprit}: {answer.reason}")
            failed = [case for case in todo if case.model == culprit]
            yield from (
                Estimate(case_key=case.key, estimate_device=device or "", estimate_note=answer.reason)
                for case in failed
            )
            todo = [case for case in todo if case.model != culprit]
