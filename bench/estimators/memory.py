"""The trace estimate of a case on a device file's GPU, shared between the batch sizes of a column.

It gives, in bytes: the peaks that torch will report for a step once the allocator is steady, as after a warm-up
(`max_memory_allocated`, `_reserved` and the requested sum), where the allocated peak goes, and, with the context, what
the driver shows. The first steps may allocate some thousandths more or less. On a nearly full device the
allocator releases cached blocks: then the peaks are those after that, or, if the step still does not fit, those that it
would need.

cuDNN's workspaces are those of the plans that the installed cuDNN would choose on that GPU (`cudnn_plans`); if it is
not available they are excluded, and the estimate states that. Never modelled: the reserves of cuDNN's batch norm, other
processes on the device, fragmentation by earlier work of the same process, and all that `torch.compile`,
`cudnn.benchmark` and deterministic mode change. A warm-up of another length than the default may lead to another steady
state.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from bench.devices import Device
from bench.devices.context import context_of
from bench.errors import Unsupported
from bench.estimators import kept
from bench.estimators.allocator import AllocatorConfig, Event
from bench.estimators.collector import collector_off
from bench.estimators.cudnn_plans import CudnnPlans
from bench.estimators.events import TracePeaks, build_events, replay_trace
from bench.estimators.memory_settings import (
    MemorySettings,
    Verdict,
    device_interval,
    judge_fit,
    settings_in_force,
    settings_of_case,
)
from bench.estimators.recording import Recording, Workspaces
from bench.estimators.temporaries import Machine
from bench.estimators.workspaces import call_workspaces, convolutions, place_workspaces
from bench.records import TRACE_PARTS, Case


@dataclass(frozen=True, slots=True)
class Target:
    """What steps are estimated for; made once, where a command's task begins.

    Attributes:
        device: From a device file.
        settings: Of the allocator and of cuBLAS, and the version of torch.
        workspaces: Whether cuDNN's workspaces count.
    """

    device: Device
    settings: MemorySettings
    workspaces: bool = True

    @classmethod
    def of(cls, device: Device, *, workspaces: bool = True, allocator: str = "default") -> Target:
        """A device with the settings in force in this process, or with the `allocator` of a case."""
        settings = settings_in_force() if allocator == "default" else settings_of_case(allocator)
        return cls(device, settings, workspaces)

    @property
    def machine(self) -> Machine:
        """What decides allocations. Raises DeviceError where the device's file lacks it."""
        return kept.machine_of(self.device, self.settings)

    def allocator_config(self, capacity_bytes: int | None = None) -> AllocatorConfig:
        """As `MemorySettings.allocator_config`, of this device."""
        return self.settings.allocator_config(self.device.memory_bytes, capacity_bytes)

    def room_bytes(self, context_bytes: int) -> int:
        """What torch's segments may take beside a context: the rest of the device, or the share of it allowed."""
        assert self.device.memory_bytes is not None
        rest, allowed = self.device.memory_bytes - context_bytes, self.allocator_config().allowed_bytes
        return rest if allowed is None else min(rest, allowed)


def estimate_trace(case: Case, target: Target, *, shared: bool = False) -> dict[str, Any]:
    """The trace's fields of `Estimate`, and those about the device as a whole.

    Args:
        case: The case; its input path does not matter: the batch is assumed to be on the device.
        target: What it is estimated for.
        shared: Whether other batch sizes of the same case are asked for too; the first then costs two recordings, and
            each further one some tens of milliseconds.

    Raises:
        Unsupported: No GPU of NVIDIA, or the step reads values from the device, or this torch does not allow the trace.
        DeviceError: The device's file lacks what the allocator depends on.
        UnknownNameError: Unknown data set, model or optimizer.
        ConfigError: The allocator's settings are invalid or cannot be simulated.
    """
    with collector_off():
        peaks, verdict = _peaks_on(target, trace_events(case, target, shared=shared))
    return {**trace_columns(peaks), **device_interval(peaks.reserved_bytes, target.device), "estimated_fit": verdict}


def _peaks_on(target: Target, events: list[Event]) -> tuple[TracePeaks, Verdict | None]:
    """The peaks on a device of that memory, and whether the step fits; where it does not, what it would need."""
    free, memory, context = replay_on(target, events), target.device.memory_bytes, context_of(target.device)
    if memory is None:
        return free, None
    squeezed: dict[int, TracePeaks] = {}

    def fits(context_bytes: int) -> bool:
        capacity = memory - context_bytes
        if capacity <= 0 or free.replay.peak_reserved_bytes <= target.room_bytes(context_bytes):
            return capacity > 0
        squeezed[context_bytes] = replay_on(target, events, capacity)
        return squeezed[context_bytes].replay.out_of_memory is None

    verdict = judge_fit(fits, context)
    near = squeezed.get(context.point_bytes)
    return (free if near is None or near.replay.out_of_memory else near), verdict


def trace_peaks(case: Case, target: Target, *, shared: bool = False, capacity_bytes: int | None = None) -> TracePeaks:
    """The peaks of a case, on a device that gives torch at most `capacity_bytes`. Otherwise as `estimate_trace`."""
    with collector_off():
        return replay_on(target, trace_events(case, target, shared=shared), capacity_bytes)


def replay_on(target: Target, events: list[Event], capacity_bytes: int | None = None) -> TracePeaks:
    """The peaks of events under the target's settings, on a device that gives torch at most `capacity_bytes`.

    Where no capacity is given and the share of the device that torch may take is not enough, the peaks are those that
    the step would need without that limit.
    """
    config = target.allocator_config(capacity_bytes)
    peaks = replay_trace(events, config)
    if capacity_bytes is None and peaks.replay.out_of_memory is not None:
        return replay_trace(events, replace(config, memory_fraction=1.0))
    return peaks


def trace_events(case: Case, target: Target, *, shared: bool = False) -> list[Event]:
    """What the allocator is asked in as many steps as were recorded. Otherwise as `estimate_trace`."""
    target.allocator_config()  # a fault of the settings is said before anything is recorded
    return build_events(record_for(case, target, shared=shared), target.machine)


def record_for(case: Case, target: Target, *, shared: bool = False) -> Recording:
    """The recording of a case with cuDNN's workspaces, where they count and are known."""
    recording = kept.recording_of(case, target.machine, shared=shared)
    sizes = workspaces_of(case, target, shared=shared) if target.workspaces else ()
    return recording if isinstance(sizes, str) else place_workspaces(recording, sizes)


@functools.lru_cache(maxsize=4)
def workspaces_of(case: Case, target: Target, *, shared: bool = False) -> tuple[Workspaces, ...] | str:
    """The workspaces of each call of a convolution in a case's recording, or why they are unknown.

    They are kept for the case and the device, as cuDNN takes a tenth of a second to say them; not where other batch
    sizes are asked for too.
    """
    recording = kept.recording_of(case, target.machine, shared=shared)
    key = None if shared else kept.workspaces_key(case, target.device)
    found = kept.load(key)
    if isinstance(found, tuple) and len(found) == sum(1 for _ in convolutions(recording)):
        return found
    plans = cudnn_plans(target.device)
    if isinstance(plans, str):
        return plans
    sizes = tuple(call_workspaces(recording, plans, tf32=case.precision == "tf32"))
    kept.keep(key, sizes)
    return sizes


@functools.lru_cache(maxsize=64)
def cudnn_plans(device: Device) -> CudnnPlans | str:
    """The plans that cuDNN would run on the device, or why they are unknown."""
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
