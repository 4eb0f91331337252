"""The trace estimate of a case on a device file's GPU, shared between the batch sizes of a column.

What it says, in bytes: the peaks that torch will report after its first step (`max_memory_allocated`, `_reserved` and
the requested sum), where the allocated peak goes, and, with the context of the device's file, what the driver shows.

What it leaves out: cuDNN's workspaces (they move reserved by up to a tenth in float32; none in the estimate), other
processes on the device, fragmentation by earlier work of the same process, and all that `torch.compile` changes.
"""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import torch

from bench.devices import Device
from bench.errors import Unsupported
from bench.estimators.allocator import AllocatorConfig, parse_allocator_config, tie_rule
from bench.estimators.temporaries import Machine
from bench.estimators.trace_case import LEAST_BATCH, TraceColumn, build_column, machine_of, trace_case, trace_columns
from bench.estimators.trace_events import TracePeaks
from bench.records import Case


def estimate_trace(case: Case, device: Device, *, shared: bool = False) -> dict[str, int | None]:
    """The trace's fields of `Estimate`, and `estimated_device_bytes` where the device's context is known.

    Args:
        case: Its input path makes no difference: the batch is taken to lie on the device.
        device: From a device file.
        shared: Whether other batch sizes of the same case are asked for too; the first then costs two recordings, and
            each further one some tens of milliseconds.

    Raises:
        Unsupported: No GPU, or the step reads values from the device, or this torch does not allow the trace.
        DeviceError: The device's file lacks what the allocator depends on.
        UnknownNameError: No such data set, model or optimizer.
    """
    peaks = trace_peaks(case, device, shared=shared)
    context = device.context_bytes
    shown = None if context is None else peaks.reserved_bytes + context
    return {**trace_columns(peaks), "estimated_device_bytes": shown}


def trace_peaks(case: Case, device: Device, *, shared: bool = False, capacity_bytes: int | None = None) -> TracePeaks:
    """The peaks of a case, on a device that gives torch at most `capacity_bytes`. Raises as `estimate_trace`."""
    if device.kind != "cuda":
        raise Unsupported(f"no trace for {device.name}: it follows torch's CUDA allocator")
    machine = machine_of(device, torch.__version__)
    config = allocator_config(capacity_bytes)
    held = replace(case, input="synthetic")
    if shared and case.batch_size >= LEAST_BATCH:
        column = _column(replace(held, batch_size=LEAST_BATCH), machine)
        return replace(column, allocator=config).peaks(case.batch_size)
    return trace_case(held, machine, config)


@functools.lru_cache(maxsize=64)
def _column(case: Case, machine: Machine) -> TraceColumn:
    return build_column(case, machine)


def allocator_config(capacity_bytes: int | None = None) -> AllocatorConfig:
    """The allocator's settings as this environment gives them to torch; on a device without limit unless given."""
    text = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    base = AllocatorConfig(ties=tie_rule(torch.__version__), capacity_bytes=capacity_bytes)
    return parse_allocator_config(text, base)
