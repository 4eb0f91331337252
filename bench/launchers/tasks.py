"""What children of the launcher do; each imports what it needs in the child, so that the parent stays free of torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

Send = Callable[[dict[str, Any]], None]


def measure_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Measure one case; `argument` holds the fields of `worker.MeasureTask`. Returns those of a `Measurement`."""
    _see_only(argument["gpu_uuid"], argument.pop("gpu_index"))
    from bench.worker import MeasureTask, measure_case

    return measure_case(MeasureTask(**argument), send)


def estimate_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Estimate `cases` for `device`, sending `{"estimate": fields of Estimate}` for each; in turn with one worker.

    `variables` are those that the cases' runs set for themselves: this process stands for them.
    """
    os.environ.update(argument.get("variables", {}))
    from bench.estimators.cases import estimate_in_parallel

    cases, device = argument["cases"], argument["device"]
    workers, workspaces = argument["workers"], argument["workspaces"]
    for estimate in estimate_in_parallel(cases, device, workers=workers, workspaces=workspaces):
        send({"estimate": asdict(estimate)})
    return {}


def timeline_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Memory over a step of `case` on `device`, with `workspaces`; the fields of `estimators.timeline.Timeline`."""
    from bench.devices import load_device
    from bench.estimators.timeline import estimate_timeline

    device = load_device(argument["device"])
    return asdict(estimate_timeline(argument["case"], device, workspaces=argument["workspaces"]))


def fit_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """The largest and a recommended batch for `case` on `device`; returns the fields of `estimators.fitting.Fit`."""
    from bench.devices import load_device
    from bench.estimators.fitting import fit_batch

    def heard(batch_size: int) -> None:
        send({"batch_size": batch_size})

    device, workspaces = load_device(argument["device"]), argument["workspaces"]
    return asdict(fit_batch(argument["case"], device, argument["fraction"], heard, workspaces=workspaces))


def environment_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """The fields of `Environment` for the `device` and, where there is one, the `gpu_uuid` of `argument`."""
    _see_only(argument["gpu_uuid"], argument["gpu_index"])
    from bench.probes.environment import measure_environment

    return asdict(measure_environment(argument["device"]))


def device_facts_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """`values` and `sources` of a device file for the GPU `gpu_uuid`."""
    _see_only(argument["gpu_uuid"], argument["gpu_index"])
    from bench.probes.device_facts import measure_device_facts

    values, sources = measure_device_facts(argument["gpu_uuid"])
    return {"values": values, "sources": sources}


def record_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Record one case; `argument` holds the fields of `recorder.RecordTask`. Returns its status and where it stands."""
    _see_only(argument["gpu_uuid"], argument.pop("gpu_index"))
    from bench.recorder import RecordTask, record_case

    return record_case(RecordTask(**argument), send)


def difference_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Compare the recording at `path` with the trace; returns the fields of `estimators.difference.Explanation`."""
    from pathlib import Path

    from bench.estimators.difference import explain_recording
    from bench.recordings import read_recording

    send({"phase": "reading"})
    recording = read_recording(Path(argument["path"]))
    send({"phase": "tracing"})
    most, workspaces = argument["most"], argument["workspaces"]
    return asdict(explain_recording(recording, argument["path"], most=most, workspaces=workspaces))


def _see_only(gpu_uuid: str | None, gpu_index: int | None) -> None:
    """Let this process see one GPU: by UUID, as NVML's index and CUDA's may differ, or by place where none is known.

    The place counts what the user has left visible. ROCm reads `HIP_VISIBLE_DEVICES` before CUDA's name for it.
    """
    if gpu_uuid:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_uuid
    elif gpu_index:
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            visible = [item for item in os.environ.get(name, "").split(",") if item.strip()]
            if visible or name == "CUDA_VISIBLE_DEVICES":
                os.environ[name] = visible[gpu_index].strip() if visible else str(gpu_index)
