"""Settings of torch's CUDA caching allocator, and the sizes that follow from them; free of torch.

Sources, named at each rule: `c10/core/AllocatorConfig.h` and `.cpp` (torch 2.15), `c10/cuda/CUDAAllocatorConfig.h`
and `.cpp`, `c10/cuda/CUDACachingAllocator.cpp`. The defaults are the same in all versions of torch supported here:
rounding to 512 B, no limit on splitting, no power-of-two rounding, no expandable segments, large segments of 20 MiB.
What differs is which of several free blocks of the right size is taken (`tie_rule`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bench.errors import ConfigError

MIB = 1 << 20
MIN_BLOCK_BYTES = 512
SMALL_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
MIN_LARGE_BYTES = 10 * MIB
ROUND_LARGE_BYTES = 2 * MIB
ROUNDUP_INTERVALS = 16

AddressPolicy = Literal["ascending", "descending", "lowest"]
TieRule = Literal["address", "block_age", "segment_age"]


@dataclass(frozen=True, slots=True)
class AllocatorConfig:
    """Settings of the allocator and of the device below it. The defaults are torch's, on a device without limit.

    Attributes:
        max_split_bytes: Blocks of this size and above are neither split nor used for smaller requests; None: no limit.
        max_non_split_rounding_bytes: How much larger than the request a block of that size may be.
        roundup_power2_divisions: Steps between powers of two to which requests are rounded, for sizes from 1 MiB up in
            16 intervals of a factor of two each (the last one open); 0 or 1 for the plain rounding to 512 B.
        expandable_segments: Grow one segment a pool and stream in pages instead of asking for ever more segments.
        large_segment_bytes: Segment size for requests above 1 MiB and below 10 MiB.
        garbage_collection_threshold: Share of the allowed memory above which old cached segments are released before a
            new one is asked for; takes effect only below a memory fraction of 1. 0: never.
        memory_fraction: Share of `device_total_bytes` that segments may take in all
            (`torch.cuda.set_per_process_memory_fraction`); 1: no limit.
        device_total_bytes: All of the device's memory; needed for a fraction below 1 and for the address range of an
            expandable segment.
        capacity_bytes: Memory free for segments when the process starts (total less the context and other processes);
            None: without limit, so that nothing is ever retried or refused.
        ties: Which of several free blocks of the right size is taken: `address` the lowest, `block_age` the one whose
            record was made first, `segment_age` the lowest in the segment that was made first. See `tie_rule`.
        addresses: Order of the addresses that cudaMalloc hands out: `ascending` and `descending` never return to a
            freed one, `lowest` takes the lowest gap. Of no consequence where age breaks ties.
    """

    max_split_bytes: int | None = None
    max_non_split_rounding_bytes: int = 20 * MIB
    roundup_power2_divisions: tuple[int, ...] = ()
    expandable_segments: bool = False
    large_segment_bytes: int = 20 * MIB
    garbage_collection_threshold: float = 0.0
    memory_fraction: float = 1.0
    device_total_bytes: int | None = None
    capacity_bytes: int | None = None
    ties: TieRule = "segment_age"
    addresses: AddressPolicy = "ascending"

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if self.memory_fraction < 1 and self.device_total_bytes is None:
            raise ConfigError(["allocator: a memory fraction below 1 needs device_total_bytes"])
        if self.ties not in ("address", "block_age", "segment_age"):
            raise ConfigError([f'allocator: ties "{self.ties}" is not one of address, block_age, segment_age'])
        if self.addresses not in ("ascending", "descending", "lowest"):
            raise ConfigError([f'allocator: addresses "{self.addresses}" is not one of ascending, descending, lowest'])

    @property
    def allowed_bytes(self) -> int | None:
        """Limit on all segments by the memory fraction (`setMemoryFraction`), or None."""
        if self.memory_fraction >= 1 or self.device_total_bytes is None:
            return None
        return int(self.memory_fraction * self.device_total_bytes)

    @property
    def collects_garbage(self) -> bool:
        """Whether cached segments age and are collected (`DeviceCachingAllocator::malloc`)."""
        return self.allowed_bytes is not None and self.garbage_collection_threshold > 0


def round_request(config: AllocatorConfig, size: int) -> int:
    """Bytes of a block for a request of `size` bytes (`DeviceCachingAllocator::round_size`).

    At least 512, else the next multiple of 512; with divisions, and above 512 times their number, the next of as many
    equal steps between powers of two.
    """
    if size < MIN_BLOCK_BYTES:
        return MIN_BLOCK_BYTES
    if config.roundup_power2_divisions:
        divisions = _divisions_at(config.roundup_power2_divisions, size)
        if divisions > 1 and size > MIN_BLOCK_BYTES * divisions:
            return _next_division(size, divisions)
    return (size + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES


def _divisions_at(divisions: tuple[int, ...], size: int) -> int:
    """The entry for `size`: the first below 2 MiB, then one a power of two (`roundup_power2_divisions(size)`)."""
    index = max(size.bit_length() - SMALL_BYTES.bit_length(), 0)
    return divisions[min(index, ROUNDUP_INTERVALS - 1)]


def _next_division(size: int, divisions: int) -> int:
    """`size` rounded up to the next division of its power of two (`roundup_power2_next_division`)."""
    floor = 1 << (size.bit_length() - 1)
    if floor == size:
        return size
    step = floor >> (divisions.bit_length() - 1)
    return -(-size // step) * step if step else 2 * floor


def segment_bytes(config: AllocatorConfig, rounded: int) -> int:
    """Bytes of a new segment for a block of `rounded` bytes (`DeviceCachingAllocator::get_allocation_size`)."""
    if rounded <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if rounded < MIN_LARGE_BYTES:
        return config.large_segment_bytes
    return -(-rounded // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


def tie_rule(torch_version: str) -> TieRule:
    """How a version of torch chooses between free blocks of the right size, as its allocator was seen to do.

    Up to 2.11 the lowest address goes first (seen on 2.6.0 and 2.11.0). 2.12 gave every block record a counter (seen on
    2.12.0; pytorch pull request 178362), and from 2.13 on every segment has one that its blocks inherit (seen on 2.13.0
    and 2.15.0; pull request 183591), so that the addresses that cudaMalloc returns no longer matter.

    Raises:
        ValueError: The text does not begin with a version.
    """
    match = re.match(r"(\d+)\.(\d+)", torch_version)
    if match is None:
        raise ValueError(f'"{torch_version}" is not a version of torch')
    version = int(match[1]), int(match[2])
    if version <= (2, 11):
        return "address"
    return "block_age" if version == (2, 12) else "segment_age"
