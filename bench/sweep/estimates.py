"""The estimates for a sweep's runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from bench import catalog, fingerprint
from bench.client import counts_workspaces, estimate_in_child
from bench.devices import Device, device_toml
from bench.estimators.memory_settings import MEMORY_VARIABLES
from bench.folders import drop_empty
from bench.records import Environment, Planned, stable_hash
from bench.records.variables import cublas_workspaces
from bench.sweep.session import Session


def estimate_planned(session: Session) -> None:
    """Store the missing estimates; an estimator that fails leaves its columns null and gives the reason."""
    device = estimated_device(session)
    key = key_of(session)
    known = session.store.estimated(key)
    planned = dict.fromkeys(run.case for run in session.plan if run.skip_reason is None)
    cases = [case for case in planned if (case.key, str(device)) not in known]
    if not cases:
        return
    log = session.store.logs_folder / "estimates.log"
    limit_s = session.config.limits.run_timeout
    made = estimate_in_child(
        session.launcher,
        cases,
        device,
        timeout_s=limit_s,
        say=session.progress.say,
        log=log,
        log_name=str(log.relative_to(session.options.out)),
        variables=run_variables(session),
    )
    session.store.write_estimates(list(made), key)
    drop_empty(log)


def estimated_device(session: Session) -> str | Device:
    """The device of a sweep's estimates: the described GPU, or the name of a device without a description."""
    return session.gpu.device if session.gpu else session.environment.estimate_device or session.environment.device


def run_variables(session: Session) -> dict[str, str]:
    """Environment variables that the sweep's runs set for themselves and that affect memory."""
    found = cublas_workspaces(os.environ, deterministic=session.config.protocol.deterministic)
    return {} if found is None else {"CUBLAS_WORKSPACE_CONFIG": found}


def key_of(session: Session) -> str:
    """The key of a sweep's estimates."""
    described = session.gpu.device if session.gpu else None
    return estimate_key(session.environment, session.plan, described, run_variables(session))


def estimate_key(
    environment: Environment,
    plan: Collection[Planned] = (),
    described: Device | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """The key under which two estimates of a case are the same: code, versions, settings and device.

    Args:
        environment: Of the runs.
        plan: The runs: of data sets that are described by their files, the number of classes counts; of models whose
            code is not in this package, the code.
        described: The GPU, where the estimates are for one that was described for this sweep.
        variables: What the runs set beyond this process's environment; as for `estimate_in_child`.
    """
    classes = {str(run.case.dataset): run.data.data_classes for run in plan if run.data.data_classes is not None}
    versions = (environment.torch_version, environment.torchvision_version)
    known = {**os.environ, **(variables or {})}
    settings = [f"{name}={known[name]}" for name in MEMORY_VARIABLES if name in known]
    settings += [str(environment.cudnn_version), str(counts_workspaces())]
    models = {run.case.model.name for run in plan}
    codes = {name: catalog.code_key("model", name) for name in sorted(models) if catalog.is_versioned(name)}
    more = [*([described.name, device_toml(described)] if described else []), *([classes] if classes else [])]
    more += [codes] if codes else []
    return stable_hash([fingerprint.code_key(fingerprint.ESTIMATE_CODE), *versions, *settings, *more])
