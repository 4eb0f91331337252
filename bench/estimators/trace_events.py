"""The trace estimator's second half: from a recording to the allocator's events and its peaks. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.estimators.allocator import Alloc, AllocatorConfig, Event, Free, Mark, ReplayResult, replay
from bench.estimators.temporaries import Machine, products, script_of

FORWARD = 2
BACKWARD = 3


@dataclass(frozen=True, slots=True)
class TracePeaks:
    """What torch will report, in bytes: over all steps, and over those after the first."""

    cold_requested_bytes: int
    cold_allocated_bytes: int
    cold_reserved_bytes: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    replay: ReplayResult


def build_events(entries: Sequence[Any], roles: dict[int, str], machine: Machine) -> list[Event]:
    """What the allocator is asked, in order; marks are labelled `0` before the first step and `n` after the n-th.

    Peaks start anew after the first step, which allocates the optimizer's state and is not the one that counts.

    Args:
        entries: Of a `Recording`.
        roles: Of a `Recording`.
        machine: The GPU and torch.
    """
    categories = _activations(entries) | roles
    events: list[Event] = []
    live: set[int] = set()
    threads: set[str] = set()
    temporary, marks = -16, 0
    for entry in entries:
        if entry is None:
            events.append(Mark(str(marks), reset_peaks=marks == 1))
            marks += 1
        elif isinstance(entry, int):
            if entry in live:
                live.discard(entry)
                events.append(Free(entry))
        else:
            operator, outputs = entry[0], entry[2]
            kind = "workspaces" if operator.partition(".")[0] in products.OPERATORS else "temporaries"
            thread = "backward" if entry[3] == BACKWARD else "main"
            first = kind == "workspaces" and machine.keeps_workspaces and thread not in threads
            for slot, size in script_of(operator, entry[1], [nbytes for _, nbytes in outputs], machine):
                if slot >= 0:
                    number = outputs[slot][0]
                    live.add(number)
                    events.append(Alloc(number, size, category=categories.get(number, "temporaries")))
                    if first:
                        threads.add(thread)
                        first = False
                        events.append(Alloc(-1 - len(threads), machine.cublas_workspace_bytes, category="workspaces"))
                else:
                    events.append(Alloc(temporary + slot, size, category=kind) if size else Free(temporary + slot))
            temporary -= 16
    return events


def _activations(entries: Iterable[Any]) -> dict[int, str]:
    """Storages that a forward made and that outlive it."""
    born: dict[int, int] = {}
    found: dict[int, str] = {}
    phase = 0
    for entry in entries:
        if isinstance(entry, int):
            if born.pop(entry, None) == FORWARD and phase != FORWARD:
                found[entry] = "activations"
        elif entry is not None:
            phase = entry[3]
            for number, _ in entry[2]:
                born[number] = phase
    for number, phase_of_birth in born.items():
        if phase_of_birth == FORWARD:
            found[number] = "activations"
    return found


def replay_trace(events: Sequence[Event], config: AllocatorConfig | None = None) -> TracePeaks:
    """Run the events through the allocator.

    Args:
        events: Of `build_events`.
        config: The allocator's settings; torch's defaults on a device without limit unless given.
    """
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
