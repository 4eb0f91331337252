"""The trace of a recording's case, by the loop that was recorded."""

from __future__ import annotations

from dataclasses import replace

import torch

from bench.devices import Device
from bench.estimators.memory import cudnn_plans
from bench.estimators.record import record_case, record_training
from bench.estimators.recording import Recording
from bench.estimators.temporaries import Machine
from bench.estimators.workspaces import add_workspaces
from bench.plan import image_spec
from bench.recordings import Facts
from bench.records import Case, Protocol
from bench.workload import build_workload


def trace_of(facts: Facts, case: Case, machine: Machine) -> Recording:
    """Record the case over memory that does not exist, as many steps as were recorded.

    Raises:
        Unsupported: It cannot be traced, or cannot run.
        UnknownNameError: No such data set, model or optimizer.
    """
    held, protocol = replace(case, input="synthetic"), Protocol(seed=42 if facts.seed is None else facts.seed)
    steps = facts.steps + (facts.status == "oom")
    if facts.loop == "bench":
        return record_case(held, machine, protocol, steps)
    return record_training(lambda device: _CaptureTraining(held, protocol, device), steps, machine.compute_capability)


def add_planned_workspaces(trace: Recording, facts: Facts, device: Device) -> tuple[Recording, str | None]:
    """The trace with cuDNN's workspaces; or as it is and why, where the installed cuDNN cannot be asked."""
    plans = cudnn_plans(device)
    if isinstance(plans, str):
        return trace, f"the trace excludes cuDNN's workspaces: {plans}"
    tf32 = bool(facts.switches.get("cudnn_tf32", facts.axes["precision"] == "tf32"))
    return add_workspaces(trace, plans, tf32=tf32), None


def version_notes(facts: Facts) -> list[str]:
    """What to say where the recording was made with other versions than those installed."""
    notes = []
    recorded, installed = facts.versions.get("torch"), str(torch.__version__)
    if recorded != installed:
        notes.append(
            f"recorded with torch {recorded}, traced with the installed {installed}: the order of kernels is the "
            "installed version's, the rules of the allocator and of workspaces are the recorded one's"
        )
    recorded, number = facts.versions.get("cudnn"), torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if number and recorded != (installed := cudnn_name(number)):
        notes.append(f"recorded with cuDNN {recorded}; workspaces, where they count, are the installed {installed}'s")
    return notes


def cudnn_name(number: int) -> str:
    """`9.26.0` for 92600, and `8.9.7` for 8907 (cudnn_version.h: CUDNN_VERSION)."""
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


class _CaptureTraining:
    """The loop of `gpu_capture`: its step is the workload's, but its batch is laid out on the device, not before."""

    def __init__(self, case: Case, protocol: Protocol, device: torch.device) -> None:
        images = image_spec(case.dataset, case.image_size)
        self._workload = build_workload(case, images, protocol, device)
        self.model, self.optimizer = self._workload.model, self._workload.optimizer
        layout = torch.channels_last if case.memory_format == "channels_last" else torch.contiguous_format
        made = torch.randn(case.batch_size, *images.shape).to(device).contiguous(memory_format=layout)
        self.batch = (made, torch.randint(images.classes, (case.batch_size,)).to(device))

    def step(self) -> None:
        """See `record.Training`."""
        self._workload.step(*self.batch)
