"""The trace estimate of a case on a GPU: the very step recorded without data, replayed through torch's allocator.

What it says, in bytes: the peaks that torch will report after its first step (`max_memory_allocated`, `_reserved` and
the requested sum), where the allocated peak goes, and, with the context of the device's file, what the driver shows.

What it leaves out: cuDNN's workspaces (they move reserved by up to a tenth in float32; none in the estimate), other
processes on the device, fragmentation by earlier work of the same process, and all that `torch.compile` changes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench import catalog
from bench.devices import Device
from bench.errors import Unsupported
from bench.estimators.allocator import AllocatorConfig, parse_allocator_config, tie_rule
from bench.estimators.temporaries import Machine
from bench.estimators.trace import Recording, record_training
from bench.estimators.trace_events import TracePeaks, build_events, replay_trace
from bench.plan import image_spec
from bench.records import Case, ImageSpec, Protocol
from bench.workload import Workload, build_workload
from bench.workload.inputs import build_inputs

_CATEGORIES = ("parameters", "gradients", "optimizer_state", "batch", "activations", "temporaries", "workspaces")


@dataclass(slots=True)
class _Training:
    """A workload with one synthetic batch, as `record_training` wants it."""

    workload: Workload
    batch: tuple[Tensor, ...]

    @property
    def model(self) -> nn.Module:
        return self.workload.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.workload.optimizer

    def step(self) -> None:
        self.workload.step(self.batch[0], self.batch[1])


def estimate_trace(case: Case, device: Device, images: ImageSpec | None = None) -> dict[str, int | None]:
    """The trace's fields of `Estimate`, and `estimated_device_bytes` where the device's context is known.

    Args:
        case: Its input path makes no difference: the batch is taken to lie on the device.
        device: From a device file.
        images: The case's images where they are known already; else they are looked up.

    Raises:
        Unsupported: The device is no GPU, its file lacks what the allocator depends on, the step reads values from the
            device, or this torch does not allow the trace.
        UnknownNameError: No such data set, model or optimizer.
    """
    machine = machine_of(device)
    recording = record_case(case, images or image_spec(case.dataset, case.image_size), machine)
    return trace_fields(
        replay_trace(build_events(recording.entries, recording.roles, machine), allocator_config()), device
    )


def record_case(case: Case, images: ImageSpec, machine: Machine) -> Recording:
    """The case's first steps as a list of kernels, and of storages that come and go. Raises Unsupported."""

    def build(device: torch.device) -> _Training:
        workload = build_workload(case, images, Protocol(), device)
        held = replace(case, input="synthetic")
        with build_inputs(held, catalog.describe_dataset(case.dataset), Protocol(), device) as inputs:
            return _Training(workload, next(inputs))

    return record_training(build, compute_capability=machine.compute_capability)


def machine_of(device: Device) -> Machine:
    """What allocations depend on, of a device and of the torch that is installed. Raises Unsupported where unknown."""
    if device.kind != "cuda":
        raise Unsupported(f"no trace for {device.name}: it follows torch's CUDA allocator")
    needed = ("multiprocessors", "max_threads_per_multiprocessor", "compute_capability")
    missing = [name for name in needed if getattr(device, name) is None]
    if (
        missing
        or not device.multiprocessors
        or not device.max_threads_per_multiprocessor
        or not device.compute_capability
    ):
        raise Unsupported(f"no trace for {device.name}: its file lacks {', '.join(missing)}")
    return Machine(
        device.multiprocessors, device.max_threads_per_multiprocessor, device.compute_capability, _torch_version()
    )


def allocator_config(capacity_bytes: int | None = None) -> AllocatorConfig:
    """The allocator's settings as this environment gives them to torch; on a device without limit unless given."""
    text = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    base = AllocatorConfig(ties=tie_rule(torch.__version__), capacity_bytes=capacity_bytes)
    return parse_allocator_config(text, base)


def trace_fields(peaks: TracePeaks, device: Device) -> dict[str, int | None]:
    """The columns that peaks give: each category by what it asked for, rounding as what blocks hold beyond that."""
    shares = {share.category: share for share in peaks.replay.categories}
    asked = {name: shares[name].requested_bytes if name in shares else 0 for name in _CATEGORIES}
    handed_out = sum(share.allocated_bytes for share in shares.values())
    context = device.context_bytes
    return {
        "trace_peak_allocated_bytes": peaks.allocated_bytes,
        "trace_peak_reserved_bytes": peaks.reserved_bytes,
        "trace_peak_requested_bytes": peaks.requested_bytes,
        **{f"trace_{name}_bytes": count for name, count in asked.items()},
        "trace_rounding_bytes": handed_out - sum(asked.values()),
        "estimated_device_bytes": None if context is None else peaks.reserved_bytes + context,
    }


def _torch_version() -> tuple[int, int]:
    major, minor = re.findall(r"\d+", torch.__version__)[:2]
    return int(major), int(minor)
