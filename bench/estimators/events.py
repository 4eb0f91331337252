"""From a recording to what the allocator is asked, and to the peaks that follow. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.estimators.allocator import Alloc, AllocatorConfig, Event, Free, Mark, ReplayResult, replay, replay_onward
from bench.estimators.recording import Call, Entry, Freed, Phase, Recording, StepEnd
from bench.estimators.temporaries import Machine, products, script_of
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
    return [event for _, event in events_by_entry(recording, machine)]


def events_by_entry(recording: Recording, machine: Machine) -> Iterator[tuple[int, Event]]:
    """As `build_events`, each event with the place of the entry that it comes from."""
    stream = _Stream(machine, {**_activations(recording.entries), **recording.roles})
    for place, entry in enumerate(recording.entries):
        if type(entry) is Call:
            for event in stream.call(entry):
                yield place, event
        elif type(entry) is Freed:
            if stream.free(entry.storage):
                yield place, Free(entry.storage)
        elif type(entry) is StepEnd:
            yield place, Mark(str(entry.step), reset_peaks=entry.step == 1)


class _Stream:
    """Events as they are put together; temporaries and workspaces have numbers below 0."""

    def __init__(self, machine: Machine, categories: Mapping[int, str]) -> None:
        self._machine, self._categories = machine, categories
        self._live: set[int] = set()
        self._workspaces: set[tuple[bool, str]] = set()
        self._temporary = -16

    def free(self, storage: int) -> bool:
        """Note that a result has died; whether it was ever allocated on the device."""
        was_live = storage in self._live
        self._live.discard(storage)
        return was_live

    def call(self, call: Call) -> list[Event]:
        """A kernel: its results, workspaces that it is the first to need, its temporaries."""
        events: list[Event] = []
        script = script_of(call, self._machine)
        is_product = call.operator.partition(".")[0] in products.RULES
        kind = "workspaces" if is_product else "temporaries"
        for position, (slot, size) in enumerate(script):
            if is_product and position == len(call.outputs):
                self._keep_workspaces(call, events)
            if slot >= 0:
                number = call.outputs[slot].storage
                self._live.add(number)
                events.append(Alloc(number, size, category=self._categories.get(number, "temporaries")))
            elif not size:
                events.append(Free(self._temporary + slot))
            elif slot == WORKSPACE:
                events.append(Alloc(self._temporary + slot, size, category="workspaces", optional=True))
            else:
                events.append(Alloc(self._temporary + slot, size, category=kind))
        if is_product:
            self._keep_workspaces(call, events)
        self._temporary -= 16
        return events

    def _keep_workspaces(self, call: Call, events: list[Event]) -> None:
        """Workspaces live on in some versions of torch, one for each thread: autograd's backward has its own."""
        for name, size in products.kept_workspaces(call, self._machine):
            key = (call.phase == Phase.BACKWARD, name)
            if key not in self._workspaces:
                self._workspaces.add(key)
                events.append(Alloc(-len(self._workspaces), size, category="workspaces"))


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
