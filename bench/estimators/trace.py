"""The trace estimator's first half: the very training step, run over memory that does not exist, as a list of calls.

`record_steps` runs the step of `bench.workload` under `FakeCuda` and notes every kernel with what it was given and every
storage with its birth and death. `trace_events` turns that into what the allocator is asked, adding what kernels' host
code allocates for itself (`temporaries`), which depends on the device.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from bench.estimators.events import Phase
from bench.estimators.fake_cuda import FakeCuda


class Call(NamedTuple):
    """A kernel: its operator, arguments with tensors as `Spec`s, and the number and bytes of each new storage."""

    operator: str
    arguments: tuple[Any, ...]
    outputs: tuple[tuple[int, int], ...]
    phase: Phase


@dataclass
class Recording:
    """What happened, in order.

    Attributes:
        entries: A `Call`, the number of a storage that died, or None where a step ended (and before the first).
        roles: Numbers of the storages of parameters and buffers, of gradients, of optimizer state, of the batch.
    """

    entries: list[Call | int | None] = field(default_factory=list)
    parameters: set[int] = field(default_factory=set)
    gradients: set[int] = field(default_factory=set)
    states: set[int] = field(default_factory=set)
    batch: set[int] = field(default_factory=set)


class StepRecorder:
    """Hears of kernels and deaths, and knows which part of the step is running."""

    def __init__(self) -> None:
        """Start in the setup, with nothing recorded."""
        self.recording = Recording()
        self.phase = Phase.SETUP

    def called(self, operator: str, arguments: tuple[Any, ...], outputs: tuple[tuple[int, int], ...]) -> None:
        """See `fake_cuda.Recorder`."""
        self.recording.entries.append(Call(operator, arguments, outputs, self.phase))

    def freed(self, block: int) -> None:
        """See `fake_cuda.Recorder`."""
        self.recording.entries.append(block)

    def mark(self) -> None:
        """A step has ended."""
        self.recording.entries.append(None)
