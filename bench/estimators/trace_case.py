"""A case of the grid as what its step does: recorded, kept for the next caller, and laid out for any batch size.

Left out: cuDNN's workspaces (`conv_workspaces` adds them) and the reserves of its batch norm, the CUDA context, what
other processes hold, and the order in which Python's garbage collector might free tensors that are part of a cycle.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.errors import DeviceError
from bench.estimators import trace_cache
from bench.estimators.memory_settings import MemorySettings
from bench.estimators.recording import Recording
from bench.estimators.temporaries import Machine
from bench.estimators.trace_column import LEAST_BATCH, TRACED_BATCHES, Column, join_column
from bench.estimators.trace_events import TracePeaks
from bench.records import TRACE_PARTS, Case, Protocol

if TYPE_CHECKING:
    import torch

    from bench.devices import Device

Entries = tuple[list[Any], dict[int, str]]
"""Entries and roles, as a `Recording`'s."""


STEPS = 3
"""Steps recorded: the second is the first with the optimizer's state; `replay_trace` goes on from the third."""


def machine_of(device: Device, settings: MemorySettings) -> Machine:
    """What of a device, of torch and of its settings decides allocations.

    Raises:
        DeviceError: The device's file does not state it.
    """
    needed = ("multiprocessors", "max_threads_per_multiprocessor", "compute_capability")
    missing = [name for name in needed if getattr(device, name) is None]
    if missing:
        raise DeviceError(f"{device.name}: the memory trace needs {', '.join(missing)} in the device's file")
    assert device.multiprocessors and device.max_threads_per_multiprocessor and device.compute_capability
    return Machine(
        device.multiprocessors,
        device.max_threads_per_multiprocessor,
        device.compute_capability,
        settings.version,
        settings.blas,
    )


def record_case(case: Case, machine: Machine, protocol: Protocol | None = None, steps: int = STEPS) -> Recording:
    """Run the case's step over memory that does not exist; in a process of its own.

    Raises:
        Unsupported: The case cannot run, or cannot be traced.
        Exception: Whatever the model or the optimizer raises of its own.
        UnknownNameError: No such data set, model or optimizer.
    """
    from bench.estimators.layers import refusals_in_words
    from bench.estimators.trace import record_training

    protocol = protocol or Protocol()
    with refusals_in_words():
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


def case_entries(case: Case, machine: Machine, *, shared: bool = False) -> Entries:
    """What the case's step does at its batch size, from a recording of this process, of the disk, or a new one.

    Args:
        case: Its input path makes no difference: the batch is taken to lie on the device.
        machine: The GPU and torch.
        shared: Whether other batch sizes of the case are asked for too: two recordings then serve all of them.

    Raises:
        Unsupported: As `record_case`.
        UnknownNameError: As `record_case`.
    """
    held = replace(case, input="synthetic")
    if case.batch_size >= LEAST_BATCH:
        column = _find_column(replace(held, batch_size=LEAST_BATCH), machine, record=shared)
        if column is not None:
            return column.at(case.batch_size), column.roles
    recording = _find_recording(held, machine)
    return recording.entries, recording.roles


_columns: dict[tuple[Case, Machine], Column | None] = {}


def _find_column(case: Case, machine: Machine, *, record: bool) -> Column | None:
    """The case's column; None where it has none, or where it would have to be recorded and `record` is off."""
    name = (case, machine)
    if name not in _columns:
        key = trace_cache.cache_key(case, machine.compute_capability, TRACED_BATCHES)
        found = trace_cache.load(key)
        if not isinstance(found, Column):
            if not record:
                return None
            found = _record_column(case, machine)
            if found is not None:
                trace_cache.keep(key, found)
        _columns[name] = found
    return _columns[name]


def _record_column(case: Case, machine: Machine) -> Column | None:
    """None as well where the case cannot be recorded at these batch sizes: that says nothing of others."""
    first, second = TRACED_BATCHES
    try:
        one, other = (record_case(replace(case, batch_size=size), machine) for size in TRACED_BATCHES)
        return join_column(first, one, second, other)
    except Exception:  # noqa: BLE001 - whatever a model raises at its own batch size is for its own recording to say
        return None


@functools.lru_cache(maxsize=16)
def _find_recording(case: Case, machine: Machine) -> Recording:
    key = trace_cache.cache_key(case, machine.compute_capability, (case.batch_size,))
    found = trace_cache.load(key)
    if not isinstance(found, Recording):
        found = record_case(case, machine)
        trace_cache.keep(key, found)
    return found


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
