"""Aligns two streams of allocations; without torch.

Only allocations are aligned. A free is identified by its position among them, so the order within a series of frees,
which no program decides, does not matter.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from bench.estimators.allocator import Alloc, Event, Free, Mark

MAX_EDITS = 1500
"""Insertions and deletions between two marks beyond which a piece is not aligned but reported as a whole."""


class Allocated(NamedTuple):
    """One allocation.

    Attributes:
        event: Index of its event.
        size: Bytes asked for.
        freed: Number of allocations before its free, itself included; None if it is never freed.
    """

    event: int
    size: int
    freed: int | None


@dataclass(frozen=True, slots=True)
class Blocks:
    """A stream's allocations in order, and for each mark how many come before it."""

    blocks: list[Allocated]
    marks: list[int]


def blocks_of(events: Sequence[Event]) -> Blocks:
    """The allocations of a stream; those of 0 bytes are left out."""
    found: list[Allocated] = []
    marks: list[int] = []
    live: dict[int, int] = {}
    for index, event in enumerate(events):
        if isinstance(event, Alloc):
            if event.size > 0:
                live[event.id] = len(found)
                found.append(Allocated(index, event.size, None))
        elif isinstance(event, Free):
            place = live.pop(event.id, None)
            if place is not None:
                found[place] = found[place]._replace(freed=len(found))
        elif isinstance(event, Mark):
            marks.append(len(found))
    return Blocks(found, marks)


def align(one: Blocks, other: Blocks) -> list[tuple[int, int]]:
    """Pairs of allocations of one size, ascending on both sides.

    What lies between two marks is aligned with what lies between the same two marks of the other stream: first by size
    and by whether the block is freed before anything else is allocated, then what is left between pairs by size alone.
    """
    tokens, others = _tokens(one.blocks), _tokens(other.blocks)
    sizes, other_sizes = [block.size for block in one.blocks], [block.size for block in other.blocks]
    pairs: list[tuple[int, int]] = []
    for piece, other_piece in zip(_pieces(one, other), _pieces(other, one), strict=True):
        found = _match_range(tokens, others, piece, other_piece)
        edges = [(piece[0] - 1, other_piece[0] - 1), *found, (piece[1], other_piece[1])]
        pairs += found
        for before, after in pairwise(edges):
            gap, other_gap = (before[0] + 1, after[0]), (before[1] + 1, after[1])
            pairs += _match_range(sizes, other_sizes, gap, other_gap)
    return sorted(pairs)


def _match_range(
    one: Sequence[Hashable], other: Sequence[Hashable], bounds: tuple[int, int], other_bounds: tuple[int, int]
) -> list[tuple[int, int]]:
    """A longest match of two parts, as places in the whole."""
    if bounds[0] >= bounds[1] or other_bounds[0] >= other_bounds[1]:
        return []
    found = longest_match(one[slice(*bounds)], other[slice(*other_bounds)])
    return [(bounds[0] + left, other_bounds[0] + right) for left, right in found]


def _tokens(blocks: Sequence[Allocated]) -> list[tuple[int, bool]]:
    return [(block.size, block.freed == index + 1) for index, block in enumerate(blocks)]


def _pieces(stream: Blocks, beside: Blocks) -> list[tuple[int, int]]:
    """Bounds of the pieces between marks that both streams have; the last goes to the end."""
    shared = stream.marks[: min(len(stream.marks), len(beside.marks))]
    edges = [0, *shared, len(stream.blocks)]
    return list(pairwise(edges))


def longest_match(
    one: Sequence[Hashable], other: Sequence[Hashable], max_edits: int = MAX_EDITS
) -> list[tuple[int, int]]:
    """Indices of a longest common subsequence, as pairs (E. W. Myers, An O(ND) difference algorithm, 1986).

    Args:
        one: Any items that compare.
        other: Likewise.
        max_edits: Where more than so many items are left over, only the common beginning and end are returned.
    """
    head = 0
    while head < min(len(one), len(other)) and one[head] == other[head]:
        head += 1
    tail = 0
    while tail < min(len(one), len(other)) - head and one[-1 - tail] == other[-1 - tail]:
        tail += 1
    inner = _match_inner(one[head : len(one) - tail], other[head : len(other) - tail], max_edits)
    pairs = [(index, index) for index in range(head)]
    pairs += [(head + left, head + right) for left, right in inner]
    return pairs + [(len(one) - back, len(other) - back) for back in range(tail, 0, -1)]


def _match_inner(one: Sequence[Hashable], other: Sequence[Hashable], max_edits: int) -> list[tuple[int, int]]:
    """`reach[k]`: how far in `one` a path of so many edits comes on diagonal `k` (place in one less that in other)."""
    if not one or not other:
        return []
    width, height = len(one), len(other)
    reach: dict[int, int] = {1: 0}
    trail: list[dict[int, int]] = []
    for edits in range(min(max_edits, width + height) + 1):
        trail.append(dict(reach))
        for diagonal in range(-edits, edits + 1, 2):
            if not -height <= diagonal <= width:
                continue
            x = _step(reach, diagonal, edits)
            while x < width and 0 <= x - diagonal < height and one[x] == other[x - diagonal]:
                x += 1
            reach[diagonal] = x
            if x >= width and x - diagonal >= height:
                return _walk_back(trail, width, height)
    return []


def _step(reach: dict[int, int], diagonal: int, edits: int) -> int:
    """Where a path on `diagonal` begins after one more edit: down from the one above, or right from the one below."""
    above, below = reach.get(diagonal + 1, -1), reach.get(diagonal - 1, -1)
    return above if diagonal == -edits or (diagonal != edits and below < above) else below + 1


def _walk_back(trail: list[dict[int, int]], width: int, height: int) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    x, y = width, height
    for edits in range(len(trail) - 1, -1, -1):
        diagonal = x - y
        start = _step(trail[edits], diagonal, edits)
        while x > start and y > start - diagonal and x > 0 and y > 0:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        if edits:
            is_down = start == trail[edits].get(diagonal + 1, -1) and (
                diagonal == -edits or (diagonal != edits and trail[edits].get(diagonal - 1, -1) < start)
            )
            x, y = (start, start - diagonal - 1) if is_down else (start - 1, start - diagonal)
    return pairs[::-1]
