"""The trace estimator's first half: the very training step, run over memory that does not exist, as a list of calls.

`record_training` runs a step under `FakeCuda` and notes every kernel with what it was given and every storage with its
birth and death; `trace_case` does so for a case. `trace_events` turns that into what the allocator is asked, adding
what kernels' host code allocates for itself (`temporaries`), which depends on the GPU. It needs a process of its own:
see `fake_cuda`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from bench.errors import ReadsValues
from bench.estimators.collector import collected_before, collector_off
from bench.estimators.fake_cuda import FakeCuda, block_of
from bench.estimators.recording import Call, Phase, Recording, sorted_deaths

__all__ = ["Call", "Phase", "Recording", "Training", "record_training"]


class Training(Protocol):
    """What is recorded."""

    @property
    def model(self) -> torch.nn.Module:
        """On the device."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Over the model's parameters."""

    @property
    def batch(self) -> tuple[torch.Tensor, ...]:
        """Images and labels on the device."""

    def step(self) -> None:
        """One optimizer step; what it keeps alive is kept until the next has ended."""


class _Recorder:
    """Hears of kernels and deaths, and knows which part of the step is running."""

    def __init__(self) -> None:
        self.recording = Recording()
        self.phase = Phase.SETUP

    def called(self, operator: str, arguments: tuple[Any, ...], outputs: tuple[tuple[int, int], ...]) -> None:
        self.recording.entries.append(Call(operator, arguments, outputs, self.phase))

    def freed(self, block: int) -> None:
        self.recording.entries.append(block)

    def reads(self, operator: str) -> None:
        """Optimizers may scale by a value that they read (Adafactor); what a model does with one is anybody's guess."""
        if self.phase != Phase.OPTIMIZER:
            raise ReadsValues(operator)

    def mark(self) -> None:
        self.recording.entries.append(None)

    def note_roles(self, training: Training) -> None:
        """Remember which storages hold parameters, gradients, optimizer state and the batch."""
        groups = {
            "optimizer_state": [v for state in training.optimizer.state.values() for v in state.values()],
            "gradients": [parameter.grad for parameter in training.model.parameters()],
            "parameters": [*training.model.parameters(), *training.model.buffers()],
            "batch": list(training.batch),
        }
        for role, tensors in groups.items():
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                    self.recording.roles[block_of(tensor)] = role


@contextlib.contextmanager
def _phases(recorder: _Recorder, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Follow the parts of a step: what comes after zero_grad is the forward, after the backward the optimizer."""
    backward, zero_grad = torch.autograd.backward, optimizer.zero_grad

    def followed(call: Callable[..., Any], during: Phase, after: Phase) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            recorder.phase = during
            result = call(*args, **kwargs)
            recorder.phase = after
            return result

        return run

    torch.autograd.backward = followed(backward, Phase.BACKWARD, Phase.OPTIMIZER)
    optimizer.zero_grad = followed(zero_grad, Phase.ZERO_GRAD, Phase.FORWARD)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autograd.backward = backward
        del optimizer.zero_grad


def record_training(
    build: Callable[[torch.device], Training], steps: int = 3, compute_capability: tuple[int, int] = (9, 0)
) -> Recording:
    """Record some steps of a training.

    Args:
        build: Makes model, optimizer and batch on the device, in the order in which a run does.
        steps: How many. The second is the first with the optimizer's state; the third shows whether they stay alike.
        compute_capability: Of the GPU; attention chooses its kernel by it.

    Raises:
        ReadsValues: The step reads values from the device.
        Unsupported: This torch does not allow the trace.
    """
    recorder = _Recorder()
    collected_before()
    with collector_off(), FakeCuda(recorder, compute_capability):
        training = build(torch.device("cuda", 0))
        recorder.note_roles(training)
        recorder.mark()
        with _phases(recorder, training.optimizer):
            for _ in range(steps):
                training.step()
                recorder.note_roles(training)
                recorder.mark()
        recording, recorder.recording = recorder.recording, Recording()
        del training
    recording.entries = sorted_deaths(recording.entries)
    return recording
