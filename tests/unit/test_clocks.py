"""When the readings of a clock count, and what is said of a difference in seconds and in cycles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.comparison.clocks import CLOCK_COLUMNS, NO_CLOCK, Clocks, explain, read_clocks, why_no_cycles
from bench.stats import judge_ratios
from tests.each import each

READ: dict[str, Any] = {
    "gpu_name": "NVIDIA H200",
    "sm_clock_start_hz": 1.98e9,
    "sm_clock_end_hz": 1.965e9,
    "memory_clock_start_hz": 2.619e9,
    "memory_clock_end_hz": 2.619e9,
    "wall_window_s": 2.0,
    "power_slowdown_window_s": 0.0,
    "thermal_slowdown_window_s": 0.0,
    "throttle_reasons_start": ("sw_power_cap",),
    "throttle_reasons_end": (),
}


def runs(*changes: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{**READ, **change} for change in changes])


def test_a_runs_clock_is_the_mean_of_its_two_readings() -> None:
    found = read_clocks(runs({}))
    assert found.hz.tolist() == [1.9725e9]
    assert (found.why, found.memory_hz.tolist(), found.gpus) == ([""], [2.619e9], ["NVIDIA H200"])


@each(
    "change, why",
    [
        ({"sm_clock_start_hz": None, "sm_clock_end_hz": None}, NO_CLOCK),
        ({"sm_clock_start_hz": None}, "at one end"),
        ({"sm_clock_end_hz": None}, "at one end"),
        ({"sm_clock_end_hz": 1.935e9}, "not that at its start"),
        ({"power_slowdown_window_s": 0.03}, "held the clock back"),
        ({"thermal_slowdown_window_s": 0.03}, "held the clock back"),
        ({"power_slowdown_window_s": None}, "unknown part of the window"),
        ({"power_slowdown_window_s": None, "throttle_reasons_start": None}, ""),
        ({"power_slowdown_window_s": 0.019, "memory_clock_end_hz": None}, ""),
    ],
)
def test_a_clock_that_was_not_read_or_that_moved_is_unknown_with_the_reason(change: dict[str, Any], why: str) -> None:
    found = read_clocks(runs({}, change))
    assert math.isnan(found.hz[1]) == bool(why)
    assert why in found.why[1] and bool(found.why[1]) == bool(why)
    assert not math.isnan(found.hz[0])


def test_results_without_any_reading_have_no_clock() -> None:
    found = read_clocks(pd.DataFrame({"gpu_name": [None], "wall_window_s": [1.0]}))
    assert (found.why, found.gpus) == ([NO_CLOCK], [""])


def side(*changes: dict[str, Any]) -> tuple[Clocks, list[int]]:
    return read_clocks(runs(*changes)), list(range(len(changes)))


def test_one_run_without_a_clock_leaves_its_case_without_cycles() -> None:
    assert why_no_cycles([side({}, {}), side({}, {})]) is None
    assert "in 1 of 4 runs" in str(why_no_cycles([side({}, {}), side({}, {"sm_clock_end_hz": 1.2e9})]))
    assert why_no_cycles([side({}), side({"sm_clock_start_hz": None, "sm_clock_end_hz": None})]) is not None


def test_runs_that_do_not_count_do_not_matter() -> None:
    clocks, _ = side({"sm_clock_end_hz": 1.2e9}, {})
    assert why_no_cycles([(clocks, [1]), side({})]) is None


def test_other_gpus_and_other_memory_clocks_are_not_compared_in_cycles() -> None:
    assert "different models (NVIDIA H200, NVIDIA L4)" in str(
        why_no_cycles([side({}), side({"gpu_name": "NVIDIA L4"})])
    )
    slow = {"memory_clock_start_hz": 1.593e9, "memory_clock_end_hz": 1.593e9}
    found = str(why_no_cycles([side({}, {}), side(slow, slow)]))
    assert "2,619 MHz in the baseline, 1,593 MHz in the candidate" in found
    unknown = {"memory_clock_start_hz": None}
    assert why_no_cycles([side({}), side(unknown)]) is None


NOISE = np.array([0.998, 0.999, 1.0, 1.001, 1.002])


def told(seconds: float, clock: float, *, noise: np.ndarray = NOISE, rate: bool = True) -> dict[str, Any]:
    """What is said of a candidate with so many times the seconds at so many times the clock."""
    one, two = noise, noise[::-1] * seconds
    (judged,) = judge_ratios([1 / one if rate else one], [1 / two if rate else two], higher_is_better=rate)
    (cycles,) = judge_ratios([one * 2e9], [two * 2e9 * clock], higher_is_better=False)
    return explain(judged, cycles, higher_is_better=rate)


@pytest.mark.parametrize("rate", [True, False])
@each(
    "seconds, clock, role, words",
    [
        (1.06, 1 / 1.06, "can_explain", ("slower by 5.7 %", "clocks 5.7 % lower", "no difference in cycles")),
        (0.95, 1 / 0.95, "can_explain", ("faster by 5.3 %", "clocks 5.3 % higher", "no difference in cycles")),
        (1.06, 1.0, "cannot_explain", ("slower by 5.7 %", "6.0 % more cycles", "clocks cannot explain it")),
        (1.10, 0.97, "cannot_explain", ("slower by 9.1 %", "6.7 % more cycles", "clocks 3.0 % lower")),
        (1.0, 1.04, "hides", ("the same in seconds, but 4.0 % more cycles", "clocks 4.0 % higher")),
        (1.0, 0.96, "hides", ("the same in seconds, but 4.0 % fewer cycles", "clocks 4.0 % lower")),
        (1.03, 0.90, "opposite", ("slower by 2.9 %, but 7.3 % fewer cycles", "clocks 10.0 % lower")),
        (1.0, 1.0, "no_difference", ("no difference in seconds, and none in cycles",)),
    ],
)
def test_each_outcome_has_its_role_and_its_words(
    seconds: float, clock: float, role: str, words: tuple[str, ...], rate: bool
) -> None:
    found = told(seconds, clock, rate=rate)
    assert tuple(found) == CLOCK_COLUMNS
    assert found["clocks"] == role
    assert found["clock_ratio"] == pytest.approx(clock)
    assert found["cycles_ratio"] == pytest.approx(seconds * clock)
    assert found["cycles_low"] <= seconds * clock <= found["cycles_high"]
    if rate:
        assert all(text in found["clocks_reason"] for text in words), found["clocks_reason"]


def test_an_unclear_verdict_leaves_the_role_of_clocks_unclear() -> None:
    noisy = np.array([0.9, 0.95, 1.0, 1.05, 1.1])
    for seconds, clock in ((1.0, 1.0), (1.02, 0.98)):
        found = told(seconds, clock, noise=noisy)
        assert (found["clocks"], found["cycles_verdict"]) == ("unclear", "unclear")
        assert "unclear in seconds" in found["clocks_reason"] and "unclear in cycles" in found["clocks_reason"]
