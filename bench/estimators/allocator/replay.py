"""From a stream of allocations and frees to peaks, segments and shares by category; free of torch.

Events are named tuples rather than dataclasses: a trace makes ten thousand of them. They come from a trace, or from a
history of a real allocator (`events_from_history`). A history is what `torch.cuda.memory._snapshot()["device_traces"]`
holds (`TraceEntry` in `c10/cuda/CUDACachingAllocator.h`), packed as three columns of equal length: actions as numbers,
addresses in any unit, and bytes. An allocation's bytes are those asked for, not those handed out (`record_trace` in
`alloc_found_block`).

`replay_onward` lets a training go on: its last recorded step, repeated as often as a run does before it measures. Steps
that are alike ask for the same blocks in the same order, but not of the same free memory: what is cached breaks up
further in the next steps, which moves `allocated` by what is not split off and `reserved` by whole segments, and near
capacity decides whether a step fits. And blocks that outlive a step change places, so that peaks may differ from one
step to the next and be back after two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.estimators.allocator.caching import (
    LOWEST_ADDRESS,
    UNMAPPED,
    USED,
    Block,
    CachingAllocator,
    OutOfMemoryError,
    RecordedMemory,
    Segment,
)
from bench.estimators.allocator.settings import AllocatorConfig


class Alloc(NamedTuple):
    """`size` bytes are asked for and known as `id` from then on; 0 bytes allocate nothing.

    What is `optional` is done without where there is no room for it: torch catches the failure and goes another way.
    """

    id: int
    size: int
    stream: int = 0
    category: str | None = None
    optional: bool = False


class Free(NamedTuple):
    """What is known as `id` is freed; with `pending`, another stream still uses it until `Complete`."""

    id: int
    pending: bool = False


class Complete(NamedTuple):
    """The other streams are done with what was freed as `id` and pending."""

    id: int


class Mark(NamedTuple):
    """A point at which the figures are noted; with `reset_peaks` the peaks start again behind it."""

    label: str
    reset_peaks: bool = False


class EmptyCache(NamedTuple):
    """`torch.cuda.empty_cache()`."""


Event = Alloc | Free | Complete | Mark | EmptyCache


class ReplayError(ValueError):
    """A stream of events that no program could have produced."""


ALLOC, FREE_REQUESTED, FREE_COMPLETED, SEGMENT_ALLOC, SEGMENT_FREE, MARK = range(6)


def events_from_history(
    actions: Sequence[int], addresses: Sequence[int], sizes: Sequence[int], *, reset_peaks: bool = False
) -> list[Event]:
    """Turn a recorded history into events; segments are left out, for the replay makes its own where they lay.

    Args:
        actions: ALLOC, FREE_REQUESTED, FREE_COMPLETED or MARK; all others are skipped.
        addresses: What identifies a block while it is live.
        sizes: Bytes asked for; at a mark its number.
        reset_peaks: Whether the peaks start again at every mark.

    Returns:
        Events with ids counted from 0 in order of allocation. Frees that completed at once are plain ones.

    Raises:
        ReplayError: A free of an address that holds nothing, as when the recording began too late.
    """
    events: list[Event] = []
    live: dict[int, int] = {}
    pending: dict[int, int] = {}
    count = 0
    following = [*actions[1:], -1]
    for index, (action, address, size) in enumerate(zip(actions, addresses, sizes, strict=True)):
        if action == ALLOC:
            live[address] = count
            events.append(Alloc(count, size))
            count += 1
        elif action == FREE_REQUESTED:
            if address not in live:
                raise ReplayError(f"history entry {index}: a free of address {address}, where nothing is allocated")
            name = live.pop(address)
            at_once = following[index] == FREE_COMPLETED and addresses[index + 1] == address
            events.append(Free(name, pending=not at_once))
            if not at_once:
                pending[address] = name
        elif action == FREE_COMPLETED and address in pending:
            events.append(Complete(pending.pop(address)))
        elif action == MARK:
            events.append(Mark(str(size), reset_peaks))
    return events


def segments_of_history(
    actions: Sequence[int], addresses: Sequence[int], sizes: Sequence[int], unit: int
) -> list[tuple[int, int]]:
    """Bytes above the lowest and sizes of a history's segments, in order; arguments as for `events_from_history`.

    `unit` is the bytes of an address. They end before the first that would reach `LOWEST_ADDRESS`.
    """
    rows = zip(actions, addresses, sizes, strict=True)
    pieces = [(address * unit, size) for action, address, size in rows if action == SEGMENT_ALLOC]
    low = min((address for address, _ in pieces), default=0)
    placed = [(address - low, size) for address, size in pieces]
    return list(itertools.takewhile(lambda piece: sum(piece) <= LOWEST_ADDRESS, placed))


def replay_onward(
    events: Sequence[Event], config: AllocatorConfig | None, *, unmeasured_steps: int, measured_steps: int
) -> ReplayResult:
    """Replay events whose marks stand between steps, then go on as the last step did.

    Peaks start again before the measured steps, which `events` may hold already, so that those of the last mark are
    theirs. Where the last two steps differ in what they ask for, or the last one frees something older, nothing is
    added.

    Args:
        events: As for `replay`, with a mark before the first step and after each.
        config: As for `replay`.
        unmeasured_steps: Steps before the measured ones, those of `events` included.
        measured_steps: How many of those there are at least.
    """
    stream, run = list(events), Run(config)
    marks = [index for index, event in enumerate(stream) if type(event) is Mark]
    done = len(marks) - 1
    if done > unmeasured_steps:
        stream[marks[unmeasured_steps]] = Mark(str(unmeasured_steps), reset_peaks=True)
    failed = run.go(stream)
    step = None if failed else _last_step(stream, marks)
    if step is None:
        return run.result(stream, failed)
    blocks, index = [run.live.pop(number, None) for number in step.ids], len(stream)
    try:
        for _ in range(unmeasured_steps - done):
            blocks = _go(run, step, blocks, index, noted=False)
        if unmeasured_steps > done:
            index += len(step.events) + 1  # as if one step of those had been added to the stream, with its mark
            run.note(Mark(str(unmeasured_steps)), index - 1)
        if unmeasured_steps >= done:
            run.reset_peaks(index - 1)
            run.peak = _Peak(step, _sizes(blocks), [], 0)
        for number in range(max(done, unmeasured_steps) + 1, unmeasured_steps + measured_steps + 1):
            blocks = _go(run, step, blocks, index, noted=True)
            index += len(step.events) + 1
            run.note(Mark(str(number)), index - 1)
    except _EndedError as error:
        failed = error.where
    return run.result(stream, failed)


class _EndedError(Exception):
    """Memory ran out in a step that was not recorded."""

    def __init__(self, where: OutOfMemory) -> None:
        self.where = where


def _go(  # noqa: C901 - the innermost loop, in which calls would take longer than what they do
    run: Run, step: _Step, older: Sequence[Block | None], index: int, *, noted: bool
) -> list[Block | None]:
    """One more step, straight through the allocator.

    Args:
        run: Receives the peak where that is `noted`.
        step: The events.
        older: What the step before left, by the places of its births.
        index: Of the first event in the whole stream.
        noted: Whether the step is measured.

    Returns:
        As `older`, of this step. Raises _EndedError.
    """
    allocator, highest, peak = run.allocator, run.highest, -1
    allocate, free = allocator.allocate, allocator.free
    before = _sizes(older) if noted else []
    blocks: list[Block | None] = []
    sizes: list[int | None] = []
    try:
        for place, event in enumerate(step.events):
            if type(event) is int:
                block = older[~event] if event < 0 else blocks[event]
                if block is not None:
                    free(block)
                if event >= 0:
                    blocks[event] = None
                continue
            _, size, stream, _, optional = event  # type: ignore[misc]  # an Alloc
            block = None
            if size > 0:
                try:
                    block = allocate(size, stream)
                except OutOfMemoryError as failure:
                    if not optional:
                        at = index + place if noted else index
                        raise _EndedError(
                            OutOfMemory(at, failure.requested_bytes, failure.segment_size_bytes)
                        ) from failure
            blocks.append(block)
            if noted:
                sizes.append(None if block is None else block.size)
                if allocator.allocated > highest:
                    highest, run.reserved_at_peak, peak = allocator.allocated, allocator.reserved, place
    finally:
        if peak >= 0:
            run.highest, run.peak_index = highest, index + peak
            run.peak = _Peak(step, before, sizes, peak + 1)
    return blocks


def _sizes(blocks: Sequence[Block | None]) -> list[int | None]:
    return [None if block is None else block.size for block in blocks]


@dataclass(frozen=True, slots=True)
class _Step:
    """A step without its mark, its blocks named by the places of their births.

    Attributes:
        events: Allocations, and frees as numbers: one from 0 up is the place of an allocation of this step; ~number is
            that of one of the step before.
        ids: Of its allocations, as they were recorded.
        left: The places of those that outlive the step, by id.
        whole: Whether it frees nothing older than the step before.
    """

    events: list[Alloc | int]
    ids: list[int]
    left: dict[int, int]
    whole: bool

    @property
    def births(self) -> list[Alloc]:
        """Its allocations."""
        return [event for event in self.events if type(event) is not int]  # type: ignore[misc]

    @property
    def asked(self) -> list[tuple[int, int]]:
        """Bytes and stream of its allocations."""
        return [event[1:3] for event in self.births]


def _last_step(stream: Sequence[Event], marks: Sequence[int]) -> _Step | None:
    """The last step; None if the one before asks for other blocks or leaves others behind."""
    if len(marks) < 3:
        return None
    before = _placed(stream[marks[-3] + 1 : marks[-2]], {})
    last = _placed(stream[marks[-2] + 1 : marks[-1]], before.left)
    alike = last.asked == before.asked and set(last.left.values()) == set(before.left.values())
    return last if last.whole and alike else None


def _placed(step: Sequence[Event], older: Mapping[int, int]) -> _Step:
    """A step of a stream; `older` has the places of what the step before left behind."""
    events, ids, left, whole = list[Alloc | int](), list[int](), dict[int, int](), True
    for event in step:
        if type(event) is Alloc:
            left[event.id] = len(ids)
            ids.append(event.id)
            events.append(event)
        elif type(event) is Free and not event.pending and event.id in left:
            events.append(left.pop(event.id))
        elif type(event) is Free and not event.pending and event.id in older:
            events.append(~older[event.id])
        else:
            whole = False
    return _Step(events, ids, left, whole)


class _Peak(NamedTuple):
    """A peak in a step that was not recorded.

    Attributes:
        step: The events.
        older: Bytes of the blocks that the step before left, by the places of its births.
        sizes: Bytes of the step's own, up to the peak at least.
        length: Events of the step up to the peak.
    """

    step: _Step
    older: list[int | None]
    sizes: list[int | None]
    length: int

    def held(self) -> list[tuple[Alloc, int | None]]:
        """What is live of both steps, with its bytes."""
        births = self.step.births
        older, own = dict(enumerate(zip(births, self.older, strict=True))), dict[int, tuple[Alloc, int | None]]()
        for event in self.step.events[: self.length]:
            if type(event) is not int:
                own[len(own)] = event, self.sizes[len(own)]  # type: ignore[assignment]
            elif event >= 0:
                own[event] = own[event][0], None
            else:
                del older[~event]
        return [*older.values(), *own.values()]


UNCATEGORISED = "other"


@dataclass(frozen=True, slots=True)
class Reading:
    """The allocator's figures in bytes, as `torch.cuda.memory_stats` names them; peaks since the last reset."""

    label: str
    requested: int
    allocated: int
    active: int
    reserved: int
    peak_requested: int
    peak_allocated: int
    peak_active: int
    peak_reserved: int
    num_alloc_retries: int
    num_ooms: int


@dataclass(frozen=True, slots=True)
class CategoryShare:
    """A category's part of the memory at the peak of `allocated`.

    Attributes:
        category: As the events name it; `other` where they don't.
        count: Live allocations.
        requested_bytes: What they asked for.
        allocated_bytes: The blocks they were given; the difference is rounding and unsplit remainders.
    """

    category: str
    count: int
    requested_bytes: int
    allocated_bytes: int


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment and its blocks at the end, in bytes; `blocks` are `(offset, size, in use)` by address."""

    address: int
    size: int
    stream: int
    is_small: bool
    is_expandable: bool
    allocated: int
    blocks: tuple[tuple[int, int, bool], ...]


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """Where the stream ended for want of memory: the event's index and the bytes that it and its segment asked for."""

    event_index: int
    requested_bytes: int
    segment_bytes: int


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What the allocator did with a stream of events.

    Attributes:
        final: Figures after the last event, peaks over everything.
        marks: Figures at each mark.
        peak_event_index: Index of the event that first brought `allocated` to its highest since the peaks last started
            again, or None without allocations.
        categories: Shares at that moment, the largest first; their `allocated_bytes` sum up to that peak.
        reserved_at_peak: Bytes of segments at that moment; the rest up to it is fragmentation and cache.
        segments: Segments at the end, by address.
        out_of_memory: Where the stream ended early, or None; the other figures are those at that point.
    """

    final: Reading
    marks: tuple[Reading, ...]
    peak_event_index: int | None
    categories: tuple[CategoryShare, ...]
    reserved_at_peak: int
    segments: tuple[SegmentView, ...]
    out_of_memory: OutOfMemory | None

    @property
    def peak_requested_bytes(self) -> int:
        """As `requested_bytes.all.peak`."""
        return self.final.peak_requested

    @property
    def peak_allocated_bytes(self) -> int:
        """As `torch.cuda.max_memory_allocated()`."""
        return self.final.peak_allocated

    @property
    def peak_reserved_bytes(self) -> int:
        """As `torch.cuda.max_memory_reserved()`."""
        return self.final.peak_reserved


def replay(
    events: Iterable[Event], config: AllocatorConfig | None = None, segments: Iterable[tuple[int, int]] = ()
) -> ReplayResult:
    """Run a stream of events through the allocator.

    Args:
        events: Allocations, frees and marks in the order in which they reach the allocator. Ids may be used again after
            a free.
        config: Settings; torch's defaults on a device without limit unless given.
        segments: Addresses and bytes of the first segments, where a history has them (`segments_of_history`): among
            free blocks of equal size the lower address goes first, so that they decide what becomes of equal requests.

    Returns:
        Figures, peaks, segments and shares. A request that cannot be met ends the replay, unless it is optional; see
        `out_of_memory`.

    Raises:
        ReplayError: An id is freed that is not live, or allocated twice.
    """
    stream = events if isinstance(events, Sequence) else list(events)
    run = Run(config, segments)
    return run.result(stream, run.go(stream))


class Run:
    """State of one replay: what `replay` goes through, for callers that go on from there."""

    __slots__ = (
        "allocator",
        "granted",
        "highest",
        "live",
        "marks",
        "peak",
        "peak_index",
        "reserved_at_peak",
        "tops",
        "waiting",
    )

    def __init__(self, config: AllocatorConfig | None = None, segments: Iterable[tuple[int, int]] = ()) -> None:
        """Start with an empty allocator; `segments` as for `replay`."""
        pieces = list(segments)
        device = RecordedMemory((config or AllocatorConfig()).capacity_bytes, pieces) if pieces else None
        self.allocator = CachingAllocator(config, device)
        self.live: dict[int, Block | None] = {}
        self.waiting: dict[int, Block] = {}
        self.granted: dict[int, int] = {}
        self.marks: list[Reading] = []
        self.tops = [0, 0, 0, 0]
        self.highest, self.reserved_at_peak = 0, 0
        self.peak_index: int | None = None
        self.peak: _Peak | None = None

    def go(self, stream: Sequence[Event]) -> OutOfMemory | None:  # noqa: C901 - as `_go`
        """Let events happen; where memory runs out, if it does. Raises ReplayError."""
        allocator, live, granted = self.allocator, self.live, self.granted
        allocate, free = allocator.allocate, allocator.free
        for index, event in enumerate(stream):
            kind = type(event)
            if kind is Alloc:
                name, size, stream_number, _, optional = event  # type: ignore[misc]  # `kind is` narrows nothing
                if name in live:
                    raise ReplayError(f"event {index}: id {name} is allocated while it is live")
                live[name] = None
                if size <= 0:
                    continue
                try:
                    block = live[name] = allocate(size, stream_number)
                except OutOfMemoryError as failure:
                    if optional:
                        continue
                    return OutOfMemory(index, failure.requested_bytes, failure.segment_size_bytes)
                granted[index] = block.size
                if allocator.allocated > self.highest:
                    self.highest, self.reserved_at_peak = allocator.allocated, allocator.reserved
                    self.peak_index = index
            elif kind is Free:
                number: int = event[0]  # type: ignore[assignment, misc]
                try:
                    freed = live.pop(number)
                except KeyError:
                    raise ReplayError(f"event {index}: id {number} is freed while it is not live") from None
                if freed is not None and event[1]:  # type: ignore[misc]
                    self.waiting[number] = freed
                    allocator.free_later(freed)
                elif freed is not None:
                    free(freed)
            else:
                self.note(event, index)
        return None

    def note(self, event: Event, index: int) -> None:
        """Let an event happen that is neither an allocation nor a free, the `index`-th. Raises ReplayError."""
        if isinstance(event, Complete):
            block = self.waiting.pop(event.id, None)
            if block is not None:
                self.allocator.complete(block)
        elif isinstance(event, Mark):
            self.marks.append(_reading(self.allocator, event.label))
            if event.reset_peaks:
                self.reset_peaks(index)
        elif isinstance(event, EmptyCache):
            self.allocator.empty_cache()
        else:
            raise ReplayError(f"event {index}: {event!r} is not one of Alloc, Free, Complete, Mark, EmptyCache")

    def reset_peaks(self, index: int) -> None:
        """Let the peaks start again behind the `index`-th event."""
        self._keep_tops()
        self.allocator.reset_peaks()
        self.highest, self.reserved_at_peak = self.allocator.allocated, self.allocator.reserved
        self.peak_index = index
        self.peak = None

    def _keep_tops(self) -> None:
        allocator = self.allocator
        peaks = allocator.peak_requested, allocator.peak_allocated, allocator.peak_active, allocator.peak_reserved
        self.tops = [max(pair) for pair in zip(self.tops, peaks, strict=True)]

    def result(self, stream: Sequence[Event], out_of_memory: OutOfMemory | None) -> ReplayResult:
        """What became of `stream`, all the events so far."""
        segments = self.allocator.segments
        return ReplayResult(
            final=self._final(),
            marks=tuple(self.marks),
            peak_event_index=self.peak_index,
            categories=_shares(stream, self),
            reserved_at_peak=self.reserved_at_peak,
            segments=tuple(_view(segments[address]) for address in sorted(segments)),
            out_of_memory=out_of_memory,
        )

    def _final(self) -> Reading:
        self._keep_tops()
        allocator = self.allocator
        allocator.peak_requested, allocator.peak_allocated, allocator.peak_active, allocator.peak_reserved = self.tops
        return _reading(allocator, "final")


def _reading(allocator: CachingAllocator, label: str) -> Reading:
    return Reading(
        label,
        allocator.requested,
        allocator.allocated,
        allocator.active,
        allocator.reserved,
        allocator.peak_requested,
        allocator.peak_allocated,
        allocator.peak_active,
        allocator.peak_reserved,
        allocator.num_alloc_retries,
        allocator.num_ooms,
    )


def _shares(events: Sequence[Event], run: Run) -> tuple[CategoryShare, ...]:
    """Who held the memory at the peak: a second pass over the events up to there, or over those of its step."""
    if run.peak_index is None:
        return ()
    if run.peak is not None:
        kept = {event.id: event for event in events if type(event) is Alloc and event.id in run.live}
        held = [*run.peak.held(), *zip(kept.values(), _sizes([run.live[name] for name in kept]), strict=True)]
    else:
        live: dict[int, int] = {}
        for index, event in enumerate(events[: run.peak_index + 1]):
            if type(event) is Alloc:
                live[event.id] = index
            elif type(event) is Free:
                live.pop(event.id, None)
        held = [(events[index], run.granted.get(index)) for index in live.values()]  # type: ignore[misc]
    sums: dict[str, list[int]] = {}
    for event, granted in held:
        if granted is not None:
            share = sums.setdefault(event.category or UNCATEGORISED, [0, 0, 0])
            share[0] += 1
            share[1] += event.size
            share[2] += granted
    ordered = sorted(sums.items(), key=lambda item: (-item[1][2], item[0]))
    return tuple(CategoryShare(category, *share) for category, share in ordered)


def _view(segment: Segment) -> SegmentView:
    blocks = [block for block in segment.blocks() if block.state != UNMAPPED]
    return SegmentView(
        address=segment.address,
        size=sum(block.size for block in blocks),
        stream=segment.stream,
        is_small=segment.is_small,
        is_expandable=bool(segment.page_bytes),
        allocated=sum(block.size for block in blocks if block.state == USED),
        blocks=tuple((block.address - segment.address, block.size, block.state == USED) for block in blocks),
    )
