"""The trace estimator's second half: from a recording to the allocator's events and its peaks. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.estimators.allocator import Alloc, AllocatorConfig, Event, Free, Mark, ReplayResult, replay, replay_onward
from bench.estimators.recording import Phase
from bench.estimators.temporaries import Machine, products, script_of
from bench.estimators.temporaries.scripts import WORKSPACE


@dataclass(frozen=True, slots=True)
class TracePeaks:
    """What torch will report, in bytes: over all steps, and over those that a sweep measures, after its warm-up."""

    cold_requested_bytes: int
    cold_allocated_bytes: int
    cold_reserved_bytes: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    replay: ReplayResult


def build_events(entries: Sequence[Any], roles: dict[int, str], machine: Machine) -> list[Event]:
    """What the allocator is asked, in order; marks are labelled `0` before the first step and `n` after the n-th.

    Peaks start anew after the first step, which allocates the optimizer's state.

    Args:
        entries: Of a `Recording`.
        roles: Of a `Recording`.
        machine: The GPU and torch.
    """
    stream = _Stream(machine, _activations(entries) | roles)
    marks = 0
    for entry in entries:
        if entry is None:
            stream.events.append(Mark(str(marks), reset_peaks=marks == 1))
            marks += 1
        elif isinstance(entry, int):
            stream.free(entry)
        else:
            stream.call(*entry)
    return stream.events


class _Stream:
    """Events as they are put together; temporaries and workspaces have numbers below 0."""

    def __init__(self, machine: Machine, categories: dict[int, str]) -> None:
        self.events: list[Event] = []
        self._machine, self._categories = machine, categories
        self._live: set[int] = set()
        self._workspaces: set[tuple[bool, str]] = set()
        self._temporary = -16

    def free(self, block: int) -> None:
        """A result has died; one that was never allocated on the device is left out."""
        if block in self._live:
            self._live.discard(block)
            self.events.append(Free(block))

    def call(self, operator: str, arguments: tuple[Any, ...], outputs: tuple[tuple[int, int], ...], phase: int) -> None:
        """A kernel: its results, workspaces that it is the first to need, its temporaries."""
        script = script_of(operator, arguments, [nbytes for _, nbytes in outputs], self._machine)
        is_product = operator.partition(".")[0] in products.RULES
        kind = "workspaces" if is_product else "temporaries"
        for position, (slot, size) in enumerate(script):
            if is_product and position == len(outputs):
                self._keep_workspaces(operator, phase)
            if slot >= 0:
                number = outputs[slot][0]
                self._live.add(number)
                self.events.append(Alloc(number, size, category=self._categories.get(number, "temporaries")))
            elif not size:
                self.events.append(Free(self._temporary + slot))
            elif slot == WORKSPACE:
                self.events.append(Alloc(self._temporary + slot, size, category="workspaces", optional=True))
            else:
                self.events.append(Alloc(self._temporary + slot, size, category=kind))
        if is_product:
            self._keep_workspaces(operator, phase)
        self._temporary -= 16

    def _keep_workspaces(self, operator: str, phase: int) -> None:
        """Workspaces live on in some versions of torch, one for each thread: autograd's backward has its own."""
        for name, size in products.kept_workspaces(operator, self._machine):
            key = (phase == Phase.BACKWARD, name)
            if key not in self._workspaces:
                self._workspaces.add(key)
                self.events.append(Alloc(-len(self._workspaces), size, category="workspaces"))


def _activations(entries: Iterable[Any]) -> dict[int, str]:
    """Storages that a forward made and that outlive it."""
    born: dict[int, int] = {}
    found: dict[int, str] = {}
    phase = int(Phase.SETUP)
    for entry in entries:
        if isinstance(entry, int):
            if born.pop(entry, None) == Phase.FORWARD and phase != Phase.FORWARD:
                found[entry] = "activations"
        elif entry is not None:
            phase = entry[3]
            for number, _ in entry[2]:
                born[number] = phase
    for number, phase_of_birth in born.items():
        if phase_of_birth == Phase.FORWARD:
            found[number] = "activations"
    return found


UNMEASURED_STEPS, MEASURED_STEPS = 5, 2
"""What the replay goes through: as many steps as a sweep warms up with, and two, since peaks may alternate."""


def replay_trace(events: Sequence[Event], config: AllocatorConfig | None = None, *, onward: bool = True) -> TracePeaks:
    """Run the events through the allocator, and go on as the last step did to where a sweep measures.

    Args:
        events: Of `build_events`.
        config: The allocator's settings; torch's defaults on a device without limit unless given.
        onward: Whether to go on; else the peaks are those of the recorded steps after the first.
    """
    if onward:
        result = replay_onward(
            events, config, unmeasured_steps=UNMEASURED_STEPS, measured_steps=MEASURED_STEPS
        )  # fmt: skip
    else:
        result = replay(events, config)
    last = result.marks[-1] if result.marks else result.final
    return TracePeaks(
        result.final.peak_requested,
        result.final.peak_allocated,
        result.final.peak_reserved,
        last.peak_requested,
        last.peak_allocated,
        last.peak_reserved,
        result,
    )
