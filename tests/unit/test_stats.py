from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from bench.stats import geometric_interval, host_means, mean_interval, percentiles, relative_error, summarise_errors


def test_mean_interval_is_students_t():
    values = [10.0, 11.0, 12.5, 9.5]
    found = mean_interval(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (found.middle, found.n) == (10.75, 4)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_geometric_interval_of_a_rate_and_of_its_inverse_are_inverses():
    rates = [900.0, 1000.0, 1100.0]
    rate, step = geometric_interval(rates), geometric_interval([1 / value for value in rates])
    assert rate.middle == pytest.approx((900 * 1000 * 1100) ** (1 / 3))
    assert rate.low == pytest.approx(1 / step.high)
    assert rate.high == pytest.approx(1 / step.low)


def test_geometric_interval_never_reaches_below_zero():
    found = geometric_interval([1.0, 1000.0])
    assert 0 < found.low < found.middle < found.high


def test_a_single_process_has_no_interval_and_is_screening():
    for interval in (mean_interval([3.0]), geometric_interval([3.0])):
        assert (interval.middle, interval.low, interval.high, interval.n) == (3.0, None, None, 1)
        assert interval.label == "screening"
        assert interval.half_width_frac is None
    assert geometric_interval([3.0, 3.1]).label == ""


def test_half_width_is_a_fraction_of_the_middle():
    found = mean_interval([99.0, 100.0, 101.0])
    assert found.half_width_frac == pytest.approx((found.high - found.low) / 2 / 100)


def test_a_wider_confidence_gives_a_wider_interval():
    values = [1.0, 2.0, 3.0]
    assert mean_interval(values, 0.99).high > mean_interval(values, 0.95).high


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_unknown_values_are_refused_rather_than_averaged(values):
    for function in (mean_interval, geometric_interval, percentiles):
        with pytest.raises(ValueError, match=r"needs at least one value|finite values only"):
            function(values)


def test_geometric_interval_refuses_what_has_no_logarithm():
    with pytest.raises(ValueError, match="takes positive values"):
        geometric_interval([1.0, 0.0])


def test_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(2000):
        interval = geometric_interval(np.exp(random.normal(math.log(500), 0.02, size=3)))
        covered += interval.low <= 500 <= interval.high
    assert 0.93 <= covered / 2000 <= 0.97


def test_percentiles_describe_raw_values():
    found = percentiles(np.arange(101.0))
    assert (found.p10, found.median, found.p90, found.p99, found.n) == (10.0, 50.0, 90.0, 99.0, 101)


def test_errors_are_summarised_with_their_sign_and_size():
    found = summarise_errors([-0.5, 0.0, 0.1, 0.1])
    assert found.median_abs == pytest.approx(0.1)
    assert found.p90_abs == pytest.approx(0.38)
    assert found.worst == -0.5
    assert found.bias == pytest.approx(-0.075)
    assert (found.share_exact, found.n) == (0.25, 4)


def test_no_errors_are_not_zero_errors():
    assert summarise_errors([]) is None


def test_relative_error_is_signed_and_unknown_without_a_measurement():
    assert relative_error(80, 100) == pytest.approx(-0.2)
    assert math.isnan(relative_error(80, 0))
    assert math.isnan(relative_error(80, math.nan))


def test_each_host_counts_once_however_many_processes_it_had():
    assert host_means([1.0, 4.0, 3.0], "aab") == [pytest.approx(2.0), 3.0]
    assert host_means([5.0, 7.0, 5.0], "aba") == [5.0, 7.0]  # equal bytes stay equal bytes
    assert host_means([1.0, 4.0], "aa") == [1.0, 4.0]  # one host says nothing of others: its processes count
