"""Estimates, made in a process of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import fingerprint
from bench.devices import Device, device_toml
from bench.errors import BenchError
from bench.launchers import LocalLauncher, Outcome
from bench.launchers.tasks import estimate_task, fit_task
from bench.records import Case, Estimate, stable_hash
from bench.sweep.session import Session

FIT_TIMEOUT_S = 600.0  # for one batch size


def estimate_planned(session: Session) -> None:
    """Store the estimates that are missing; an estimator that fails leaves its columns null and says why."""
    device = estimated_device(session)
    key = estimate_key(session)
    known = session.store.estimated(key)
    planned = dict.fromkeys(run.case for run in session.plan if run.skip_reason is None)
    cases = [case for case in planned if (case.key, str(device)) not in known]
    if not cases:
        return
    log = session.store.logs_folder / "estimates.log"
    limit_s = session.config.limits.run_timeout
    made = estimate_in_child(session.launcher, cases, device, timeout_s=limit_s, say=session.progress.say, log=log)
    session.store.write_estimates(list(made), key)


def estimated_device(session: Session) -> str | Device:
    """What a sweep's estimates are for: the GPU as it was described, or the name of what no description is of."""
    return session.gpu.device if session.gpu else session.environment.estimate_device or session.environment.device


def estimate_key(session: Session) -> str:
    """What makes two estimates of a case the same: the estimators' code, the versions, the settings and the device.

    Of data sets that are described by their files, the number of classes too.
    """
    environment, gpu = session.environment, session.gpu
    planned = [run for run in session.plan if run.data.data_classes is not None]
    classes = {str(run.case.dataset): run.data.data_classes for run in planned}
    versions = (environment.torch_version, environment.torchvision_version)
    settings = [os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")]
    settings += [str(environment.cudnn_version), str(counts_workspaces())]
    described = [gpu.device.name, device_toml(gpu.device)] if gpu else []
    more = [*described, *([classes] if classes else [])]
    return stable_hash([fingerprint.code_key(fingerprint.ESTIMATE_CODE), *versions, *settings, *more])


def estimate_in_child(
    launcher: LocalLauncher,
    cases: Sequence[Case],
    device: str | Device,
    *,
    timeout_s: float,
    say: Callable[[str], None],
    log: Path | None = None,
    workspaces: bool | None = None,
    heard: Callable[[], None] = lambda: None,
) -> Iterator[Estimate]:
    """An estimate for each case; where a model hangs or kills the estimator, its cases get the reason instead.

    A child makes them in parallel first; where that fails, one after the other, so that it is known who is to blame.

    Args:
        launcher: Makes the process.
        cases: Estimates come in an order of their own.
        device: Name or path of a device file, or a device.
        timeout_s: For one model's cases.
        say: Hears of models that failed.
        log: Where the process's output goes.
        workspaces: Whether the trace counts cuDNN's workspaces; as the environment says where None.
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
                Estimate(case_key=case.key, estimate_device=str(device), estimate_note=answer.reason) for case in failed
            )


def counts_workspaces() -> bool:
    """Whether estimates count cuDNN's workspaces: unless the environment's `BENCH_CUDNN_WORKSPACES` is `off`."""
    return os.environ.get("BENCH_CUDNN_WORKSPACES", "on") != "off"


def fit_in_child(
    launcher: LocalLauncher,
    case: Case,
    device: str | Device,
    fraction: float,
    say: Callable[[str], None],
    *,
    workspaces: bool,
) -> dict[str, Any]:
    """The fields of `estimators.fitting.Fit` as a JSON object. Raises BenchError where the case cannot be traced."""

    def listen(news: dict[str, Any]) -> None:
        say(f"tracing batch {news['batch_size']}")

    argument = {"case": case, "device": device, "fraction": fraction, "workspaces": workspaces}
    answer = launcher.run(fit_task, argument, timeout_s=FIT_TIMEOUT_S, from_last_word=True, listen=listen)
    if answer.outcome is not Outcome.ANSWERED:
        raise BenchError(answer.reason)
    return answer.value
