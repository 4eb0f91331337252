"""The estimates that stand beside a sweep's runs."""

from __future__ import annotations

import os

from bench import fingerprint
from bench.api import counts_workspaces, estimate_in_child
from bench.devices import Device, device_toml
from bench.estimators.memory_settings import MEMORY_VARIABLES
from bench.folders import drop_empty
from bench.records import stable_hash
from bench.records.variables import cublas_workspaces
from bench.sweep.session import Session


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
    made = estimate_in_child(
        session.launcher, cases, device, timeout_s=limit_s, say=session.progress.say, log=log,
        log_name=str(log.relative_to(session.options.out)), variables=run_variables(session),
    )  # fmt: skip
    session.store.write_estimates(list(made), key)
    drop_empty(log)


def estimated_device(session: Session) -> str | Device:
    """What a sweep's estimates are for: the GPU as it was described, or the name of what no description is of."""
    return session.gpu.device if session.gpu else session.environment.estimate_device or session.environment.device


def run_variables(session: Session) -> dict[str, str]:
    """Environment variables that the sweep's runs set for themselves, and that move memory."""
    found = cublas_workspaces(os.environ, deterministic=session.config.protocol.deterministic)
    return {} if found is None else {"CUBLAS_WORKSPACE_CONFIG": found}


def estimate_key(session: Session) -> str:
    """What makes two estimates of a case the same: the estimators' code, the versions, the settings and the device.

    Of data sets that are described by their files, the number of classes too.
    """
    environment, gpu = session.environment, session.gpu
    planned = [run for run in session.plan if run.data.data_classes is not None]
    classes = {str(run.case.dataset): run.data.data_classes for run in planned}
    versions = (environment.torch_version, environment.torchvision_version)
    known = {**os.environ, **run_variables(session)}
    settings = [f"{name}={known[name]}" for name in MEMORY_VARIABLES if name in known]
    settings += [str(environment.cudnn_version), str(counts_workspaces())]
    described = [gpu.device.name, device_toml(gpu.device)] if gpu else []
    more = [*described, *([classes] if classes else [])]
    return stable_hash([fingerprint.code_key(fingerprint.ESTIMATE_CODE), *versions, *settings, *more])
