from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from bench.stats import holm, judge_ratios
from bench.stats.comparison import permutation_p, sign_flip_p

FAST = [103.0, 103.4, 102.8, 103.1, 103.2]
SLOW = [100.0, 100.3, 99.8, 100.1, 99.9]
HINT = "; after adaptive stopping, bench compare --processes N uses the first N of each case"


def judge(one, two, **settings):
    (found,) = judge_ratios([one], [two], **settings)
    return found


def test_the_interval_and_p_value_are_welchs_on_the_logarithms():
    one, two = [100.0, 101.0, 99.0, 100.5], [102.0, 106.0, 103.0, 101.0]
    found = judge(one, two)
    expected = scipy.stats.ttest_ind(np.log(two), np.log(one), equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert found.ratio == pytest.approx(np.exp(np.log(two).mean() - np.log(one).mean()))
    assert found.baseline == pytest.approx(scipy.stats.gmean(one))
    # with 4 processes and one case the permutation test may ask for more, never for less
    assert found.p_value >= expected.pvalue * (1 - 1e-9)


def test_a_rate_and_its_inverse_get_the_same_verdict():
    rate = judge(SLOW, FAST)
    step = judge([1 / value for value in SLOW], [1 / value for value in FAST], higher_is_better=False)
    assert (rate.verdict, step.verdict) == ("faster", "faster")
    assert step.ratio == pytest.approx(1 / rate.ratio)
    assert step.low == pytest.approx(1 / rate.high)


def test_sides_exchanged_exchange_the_verdict():
    assert judge(SLOW, FAST).verdict == "faster"
    assert judge(FAST, SLOW).verdict == "slower"
    assert judge(SLOW, FAST, higher_is_better=False).verdict == "slower"


def test_a_certain_difference_below_the_margin_is_not_called():
    found = judge(SLOW, FAST, margin=0.05)
    assert found.p_value < 0.01
    assert found.verdict == "same"
    assert found.reason == "within the margin of 5 %, by an equivalence test"


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.01005, "faster"), (1.00997, "same"), (1 / 1.01005, "slower"), (1 / 1.00997, "same")]
)
def test_the_margin_is_the_same_in_both_directions(ratio, verdict):
    one = [100.0, 100.0001, 99.9999, 100.0002, 99.9998]
    assert judge(one, [value * ratio for value in one]).verdict == verdict


def test_noise_that_hides_the_margin_is_unclear():
    found = judge([100, 110, 90, 105], [101, 92, 111, 99])
    assert found.verdict == "unclear"
    assert found.reason == "the interval includes 1 and is too wide to show that the ratio is within the margin of 1 %"


@pytest.mark.parametrize(
    ("one", "two", "reason"),
    [
        ([100.0], [200.0], "one process per side shows nothing about variation between processes"),
        ([100.0], [200.0, 201.0], "1 process against 2: unequal numbers give no verdict" + HINT),
        (SLOW, [200.0, 201.0, 202.0], "5 processes against 3: unequal numbers give no verdict" + HINT),
        ([], FAST, "not measured in the baseline"),
        ([], [], "not measured in the baseline and the candidate"),
    ],
)
def test_one_process_and_unequal_numbers_never_give_a_verdict(one, two, reason):
    for values in ((one, two), (two, one)):
        found = judge(*values)
        assert found.verdict == "unclear"
        assert found.p_value is None
    assert judge(one, two).reason == reason


def test_unequal_numbers_keep_their_ratio_and_interval():
    found = judge(SLOW, FAST[:3])
    assert found.low < found.ratio < found.high
    assert judge([100.0], [200.0]).low is None


def test_cases_without_a_verdict_do_not_count_for_the_correction():
    alone = judge(SLOW, FAST).p_adjusted
    with_others = judge_ratios([SLOW, [1.0], SLOW], [FAST, [2.0], FAST[:2]])[0].p_adjusted
    assert with_others == alone


def test_equal_bytes_are_the_same_and_other_bytes_differ_exactly():
    same, within, less, more = judge_ratios(
        [[1000] * 3] * 4, [[1000] * 3, [1009] * 3, [900] * 3, [1011] * 3], higher_is_better=False
    )
    assert [item.verdict for item in (same, within, less, more)] == ["same", "same", "faster", "slower"]
    assert same.reason == "equal in every process"
    assert (less.ratio, less.low, less.high) == (pytest.approx(0.9),) * 3
    assert (less.p_value, same.p_value) == (0.0, 1.0)


def test_holm_steps_down_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_ranks_those_that_will_not_be_called_last_and_counts_them():
    assert holm([0.0, 0.01, 0.02], last=[True, False, False]).tolist() == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.01, 0.02], last=[False, False]).tolist() == holm([0.01, 0.02]).tolist()


def test_certain_differences_within_the_margin_make_no_other_case_easier_to_call():
    one, two = [100.0, 101.4, 99.0, 100.6, 100.2, 99.5], [101.7, 101.4, 100.2, 103.0, 101.6, 100.9]
    steady = [100.0, 100.01, 99.99, 100.02, 99.98, 100.0]
    assert 0.05 > judge(one, two).p_value > 0.05 / 4  # called alone, or with the mildest ranks of four
    found = judge_ratios([one] + [steady] * 3, [two] + [[value * 1.005 for value in steady]] * 3)
    assert [item.verdict for item in found[1:]] == ["same"] * 3
    assert found[0].p_adjusted >= 4 * found[0].p_value * (1 - 1e-9)
    assert found[0].verdict == "unclear"


def test_a_case_that_lacks_one_of_the_processes_asked_for_is_unclear_even_where_both_sides_lack_it():
    short, full = judge_ratios([SLOW[:4], SLOW], [FAST[:4], FAST], processes=5)
    assert (short.verdict, full.verdict) == ("unclear", "faster")
    assert short.reason == "of the first 5 processes, 4 against 4 measured; later ones do not count"


def test_holm_is_what_scipys_bonferroni_is_for_the_smallest():
    values = np.random.default_rng(3).random(20)
    adjusted = holm(values)
    assert adjusted.min() == pytest.approx(min(1.0, values.min() * 20))
    assert (adjusted >= values).all()
    assert (np.diff(adjusted[np.argsort(values)]) >= 0).all()


def test_a_difference_that_one_case_alone_would_show_is_unclear_among_many():
    random = np.random.default_rng(11)
    one = [[100.0, 101.4, 99.0, 100.6, 100.2, 99.4, 100.9, 99.8, 100.1, 100.4]]
    two = [[value * 1.012 for value in reversed(one[0])]]
    assert judge_ratios(one, two)[0].verdict == "faster"
    others = np.exp(random.normal(0, 0.005, (2, 49, 10))).tolist()
    found = judge_ratios(one + others[0], two + others[1])[0]
    assert found.verdict == "unclear"
    assert found.reason == "the interval excludes 1 for this case alone, not after correction for 50 cases"


def test_few_processes_that_agree_by_luck_are_not_believed_among_many_cases():
    random = np.random.default_rng(5)
    modes = 1 + 0.03 * (random.random((2, 40, 3)) < 0.5) + random.normal(0, 1e-5, (2, 40, 3))
    modes[:, 0] = [[1.0, 1.00001, 0.99999], [1.03, 1.03001, 1.02999]]
    found = judge_ratios(modes[0], modes[1])[0]
    assert scipy.stats.ttest_ind(*np.log(modes[:, 0]), equal_var=False).pvalue < 0.05 / 40
    assert found.verdict == "unclear"
    assert found.reason == "3 processes per side are too few to exclude chance among 40 cases: 7 would suffice"


def test_where_there_are_enough_processes_a_permutation_test_must_agree():
    random = np.random.default_rng(6)
    one, two = 1 + random.normal(0, 1e-5, (2, 50, 8))
    two[0, 1:] += 0.03
    assert scipy.stats.ttest_ind(np.log(one[0]), np.log(two[0]), equal_var=False).pvalue < 0.05 / 50
    found = judge_ratios(one, two)[0]
    assert found.verdict == "unclear"
    assert found.p_value == pytest.approx(18 / math.comb(16, 8), rel=0.3)
    assert found.reason == ("the interval excludes 1, but a permutation test does not exclude chance among 50 cases")
    two[0, 0] += 0.03
    assert judge_ratios(one, two)[0].verdict == "faster"


def test_the_permutation_test_counts_every_dealing():
    one, two = np.array([1.0, 2.0, 7.0]), np.array([6.0, 8.0, 9.0])
    values = [*one, *two]
    gap = abs(one.mean() - two.mean())
    dealings = list(itertools.combinations(range(6), 3))
    far = sum(
        abs(np.mean([values[i] for i in left]) - np.mean([values[i] for i in range(6) if i not in left])) >= gap - 1e-12
        for left in dealings
    )
    assert permutation_p(one, two) == pytest.approx(far / len(dealings))
    assert permutation_p(one, two + 100) == pytest.approx(2 / 20)


def test_the_permutation_test_draws_dealings_where_there_are_too_many(monkeypatch):
    random = np.random.default_rng(2)
    one, two = random.normal(0, 1, 8), random.normal(1, 1, 8)
    exact = permutation_p(one, two)
    assert 0.01 < exact < 0.2
    monkeypatch.setattr("bench.stats.comparison.MAX_DEALINGS", 10_000)
    drawn = permutation_p(one, two)
    assert drawn != exact
    assert drawn == pytest.approx(exact, rel=0.15)
    assert drawn == permutation_p(one, two)


@pytest.mark.parametrize("values", [[0.0, 1.0], [-1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_what_has_no_logarithm_is_refused(values):
    with pytest.raises(ValueError, match=r"a ratio takes positive values|finite values only"):
        judge_ratios([values], [[1.0, 2.0]])


def test_both_sides_need_the_same_cases():
    with pytest.raises(ValueError, match="both sides need the same cases"):
        judge_ratios([SLOW], [FAST, FAST])


SIGNS = list(itertools.product((1, -1), repeat=3))
HOSTS = np.array([100.0, 104.0, 97.0, 101.5, 108.0, 95.0, 99.0])  # hosts that differ by much
JITTER = np.array([0.1, -0.2, 0.15, 0.0, -0.1, 0.2, -0.05])


def test_pairs_of_the_same_hosts_are_compared_by_their_differences():
    one, two = HOSTS, HOSTS * 1.03 + JITTER
    found = judge(one, two, paired=[True])
    expected = scipy.stats.ttest_rel(np.log(two), np.log(one))
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert found.p_value == pytest.approx(max(expected.pvalue, sign_flip_p(np.log(two) - np.log(one))))
    assert found.verdict == "faster"
    assert judge(one, two).verdict == "unclear"  # the spread of the hosts hides it


def test_pairs_that_are_alike_on_every_host_are_the_same_however_hosts_differ():
    found = judge(HOSTS, HOSTS, paired=[True], unit="host")
    assert (found.verdict, found.reason) == ("same", "equal in every host")
    exact = judge(HOSTS, HOSTS * 1.5, paired=[True])  # equal to the byte on each host, and half as much again
    assert (exact.verdict, exact.low, exact.high) == ("faster", pytest.approx(1.5), pytest.approx(1.5))


def test_random_signs_count_every_way_and_few_pairs_do_not_exclude_chance():
    differences = np.array([1.0, 2.0, -0.5])
    ways = [abs(sum(sign * each for sign, each in zip(signs, differences, strict=True))) for signs in SIGNS]
    assert sign_flip_p(differences) == np.mean([way >= 2.5 - 1e-9 for way in ways])
    assert sign_flip_p(np.full(20, 0.01)) <= 1e-5  # drawn at random: there are too many to count
    few = judge_ratios([HOSTS[:3]] * 9, [*[HOSTS[:3] * [0.97, 1.04, 1.0]] * 8, HOSTS[:3] * 1.05], paired=[True] * 9)[-1]
    assert few.verdict == "unclear" and "3 processes per side are too few" in few.reason
    assert "10 would suffice" in few.reason  # 2 / 2**10 * 9 is below 2.5 %


def test_unequal_numbers_are_no_pairs():
    with pytest.raises(ValueError, match="paired"):
        judge_ratios([[1.0, 2.0]], [[1.0]], paired=[True])
