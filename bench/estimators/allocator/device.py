"""Device memory as the allocator sees it: how much is left, and at which address a new piece lies; free of torch.

Stands for cudaMalloc, cudaFree and the virtual memory calls (cuMemAddressReserve, cuMemCreate, cuMemRelease).
"""

from __future__ import annotations

from bisect import bisect_left, insort

from bench.estimators.allocator.config import AddressPolicy

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


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES
