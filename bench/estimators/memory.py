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
from dataclasses import replace
from typing import Any

from bench.devices import Device
from bench.devices.context import context_of
from bench.errors import Unsupported
from bench.estimators.allocator import Event
from bench.estimators.collector import collector_off
from bench.estimators.cudnn_plans import CudnnPlans
from bench.estimators.events import TracePeaks, build_events, replay_trace
from bench.estimators.kept import machine_of, recording_of
from bench.estimators.memory_settings import MemorySettings, Verdict, device_interval, judge_fit, settings_in_force
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
        ConfigError: The allocator's settings are none, or none that can be replayed.
    """
    settings = settings_in_force()
    with collector_off():
        events = trace_events(case, device, settings, shared=shared, workspaces=workspaces)
        peaks, verdict = _peaks_on(device, events, settings)
    return {**trace_columns(peaks), **device_interval(peaks.reserved_bytes, device), "estimated_fit": verdict}


def _peaks_on(device: Device, events: list[Event], settings: MemorySettings) -> tuple[TracePeaks, Verdict | None]:
    """The peaks on a device of that memory, and whether the step fits; where it does not, what it would need."""
    free, memory, context = replay_on(device, events, settings), device.memory_bytes, context_of(device)
    if memory is None:
        return free, None
    squeezed: dict[int, TracePeaks] = {}

    def fits(context_bytes: int) -> bool:
        capacity = memory - context_bytes
        if capacity <= 0 or free.replay.peak_reserved_bytes <= room_bytes(device, context_bytes, settings):
            return capacity > 0
        squeezed[context_bytes] = replay_on(device, events, settings, capacity)
        return squeezed[context_bytes].replay.out_of_memory is None

    verdict = judge_fit(fits, context)
    near = squeezed.get(context.point_bytes)
    return (free if near is None or near.replay.out_of_memory else near), verdict


def trace_peaks(
    case: Case, device: Device, *, shared: bool = False, capacity_bytes: int | None = None, workspaces: bool = True
) -> TracePeaks:
    """The peaks of a case, on a device that gives torch at most `capacity_bytes`. Otherwise as `estimate_trace`."""
    settings = settings_in_force()
    with collector_off():
        events = trace_events(case, device, settings, shared=shared, workspaces=workspaces)
        return replay_on(device, events, settings, capacity_bytes)


def replay_on(
    device: Device, events: list[Event], settings: MemorySettings, capacity_bytes: int | None = None
) -> TracePeaks:
    """The peaks of events under the settings, on a device that gives torch at most `capacity_bytes`.

    Where no capacity is given and the share of the device that torch may take is not enough, the peaks are those that
    the step would need without that limit.
    """
    config = settings.allocator_config(device.memory_bytes, capacity_bytes)
    peaks = replay_trace(events, config)
    if capacity_bytes is None and peaks.replay.out_of_memory is not None:
        return replay_trace(events, replace(config, memory_fraction=1.0))
    return peaks


def room_bytes(device: Device, context_bytes: int, settings: MemorySettings) -> int:
    """What torch's segments may take beside a context: the rest of the device, or the share of it that is allowed."""
    assert device.memory_bytes is not None
    rest, allowed = device.memory_bytes - context_bytes, settings.allocator_config(device.memory_bytes).allowed_bytes
    return rest if allowed is None else min(rest, allowed)


def trace_events(
    case: Case, device: Device, settings: MemorySettings, *, shared: bool = False, workspaces: bool = True
) -> list[Event]:
    """What the allocator is asked in `record.STEPS` steps. Otherwise as `estimate_trace`."""
    if device.kind != "cuda":
        raise Unsupported(f"no trace for {device.name}: it follows torch's CUDA allocator")
    settings.allocator_config(device.memory_bytes)  # a fault of the settings is said before anything is recorded
    machine = machine_of(device, settings)
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
