"""Estimates, made in a process of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import fingerprint
from bench.errors import BenchError
from bench.estimators.memory_settings import MEMORY_VARIABLES
from bench.launchers import LocalLauncher, Outcome
from bench.launchers.tasks import estimate_task, fit_task
from bench.records import Case, Environment, Estimate, stable_hash
from bench.sweep.session import Session

FIT_TIMEOUT_S = 600.0  # for one batch size


def estimate_planned(session: Session) -> None:
    """Store the estimates that are missing; an estimator that fails leaves its columns null and says why."""
    device = session.environment.estimate_device or session.environment.device
    key = estimate_key(session.environment)
    known = session.store.estimated(key)
    planned = dict.fromkeys(run.case for run in session.plan if run.skip_reason is None)
    cases = [case for case in planned if (case.key, device) not in known]
    if not cases:
        return
    log = session.store.logs_folder / "estimates.log"
    limit_s = session.config.limits.run_timeout
    made = estimate_in_child(session.launcher, cases, device, timeout_s=limit_s, say=session.progress.say, log=log)
    session.store.write_estimates(list(made), key)


def estimate_key(environment: Environment, variables: Mapping[str, str] | None = None) -> str:
    """What makes two estimates of a case on a device the same: the estimators' code, the versions and the settings.

    Args:
        environment: Of the runs.
        variables: What the runs set beyond this process's environment; as for `estimate_in_child`.
    """
    versions = (environment.torch_version, environment.torchvision_version)
    known = {**os.environ, **(variables or {})}
    settings = [f"{name}={known[name]}" for name in MEMORY_VARIABLES if name in known]
    settings += [str(environment.cudnn_version), str(counts_workspaces())]
    return stable_hash([fingerprint.code_key(fingerprint.ESTIMATE_CODE), *versions, *settings])


def estimate_in_child(
    launcher: LocalLauncher,
    cases: Sequence[Case],
    device: str,
    *,
    timeout_s: float,
    say: Callable[[str], None],
    log: Path | None = None,
    workspaces: bool | None = None,
    variables: Mapping[str, str] | None = None,
    heard: Callable[[], None] = lambda: None,
) -> Iterator[Estimate]:
    """An estimate for each case; where a model hangs or kills the estimator, its cases get the reason instead.

    A child makes them in parallel first; where that fails, one after the other, so that it is known who is to blame.

    Args:
        launcher: Makes the process.
        cases: Estimates come in an order of their own.
        device: Name or path of a device file.
        timeout_s: For one model's cases.
        say: Hears of models that failed.
        log: Where the process's output goes.
        workspaces: Whether the trace counts cuDNN's workspaces; as the environment says where None.
        variables: Environment variables that the runs set for themselves, as their protocol has it, in addition to this
            process's environment: `{"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}`, say.
        heard: Called with every estimate that comes.
    """
    todo, workers = list(cases), os.cpu_count() or 1

    def listen(news: dict[str, Any]) -> None:
        made.append(Estimate(**news["estimate"]))
        heard()

    while todo:
        made: list[Estimate] = []
        counted = counts_workspaces() if workspaces is None else workspaces
        argument = {"cases": todo, "device": device, "workers": workers, "workspaces": counted}
        argument["variables"] = dict(variables or {})
        answer = launcher.run(estimate_task, argument, timeout_s=timeout_s, from_last_word=True, log=log, listen=listen)
        yield from made
        done = {estimate.case_key for estimate in made}
        todo = [case for case in todo if case.key not in done]
        if todo and workers > 1:
            workers = 1
        elif todo:
            culprit = todo[0].model
            say(f"no estimate for {culprit}: {answer.reason}")
            failed = [case for case in todo if case.model == culprit]
            todo = [case for case in todo if case.model != culprit]
            yield from (
                Estimate(case_key=case.key, estimate_device=device, estimate_note=answer.reason) for case in failed
            )


def counts_workspaces() -> bool:
    """Whether estimates count cuDNN's workspaces: unless the environment's `BENCH_CUDNN_WORKSPACES` is `off`."""
    return os.environ.get("BENCH_CUDNN_WORKSPACES", "on") != "off"


def fit_in_child(
    launcher: LocalLauncher, case: Case, device: str, fraction: float, say: Callable[[str], None], *, workspaces: bool
) -> dict[str, Any]:
    """The fields of `estimators.fitting.Fit` as a JSON object. Raises BenchError where the case cannot be traced."""

    def listen(news: dict[str, Any]) -> None:
        say(f"tracing batch {news['batch_size']}")

    argument = {"case": case, "device": device, "fraction": fraction, "workspaces": workspaces}
    answer = launcher.run(fit_task, argument, timeout_s=FIT_TIMEOUT_S, from_last_word=True, listen=listen)
    if answer.outcome is not Outcome.ANSWERED:
        raise BenchError(answer.reason)
    return answer.value
