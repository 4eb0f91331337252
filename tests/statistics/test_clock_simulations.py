"""The word on clocks beside a verdict, on made-up comparisons of which the truth is known."""

from __future__ import annotations

from pathlib import Path

from bench.comparison.clocks import ClockRole
from tests.each import each
from tests.statistics.simulate_clocks import TRUTHS, Truth, clock_row, explain_many

DOCUMENT = Path(__file__).parents[2] / "docs" / "statistics.md"
COMPARISONS = 60
UNCHANGED = [truth for truth in TRUTHS if truth.work == 1]
FOLLOWING = [truth for truth in UNCHANGED if truth.follows == 1]


@each("truth", UNCHANGED)
def test_clocks_are_rarely_said_not_to_explain_what_they_do(truth: Truth) -> None:
    assert explain_many(truth, 5, 12, COMPARISONS, seed=3).cannot_explain <= 0.05


@each("truth", FOLLOWING)
def test_equal_work_at_any_clock_is_rarely_called_different_in_cycles(truth: Truth) -> None:
    for n, cases in ((3, 30), (5, 30)):
        assert explain_many(truth, n, cases, COMPARISONS, seed=3).cycles_called <= 0.05


def test_what_slower_clocks_do_to_work_that_follows_them_is_put_down_to_them() -> None:
    found = explain_many(Truth("", clock=0.94), 5, 12, COMPARISONS, seed=3)
    assert found.roles[ClockRole.CAN_EXPLAIN] >= 0.9


@each("follows", [0.0, 0.5, 1.0])
def test_more_work_is_found_at_equal_clocks_whatever_limits_it(follows: float) -> None:
    found = explain_many(Truth("", follows=follows, work=1.05), 5, 12, COMPARISONS, seed=3)
    assert found.roles[ClockRole.CANNOT_EXPLAIN] >= 0.95


def test_work_that_memory_limits_shows_nothing_in_seconds_at_another_clock() -> None:
    """It takes other cycles, which is the clock's doing: why the verdict is that in seconds."""
    found = explain_many(Truth("", clock=0.94, follows=0), 10, 12, COMPARISONS, seed=3)
    assert found.roles[ClockRole.HIDES] >= 0.9


@each("truth", TRUTHS)
def test_the_documents_table_is_what_the_simulations_give(truth: Truth) -> None:
    assert clock_row(truth, 5, 1) in DOCUMENT.read_text(encoding="utf-8")
