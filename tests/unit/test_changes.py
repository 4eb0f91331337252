"""Changes of level in series with a known truth."""

from __future__ import annotations

import numpy as np
import pytest

from bench.stats import LEAST_RESULTS, find_changes, judge_ratios


def series(levels, processes: int = 5, noise: float = 0.003, seed: int = 1) -> list[list[float]]:
    drawn = np.random.default_rng(seed).normal(0, noise, (len(levels), processes))
    return (np.array(levels, dtype=float)[:, None] * np.exp(drawn)).tolist()


def places(levels, **settings) -> list[int]:
    return [change.place for change in find_changes([series(levels)], **settings)[0]]


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ([100] * 10, []),
        ([100] * 5 + [95] * 5, [5]),
        ([100] * 9 + [95], [9]),
        ([95] + [100] * 8, [1]),
        ([100] * 4 + [95] * 3 + [100] * 3, [4, 7]),
        ([100] * 4 + [96] * 4 + [92] * 4, [4, 8]),
        ([100] * 6 + [95] * 5 + [105] * 6 + [99] * 6, [6, 11, 17]),
    ],
    ids=["none", "lasting", "newest", "first", "returned", "stairs", "three"],
)
def test_changes_are_found_where_they_are(levels, found):
    assert places(levels) == found


def test_one_result_apart_between_others_is_an_outlier_and_no_change():
    assert places([100] * 5 + [95] + [100] * 5) == []


def test_a_change_has_the_levels_of_its_sides_and_an_interval_that_holds_its_ratio():
    (change,) = find_changes([series([100] * 6 + [90] * 6)])[0]
    assert change.before == pytest.approx(100, rel=0.003)
    assert change.after == pytest.approx(90, rel=0.003)
    assert change.ratio == pytest.approx(change.after / change.before)
    assert change.low < 0.9 < change.high
    assert change.high - change.low < 0.02
    assert change.p_adjusted < 0.001


def test_the_noise_between_results_counts_and_not_only_that_between_processes():
    days = np.exp(np.random.default_rng(3).normal(0, 0.03, 12))
    assert places(100 * days) == []
    assert places([100] * 6 + [97] * 6) == [6]  # the same size, where days agree


def test_the_noise_between_processes_counts_where_results_agree_by_luck():
    agree = [[level * factor for factor in (0.9, 1.0, 1.1)] for level in (100, 100, 100, 100, 100, 98)]
    assert find_changes([agree]) == [[]]


def test_memory_that_repeats_to_the_byte_changes_by_any_amount_beyond_the_margin():
    def repeated(*sizes: int) -> list[list[float]]:
        return [[float(size)] * 3 for size in sizes]

    same, small, large = repeated(*[10_000] * 6), repeated(*[10_000] * 5, 10_001), repeated(*[10_000] * 5, 10_200)
    found = find_changes([same, small, large])
    assert [[change.place for change in case] for case in found] == [[], [], [5]]
    assert found[2][0].ratio == pytest.approx(1.02)


def test_changes_below_the_margin_do_not_count():
    assert places([100] * 8 + [98] * 8) == [8]
    assert places([100] * 8 + [98] * 8, margin=0.05) == []


def test_a_change_needs_more_evidence_among_more_cases():
    one = series([100] * 5 + [98.5], noise=0.005)
    others = [series([100] * 6, seed=number) for number in range(2, 300)]
    assert [change.place for change in find_changes([one])[0]] == [5]
    assert find_changes([one, *others])[0] == []


def test_few_results_have_no_changes_unless_they_were_interleaved():
    levels = [100] * (LEAST_RESULTS - 2) + [80]
    assert places(levels) == []
    assert places(levels, interleaved=[True]) == [LEAST_RESULTS - 2]


def test_interleaved_results_are_compared_as_two_sides_are():
    one, two, three = series([100, 95, 95.1])
    (found,) = find_changes([[one, two, three]], interleaved=[True])
    first, _ = judge_ratios([one, two], [two, three])
    assert [change.place for change in found] == [1]
    assert (found[0].ratio, found[0].low, found[0].high) == (first.ratio, first.low, first.high)
    assert found[0].p_adjusted == pytest.approx(first.p_adjusted)


def test_results_of_one_process_are_refused():
    with pytest.raises(ValueError, match="two processes"):
        find_changes([[[1.0], [1.0, 2.0]]])


def test_no_cases_have_no_changes():
    assert find_changes([]) == []
