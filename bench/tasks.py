"""The tasks of the launcher's children; each imports what it needs in the child: the parent never imports torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.errors import BusyError
from bench.launchers import Send
from bench.locks import hold, run_lock_path

if TYPE_CHECKING:
    from bench.estimators.memory import Target


RUN_LOCK_WAIT_S = 10.0
"""For a device whose last run was killed: the driver may take seconds to end such a process."""


def measure_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Measure one case; `argument` holds the fields of `worker.MeasureTask`. Returns those of a `Measurement`.

    Raises:
        BusyError: Another process measures on the device.
    """
    with _taken_device(argument):
        from bench.worker import MeasureTask, measure_case

        return measure_case(MeasureTask(**argument), send)


def estimate_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Estimate `cases` for `device`, in forks; for each, sends its fields and the estimators that failed.

    `variables` are those that the cases' runs set for themselves; this process sets them too.
    `timeout_s` is for one estimator on one case.
    """
    os.environ.update(argument.get("variables", {}))
    from bench.estimators.cases import estimate_apart

    named = {name: argument[name] for name in ("workers", "timeout_s", "workspaces")}
    for estimate, lost in estimate_apart(argument["cases"], argument["device"], **named):
        send({"estimate": asdict(estimate), "lost": lost})
    return {}


def estimate_kept_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Estimate those `cases` for `device` of which everything is kept, without torch; arguments as `estimate_task`."""
    os.environ.update(argument.get("variables", {}))
    from bench.estimators.cases import estimate_kept

    for estimate in estimate_kept(argument["cases"], argument["device"], workspaces=argument["workspaces"]):
        send({"estimate": asdict(estimate), "lost": {}})
    return {}


def fit_kept_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """As `fit_task`, without torch; an empty result if something would have to be recorded."""
    from bench.estimators.kept import NotKept, only_kept

    try:
        with only_kept():
            return fit_task(argument, send)
    except NotKept:
        return {}


def timeline_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Memory over a step of `case` on `device`, with `workspaces`; the fields of `estimators.timeline.Timeline`."""
    from bench.estimators.timeline import estimate_timeline

    target = _target_of(argument)
    send({"phase": "tracing"})
    return asdict(estimate_timeline(argument["case"], target))


def kernels_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """The `operators` of a step of `case` on `device`, each once."""
    from bench.estimators.kept import recording_of
    from bench.estimators.recording import Call

    recording = recording_of(argument["case"], _target_of(argument).machine)
    return {"operators": sorted({entry.name for entry in recording.entries if isinstance(entry, Call)})}


def kernels_kept_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """As `kernels_task`, without torch; an empty result if the step would have to be recorded."""
    from bench.estimators.kept import NotKept, only_kept

    try:
        with only_kept():
            return kernels_task(argument, send)
    except NotKept:
        return {}


def layers_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """The layers of `model` for `images`; returns the fields of `estimators.layers.ModelLayers`."""
    from bench.estimators.layers import list_layers

    send({"phase": "model"})
    found = list_layers(argument["model"], argument["images"])
    return asdict(found)


def trials_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Why models cannot take images: sends the `index` of each of the `trials` with its `reason`, null for none.

    With `kept` it does so without torch, and only of those that were tried before.
    """
    from bench.estimators.kept import NotKept, only_kept, refusal_of

    with only_kept() if argument["kept"] else contextlib.nullcontext():
        for index, (model, images) in enumerate(argument["trials"]):
            with contextlib.suppress(NotKept):
                send({"index": index, "reason": refusal_of(model, images)})
    return {}


def models_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """What the user's file at `path` has, as `catalog.files.describe_file` says it."""
    from pathlib import Path

    from bench.catalog.files import describe_file

    send({"phase": "loading"})
    return describe_file(Path(argument["path"]))


def fit_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """The largest and a recommended batch for `case` on `device`; returns the fields of `estimators.fitting.Fit`."""
    from bench.estimators.fitting import fit_batch

    def heard(batch_size: int) -> None:
        send({"phase": f"trace of batch {batch_size}", "batch_size": batch_size})

    return asdict(fit_batch(argument["case"], _target_of(argument), argument["fraction"], heard))


def place_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """The step of `case` on each of `devices` at its recommended batch, in forks; sends the fields of each `Placement`.

    Of each GPU's memory, the batch may take `fraction`; `timeout_s` is for one GPU.
    """
    from bench.estimators.choosing import place_apart

    send({"phase": "recording"})
    named = {name: argument[name] for name in ("fraction", "workspaces", "timeout_s")}
    for placement in place_apart(argument["case"], argument["devices"], workers=os.cpu_count() or 1, **named):
        send({"placement": asdict(placement)})
    return {}


def place_kept_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """As `place_task`, without torch; what would have to be recorded is left out."""
    from bench.estimators.kept import NotKept, only_kept

    try:
        with only_kept():
            return place_task(argument, send)
    except NotKept:
        return {}


def _target_of(argument: dict[str, Any]) -> Target:
    """The target that `device` (a name, a path or itself), `workspaces` and the `case` of an argument make."""
    from bench.devices import load_device
    from bench.estimators.memory import Target

    allocator = argument["case"].allocator
    return Target.of(load_device(argument["device"]), workspaces=argument["workspaces"], allocator=allocator)


def environment_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """The fields of `Environment` for the `device` and, where there is one, the `gpu_uuid` of `argument`."""
    _keep_on(argument.get("cpus"))
    _see_only(argument["gpu_uuid"], argument["gpu_index"], argument["device"])
    from bench.probes.environment import measure_environment

    return asdict(measure_environment(argument["device"], gpu_uuid=argument["gpu_uuid"]))


def device_facts_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """`values` and `sources` of a device file for the GPU `gpu_uuid`, with or without its `context`.

    With what is free of the host's memory, `host_available_bytes`: it is all that a GPU without its own may take.
    """
    _see_only(argument["gpu_uuid"], argument["gpu_index"])
    from bench.probes.device_facts import measure_device_facts
    from bench.probes.host import available_memory_bytes

    values, sources = measure_device_facts(argument["gpu_uuid"], context=argument["context"])
    return {"values": values, "sources": sources, "host_available_bytes": available_memory_bytes()}


def ceilings_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """What the `device` reaches, each figure in about `most_s`, as `probes.ceilings.measure_ceilings` has it."""
    _see_only(argument["gpu_uuid"], argument["gpu_index"])
    from bench.probes.ceilings import measure_ceilings

    return measure_ceilings(argument["device"], argument["most_s"], send)


def calibration_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Fit the calibrated rates of `device` to `steps`, pairs of a case and seconds; the fields of `Fitted`."""
    from bench.estimators.calibrating import Step, fit_calibration

    steps = [Step(case, seconds) for case, seconds in argument["steps"]]
    workspaces = argument["workspaces"]
    return asdict(
        fit_calibration(steps, argument["device"], workspaces=workspaces, heard=lambda phase: send({"phase": phase}))
    )


def record_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Record one case; `argument` holds the fields of `recorder.RecordTask`. Returns its status and where it stands."""
    with _taken_device(argument):
        from bench.recorder import RecordTask, record_case

        return record_case(RecordTask(**argument), send)


def recording_task(path: str, send: Send) -> dict[str, Any]:
    """Raise BenchError if the file is not a recording."""
    from pathlib import Path

    from bench.recordings import read_recording

    send({"file": path})
    read_recording(Path(path))
    return {}


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


def guard_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Trace `cases` for `device`, with `workspaces`, in forks: sends the `index` of each with what was `traced`.

    That is what `guard.tracing.trace_apart` returns; a `reason` stands in its place where there is none. `timeout_s`
    is for one case.
    """
    from bench.guard.tracing import trace_apart

    named = {name: argument[name] for name in ("workspaces", "timeout_s")}
    for index, traced in trace_apart(argument["cases"], argument["device"], workers=os.cpu_count() or 1, **named):
        send({"index": index, "reason": traced} if isinstance(traced, str) else {"index": index, "traced": traced})
    return {}


def guard_one_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Trace `case` for `device`, with `workspaces`, in this process; what `guard.tracing.trace_guarded` returns."""
    from bench.guard.tracing import Sources, trace_guarded

    send({"phase": "tracing"})
    return trace_guarded(argument["case"], argument["device"], workspaces=argument["workspaces"], sources=Sources())


def validate_task(argument: dict[str, Any], send: Send) -> dict[str, Any]:
    """Estimate the `rows` of a file, with `workspaces` or without; sends `{"estimated": fields of Estimated}` each."""
    from bench.validation.estimating import estimate_rows

    for estimated in estimate_rows(argument["rows"], argument["workspaces"]):
        send({"estimated": asdict(estimated)})
    return {}


@contextlib.contextmanager
def _taken_device(argument: dict[str, Any]) -> Iterator[None]:
    """Have the device of an argument to oneself, and see no other; takes out what only this needs.

    The lock is that of the process that measures. Processes that it starts inherit it, so it is free when the last of
    them is gone.

    Raises:
        BusyError: Another process has it; or, where it must be free of all others (`alone`), computes on it.
    """
    _keep_on(argument.pop("cpus", None))
    _see_only(argument["gpu_uuid"], argument.pop("gpu_index"), argument.get("device", "cuda"))
    lock, alone = argument.pop("lock", None), argument.pop("alone", False)
    with hold(run_lock_path(lock), "the device", RUN_LOCK_WAIT_S) if lock else contextlib.nullcontext():
        if alone and argument["gpu_uuid"]:
            from bench.probes.nvml import count_other_processes

            if count := count_other_processes(argument["gpu_uuid"]):
                raise BusyError(f"the device has {count} other {'process' if count == 1 else 'processes'} on it")
        yield


def _keep_on(cpus: Sequence[int] | None) -> None:
    """Keep this process, and torch's threads, on these processors; None leaves them all."""
    if cpus is None:
        return
    import torch

    os.sched_setaffinity(0, cpus)
    torch.set_num_threads(min(torch.get_num_threads(), len(cpus)))


def _see_only(gpu_uuid: str | None, gpu_index: int | None, device: str = "cuda") -> None:
    """Let this process see one GPU of a kind: by NVML's UUID, or by place among those that torch counted.

    Raises:
        DeviceError: There is no such GPU.
    """
    if device == "cuda":  # before torch is there: CUDA and ROCm read variables
        from bench.probes.backends.cuda import see_only

        see_only(gpu_uuid, gpu_index)
    else:
        from bench.probes.backends import backend

        backend(device).see_only(gpu_uuid, gpu_index)
