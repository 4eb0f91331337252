"""Each rule of the caching allocator on its own; sizes in bytes."""

from __future__ import annotations

import pytest

from bench.errors import ConfigError
from bench.estimators.allocator import (
    Alloc,
    AllocatorConfig,
    Complete,
    EmptyCache,
    Event,
    Free,
    Mark,
    ReplayError,
    events_from_history,
    parse_allocator_config,
    replay,
    rounds_fraction,
    segments_of_history,
    tie_rule,
)
from bench.estimators.allocator.caching import LOWEST_ADDRESS
from bench.estimators.allocator.replay import ALLOC, FREE_REQUESTED, SEGMENT_ALLOC
from bench.estimators.allocator.settings import round_request

MIB = 1 << 20


def sizes(*requests: int) -> list[Event]:
    return [Alloc(number, size) for number, size in enumerate(requests)]


def test_zero_bytes_allocate_nothing():
    result = replay([Alloc(1, 0), Free(1)])
    assert (result.final.peak_allocated, result.final.peak_reserved, result.peak_event_index) == (0, 0, None)


@pytest.mark.parametrize(("request_bytes", "block"), [(1, 512), (512, 512), (513, 1024), (MIB - 1, MIB)])
def test_requests_round_up_to_multiples_of_512(request_bytes: int, block: int):
    final = replay(sizes(request_bytes)).final
    assert (final.requested, final.allocated) == (request_bytes, block)


@pytest.mark.parametrize(
    ("request_bytes", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (33 * MIB, 34 * MIB),
    ],
)
def test_segment_size_follows_from_the_rounded_request(request_bytes: int, segment: int):
    assert replay(sizes(request_bytes)).final.reserved == segment


def test_small_and_large_requests_never_share_a_segment():
    result = replay(sizes(MIB, MIB + 512))
    assert [(view.is_small, view.size) for view in result.segments] == [(True, 2 * MIB), (False, 20 * MIB)]


def test_freed_block_is_reused():
    result = replay([Alloc(1, 3 * MIB), Free(1), Alloc(2, 3 * MIB)])
    assert result.final.reserved == 20 * MIB


def test_smallest_block_that_fits_is_taken():
    holes = [*sizes(40 * MIB, 30 * MIB, 50 * MIB), Free(0), Free(1), Free(2)]
    result = replay([*holes, Alloc(9, 29 * MIB)])
    assert [view.allocated for view in result.segments] == [0, 30 * MIB, 0]


def test_large_remainder_up_to_one_mib_is_not_split_off_and_counts_as_allocated():
    final = replay([Alloc(1, 12 * MIB), Free(1), Alloc(2, 11 * MIB)]).final
    assert (final.requested, final.allocated) == (11 * MIB, 12 * MIB)


def test_large_remainder_above_one_mib_is_split_off():
    final = replay([Alloc(1, 12 * MIB), Free(1), Alloc(2, 11 * MIB - 512)]).final
    assert final.allocated == 11 * MIB - 512


def test_small_remainder_of_512_is_split_off():
    result = replay([Alloc(1, 1024), Free(1), Alloc(2, 512)])
    assert result.segments[0].blocks == ((0, 512, True), (512, 2 * MIB - 512, False))


def test_low_part_of_a_block_is_handed_out():
    assert replay(sizes(3 * MIB)).segments[0].blocks == ((0, 3 * MIB, True), (3 * MIB, 17 * MIB, False))


def test_freed_block_merges_with_both_neighbours():
    events = [*sizes(512, 512, 512), Free(0), Free(2), Free(1)]
    assert replay(events).segments[0].blocks == ((0, 2 * MIB, False),)


def test_segments_stay_when_everything_is_freed():
    final = replay([*sizes(512, 3 * MIB), Free(0), Free(1)]).final
    assert (final.allocated, final.reserved) == (0, 22 * MIB)


def test_empty_cache_returns_segments_without_a_block_in_use():
    final = replay([*sizes(512, 3 * MIB), Free(1), EmptyCache()]).final
    assert final.reserved == 2 * MIB


def test_streams_do_not_share_blocks():
    final = replay([Alloc(1, 3 * MIB), Free(1), Alloc(2, 3 * MIB, stream=1)]).final
    assert final.reserved == 40 * MIB


def test_block_that_another_stream_uses_stays_active_until_complete():
    waiting = replay([Alloc(1, 512), Free(1, pending=True)]).final
    done = replay([Alloc(1, 512), Free(1, pending=True), Complete(1)]).final
    assert (waiting.allocated, waiting.active, done.active) == (0, 512, 0)


def equal_holes(config: AllocatorConfig) -> list[int]:
    """Allocated bytes by address after one of two free blocks of equal size is taken; the later segment lies lower."""
    events = [*sizes(40 * MIB, 40 * MIB), Free(0), Free(1), Alloc(9, 40 * MIB)]
    return [view.allocated for view in replay(events, config).segments]


def test_ties_by_address_go_to_the_lowest():
    assert equal_holes(AllocatorConfig(addresses="descending", ties="address")) == [40 * MIB, 0]


@pytest.mark.parametrize("ties", ["segment_age", "block_age"])
def test_ties_by_age_go_to_the_oldest(ties):
    assert equal_holes(AllocatorConfig(addresses="descending", ties=ties)) == [0, 40 * MIB]


def test_block_age_is_that_of_the_record_not_of_the_address():
    """Of two holes, the upper one is older: the lower one was cut anew, which gave it a later record."""
    cut_anew = [Free(0), Free(1), Alloc(10, 512), Alloc(11, 512)]
    events = [*sizes(512, 512, 512, 512, 512), *cut_anew, Free(3), Free(10), Alloc(9, 512)]

    def used(ties):
        return [in_use for _, _, in_use in replay(events, AllocatorConfig(ties=ties)).segments[0].blocks]

    assert used("segment_age") == [True, True, True, False, True, False]
    assert used("block_age") == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("version", "rule"),
    [("2.6.0+cu124", "address"), ("2.11.0", "address"), ("2.12.1", "block_age"), ("2.15.0+cu132", "segment_age")],
)
def test_tie_rule_follows_the_version(version: str, rule: str):
    assert tie_rule(version) == rule


def test_lowest_address_policy_reuses_a_gap():
    events = [*sizes(40 * MIB, 30 * MIB), Free(0), EmptyCache(), Alloc(9, 20 * MIB)]
    kept = replay(events, AllocatorConfig(addresses="lowest")).segments
    grown = replay(events, AllocatorConfig(addresses="ascending")).segments
    assert [view.size for view in kept] == [20 * MIB, 30 * MIB]
    assert [view.size for view in grown] == [30 * MIB, 20 * MIB]


def test_oversize_block_is_not_used_for_a_smaller_request():
    config = parse_allocator_config("max_split_size_mb:32")
    final = replay([Alloc(1, 64 * MIB), Free(1), Alloc(2, 16 * MIB)], config).final
    assert final.reserved == 80 * MIB


def test_oversize_block_serves_a_request_within_the_rounding_limit_whole():
    config = parse_allocator_config("max_split_size_mb:32")
    near = replay([Alloc(1, 64 * MIB), Free(1), Alloc(2, 50 * MIB)], config).final
    far = replay([Alloc(1, 64 * MIB), Free(1), Alloc(2, 44 * MIB)], config).final
    assert (near.allocated, near.reserved, far.reserved) == (64 * MIB, 64 * MIB, 108 * MIB)


def test_roundup_divides_the_space_between_powers_of_two():
    config = parse_allocator_config("roundup_power2_divisions:4")
    assert round_request(config, 1200 * 1024) == 1280 * 1024
    assert round_request(config, 1024 * 1024) == 1024 * 1024
    assert round_request(config, 2048) == 2048, "512 times the divisions and below: the plain rounding"


def test_roundup_intervals_begin_at_the_named_size():
    config = parse_allocator_config("roundup_power2_divisions:[2:2,4:1,8:4,>:0]")
    assert config.roundup_power2_divisions == (2, 2, 1, 4) + (0,) * 12
    overwritten = parse_allocator_config("roundup_power2_divisions:[2:2,4:1,8:4,>:0]", rest_overwrites=True)
    assert overwritten.roundup_power2_divisions == (2, 2, 1, 0) + (0,) * 12


def test_expandable_segment_grows_by_pages():
    config = parse_allocator_config("expandable_segments:True")
    final = replay(sizes(512, 3 * MIB, 30 * MIB, 8 * MIB), config)
    assert (final.final.reserved, len(final.segments)) == (2 * MIB + 60 * MIB, 2)


def test_expandable_remainder_of_512_is_split_off_large_blocks_too():
    config = parse_allocator_config("expandable_segments:True")
    assert replay([Alloc(1, 20 * MIB - 512)], config).final.allocated == 20 * MIB - 512


def test_expandable_pages_without_a_block_go_back():
    config = parse_allocator_config("expandable_segments:True")
    events = [*sizes(30 * MIB, 30 * MIB, 30 * MIB), Free(1), EmptyCache()]
    assert replay(events, config).final.reserved == 80 * MIB, "the free 30 MiB hold one whole page of 20 MiB"


def test_cached_segments_are_released_when_memory_runs_out():
    config = AllocatorConfig(capacity_bytes=60 * MIB)
    final = replay([Alloc(1, 40 * MIB), Free(1), Alloc(2, 50 * MIB)], config).final
    assert (final.reserved, final.num_alloc_retries, final.num_ooms) == (50 * MIB, 1, 0)


def test_split_segments_are_not_released():
    config = AllocatorConfig(capacity_bytes=60 * MIB)
    result = replay([Alloc(1, 3 * MIB), Alloc(2, 50 * MIB)], config)
    assert result.out_of_memory is not None
    assert (result.out_of_memory.event_index, result.out_of_memory.segment_bytes) == (1, 50 * MIB)
    assert (result.final.reserved, result.final.num_alloc_retries, result.final.num_ooms) == (20 * MIB, 1, 1)


def test_replay_ends_where_memory_does():
    result = replay([*sizes(40 * MIB, 40 * MIB), Mark("never reached")], AllocatorConfig(capacity_bytes=60 * MIB))
    assert result.out_of_memory is not None and result.marks == ()


def test_oversize_cached_blocks_go_before_all_others():
    config = parse_allocator_config("max_split_size_mb:32", AllocatorConfig(capacity_bytes=150 * MIB))
    events = [*sizes(90 * MIB, 30 * MIB), Free(0), Free(1), Alloc(9, 60 * MIB)]
    final = replay(events, config).final
    assert (final.reserved, final.num_alloc_retries) == (90 * MIB, 0)


@pytest.mark.parametrize(("version", "allowed"), [("2.12.1", 54 * MIB - 1), ("2.13.0", 54 * MIB)])
def test_a_share_is_cut_off_to_whole_bytes_or_rounded_as_torch_does(version: str, allowed: int):
    total = 3000 * MIB  # 54 MiB / 3000 MiB, as a double, is a little too small
    rounds = rounds_fraction(version)
    config = AllocatorConfig(memory_fraction=54 * MIB / total, rounds_fraction=rounds, device_total_bytes=total)
    assert config.allowed_bytes == allowed


def test_memory_fraction_limits_segments():
    config = AllocatorConfig(memory_fraction=0.5, device_total_bytes=100 * MIB)
    assert replay(sizes(40 * MIB, 20 * MIB), config).out_of_memory is not None


def test_garbage_collection_releases_old_segments_first():
    config = AllocatorConfig(memory_fraction=0.9, device_total_bytes=200 * MIB, garbage_collection_threshold=0.3)
    reuse = [event for n in (1, 2, 3) for event in (Free(n), Alloc(n + 1, 30 * MIB))]
    events = [*sizes(40 * MIB, 30 * MIB), Free(0), *reuse, Free(4), Alloc(9, 50 * MIB)]
    assert [view.size for view in replay(events, config).segments] == [30 * MIB, 50 * MIB]


def test_categories_at_the_peak_sum_up_to_it():
    events = [
        Alloc(1, 1000, category="parameters"),
        Alloc(2, 5 * MIB, category="activations"),
        Alloc(3, 100),
        Free(2),
        Alloc(4, 2 * MIB, category="gradients"),
    ]
    result = replay(events)
    assert result.peak_event_index == 2
    shares = [
        (share.category, share.count, share.requested_bytes, share.allocated_bytes) for share in result.categories
    ]
    assert shares == [("activations", 1, 5 * MIB, 5 * MIB), ("parameters", 1, 1000, 1024), ("other", 1, 100, 512)]
    assert sum(share.allocated_bytes for share in result.categories) == result.peak_allocated_bytes
    assert result.reserved_at_peak == 22 * MIB


def test_marks_note_figures_and_may_reset_peaks():
    events = [Alloc(1, 1024), Free(1), Mark("first", reset_peaks=True), Alloc(2, 512), Mark("second")]
    result = replay(events)
    noted = [(mark.label, mark.allocated, mark.peak_allocated) for mark in result.marks]
    assert noted == [("first", 0, 1024), ("second", 512, 512)]
    assert result.final.peak_allocated == 1024


def test_free_of_what_is_not_live_is_refused():
    with pytest.raises(ReplayError, match=r"^event 1: id 7 is freed while it is not live$"):
        replay([Alloc(1, 1), Free(7)])


def test_second_allocation_under_a_live_id_is_refused():
    with pytest.raises(ReplayError, match=r"^event 1: id 1 is allocated while it is live$"):
        replay([Alloc(1, 1), Alloc(1, 1)])


def test_history_becomes_events():
    actions = [3, 0, 0, 1, 2, 1, 5, 2, 9]
    addresses = [0, 0, 1, 0, 0, 1, 0, 1, 0]
    figures = [2 * MIB, 512, 100, 512, 512, 100, 1, 100, 0]
    assert events_from_history(actions, addresses, figures) == [
        Alloc(0, 512),
        Alloc(1, 100),
        Free(0),
        Free(1, pending=True),
        Mark("1"),
        Complete(1),
    ]


def test_segments_lie_where_a_history_has_them_which_decides_ties():
    """Two cached blocks of one size with neighbours of different sizes: the lower address is taken."""
    actions, sizes = [SEGMENT_ALLOC, ALLOC, SEGMENT_ALLOC, ALLOC, FREE_REQUESTED], [20 * MIB, 2 * MIB, 4096, 9, 0]
    assert segments_of_history(actions, [50, 50, 40, 40, 50], sizes, 512) == [(5120, 20 * MIB), (0, 4096)]
    assert segments_of_history([SEGMENT_ALLOC], [1 << 60], [9], 512) == [(0, 9)]
    assert segments_of_history([SEGMENT_ALLOC] * 2, [0, 1 << 60], [9, 9], 512) == [(0, 9)]
    config = AllocatorConfig(ties="address")
    equal = [Alloc(1, 30 * MIB), Alloc(2, 30 * MIB), Free(1), Free(2), Alloc(3, 30 * MIB)]

    def taken(*segments: tuple[int, int]) -> int:
        (used,) = [view.address for view in replay(equal, config, segments).segments if view.allocated]
        return used

    assert taken((64 * MIB, 30 * MIB), (0, 30 * MIB)) == 0
    assert taken((0, 30 * MIB), (64 * MIB, 30 * MIB)) == 0
    assert taken((64 * MIB, 30 * MIB), (96 * MIB, 30 * MIB)) == 64 * MIB
    for broken in [((0, 30 * MIB), (2 * MIB, 30 * MIB)), ((0, 30 * MIB), (64 * MIB, 2 * MIB)), ((0, 30 * MIB),)]:
        addresses = [view.address for view in replay(equal, config, broken).segments]
        assert addresses[0] == 0 and addresses[1] >= LOWEST_ADDRESS, "what does not fit ends the recording"


def test_history_that_begins_too_late_is_refused():
    with pytest.raises(ReplayError, match=r"^history entry 0: a free of address 4, where nothing is allocated$"):
        events_from_history([1, 2], [4, 4], [512, 512])


def test_settings_are_read():
    config = parse_allocator_config(
        " max_split_size_mb:128, garbage_collection_threshold : 0.8,pinned_use_background_threads:True,"
        "expandable_segments:False"
    )
    assert config == AllocatorConfig(max_split_bytes=128 * MIB, garbage_collection_threshold=0.8)


def test_large_segment_size_is_read_before_what_depends_on_it():
    config = parse_allocator_config("max_split_size_mb:64,large_segment_size_mb:48")
    assert (config.max_split_bytes, config.large_segment_bytes) == (64 * MIB, 48 * MIB)
    assert config.max_non_split_rounding_bytes == 48 * MIB


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_split_size_mb:10", "must be at least 20, the size of a large segment"),
        ("large_segment_size_mb:10", "must be above 10"),
        ("expandable_segments:true", "must be True or False. Nearest: expandable_segments:True"),
        ("garbage_collection_threshold:1.0", "must be between 0 and 1, both excluded"),
        ("roundup_power2_divisions:3", "must be a power of two"),
        ("roundup_power2_divisions:[3:1]", '"3:1": an interval must begin at a power of two in MiB'),
        ("roundup_power2_divisions:[4:3]", '"4:3": divisions must be a power of two, or 0 for none'),
        ("roundup_power2_divisions:[4:2", "the list has no closing bracket"),
        ("backend:cudaMallocAsync", "only the native backend can be simulated"),
        ("max_split_size_mb:some", '"some" is not a whole number'),
    ],
)
def test_wrong_values_are_refused_with_the_reason(text: str, reason: str):
    with pytest.raises(ConfigError) as caught:
        parse_allocator_config(text)
    assert str(caught.value) == f"allocator settings: {text}: {reason}"


def test_text_that_is_no_option_is_refused():
    with pytest.raises(ConfigError) as caught:
        parse_allocator_config("max_split_size_mb")
    expected = 'allocator settings: "max_split_size_mb" is not an option; write key:value, separated by commas'
    assert str(caught.value) == expected


def test_every_fault_of_the_settings_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_allocator_config("max_split_size_mb:1,max_split_size:64,expandable_segments:yes")
    assert len(caught.value.faults) == 3
    assert 'unknown option "max_split_size". Nearest: max_split_size_mb' in str(caught.value)


def test_fraction_without_a_total_is_refused():
    with pytest.raises(ConfigError, match="needs device_total_bytes"):
        AllocatorConfig(memory_fraction=0.5)
