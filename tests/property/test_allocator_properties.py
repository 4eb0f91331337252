"""What holds for the caching allocator whatever the stream of requests."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.estimators.allocator import Alloc, AllocatorConfig, Event, Free, replay
from bench.estimators.allocator.caching import FREE, CachingAllocator, OutOfMemoryError

MIB = 1 << 20
request_bytes = st.one_of(st.integers(1, 4096), st.integers(1, 3 * MIB), st.integers(1, 64 * MIB))
configs = st.builds(
    AllocatorConfig,
    max_split_bytes=st.sampled_from([None, 32 * MIB]),
    roundup_power2_divisions=st.sampled_from([(), (4,) * 16]),
    expandable_segments=st.booleans(),
    ties=st.sampled_from(["address", "block_age", "segment_age"]),
    addresses=st.sampled_from(["ascending", "descending", "lowest"]),
    capacity_bytes=st.sampled_from([None, 96 * MIB]),
)


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    live: list[int] = []
    for name in range(draw(st.integers(1, 60))):
        if live and draw(st.booleans()):
            events.append(Free(live.pop(draw(st.integers(0, len(live) - 1)))))
        else:
            events.append(Alloc(name, draw(request_bytes), category=draw(st.sampled_from([None, "a", "b"]))))
            live.append(name)
    return events


@settings(max_examples=150, deadline=None)
@given(streams(), configs)
def test_blocks_tile_their_segments_and_the_figures_are_their_sums(events: list[Event], config: AllocatorConfig):
    result = replay(events, config)
    used = 0
    for view in result.segments:
        end = None
        for offset, size, in_use in view.blocks:
            assert size > 0
            assert end is None or offset >= end
            assert view.is_expandable or end is None or offset == end
            end, used = offset + size, used + size * in_use
    assert used == result.final.allocated == result.final.active
    assert sum(view.size for view in result.segments) == result.final.reserved
    assert result.final.requested <= result.final.allocated <= result.final.reserved


@settings(max_examples=150, deadline=None)
@given(streams(), configs)
def test_neighbours_are_never_both_free(events: list[Event], config: AllocatorConfig):
    for view in replay(events, config).segments:
        for (low, low_size, low_used), (high, _, high_used) in zip(view.blocks, view.blocks[1:], strict=False):
            assert low_used or high_used or low + low_size < high


@settings(max_examples=100, deadline=None)
@given(streams(), configs)
def test_freeing_everything_and_emptying_the_cache_leaves_nothing(events: list[Event], config: AllocatorConfig):
    allocator, live = CachingAllocator(config), {}
    for event in events:
        if isinstance(event, Alloc):
            try:
                live[event.id] = allocator.allocate(event.size)
            except OutOfMemoryError:
                continue
        elif isinstance(event, Free) and event.id in live:
            allocator.free(live.pop(event.id))
    for block in live.values():
        allocator.free(block)
    assert all(block.state == FREE for *_, block in allocator.small.free + allocator.large.free)
    allocator.empty_cache()
    figures = (
        allocator.requested,
        allocator.allocated,
        allocator.active,
        allocator.reserved,
        allocator.device.used_bytes,
    )
    assert figures == (0, 0, 0, 0, 0)
    assert not allocator.segments and not allocator.small.free and not allocator.large.unmapped


@settings(max_examples=100, deadline=None)
@given(streams(), configs)
def test_replay_is_reproducible(events: list[Event], config: AllocatorConfig):
    assert replay(events, config) == replay(iter(events), config)


@settings(max_examples=100, deadline=None)
@given(streams(), configs)
def test_shares_sum_up_to_the_peak(events: list[Event], config: AllocatorConfig):
    result = replay(events, config)
    assert sum(share.allocated_bytes for share in result.categories) == result.peak_allocated_bytes
    assert all(share.requested_bytes <= share.allocated_bytes for share in result.categories)
    assert result.peak_requested_bytes <= result.peak_allocated_bytes <= result.peak_reserved_bytes


@settings(max_examples=100, deadline=None)
@given(streams())
def test_more_memory_than_was_reserved_changes_nothing(events: list[Event]):
    free = replay(events)
    limited = replay(events, AllocatorConfig(capacity_bytes=free.peak_reserved_bytes))
    assert limited == free
