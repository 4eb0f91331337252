"""Blocks, the segments they are cut from, and the pools that keep the free ones; free of torch.

Source: `Block`, `BlockPool` and its comparators (`BlockComparatorSize` in torch 2.6,
`BlockComparatorSizeCounterAddress` in 2.15) in `c10/cuda/CUDACachingAllocator.cpp`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

FREE, USED, UNMAPPED = 0, 1, 2
"""States of a block: cached; handed out or waiting for an event; addresses of an expandable segment without memory."""


class Segment:
    """A range of device addresses, cut into a chain of blocks.

    Attributes:
        address: First address.
        size: Bytes of the range; for an expandable segment the reserved addresses, most of them without memory.
        stream: Number of the stream that its blocks serve.
        is_small: Whether it belongs to the pool for requests up to 1 MiB.
        page_bytes: Unit in which an expandable segment grows; 0 for one from cudaMalloc.
        head: Its first block.
    """

    __slots__ = ("address", "head", "is_small", "page_bytes", "size", "stream")

    def __init__(
        self, address: int, size: int, stream: int, *, is_small: bool, order: int, page_bytes: int = 0
    ) -> None:
        """Make a segment of one block, free (cudaMalloc) or unmapped (expandable)."""
        self.address, self.size, self.stream = address, size, stream
        self.is_small, self.page_bytes = is_small, page_bytes
        self.head = Block(address, size, self, order)
        if page_bytes:
            self.head.state = UNMAPPED

    def blocks(self) -> Iterator[Block]:
        """Its blocks by address."""
        block: Block | None = self.head
        while block is not None:
            yield block
            block = block.next


class Block:
    """A piece of a segment.

    Attributes:
        address: First address.
        size: Bytes.
        segment: The segment that it is a piece of.
        order: Its place among free blocks of equal size (`registration_counter`); lower goes first.
        previous: Neighbour below, or None.
        next: Neighbour above, or None.
        state: FREE, USED or UNMAPPED.
        requested: Bytes that were requested, while it is in use.
        filed_at: Searches its pool had seen when it was last put there (`gc_count_base`).
    """

    __slots__ = ("address", "filed_at", "next", "order", "previous", "requested", "segment", "size", "state")

    def __init__(self, address: int, size: int, segment: Segment, order: int) -> None:
        """Make a free block without neighbours."""
        self.address, self.size, self.segment, self.order = address, size, segment, order
        self.previous: Block | None = None
        self.next: Block | None = None
        self.state = FREE
        self.requested = 0
        self.filed_at = 0

    @property
    def is_split(self) -> bool:
        """Whether it is only a part of its segment."""
        return self.previous is not None or self.next is not None

    def cut(self, size: int) -> Block:
        """Keep the first `size` bytes and return the rest, with the same state and order (`alloc_found_block`)."""
        rest = Block(self.address + size, self.size - size, self.segment, self.order)
        rest.state = self.state
        rest.previous, rest.next = self, self.next
        if rest.next is not None:
            rest.next.previous = rest
        self.size, self.next = size, rest
        return rest

    def absorb(self, neighbour: Block) -> None:
        """Take over a neighbour's bytes and place in the chain (`try_merge_blocks`)."""
        self.size += neighbour.size
        if self.previous is neighbour:
            self.address, self.previous = neighbour.address, neighbour.previous
            if self.previous is not None:
                self.previous.next = self
            else:
                self.segment.head = self
        else:
            self.next = neighbour.next
            if self.next is not None:
                self.next.previous = self


FreeEntry = tuple[int, int, int, int, Block]
"""Stream, size, order, address, block: what free blocks are sorted by."""


class Pool:
    """The free blocks of one kind, ordered by stream, size, order and address (`BlockPool`).

    Attributes:
        is_small: Whether it serves requests up to 1 MiB.
        free: Sorted entries.
        unmapped: `(stream, address, block)`, sorted: where expandable segments may grow.
        searches: How often a block was looked for, while garbage is collected.
    """

    __slots__ = ("free", "is_small", "searches", "unmapped")

    def __init__(self, *, is_small: bool) -> None:
        """Make an empty pool."""
        self.is_small = is_small
        self.free: list[FreeEntry] = []
        self.unmapped: list[tuple[int, int, Block]] = []
        self.searches = 0

    def file(self, block: Block) -> None:
        """Put a free or unmapped block where it is found by its size or address."""
        stream = block.segment.stream
        if block.state == UNMAPPED:
            insort(self.unmapped, (stream, block.address, block))
            return
        block.filed_at = self.searches
        insort(self.free, (stream, block.size, block.order, block.address, block))

    def withdraw(self, block: Block) -> None:
        """Take out a block that was filed, before its size or address changes."""
        stream = block.segment.stream
        if block.state == UNMAPPED:
            del self.unmapped[bisect_left(self.unmapped, (stream, block.address))]
        else:
            del self.free[bisect_left(self.free, (stream, block.size, block.order, block.address))]

    def merge(self, block: Block) -> None:
        """Let a block that is not filed absorb its filed neighbours of the same state."""
        for neighbour in (block.previous, block.next):
            if neighbour is not None and neighbour.state == block.state:
                self.withdraw(neighbour)
                block.absorb(neighbour)
