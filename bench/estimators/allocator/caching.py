"""The caching allocator itself: what torch does with a request and a free; free of torch.

Source: `DeviceCachingAllocator` in `c10/cuda/CUDACachingAllocator.cpp`. Left out: private pools (CUDA graphs and user
pools), peers, free-memory callbacks (none is registered outside of inter-process sharing) and the other backends.

From the bottom up, with what each part stands for in that file:

* `DeviceMemory`: how much is left, and at which address a new piece lies; for cudaMalloc, cudaFree and the virtual
  memory calls (cuMemAddressReserve, cuMemCreate, cuMemRelease).
* `Block`, `Segment` and the pools of free blocks: `Block`, `BlockPool` and its comparators (`BlockComparatorSize` in
  torch 2.6, `BlockComparatorSizeCounterAddress` in 2.15).
* Expandable segments, ranges of addresses that get memory page by page (2 MiB in the small pool, a large segment of
  20 MiB else): `ExpandableSegment`, `find_expandable_block`, `try_allocate_expandable_block`, `map_block`,
  `unmap_block`.
* `CachingAllocator`: `malloc`, `alloc_found_block`, `free_block` and what they call.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator

from bench.estimators.allocator.settings import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    AddressPolicy,
    AllocatorConfig,
    round_request,
    segment_bytes,
)

PAGE_BYTES = 2 << 20
"""Granularity of device memory: a smaller piece takes a whole page (cuMemGetAllocationGranularity)."""

LOWEST_ADDRESS = 1 << 44
HIGHEST_ADDRESS = LOWEST_ADDRESS + (1 << 46)


class DeviceMemory:
    """Memory of a device with `capacity_bytes` left for segments, or without limit where that is None."""

    __slots__ = ("_capacity_bytes", "_next_down", "_next_up", "_policy", "_ranges", "used_bytes")

    def __init__(self, capacity_bytes: int | None, policy: AddressPolicy) -> None:
        """Start with nothing in use."""
        self._capacity_bytes, self._policy = capacity_bytes, policy
        self._next_up, self._next_down = LOWEST_ADDRESS, HIGHEST_ADDRESS
        self._ranges: list[tuple[int, int]] = []
        self.used_bytes = 0

    def allocate(self, size: int) -> int | None:
        """Address of a new piece of `size` bytes, or None if the memory is exhausted (cudaMalloc)."""
        size = _whole_pages(size)
        return self.reserve(size) if self.commit(size) else None

    def release(self, address: int, size: int) -> None:
        """Give a piece back (cudaFree)."""
        self.uncommit(_whole_pages(size))
        self.unreserve(address)

    def commit(self, size: int) -> bool:
        """Take `size` bytes of memory if that much is left (cuMemCreate)."""
        if self._capacity_bytes is not None and self.used_bytes + size > self._capacity_bytes:
            return False
        self.used_bytes += size
        return True

    def uncommit(self, size: int) -> None:
        """Give `size` bytes of memory back (cuMemRelease)."""
        self.used_bytes -= size

    def reserve(self, size: int) -> int:
        """Address of a new range of `size` bytes by the policy (cuMemAddressReserve)."""
        if self._policy == "descending":
            self._next_down -= size
            return self._next_down
        if self._policy == "lowest":
            return self._lowest_gap(size)
        self._next_up += size
        return self._next_up - size

    def unreserve(self, address: int) -> None:
        """Forget a range; only the policy `lowest` uses its addresses again."""
        if self._policy == "lowest":
            del self._ranges[bisect_left(self._ranges, (address,))]

    def _lowest_gap(self, size: int) -> int:
        low = LOWEST_ADDRESS
        for address, taken in self._ranges:
            if address - low >= size:
                break
            low = address + taken
        insort(self._ranges, (low, size))
        return low


class RecordedMemory(DeviceMemory):
    """Memory whose pieces lie where a recording has them, for as long as it has the same pieces; then ascending."""

    __slots__ = ("_live", "_recorded")

    def __init__(self, capacity_bytes: int | None, pieces: Iterable[tuple[int, int]]) -> None:
        """Take addresses below `LOWEST_ADDRESS` and sizes in bytes, in order of allocation."""
        super().__init__(capacity_bytes, "ascending")
        self._recorded = deque((address, _whole_pages(size)) for address, size in pieces)
        self._live: dict[int, int] = {}

    def reserve(self, size: int) -> int:
        """As `DeviceMemory.reserve`; a recorded piece that would lie on another ends the recording."""
        if self._recorded and self._recorded[0][1] == size:
            address, _ = self._recorded.popleft()
            if not any(address < low + held and low < address + size for low, held in self._live.items()):
                self._live[address] = size
                return address
        self._recorded.clear()
        return super().reserve(size)

    def unreserve(self, address: int) -> None:
        """As `DeviceMemory.unreserve`."""
        self._live.pop(address, None)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


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
        rest.state, rest.previous = self.state, self
        above = rest.next = self.next
        if above is not None:
            above.previous = rest
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


UNKNOWN_TOTAL_BYTES = 1 << 40
"""Taken as the device's memory where that is not known: only the length of the address range depends on it."""


def best_fit(free: list[FreeEntry], index: int) -> int:
    """Index of the block to take, counting a block that can grow by what it could grow to (`get_free_block`)."""
    while index + 1 < len(free) and free[index + 1][0] == free[index][0]:
        if _growable_bytes(free[index + 1][4]) >= _growable_bytes(free[index][4]):
            break
        index += 1
    return index


def _growable_bytes(block: Block) -> int:
    above = block.next
    return block.size + (above.size if above is not None and above.state == UNMAPPED else 0)


def grow(allocator: CachingAllocator, pool: Pool, size: int, stream: int) -> Block | None:
    """A free block of at least `size` bytes, not filed, with memory added at the lowest address; None if it ends."""
    block = _find(allocator, pool, size, stream)
    if block.state == UNMAPPED and not _map(allocator, pool, block, min(block.size, size)):
        return None
    while block.size < size:
        above = block.next
        if above is None or not _map(allocator, pool, above, min(size - block.size, above.size)):
            return None
        block = above
    pool.withdraw(block)
    return block


def _find(allocator: CachingAllocator, pool: Pool, size: int, stream: int) -> Block:
    """The lowest run of free and unmapped blocks with room for `size` bytes; a new segment if there is none."""
    for index in range(bisect_left(pool.unmapped, (stream,)), len(pool.unmapped)):
        owner, _, block = pool.unmapped[index]
        if owner != stream:
            break
        if block.previous is not None and block.previous.state in (FREE, UNMAPPED):
            block = block.previous
        if _has_room(block, size):
            return block
    page = SMALL_SEGMENT_BYTES if pool.is_small else allocator.config.large_segment_bytes
    total = allocator.config.device_total_bytes or UNKNOWN_TOTAL_BYTES
    reserve = -(-(total + total // 8) // page) * page
    address, order = allocator.device.reserve(reserve), allocator.next_order()
    segment = Segment(address, reserve, stream, is_small=pool.is_small, order=order, page_bytes=page)
    allocator.segments[segment.address] = segment
    pool.file(segment.head)
    return segment.head


def _has_room(start: Block, size: int) -> bool:
    block: Block | None = start
    room = 0
    while room < size and block is not None and block.state in (FREE, UNMAPPED):
        room += block.size
        block = block.next
    return room >= size


def _map(allocator: CachingAllocator, pool: Pool, block: Block, size: int) -> bool:
    """Give whole pages of memory to the low end of an unmapped block; False, with nothing changed, where it ends."""
    page = block.segment.page_bytes
    mapped = -(-size // page) * page
    before = allocator.device.used_bytes
    if not all(allocator.device.commit(page) for _ in range(mapped // page)):
        allocator.device.uncommit(allocator.device.used_bytes - before)
        return False
    pool.withdraw(block)
    if mapped < block.size:
        pool.file(_cut(allocator, block, mapped))
    block.state = FREE
    pool.merge(block)
    pool.file(block)
    allocator.add_reserved(mapped)
    return True


def _cut(allocator: CachingAllocator, block: Block, size: int) -> Block:
    rest = block.cut(size)
    if allocator.by_block_age:
        rest.order = allocator.next_order()
    return rest


def unmap(allocator: CachingAllocator, pool: Pool, block: Block) -> None:
    """Take the memory of the whole pages inside a free block away; an empty segment goes altogether."""
    segment, page = block.segment, block.segment.page_bytes
    first = -(-(block.address - segment.address) // page) * page + segment.address
    last = (block.address + block.size - segment.address) // page * page + segment.address
    if first < last:
        pool.withdraw(block)
        if first > block.address:
            below, block = block, block.cut(first - block.address)
            if allocator.by_block_age:
                below.order = allocator.next_order()
            pool.file(below)
        if block.address + block.size > last:
            pool.file(_cut(allocator, block, last - block.address))
        block.state = UNMAPPED
        pool.merge(block)
        pool.file(block)
        allocator.device.uncommit(last - first)
        allocator.add_reserved(first - last)
    if not block.is_split and block.state == UNMAPPED:
        pool.withdraw(block)
        allocator.device.unreserve(segment.address)
        del allocator.segments[segment.address]


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

    def __init__(self, config: AllocatorConfig | None = None, device: DeviceMemory | None = None) -> None:
        """Start without segments, on the memory of `config` unless a `device` is given."""
        self.config = config = config or AllocatorConfig()
        self.device = device or DeviceMemory(config.capacity_bytes, config.addresses)
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
        free = pool.free
        if self._plain_search:
            index = bisect_left(free, (stream, rounded))
            block = free.pop(index)[4] if index < len(free) and free[index][0] == stream else None
        else:
            block = self._find(pool, rounded, stream)
        if block is None:
            block = self._grow(pool, size, rounded, stream)
        remaining = block.size - rounded
        if remaining >= MIN_BLOCK_BYTES and (pool.is_small or self._splits(rounded, remaining)):
            rest = block.cut(rounded)
            if self.by_block_age:
                self._orders += 1
                block.order = self._orders
            rest.filed_at = pool.searches
            insort(free, (stream, remaining, rest.order, rest.address, rest))
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
                    unmap(self, pool, block)
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
        below, above = block.previous, block.next
        if below is not None and below.state == FREE:
            del free[bisect_left(free, (stream, below.size, below.order, below.address))]
            block.absorb(below)
        if above is not None and above.state == FREE:
            del free[bisect_left(free, (stream, above.size, above.order, above.address))]
            block.absorb(above)
        block.filed_at = pool.searches
        insort(free, (stream, block.size, block.order, block.address, block))

    def _find(self, pool: Pool, rounded: int, stream: int) -> Block | None:
        """The smallest free block of the stream that is large enough, lowest address first (`get_free_block`)."""
        free = pool.free
        index = bisect_left(free, (stream, rounded))
        if self.config.collects_garbage:
            pool.searches += 1
        if index == len(free) or free[index][0] != stream:
            return None
        if self.config.expandable_segments:
            index = best_fit(free, index)
        size = free[index][1]
        if self._limit is not None:
            oversize = size >= self._limit
            if oversize and (rounded < self._limit or size >= rounded + self.config.max_non_split_rounding_bytes):
                return None
        return free.pop(index)[4]

    def _splits(self, rounded: int, remaining: int) -> bool:
        """Whether what a block of the large pool has left over is split off (`should_split`)."""
        if self.config.expandable_segments:
            return True
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
            return grow(self, pool, rounded, stream)
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
