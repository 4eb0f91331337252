"""The traces of some of the oracle's cases, in a process of its own: `python trace_task.py TASK.json`.

Prints one JSON line a case: its peaks in bytes over all steps, or with `settled` over those that a sweep measures, what its
last step asks for and the formula's optimizer state, or the reason why there is none. With `workspaces`, the name of a
device file, those of cuDNN are counted. With `operators`, the cases are those of `operators.py`, and the allocations and
their bytes are counted. The settings of the allocator and of cuBLAS are this process's own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench import catalog
from bench.devices import load_device
from bench.errors import BenchError
from bench.estimators.allocator import Alloc, Event, Mark
from bench.estimators.cudnn_plans import CudnnPlans
from bench.estimators.events import build_events, replay_trace
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.record import record_training
from bench.estimators.temporaries import Machine
from bench.estimators.workspaces import add_workspaces

sys.path.insert(0, str(Path(__file__).parent))
import operators  # type: ignore[import-not-found]
from step import AUTOCAST, build_model, loss_of, predicts_masks  # type: ignore[import-not-found]

STEPS = 3


class Training:
    """The oracle's training, built on the device that it is given."""

    def __init__(self, case: list[Any], device: torch.device) -> None:
        name, (channels, size, classes), optimizer, settings, batch, self._precision, memory_format = case
        layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
        self.model = build_model(name, channels, size, classes).to(device)
        if layout is torch.channels_last:
            self.model = self.model.to(memory_format=layout)
        self.optimizer = catalog.optimizer(optimizer).build(list(self.model.parameters()), lr=1e-3, **settings)
        images = torch.randn(batch, channels, size, size).to(device).contiguous(memory_format=layout)
        labelled = (batch, size, size) if predicts_masks(name) else (batch,)
        self.batch = (images, torch.randint(classes, labelled).to(device))
        self.scaler = torch.amp.GradScaler("cuda", enabled=self._precision == "fp16")
        self._kept: tuple[Any, torch.Tensor] | None = None

    def step(self) -> None:
        """One step; output and loss live until the next has ended."""
        self._kept = self._step()

    def _step(self) -> tuple[Any, torch.Tensor]:
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.step(self._evaluate)
            assert self._kept is not None
            return self._kept
        self.optimizer.zero_grad(set_to_none=True)
        half = AUTOCAST.get(self._precision)
        with torch.autocast("cuda", dtype=half) if half else contextlib.nullcontext():
            output = self.model(self.batch[0])
            loss = loss_of(output, self.batch[1])
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return output, loss

    def _evaluate(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        half = AUTOCAST.get(self._precision)
        with torch.autocast("cuda", dtype=half) if half else contextlib.nullcontext():
            loss = loss_of(self.model(self.batch[0]), self.batch[1])
        loss.backward()
        self._kept = None, loss
        return loss  # type: ignore[no-any-return]


def state_bytes(case: list[Any]) -> int | None:
    """The formula's optimizer state."""
    name, (channels, size, classes), optimizer, settings, *_ = case
    shapes = [tuple(parameter.shape) for parameter in build_model(name, channels, size, classes).parameters()]
    count = catalog.optimizer(optimizer).state_bytes
    return None if count is None else count(shapes, 4, settings)


def asked_last(events: list[Event]) -> list[int]:
    """What the last step asks for, in bytes and in order."""
    marks = [index for index, event in enumerate(events) if isinstance(event, Mark)]
    return [event.size for event in events[marks[-2] : marks[-1]] if isinstance(event, Alloc) and event.size]


def peaks(
    case: list[Any],
    machine: Machine,
    plans: CudnnPlans | None,
    memory_bytes: int,
    *,
    settled: bool = False,
    kind: Any = Training,
) -> dict[str, Any]:
    """The case's peaks over three steps, or those of the steps that a sweep measures."""
    steps = None if settled else STEPS
    try:
        recording = record_training(lambda device: kind(case, device), steps, machine.compute_capability)
    except BenchError as error:
        return {"reason": str(error)}
    if plans is not None:
        recording = add_workspaces(recording, plans, tf32=True)
    config, events = settings_in_force().allocator_config(memory_bytes), build_events(recording, machine)
    if settled:
        found = replay_trace(events, config)
        return {
            "requested": found.requested_bytes,
            "allocated": found.allocated_bytes,
            "reserved": found.reserved_bytes,
            "state": state_bytes(case),
            "asked": asked_last(events),
        }
    found = replay_trace(events, config, onward=False)
    return {
        "requested": found.cold_requested_bytes,
        "allocated": found.cold_allocated_bytes,
        "reserved": found.cold_reserved_bytes,
        **(count(events) if kind is operators.Training else {"initialised": torch.cuda.is_initialized()}),  # type: ignore[no-untyped-call]
    }


def count(events: list[Event]) -> dict[str, int]:
    """How many allocations there are, and their bytes."""
    sizes = [event.size for event in events if type(event) is Alloc and event.size]
    return {"allocations": len(sizes), "total": sum(sizes)}


def main() -> None:
    """Trace every case of the task file."""
    task = json.loads(Path(sys.argv[1]).read_text())
    major, minor = torch.__version__.split(".")[:2]
    multiprocessors, threads, capability, memory_bytes = task["device"]
    machine = Machine(multiprocessors, threads, tuple(capability), (int(major), int(minor)), settings_in_force().blas)
    plans = CudnnPlans(load_device(task["workspaces"])) if task.get("workspaces") else None
    gc.freeze()  # what is loaded need not be looked through for each case
    for case in task["cases"]:
        kind = operators.Training if task.get("operators") else Training
        settled = task.get("settled", False)
        print(json.dumps(peaks(case, machine, plans, memory_bytes, settled=settled, kind=kind)))


if __name__ == "__main__":
    main()
