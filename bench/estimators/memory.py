"""The trace estimate of a case on a device file's GPU, shared between the batch sizes of a column.

What it says, in bytes: the peaks that torch will report of a step once the allocator has settled, as after a warm-up
(`max_memory_allocated`, `_reserved` and the requested sum), where the allocated peak goes, and, with the context, what
the driver shows. The first steps may allocate some thousandths more or less. On a device that is nearly full the
allocator gives back what it caches: then the peaks are those with that done, or, where the step does not fit even so,
those that it would need.

cuDNN's workspaces are those of the plans that the installed cuDNN would choose on that GPU (`cudnn_plans`); where it
cannot be asked they are left out, and the estimate says so. Left out always: the reserves of cuDNN's batch norm, other
processes on the device, fragmentation by earlier work of the same process, and all that `torch.compile`,
`cudnn.benchmark` and deterministic mode change. A warm-up of another length than the usual may settle elsewhere.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from bench.devices import Device
from bench.devices.context import context_of
from bench.errors import Unsupported
from bench.estimators.allocator import AllocatorConfig, Event, parse_allocator_config, tie_rule
from bench.estimators.collector import collector_off
from bench.estimators.cudnn_plans import CudnnPlans
from bench.estimators.device_memory import Verdict, device_interval, judge_fit
from bench.estimators.events import TracePeaks, build_events, replay_trace
from bench.estimators.kept import machine_of, recording_of
from bench.estimators.temporaries import Machine
from bench.estimators.workspaces import add_workspaces
from bench.records import TRACE_PARTS, Case


def estimate_trace(case: Case, device: Device, *, shared: bool = False, workspaces: bool = True) -> dict[str, Any]:
    """The trace's fields of `Estimate`, and those that speak of the device as a whole.

    Args:
        case: Its input path makes no difference: the batch is taken to lie on the device.
        device: From a device file.
        shared: Whether other batch sizes of the same case are asked for too; the first then costs two recordings, and
            each further one some tens of milliseconds.
        workspaces: Whether to count cuDNN's workspaces.

    Raises:
        Unsupported: No GPU, or the step reads values from the device, or this torch does not allow the trace.
        DeviceError: The device's file lacks what the allocator depends on.
        UnknownNameError: No such data set, model or optimizer.
    """
    with collector_off():
        events = trace_events(case, device, shared=shared, workspaces=workspaces)
        peaks, verdict = _peaks_on(device, events)
    return {**trace_columns(peaks), **device_interval(peaks.reserved_bytes, device), "estimated_fit": verdict}


def _peaks_on(device: Device, events: list[Event]) -> tuple[TracePeaks, Verdict | None]:
    """The peaks on a device of that memory, and whether the step fits; where it does not, what it would need."""
    free, memory, context = replay_trace(events, allocator_config()), device.memory_bytes, context_of(device)
    if memory is None:
        return free, None
    squeezed: dict[int, TracePeaks] = {}

    def fits(context_bytes: int) -> bool:
        capacity = memory - context_bytes
        if free.replay.peak_reserved_bytes <= capacity or capacity <= 0:
            return capacity > 0
        squeezed[context_bytes] = replay_trace(events, allocator_config(capacity))
        return squeezed[context_bytes].replay.out_of_memory is None

    verdict = judge_fit(fits, context)
    near = squeezed.get(context.point_bytes)
    return (free if near is None or near.replay.out_of_memory else near), verdict


def trace_peaks(
    case: Case, device: Device, *, shared: bool = False, capacity_bytes: int | None = None, workspaces: bool = True
) -> TracePeaks:
    """The peaks of a case, on a device that gives torch at most `capacity_bytes`. Otherwise as `estimate_trace`."""
    with collector_off():
        return replay_trace(
            trace_events(case, device, shared=shared, workspaces=workspaces), allocator_config(capacity_bytes)
        )


def trace_events(case: Case, device: Device, *, shared: bool = False, workspaces: bool = True) -> list[Event]:
    """What the allocator is asked in `record.STEPS` steps. Otherwise as `estimate_trace`."""
    if device.kind != "cuda":
        raise Unsupported(f"no trace for {device.name}: it follows torch's CUDA allocator")
    machine = machine_of(device, torch.__version__)
    recording = recording_of(case, machine, shared=shared)
    plans = cudnn_plans(device) if workspaces else None
    if isinstance(plans, CudnnPlans):
        recording = add_workspaces(recording, plans, tf32=case.precision == "tf32")
    return build_events(recording, machine)


@functools.lru_cache(maxsize=64)
def cudnn_plans(device: Device) -> CudnnPlans | str:
    """What cuDNN would run on the device, or why it cannot be asked."""
    try:
        return CudnnPlans(device)
    except Unsupported as reason:
        return str(reason)


def allocator_config(capacity_bytes: int | None = None) -> AllocatorConfig:
    """The allocator's settings as this environment gives them to torch; on a device without limit unless given."""
    text = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    base = AllocatorConfig(ties=tie_rule(torch.__version__), capacity_bytes=capacity_bytes)
    return parse_allocator_config(text, base)


def allocator_of(machine: Machine) -> AllocatorConfig:
    """Torch's default settings in that version."""
    return AllocatorConfig(ties=tie_rule(f"{machine.torch_version[0]}.{machine.torch_version[1]}"))


def trace_columns(peaks: TracePeaks) -> dict[str, int]:
    """The fields of `Estimate`, in bytes: the peaks of a settled step, and the parts of the allocated one."""
    shares = {share.category: share for share in peaks.replay.categories}
    requested = {name: share.requested_bytes for name, share in shares.items()}
    rounding = sum(share.allocated_bytes - share.requested_bytes for share in shares.values())
    return {
        "trace_peak_allocated_bytes": peaks.allocated_bytes,
        "trace_peak_reserved_bytes": peaks.reserved_bytes,
        "trace_peak_requested_bytes": peaks.requested_bytes,
        **{f"trace_{part}_bytes": requested.get(part, 0) for part in TRACE_PARTS if part != "rounding"},
        "trace_rounding_bytes": rounding,
    }
