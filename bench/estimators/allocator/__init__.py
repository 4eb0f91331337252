"""A replay of torch's CUDA caching allocator, exact to the byte, in pure Python and without torch.

    result = replay([Alloc(1, 1000, category="batch"), Alloc(2, 3 << 20), Free(1)], AllocatorConfig())
    result.peak_allocated_bytes, result.peak_reserved_bytes, result.categories

Rules and where they come from (`c10/cuda/CUDACachingAllocator.cpp` unless said; each function names its counterpart):

1. Zero bytes allocate nothing; requests round up to multiples of 512 B, at least 512 (`round_size`).
2. Rounded sizes up to 1 MiB are served by the small pool, larger ones by the large pool (`get_pool`).
3. New segments: 2 MiB in the small pool; in the large pool 20 MiB below 10 MiB, else the next multiple of 2 MiB
   (`get_allocation_size`, `c10/core/AllocatorConfig.h`).
4. Best fit by stream and size (`get_free_block`); between equals by address up to torch 2.11, by age since then
   (`tie_rule`).
5. A rest of 512 B or more is split off in the small pool, of more than 1 MiB in the large pool (`should_split`); the
   low part is handed out (`alloc_found_block`).
6. `allocated` counts the block handed out, `requested` what was requested, `reserved` the segments.
7. A freed block merges with its free neighbours at once (`free_block`, `try_merge_blocks`).
8. No segment goes back before memory runs out: then oversize blocks, then all unsplit ones, then a last try (`malloc`).
9. Expandable segments grow in pages at the lowest address (`find_expandable_block`, `map_block`).

Left out: private pools (CUDA graphs, user pools), other backends, peers.
"""

from bench.estimators.allocator.caching import CachingAllocator, OutOfMemoryError
from bench.estimators.allocator.replay import (
    Alloc,
    CategoryShare,
    Complete,
    EmptyCache,
    Event,
    Free,
    Mark,
    OutOfMemory,
    Reading,
    ReplayError,
    ReplayResult,
    SegmentView,
    events_from_history,
    replay,
    replay_onward,
    segments_of_history,
)
from bench.estimators.allocator.settings import AllocatorConfig, parse_allocator_config, rounds_fraction, tie_rule

__all__ = [
    "Alloc",
    "AllocatorConfig",
    "CachingAllocator",
    "CategoryShare",
    "Complete",
    "EmptyCache",
    "Event",
    "Free",
    "Mark",
    "OutOfMemory",
    "OutOfMemoryError",
    "Reading",
    "ReplayError",
    "ReplayResult",
    "SegmentView",
    "events_from_history",
    "parse_allocator_config",
    "replay",
    "replay_onward",
    "rounds_fraction",
    "segments_of_history",
    "tie_rule",
]
