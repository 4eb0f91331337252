"""Estimates, made in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import fingerprint
from bench.errors import BenchError
from bench.launchers import LocalLauncher, Outcome
from bench.launchers.tasks import estimate_task, fit_task
from bench.records import Case, Estimate, stable_hash
from bench.sweep.session import Session

FIT_TIMEOUT_S = 600.0  # for one batch size


def estimate_planned(session: Session) -> None:
    """Store the estimates that are missing; an estimator that fails leaves its columns null and says why."""
    versions = (session.environment.torch_version, session.environment.torchvision_version)
    key = stable_hash([fingerprint.code_key(fingerprint.ESTIMATE_CODE), *versions])
    device = session.environment.estimate_device or session.environment.device
    known = session.store.estimated(key)
    planned = dict.fromkeys(run.case for run in session.plan if run.skip_reason is None)
    cases = [case for case in planned if (case.key, device) not in known]
    if not cases:
        return
    log = session.store.logs_folder / "estimates.log"
    limit_s = session.config.limits.run_timeout
    made = estimate_in_child(session.launcher, cases, device, timeout_s=limit_s, say=session.progress.say, log=log)
    session.store.write_estimates(list(made), key)


def estimate_in_child(
    launcher: LocalLauncher,
    cases: Sequence[Case],
    device: str,
    *,
    timeout_s: float,
    say: Callable[[str], None],
    log: Path | None = None,
) -> Iterator[Estimate]:
    """An estimate for each case; where a model hangs or kills the estimator, its cases get the reason instead.

    Args:
        launcher: Makes the process.
        cases: Estimates come in their order, but for the cases of a model that failed, which come when it does.
        device: Name or path of a device file.
        timeout_s: For one case.
        say: Hears of models that failed.
        log: Where the process's output goes.
    """
    todo = list(cases)
    while todo:
        made: list[dict[str, Any]] = []
        answer = launcher.run(
            estimate_task, {"cases": todo, "device": device}, timeout_s=timeout_s, from_last_word=True, log=log,
            listen=made.append,
        )  # fmt: skip
        yield from (Estimate(**news["estimate"]) for news in made)
        todo = todo[len(made) :]
        if todo:
            culprit = todo[0].model
            say(f"no estimate for {culprit}: {answer.reason}")
            failed = [case for case in todo if case.model == culprit]
            todo = [case for case in todo if case.model != culprit]
            yield from (
                Estimate(case_key=case.key, estimate_device=device, estimate_note=answer.reason) for case in failed
            )


def fit_in_child(
    launcher: LocalLauncher, case: Case, device: str, fraction: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """The fields of `estimators.fitting.Fit` as a JSON object. Raises BenchError where the case cannot be traced."""

    def listen(news: dict[str, Any]) -> None:
        say(f"tracing batch {news['batch_size']}")

    argument = {"case": case, "device": device, "fraction": fraction}
    answer = launcher.run(fit_task, argument, timeout_s=FIT_TIMEOUT_S, from_last_word=True, listen=listen)
    if answer.outcome is not Outcome.ANSWERED:
        raise BenchError(answer.reason)
    return answer.value
