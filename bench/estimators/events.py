"""From a recording to what the allocator is asked, and to the peaks that follow. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.estimators.allocator import Alloc, AllocatorConfig, Event, Free, Mark, ReplayResult, replay, replay_onward
from bench.estimators.recording import Call, Entry, Freed, Phase, Recording, StepEnd
from bench.estimators.temporaries import Machine, Script, has_rule, products, script_of
from bench.estimators.temporaries.machine import WORKSPACE


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


def build_events(recording: Recording, machine: Machine) -> list[Event]:
    """What the allocator is asked, in order; marks are labelled `0` after the setup and `n` after the n-th step.

    Peaks start again after the first step, which allocates the optimizer's state.

    Args:
        recording: Of some steps.
        machine: The GPU and torch.
    """
    return _Stream(recording, machine).events


def events_by_entry(recording: Recording, machine: Machine) -> Iterator[tuple[int, Event]]:
    """As `build_events`, each event with the place of the entry that it comes from."""
    stream = _Stream(recording, machine)
    places = (place for place, (start, end) in enumerate(pairwise([0, *stream.ends])) for _ in range(start, end))
    return zip(places, stream.events, strict=True)


class _Stream:
    """Events as they are put together; temporaries and workspaces have numbers below 0.

    Attributes:
        events: What the allocator is asked.
        ends: How many there are behind each entry.
    """

    def __init__(self, recording: Recording, machine: Machine) -> None:
        self.events: list[Event] = []
        self.ends: list[int] = []
        self._machine = machine
        self._scripts = recording.derived.setdefault(("scripts", machine), {})
        self._categories = {**_activations(recording.entries), **recording.roles}
        self._workspaces: set[tuple[bool, str]] = set()
        self._temporary = -16
        live: set[int] = set()
        for entry in recording.entries:
            if type(entry) is Call:
                self._call(entry, live)
            elif type(entry) is Freed:
                if entry.storage in live:
                    live.remove(entry.storage)
                    self.events.append(_new(Free, (entry.storage, False)))
            elif type(entry) is StepEnd:
                self.events.append(Mark(str(entry.step), reset_peaks=entry.step == 1))
            self.ends.append(len(self.events))

    def _call(self, call: Call, live: set[int]) -> None:
        """A kernel: its results, workspaces that it is the first to need, its temporaries."""
        events, outputs, base = self.events, call.outputs, self._temporary
        self._temporary -= 16
        if not has_rule(call.operator):
            for number, size, _ in outputs:
                live.add(number)
                events.append(_new(Alloc, (number, size, 0, self._categories.get(number, "temporaries"), False)))
            return
        script, kept = self._script(call)
        kind = "temporaries" if kept is None else "workspaces"
        for position, (slot, size) in enumerate(script):
            if kept and position == len(outputs):
                self._keep_workspaces(call, kept)
            if slot >= 0:
                number = outputs[slot].storage
                live.add(number)
                events.append(_new(Alloc, (number, size, 0, self._categories.get(number, "temporaries"), False)))
            elif not size:
                events.append(_new(Free, (base + slot, False)))
            else:
                optional = slot == WORKSPACE
                category = "workspaces" if optional else kind
                events.append(_new(Alloc, (base + slot, size, 0, category, optional)))
        if kept:
            self._keep_workspaces(call, kept)

    def _script(self, call: Call) -> tuple[Script, KeptWorkspaces | None]:
        """The script of a call; of a product with the workspaces that live on. Both once for calls that are alike."""
        key = (call.operator, id(call.arguments), call.workspaces, *[output.nbytes for output in call.outputs])
        found = self._scripts.get(key)
        if found is None:
            is_product = call.operator.partition(".")[0] in products.RULES
            kept = tuple(products.kept_workspaces(call, self._machine)) if is_product else None
            found = self._scripts[key] = call.arguments, script_of(call, self._machine), kept
        return found[1:]  # type: ignore[no-any-return]

    def _keep_workspaces(self, call: Call, kept: KeptWorkspaces) -> None:
        """Workspaces live on in some versions of torch, one for each thread: autograd's backward has its own."""
        for name, size in kept:
            key = (call.phase == Phase.BACKWARD, name)
            if key not in self._workspaces:
                self._workspaces.add(key)
                self.events.append(Alloc(-len(self._workspaces), size, category="workspaces"))


KeptWorkspaces = tuple[tuple[str, int], ...]
_new: Callable[..., Any] = tuple.__new__
"""Makes a named tuple of all its fields in half the time."""


def _activations(entries: Iterable[Entry]) -> dict[int, str]:
    """Storages that a forward made and that outlive it."""
    born: dict[int, Phase] = {}
    found: dict[int, str] = {}
    phase = Phase.SETUP
    for entry in entries:
        if type(entry) is Freed:
            if born.pop(entry.storage, None) == Phase.FORWARD and phase != Phase.FORWARD:
                found[entry.storage] = "activations"
        elif type(entry) is Call:
            phase = entry.phase
            for output in entry.outputs:
                born[output.storage] = phase
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
        result = replay_onward(events, config, unmeasured_steps=UNMEASURED_STEPS, measured_steps=MEASURED_STEPS)
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
