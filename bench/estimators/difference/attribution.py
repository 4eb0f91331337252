"""Which operator each event of a trace comes from; free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.estimators.allocator import Event, Mark
from bench.estimators.recording import Phase
from bench.estimators.temporaries import Machine
from bench.estimators.trace_events import build_events

BESIDE = 4
"""Operators named where a difference lies between two of them."""


def attribute_events(entries: Sequence[Any], roles: dict[int, str], machine: Machine) -> tuple[list[Event], list[int]]:
    """The events of `build_events`, and for each the index of its entry; marks keep their numbers and reset nothing.

    The events of one entry are told from the next one's by a mark put behind every entry.
    """
    spaced = [part for entry in entries for part in (entry, None)]
    events: list[Event] = []
    origins: list[int] = []
    at, own, marks = 0, False, 0
    for event in build_events(spaced, roles, machine):
        if not isinstance(event, Mark):
            events.append(event)
            origins.append(at)
        elif entries[at] is None and not own:
            events.append(Mark(str(marks)))
            origins.append(at)
            own, marks = True, marks + 1
        else:
            at, own = at + 1, False
    return events, origins


class Places:
    """Where in the step an entry lies."""

    def __init__(self, entries: Sequence[Any]) -> None:
        """Number the steps."""
        self._entries = entries
        self._steps: list[int] = []
        step = 0
        for entry in entries:
            self._steps.append(step)
            step += entry is None

    def step(self, entry: int) -> int:
        """The step, from 1; 0 is the setup."""
        return self._steps[entry] if 0 <= entry < len(self._steps) else 0

    def phase(self, entry: int) -> str:
        """The part of the step that a call lies in."""
        found = self._entries[entry] if 0 <= entry < len(self._entries) else None
        return Phase(found[3]).name.lower() if isinstance(found, tuple) else "setup"

    def operators(self, first: int, last: int) -> tuple[str, ...]:
        """The operators of the calls from one entry to another, both included: the first few, and the last."""
        names: list[str] = []
        for entry in self._entries[max(first, 0) : last + 1]:
            if isinstance(entry, tuple) and (not names or names[-1] != entry[0]):
                names.append(entry[0])
        return tuple(names if len(names) <= BESIDE else [*names[: BESIDE - 1], names[-1]])
