"""From a stream of allocations and frees to peaks, segments and shares by category; free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.estimators.allocator.blocks import UNMAPPED, USED, Block, Segment
from bench.estimators.allocator.caching import CachingAllocator, OutOfMemoryError
from bench.estimators.allocator.config import AllocatorConfig
from bench.estimators.allocator.events import Alloc, Complete, EmptyCache, Event, Free, Mark, ReplayError

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


def replay(events: Iterable[Event], config: AllocatorConfig | None = None) -> ReplayResult:
    """Run a stream of events through the allocator.

    Args:
        events: Allocations, frees and marks in the order in which they reach the allocator. Ids may be used again after
            a free.
        config: Settings; torch's defaults on a device without limit unless given.

    Returns:
        Figures, peaks, segments and shares. A request that cannot be met ends the replay, unless it is optional; see
        `out_of_memory`.

    Raises:
        ReplayError: An id is freed that is not live, or allocated twice.
    """
    stream = events if isinstance(events, Sequence) else list(events)
    run = Run(config)
    out_of_memory = None
    for index, event in enumerate(stream):
        try:
            run.apply(index, event)
        except OutOfMemoryError as failure:
            out_of_memory = OutOfMemory(index, failure.requested_bytes, failure.segment_size_bytes)
            break
    return run.result(stream, out_of_memory)


class Run:
    """State of one replay: what `replay` goes through, for callers that go on from there."""

    __slots__ = (
        "allocator",
        "granted",
        "highest",
        "live",
        "marks",
        "peak_index",
        "reserved_at_peak",
        "tops",
        "waiting",
    )

    def __init__(self, config: AllocatorConfig | None = None) -> None:
        """Start with an empty allocator."""
        self.allocator = CachingAllocator(config)
        self.live: dict[int, Block | None] = {}
        self.waiting: dict[int, Block] = {}
        self.granted: dict[int, int] = {}
        self.marks: list[Reading] = []
        self.tops = [0, 0, 0, 0]
        self.highest, self.reserved_at_peak = 0, 0
        self.peak_index: int | None = None

    def apply(self, index: int, event: Event) -> None:
        """Let the next event happen, the `index`-th; raises OutOfMemoryError and ReplayError."""
        kind = type(event)
        if kind is Alloc:
            self._allocate(index, event)  # type: ignore[arg-type]  # `kind is` narrows nothing, and is twice as fast
        elif kind is Free:
            self._free(index, event)  # type: ignore[arg-type]
        elif isinstance(event, Complete):
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

    def _allocate(self, index: int, event: Alloc) -> None:
        name, size, stream, _, optional = event
        if name in self.live:
            raise ReplayError(f"event {index}: id {name} is allocated while it is live")
        if size <= 0:
            self.live[name] = None
            return
        allocator = self.allocator
        try:
            block = self.live[name] = allocator.allocate(size, stream)
        except OutOfMemoryError:
            if not optional:
                raise
            self.live[name] = None
            return
        self.granted[index] = block.size
        if allocator.allocated > self.highest:
            self.highest, self.reserved_at_peak, self.peak_index = allocator.allocated, allocator.reserved, index

    def _free(self, index: int, event: Free) -> None:
        try:
            block = self.live.pop(event.id)
        except KeyError:
            raise ReplayError(f"event {index}: id {event.id} is freed while it is not live") from None
        if block is None:
            return
        if event.pending:
            self.waiting[event.id] = block
            self.allocator.free_later(block)
        else:
            self.allocator.free(block)

    def reset_peaks(self, index: int) -> None:
        """Let the peaks start again behind the `index`-th event."""
        self._keep_tops()
        self.allocator.reset_peaks()
        self.highest, self.reserved_at_peak = self.allocator.allocated, self.allocator.reserved
        self.peak_index = index

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
    """Who held the memory at the peak: a second pass over the events up to there."""
    if run.peak_index is None:
        return ()
    live: dict[int, int] = {}
    for index in range(run.peak_index + 1):
        event = events[index]
        if isinstance(event, Alloc):
            live[event.id] = index
        elif isinstance(event, Free):
            live.pop(event.id, None)
    sums: dict[str, list[int]] = {}
    for index in live.values():
        event = events[index]
        if isinstance(event, Alloc) and index in run.granted:
            share = sums.setdefault(event.category or UNCATEGORISED, [0, 0, 0])
            share[0] += 1
            share[1] += event.size
            share[2] += run.granted[index]
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
