"""Where the allocations of a trace and of a recording part, and what mending the trace would do; free of torch."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from bench.estimators.allocator import Alloc, AllocatorConfig, Event, Free, replay
from bench.estimators.difference.alignment import Blocks


class Kind(StrEnum):
    """How the two part."""

    MISSING = "missing from the trace"
    EXTRA = "not in the recording"
    SIZE = "different size"
    LIFETIME = "freed at a different point"


@dataclass(frozen=True, slots=True)
class Parting:
    """Differences of one kind at one operator.

    Attributes:
        kind: How they part.
        operator: Of the trace: the one that allocates, or the last that did before what is missing from the trace.
        operators: Where something is missing, those from that one to the next that allocates: it is one of these.
        phase: `setup`, `zero_grad`, `forward`, `backward` or `optimizer`, of the first.
        step: Of the first, from 1; 0 is the setup.
        count: How often, over all steps.
        trace_bytes: Of the first, as the trace has it; None if it has none.
        recorded_bytes: Of the first, as recorded; None if there is none.
        effect_requested_bytes: What mending all of them would add to the trace's peak.
        effect_allocated_bytes: Likewise.
        effect_reserved_bytes: Likewise.
        stack: What Python ran at the first, where the recording has it.
    """

    kind: Kind
    operator: str
    operators: tuple[str, ...]
    phase: str
    step: int
    count: int
    trace_bytes: int | None
    recorded_bytes: int | None
    effect_requested_bytes: int
    effect_allocated_bytes: int
    effect_reserved_bytes: int
    stack: str | None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference: the place of an allocation among the trace's, among the recorded ones, or both."""

    kind: Kind
    trace: int | None
    recorded: int | None


@dataclass(slots=True)
class PairedStreams:
    """Both streams and how they are paired.

    Attributes:
        trace: Of the trace.
        recorded: Of the recording.
        pairs: Places that belong together, ascending on both sides.
        differences: In order.
        ends_early: The recording ends within a step, so that what the trace has behind that is not a difference.
    """

    trace: Blocks
    recorded: Blocks
    pairs: list[tuple[int, int]]
    ends_early: bool = False
    differences: list[Mismatch] = field(init=False)

    def __post_init__(self) -> None:
        """Find the differences; what has another size only becomes a pair too."""
        found: list[Mismatch] = []
        paired: list[tuple[int, int]] = []
        trace_at = recorded_at = 0
        for pair in [*self.pairs, (len(self.trace.blocks), len(self.recorded.blocks))]:
            missing = list(range(recorded_at, pair[1]))
            extra = list(range(trace_at, pair[0]))
            sizes = list(zip(extra, missing, strict=False))
            found += [Mismatch(Kind.SIZE, left, right) for left, right in sizes]
            paired += sizes
            common = min(len(extra), len(missing))
            is_cut = self.ends_early and pair[1] == len(self.recorded.blocks)
            found += [Mismatch(Kind.EXTRA, left, None) for left in extra[common:] if not is_cut]
            found += [Mismatch(Kind.MISSING, None, right) for right in missing[common:]]
            paired.append(pair)
            trace_at, recorded_at = pair[0] + 1, pair[1] + 1
        self.pairs = paired[:-1]  # the last is the end of both
        known = {difference.trace for difference in found}
        elsewhere = [pair for pair in self._freed_elsewhere() if pair[0] not in known]
        found += [Mismatch(Kind.LIFETIME, left, right) for left, right in elsewhere]
        self.differences = sorted(found, key=lambda item: self.place(item))

    def place(self, difference: Mismatch) -> tuple[int, int]:
        """Where a difference lies, in terms of the recording."""
        if difference.recorded is not None:
            return difference.recorded, 0
        return self._after(difference.trace or 0), 1

    def _after(self, trace: int) -> int:
        """The last recorded allocation that is paired with one before `trace`."""
        index = bisect.bisect_left(self.pairs, (trace, -1))
        return self.pairs[index - 1][1] if index else -1

    def _freed_elsewhere(self) -> list[tuple[int, int]]:
        """Pairs whose frees lie between other pairs."""
        before = _count_before(len(self.trace.blocks), [left for left, _ in self.pairs])
        recorded_before = _count_before(len(self.recorded.blocks), [right for _, right in self.pairs])
        found = []
        for left, right in self.pairs:
            freed, recorded_freed = self.trace.blocks[left].freed, self.recorded.blocks[right].freed
            mine = None if freed is None else before[freed]
            theirs = None if recorded_freed is None else recorded_before[recorded_freed]
            is_cut = self.ends_early and theirs is None and (mine is None or mine >= len(self.pairs))
            if mine != theirs and not is_cut:
                found.append((left, right))
        return found


def _count_before(length: int, chosen: Sequence[int]) -> list[int]:
    """For each place from 0 to `length`, how many of the chosen places lie before it."""
    flags = [0] * (length + 1)
    for place in chosen:
        flags[place] = 1
    counts, total = [], 0
    for flag in flags:
        counts.append(total)
        total += flag
    return counts


def peaks_when_mended(
    comparison: PairedStreams, mended: Sequence[Mismatch], config: AllocatorConfig
) -> tuple[int, int, int]:
    """Peaks of the trace in bytes (requested, allocated, reserved) with some of its differences fixed.

    Args:
        comparison: Both streams.
        mended: Those to be as recorded.
        config: The allocator's settings, without a limit.
    """
    final = replay(_mended_events(comparison, mended), config).final
    return final.peak_requested, final.peak_allocated, final.peak_reserved


_Place = tuple[int, int, int]
_ALONE = 1 << 40  # behind whatever is put in before the trace's allocation of the same number


def _mended_events(comparison: PairedStreams, mended: Sequence[Mismatch]) -> list[Event]:
    """The trace's events with what is mended in their place: sorted by place, where frees go before an allocation.

    Where something is put in, what both free between the same two allocations goes where the recording frees it, before
    or behind it.
    """
    places = _recorded_places(comparison)
    partner = dict(comparison.pairs)
    dropped = {item.trace for item in mended if item.kind is Kind.EXTRA}
    resized = {item.trace: item.recorded for item in mended if item.kind is Kind.SIZE}
    freed_anew = {item.trace for item in mended if item.kind is Kind.LIFETIME}
    if any(item.kind is Kind.MISSING for item in mended):
        freed_anew |= partner.keys() - {item.trace for item in comparison.differences if item.kind is Kind.LIFETIME}
    placed: list[tuple[_Place, Event]] = []
    for number, block in enumerate(comparison.trace.blocks):
        if number in dropped:
            continue
        recorded = resized.get(number)
        size = block.size if recorded is None else comparison.recorded.blocks[recorded].size
        freed = None if block.freed is None else (block.freed, 0, 0)
        if number in freed_anew:
            freed = _free_place(comparison, partner[number], places)
        placed.append(((number, _ALONE, 1), Alloc(number, size)))
        if freed is not None:
            placed.append((freed, Free(number)))
    for item in mended:
        if item.trace is None and item.recorded is not None:
            name = -1 - item.recorded
            at, beside = places[item.recorded]
            placed.append(((at, beside, 1), Alloc(name, comparison.recorded.blocks[item.recorded].size)))
            freed = _free_place(comparison, item.recorded, places)
            if freed is not None:
                placed.append((freed, Free(name)))
    return [event for _, event in sorted(placed, key=lambda item: item[0])]


def _free_place(comparison: PairedStreams, recorded: int, places: list[tuple[int, int]]) -> _Place | None:
    freed = comparison.recorded.blocks[recorded].freed
    return None if freed is None else (*places[freed], 0)


def _recorded_places(comparison: PairedStreams) -> list[tuple[int, int]]:
    """For each recorded allocation, and for the end, its place among the trace's."""
    partner = {right: left for left, right in comparison.pairs}
    places: list[tuple[int, int]] = []
    following, beside = len(comparison.trace.blocks), 0
    places.append((following, _ALONE))
    for number in reversed(range(len(comparison.recorded.blocks))):
        if number in partner:
            following, beside = partner[number], 0
            places.append((following, _ALONE))
        else:
            beside += 1
            places.append((following, _ALONE - beside))
    return places[::-1]
