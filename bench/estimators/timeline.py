"""Memory over one training step: live bytes by category after every event of the allocator, and the peak's tensors.

A reader of the recording, like every estimate: `estimate_timeline` finds or makes the case's, `build_timeline` works on
any.

Left out: what the trace leaves out (`memory.py`), and time: a trace has none, so events are counted instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.estimators.allocator import Alloc, AllocatorConfig, CachingAllocator, Event, Free, Mark, OutOfMemoryError
from bench.estimators.events import events_by_entry
from bench.estimators.recording import Call, Phase, Recording, StepEnd
from bench.estimators.temporaries import Machine
from bench.records import TRACE_PARTS

if TYPE_CHECKING:
    from bench.estimators.allocator.caching import Block
    from bench.estimators.memory import Target
    from bench.records import Case

MAX_POINTS = 4000
_PARTS = {part: place for place, part in enumerate(TRACE_PARTS)}
_ROUNDING = _PARTS["rounding"]


MOST_TENSORS = 8
OUTSIDE = {
    Phase.SETUP: "setup",
    Phase.ZERO_GRAD: "zero_grad",
    Phase.FORWARD: "loss",
    Phase.BACKWARD: "loss",
    Phase.OPTIMIZER: "optimizer",
}
"""Who made what no module made."""


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """A storage that is alive at the peak.

    Attributes:
        category: One of `TRACE_PARTS` but rounding.
        name: Dotted name of the parameter (also for its gradient and state) or of the module that made it, `images`,
            `labels`, `loss` or `optimizer`.
        made_by: The operator, or the optimizer's word for a state; empty for parameters, gradients and the batch.
        dtype: Torch's name of the type; None if a kernel took bytes for itself.
        shape: Of the tensor that it was made for; None as above.
        size_bytes: What was requested.
    """

    category: str
    name: str
    made_by: str
    dtype: str | None
    shape: tuple[int, ...] | None
    size_bytes: int

    @property
    def label(self) -> str:
        """`layer1.0.conv2 convolution (64, 64, 56, 56) float32`."""
        shape = "" if self.shape is None else f"({', '.join(map(str, self.shape))})"
        scratch = "workspace" if self.category == "workspaces" else "scratch"
        return " ".join(filter(None, (self.name, self.made_by, shape, self.dtype or scratch)))


@dataclass(frozen=True, slots=True)
class Timeline:
    """One step of a training, as the allocator sees it. All sequences of bytes are parallel to `events`.

    Attributes:
        step: Which of the recorded steps, from 1: the one of the peak after the first, of equals the last.
        event_count: Events of the step; 0 on the axis is the moment before the first.
        events: The moments that are kept, rising; at most some `MAX_POINTS`, each category's highest among them.
        categories: Live bytes of each of `TRACE_PARTS`, which sum up to `allocated`.
        allocated: As `torch.cuda.memory_allocated`.
        reserved: As `torch.cuda.memory_reserved`.
        phases: Names with the moment at which each begins, in order.
        peak_event: The moment of the first highest `allocated`.
        peak_allocated_bytes: That of the trace estimate.
        peak_reserved_bytes: The highest `reserved` in this step; a later one may still reserve more.
        tensors: The biggest at the peak, the biggest first.
    """

    step: int
    event_count: int
    events: tuple[int, ...]
    categories: Mapping[str, tuple[int, ...]]
    allocated: tuple[int, ...]
    reserved: tuple[int, ...]
    phases: tuple[tuple[str, int], ...]
    peak_event: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    tensors: tuple[LiveTensor, ...]


def read_timeline(fields: Mapping[str, Any]) -> Timeline:
    """A `Timeline` from its fields as JSON carries them."""
    tensors = [LiveTensor(**{**item, "shape": item["shape"] and tuple(item["shape"])}) for item in fields["tensors"]]
    return Timeline(
        **{
            **fields,
            **{name: tuple(fields[name]) for name in ("events", "allocated", "reserved")},
            "categories": {part: tuple(sizes) for part, sizes in fields["categories"].items()},
            "phases": tuple((name, begin) for name, begin in fields["phases"]),
            "tensors": tuple(tensors),
        }
    )


def estimate_timeline(case: Case, target: Target) -> Timeline:
    """The timeline of a case on a device file's GPU; in a separate process.

    Args:
        case: Its input path makes no difference: the batch is taken to lie on the device.
        target: What it is estimated for.

    Raises:
        Unsupported: No GPU, or the step reads values from the device, or this torch does not allow the trace.
        DeviceError: The device's file lacks what the allocator depends on.
        UnknownNameError: No such data set, model or optimizer.
    """
    from bench.estimators.memory import record_for

    config, recording = target.allocator_config(), record_for(case, target)
    try:
        return build_timeline(recording, target.machine, config)
    except OutOfMemoryError:  # of the share that the settings allow: what it would need, as the estimate says it
        return build_timeline(recording, target.machine, replace(config, memory_fraction=1.0))


class _Moment(NamedTuple):
    """State after an event: live bytes by place in `TRACE_PARTS`, and the allocator's figures."""

    parts: tuple[int, ...]
    allocated: int
    reserved: int


def build_timeline(recording: Recording, machine: Machine, config: AllocatorConfig) -> Timeline:
    """The timeline of the step with the highest peak after the first.

    Args:
        recording: Of at least two steps.
        machine: The GPU and torch.
        config: The allocator's settings.
    """
    asked, bounds, begins = _ask(recording, machine)
    moments = list(_replay(asked, config))
    peaks = [max(moment.allocated for moment in moments[first : last + 1]) for first, last in bounds]
    step = max(range(1, len(bounds)), key=lambda index: (peaks[index], index))
    first, last = bounds[step]
    window = moments[first : last + 1]
    peak = next(index for index, moment in enumerate(window) if moment.allocated == peaks[step])
    kept = _thin(window)
    return Timeline(
        step=step + 1,
        event_count=len(window) - 1,
        events=tuple(kept),
        categories={part: tuple(window[index].parts[place] for index in kept) for part, place in _PARTS.items()},
        allocated=tuple(window[index].allocated for index in kept),
        reserved=tuple(window[index].reserved for index in kept),
        phases=tuple((phase.name.lower(), begin - first) for phase, begin in sorted(begins[step].items())),
        peak_event=peak,
        peak_allocated_bytes=peaks[step],
        peak_reserved_bytes=max(moment.reserved for moment in window),
        tensors=tuple(_biggest_tensors(asked[: first + peak], recording)),
    )


Asked = tuple[int, Event]
"""The place in the recording of the call that an event belongs to, -1 before the first, and the event."""


def _ask(recording: Recording, machine: Machine) -> tuple[list[Asked], list[tuple[int, int]], list[dict[Phase, int]]]:
    """What the allocator is asked; of each step, the first and last moment, and the moments at which phases begin."""
    asked: list[Asked] = []
    starts: list[int] = []
    begins: list[dict[Phase, int]] = []
    call = -1
    by_entry = events_by_entry(recording, machine)
    place, event = next(by_entry, (-1, None))
    for at, entry in enumerate(recording.entries):
        if type(entry) is StepEnd:
            starts.append(len(asked))
            begins.append({Phase.ZERO_GRAD: len(asked)})
        elif type(entry) is Call:
            call = at
            if begins:
                begins[-1].setdefault(entry.phase, len(asked))
        while event is not None and place == at:
            if not isinstance(event, Mark):
                asked.append((call, event))
            place, event = next(by_entry, (-1, None))
    return asked, list(itertools.pairwise(starts)), begins


def _replay(asked: Iterable[Asked], config: AllocatorConfig) -> Iterator[_Moment]:
    """The state before the first event and after each."""
    allocator = CachingAllocator(config)
    live: dict[int, tuple[Block, Alloc]] = {}
    parts = [0] * len(TRACE_PARTS)
    yield _Moment(tuple(parts), 0, 0)
    for _, event in asked:
        if isinstance(event, Alloc) and event.size > 0:
            live[event.id] = allocator.allocate(event.size, event.stream), event
            parts[_PARTS[event.category or "temporaries"]] += event.size
        elif isinstance(event, Free) and event.id in live:
            block, before = live.pop(event.id)
            allocator.free(block)
            parts[_PARTS[before.category or "temporaries"]] -= before.size
        parts[_ROUNDING] = allocator.allocated - allocator.requested
        yield _Moment(tuple(parts), allocator.allocated, allocator.reserved)


def _thin(window: Sequence[_Moment]) -> list[int]:
    """The moments to keep: the ends, every highest, and where there are many the lowest and highest of each stretch."""
    count = len(window)
    if count <= MAX_POINTS:
        return list(range(count))
    figures = [[moment.allocated for moment in window], [moment.reserved for moment in window]]
    figures += [[moment.parts[place] for moment in window] for place in range(len(TRACE_PARTS))]
    kept = {0, count - 1, *(values.index(max(values)) for values in figures)}
    stretches = (MAX_POINTS - len(kept)) // 2
    allocated = figures[0]
    for number in range(stretches):
        stretch = range(number * count // stretches, (number + 1) * count // stretches)
        kept |= {min(stretch, key=allocated.__getitem__), max(stretch, key=allocated.__getitem__)}
    return sorted(kept)


def _biggest_tensors(asked: Iterable[Asked], recording: Recording) -> Iterator[LiveTensor]:
    """The biggest storages that are alive after some events from the very first on; of equals the first made."""
    live: dict[int, tuple[Alloc, int]] = {}
    for call, event in asked:
        if isinstance(event, Alloc):
            live[event.id] = event, call
        elif isinstance(event, Free):
            live.pop(event.id, None)
    ordered = sorted(live.values(), key=lambda item: (-item[0].size, item[0].id))
    for event, call in ordered[:MOST_TENSORS]:
        yield _name(event, call, recording)


def _name(event: Alloc, place: int, recording: Recording) -> LiveTensor:
    """What is known of a storage that the call at `place` made."""
    category = event.category or "temporaries"
    call = recording.entries[place]
    assert type(call) is Call
    spec = next((output.spec for output in call.outputs if output.storage == event.id), None)
    dtype, shape = (spec.dtype, spec.shape) if spec else (None, None)
    if category == "batch" and event.id not in recording.holders:
        return LiveTensor(
            category, "labels" if spec and spec.dtype == "int64" else "images", "", dtype, shape, event.size
        )
    if event.id in recording.holders and category in ("parameters", "gradients", "optimizer_state", "batch"):
        return LiveTensor(category, *recording.holders[event.id], dtype, shape, event.size)
    return LiveTensor(category, call.module or OUTSIDE[call.phase], call.name, dtype, shape, event.size)
