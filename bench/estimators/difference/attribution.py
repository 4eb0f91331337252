"""Which operator each event of a trace comes from; free of torch."""

from __future__ import annotations

from bench.estimators.allocator import Event, Mark
from bench.estimators.events import events_by_entry
from bench.estimators.recording import Call, Recording, StepEnd
from bench.estimators.temporaries import Machine

BESIDE = 4
"""Operators named where a difference lies between two of them."""


def attribute_events(recording: Recording, machine: Machine) -> tuple[list[Event], list[int]]:
    """The events of `build_events`, and for each the index of its entry; marks reset nothing."""
    found = list(events_by_entry(recording, machine))
    events = [Mark(event.label) if isinstance(event, Mark) else event for _, event in found]
    return events, [place for place, _ in found]


class Places:
    """Where in the step an entry lies."""

    def __init__(self, recording: Recording) -> None:
        """Number the steps."""
        self._entries = recording.entries
        self._steps: list[int] = []
        step = 0
        for entry in recording.entries:
            self._steps.append(step)
            step += type(entry) is StepEnd

    def step(self, entry: int) -> int:
        """The step, from 1; 0 is the setup."""
        return self._steps[entry] if 0 <= entry < len(self._steps) else 0

    def phase(self, entry: int) -> str:
        """The part of the step that a call lies in."""
        found = self._entries[entry] if 0 <= entry < len(self._entries) else None
        return found.phase.name.lower() if type(found) is Call else "setup"

    def operators(self, first: int, last: int) -> tuple[str, ...]:
        """The operators of the calls from one entry to another, both included: the first few, and the last."""
        names: list[str] = []
        for entry in self._entries[max(first, 0) : last + 1]:
            if type(entry) is Call and (not names or names[-1] != entry.operator):
                names.append(entry.operator)
        return tuple(names if len(names) <= BESIDE else [*names[: BESIDE - 1], names[-1]])
