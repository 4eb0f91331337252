"""The caching allocator itself: what torch does with a request and a free; free of torch.

Source: `DeviceCachingAllocator` in `c10/cuda/CUDACachingAllocator.cpp`. Left out: private pools (CUDA graphs and user
pools), peers, free-memory callbacks (none is registered outside of inter-process sharing) and the other backends.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from bench.estimators.allocator import expandable
from bench.estimators.allocator.blocks import FREE, USED, Block, Pool, Segment
from bench.estimators.allocator.config import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    AllocatorConfig,
    round_request,
    segment_bytes,
)
from bench.estimators.allocator.device import DeviceMemory


class OutOfMemoryError(Exception):
    """The request that could not be met, after every cached block had gone back."""

    def __init__(self, requested_bytes: int, segment_size_bytes: int) -> None:
        """Keep the bytes asked for and those of the segment that was refused."""
        self.requested_bytes, self.segment_size_bytes = requested_bytes, segment_size_bytes
        super().__init__(f"out of memory: {requested_bytes} B need a segment of {segment_size_bytes} B")


class CachingAllocator:
    """One device's allocator. All figures are bytes, as `torch.cuda.memory_stats` counts them.

    Attributes:
        requested: Sum of what was requested and not yet freed.
        allocated: Sum of the blocks handed out, unsplit remainders included.
        active: `allocated` and the blocks that still wait for another stream.
        reserved: Sum of the segments; of expandable ones the pages with memory.
        by_block_age: Whether the tie rule is `block_age`, so that every block made counts.
        num_alloc_retries: How often every cached block was released to make room.
        num_ooms: Requests that failed.
    """

    __slots__ = (
        "_limit",
        "_orders",
        "_plain_rounding",
        "_plain_search",
        "_waiting",
        "active",
        "allocated",
        "by_block_age",
        "config",
        "device",
        "large",
        "num_alloc_retries",
        "num_ooms",
        "peak_active",
        "peak_allocated",
        "peak_requested",
        "peak_reserved",
        "requested",
        "reserved",
        "segments",
        "small",
    )

    def __init__(self, config: AllocatorConfig | None = None) -> None:
        """Start without segments."""
        self.config = config = config or AllocatorConfig()
        self.device = DeviceMemory(config.capacity_bytes, config.addresses)
        self.small, self.large = Pool(is_small=True), Pool(is_small=False)
        self.segments: dict[int, Segment] = {}
        self.requested = self.allocated = self.active = self.reserved = 0
        self.peak_requested = self.peak_allocated = self.peak_active = self.peak_reserved = 0
        self.num_alloc_retries = self.num_ooms = 0
        self._waiting: dict[int, Block] = {}
        self._orders = 0
        self.by_block_age = config.ties == "block_age"
        self._limit = config.max_split_bytes
        self._plain_rounding = not config.roundup_power2_divisions
        self._plain_search = self._limit is None and not config.expandable_segments and not config.collects_garbage

    def allocate(self, size: int, stream: int = 0) -> Block:
        """Hand out a block for `size` > 0 bytes on `stream` (`malloc`, `alloc_found_block`).

        Best fit in the pool of the rounded size, else a new segment; the rest of the block goes back where it may be
        split off. `allocated` grows by the block, not by the rounded size.

        Raises:
            OutOfMemoryError: Neither the cache nor the device has room.
        """
        if self._plain_rounding:
            rounded = (size + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES
        else:
            rounded = round_request(self.config, size)
        pool = self.small if rounded <= SMALL_BYTES else self.large
        block = self._find(pool, rounded, stream)
        if block is None:
            block = self._grow(pool, size, rounded, stream)
        remaining = block.size - rounded
        if remaining >= MIN_BLOCK_BYTES and self._splits(pool, rounded, remaining):
            rest = block.cut(rounded)
            if self.by_block_age:
                block.order = self.next_order()
            rest.filed_at = pool.searches
            insort(pool.free, (stream, remaining, rest.order, rest.address, rest))
        block.state, block.requested = USED, size
        self.requested += size
        self.allocated += block.size
        self.active += block.size
        if self.requested > self.peak_requested:
            self.peak_requested = self.requested
        if self.active > self.peak_active:
            self.peak_active = self.active
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block

    def free(self, block: Block) -> None:
        """Take a block back and merge it with its free neighbours (`free`, `free_block`)."""
        self.allocated -= block.size
        self._complete(block)

    def free_later(self, block: Block) -> None:
        """Take a block back that another stream still uses: it stays active until `complete` (`insert_events`)."""
        self.allocated -= block.size
        self._waiting[id(block)] = block

    def complete(self, block: Block) -> None:
        """The other streams are done with a block given to `free_later` (`process_events`)."""
        if self._waiting.pop(id(block), None) is not None:
            self._complete(block)

    def empty_cache(self) -> None:
        """Give every segment without a block in use back to the device (`emptyCache`, `release_cached_blocks`)."""
        for block in list(self._waiting.values()):
            self.complete(block)
        for pool in (self.large, self.small):
            for *_, block in list(pool.free):
                if block.segment.page_bytes:
                    expandable.unmap(self, pool, block)
                elif not block.is_split:
                    self._release(pool, block)

    def reset_peaks(self) -> None:
        """Let the peaks start from the current figures (`resetPeakStats`)."""
        self.peak_requested, self.peak_allocated = self.requested, self.allocated
        self.peak_active, self.peak_reserved = self.active, self.reserved

    def next_order(self) -> int:
        """Place of a new segment or block among free blocks of equal size; the same for all where addresses decide."""
        self._orders += self.config.ties != "address"
        return self._orders

    def add_reserved(self, size: int) -> None:
        """Count `size` bytes of new segments or pages; negative for ones given back."""
        self.reserved += size
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved

    def _complete(self, block: Block) -> None:
        self.active -= block.size
        self.requested -= block.requested
        block.state, block.requested = FREE, 0
        segment = block.segment
        pool = self.small if segment.is_small else self.large
        free, stream = pool.free, segment.stream
        for neighbour in (block.previous, block.next):
            if neighbour is not None and neighbour.state == FREE:
                del free[bisect_left(free, (stream, neighbour.size, neighbour.order, neighbour.address))]
                block.absorb(neighbour)
        block.filed_at = pool.searches
        insort(free, (stream, block.size, block.order, block.address, block))

    def _find(self, pool: Pool, rounded: int, stream: int) -> Block | None:
        """The smallest free block of the stream that is large enough, lowest address first (`get_free_block`)."""
        free = pool.free
        index = bisect_left(free, (stream, rounded))
        if self._plain_search:
            if index == len(free) or free[index][0] != stream:
                return None
            return free.pop(index)[4]
        if self.config.collects_garbage:
            pool.searches += 1
        if index == len(free) or free[index][0] != stream:
            return None
        if self.config.expandable_segments:
            index = expandable.best_fit(free, index)
        size = free[index][1]
        if self._limit is not None:
            oversize = size >= self._limit
            if oversize and (rounded < self._limit or size >= rounded + self.config.max_non_split_rounding_bytes):
                return None
        return free.pop(index)[4]

    def _splits(self, pool: Pool, rounded: int, remaining: int) -> bool:
        """Whether what a block has left over is split off (`should_split`)."""
        if pool.is_small or self.config.expandable_segments:
            return remaining >= MIN_BLOCK_BYTES
        return remaining > SMALL_BYTES and (self._limit is None or rounded < self._limit)

    def _grow(self, pool: Pool, size: int, rounded: int, stream: int) -> Block:
        """A block of a new segment, making room where there is none (second half of `malloc`)."""
        if self.config.collects_garbage:
            self._collect_garbage()
        block = self._segment(pool, rounded, stream)
        if block is None and self._release_oversize(pool, rounded, stream):
            block = self._segment(pool, rounded, stream)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._segment(pool, rounded, stream)
        if block is None:
            self.num_ooms += 1
            raise OutOfMemoryError(size, segment_bytes(self.config, rounded))
        return block

    def _segment(self, pool: Pool, rounded: int, stream: int) -> Block | None:
        """A block of a new segment, or None if memory or the allowed share is exhausted (`alloc_block`)."""
        size, allowed = segment_bytes(self.config, rounded), self.config.allowed_bytes
        if allowed is not None and self.reserved + size > allowed:
            return None
        if self.config.expandable_segments:
            return expandable.grow(self, pool, rounded, stream)
        address = self.device.allocate(size)
        if address is None:
            return None
        segment = Segment(address, size, stream, is_small=pool.is_small, order=self.next_order())
        self.segments[address] = segment
        self.add_reserved(size)
        return segment.head

    def _release(self, pool: Pool, block: Block) -> None:
        """Give the segment of a block that fills it back to the device (`release_block`)."""
        pool.withdraw(block)
        self.device.release(block.address, block.size)
        del self.segments[block.address]
        self.add_reserved(-block.size)

    def _release_oversize(self, pool: Pool, rounded: int, stream: int) -> bool:
        """Release blocks too large to be split, just enough for the request (`release_available_cached_blocks`)."""
        if self._limit is None:
            return False
        needed = max(rounded, self._limit)
        index = bisect_left(pool.free, (stream, needed))
        if index < len(pool.free) and pool.free[index][0] == stream and not pool.free[index][4].segment.page_bytes:
            self._release(pool, pool.free[index][4])
            return True
        released = 0
        for entry_stream, size, _, _, block in reversed(pool.free[:index]):
            if released >= needed or size < self._limit or entry_stream != stream:
                break
            if not block.segment.page_bytes:
                released += size
                self._release(pool, block)
        return released >= needed

    def _collect_garbage(self) -> None:
        """Release large unsplit blocks of above average age down to the threshold (`garbage_collect_cached_blocks`)."""
        allowed = self.config.allowed_bytes or 0
        excess = self.reserved - int(self.config.garbage_collection_threshold * allowed)
        while excess > 0:
            aged = list(self._aged_blocks())
            if not aged:
                return
            mean = sum(age for age, _ in aged) / len(aged)
            for age, block in aged:
                if age >= mean:
                    excess -= block.size
                    self._release(self.large, block)

    def _aged_blocks(self) -> Iterator[tuple[int, Block]]:
        for *_, block in self.large.free:
            if not block.is_split and not block.segment.page_bytes:
                yield self.large.searches - block.filed_at, block
