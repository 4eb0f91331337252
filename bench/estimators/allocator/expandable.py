"""Expandable segments: a range of addresses that gets memory page by page; free of torch.

Source: `ExpandableSegment`, `find_expandable_block`, `try_allocate_expandable_block`, `map_block` and `unmap_block` in
`c10/cuda/CUDACachingAllocator.cpp`. Pages are 2 MiB in the small pool and as large as a large segment (20 MiB) else.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from bench.estimators.allocator.blocks import FREE, UNMAPPED, Block, FreeEntry, Pool, Segment
from bench.estimators.allocator.config import SMALL_SEGMENT_BYTES

if TYPE_CHECKING:
    from bench.estimators.allocator.caching import CachingAllocator

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
