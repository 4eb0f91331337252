"""The trace estimate of a case of the grid: peaks that torch will report, and what they are made of.

Left out: cuDNN's workspaces and the reserves of its batch norm, the CUDA context, what other processes hold, and the
order in which Python's garbage collector might free tensors that are part of a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import DeviceError
from bench.estimators.allocator import AllocatorConfig, tie_rule
from bench.estimators.temporaries import Machine
from bench.estimators.trace_column import LEAST_BATCH, TRACED_BATCHES, Column, join_column
from bench.estimators.trace_events import TracePeaks, build_events, replay_trace
from bench.records import TRACE_PARTS, Case, Protocol

if TYPE_CHECKING:
    import torch

    from bench.devices import Device
    from bench.estimators.trace import Recording


STEPS = 3
"""Steps recorded: the second is the first with the optimizer's state; the allocator may grow once more in the third."""


def machine_of(device: Device, torch_version: str) -> Machine:
    """What of a device decides allocations.

    Raises:
        DeviceError: The device's file does not state it.
    """
    needed = ("multiprocessors", "max_threads_per_multiprocessor", "compute_capability")
    missing = [name for name in needed if getattr(device, name) is None]
    if missing:
        raise DeviceError(f"{device.name}: the memory trace needs {', '.join(missing)} in the device's file")
    assert device.multiprocessors and device.max_threads_per_multiprocessor and device.compute_capability
    major, minor = torch_version.split(".")[:2]
    return Machine(
        device.multiprocessors,
        device.max_threads_per_multiprocessor,
        device.compute_capability,
        (int(major), int(minor)),
    )


def record_case(case: Case, machine: Machine, protocol: Protocol | None = None, steps: int = STEPS) -> Recording:
    """Run the case's step over memory that does not exist; in a process of its own.

    Raises:
        Unsupported: The case cannot run, or cannot be traced.
        UnknownNameError: No such data set, model or optimizer.
    """
    from bench.estimators.trace import record_training

    protocol = protocol or Protocol()
    return record_training(lambda device: _CaseTraining(case, protocol, device), steps, machine.compute_capability)


class _CaseTraining:
    """The workload of a case with its one synthetic batch."""

    def __init__(self, case: Case, protocol: Protocol, device: torch.device) -> None:
        from bench import catalog
        from bench.plan import image_spec
        from bench.workload import build_workload
        from bench.workload.inputs import build_inputs

        self._workload = build_workload(case, image_spec(case.dataset, case.image_size), protocol, device)
        self.model, self.optimizer = self._workload.model, self._workload.optimizer
        self._inputs = build_inputs(case, catalog.describe_dataset(case.dataset), protocol, device)
        self.batch = next(self._inputs)

    def step(self) -> None:
        """See `trace.Training`."""
        self._workload.step(*self.batch)


@dataclass(frozen=True, slots=True)
class TraceColumn:
    """A case at any batch size, from two recordings.

    Attributes:
        column: The two recordings, joined.
        machine: The GPU and torch.
        allocator: The allocator's settings.
    """

    column: Column
    machine: Machine
    allocator: AllocatorConfig

    def peaks(self, batch_size: int) -> TracePeaks:
        """The peaks at a batch size of `LEAST_BATCH` or more; takes no torch and some tens of milliseconds."""
        events = build_events(self.column.at(batch_size), self.column.roles, self.machine)
        return replay_trace(events, self.allocator)


def build_column(case: Case, machine: Machine, allocator: AllocatorConfig | None = None) -> TraceColumn:
    """Record a case at two batch sizes; its own batch size makes no difference.

    Raises:
        Unsupported: As `record_case`, and where the step is not affine in the batch size.
    """
    from dataclasses import replace

    first, second = TRACED_BATCHES
    one, other = (record_case(replace(case, batch_size=size), machine) for size in TRACED_BATCHES)
    return TraceColumn(join_column(first, one, second, other), machine, allocator or allocator_of(machine))


def allocator_of(machine: Machine) -> AllocatorConfig:
    """Torch's default settings in that version."""
    return AllocatorConfig(ties=tie_rule(f"{machine.torch_version[0]}.{machine.torch_version[1]}"))


def trace_case(case: Case, machine: Machine, allocator: AllocatorConfig | None = None) -> TracePeaks:
    """The peaks of one case, from a recording of its own; works for every batch size, also below `LEAST_BATCH`."""
    recording = record_case(case, machine)
    return replay_trace(build_events(recording.entries, recording.roles, machine), allocator or allocator_of(machine))


def trace_columns(peaks: TracePeaks) -> dict[str, int]:
    """The fields of `Estimate`, in bytes: peaks after the first step, and the parts of the highest moment of all."""
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


__all__ = [
    "LEAST_BATCH",
    "TraceColumn",
    "allocator_of",
    "build_column",
    "machine_of",
    "record_case",
    "trace_case",
    "trace_columns",
]
