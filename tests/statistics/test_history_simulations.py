"""Changes in made-up histories with a known truth; the limits are those of docs/history.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.statistics.simulate import NOISES
from tests.statistics.simulate_history import BETWEEN, PLANTED, SIZES, false_cell, observe, planted_row

DOCUMENT = Path(__file__).parents[2] / "docs" / "history.md"


@pytest.mark.parametrize("name", list(NOISES))
def test_histories_without_a_change_rarely_show_any(name):
    assert observe(name, 5, 3, 12, 20, seed=3).false <= 0.05
    assert observe(name, 12, 4, 6, 20, seed=3).false <= 0.05


@pytest.mark.parametrize("between", [0.005, 0.02])
def test_days_that_differ_are_no_change(between):
    for results, cases in ((5, 1), (8, 12)):
        assert observe("spread between = within", results, 3, cases, 60, between=between, seed=3).false <= 0.05


def test_interleaved_results_without_a_change_rarely_show_any():
    assert observe("two modes, even", 3, 5, 12, 40, seed=3).false <= 0.05


def test_five_percent_is_found_at_the_newest_result_and_in_the_middle():
    settings = {"between": 0.005, "seed": 3}
    noise = "spread between = within"
    assert observe(noise, 10, 5, 12, 20, planted={9: -0.05}, **settings).found >= 0.9
    assert observe(noise, 10, 5, 12, 20, planted={5: -0.05}, **settings).near >= 0.9
    assert observe(noise, 10, 5, 12, 20, planted={4: -0.05, 7: 0.0526}, **settings).near >= 0.9


def test_half_a_percent_is_not_called_at_a_margin_of_one():
    assert observe("spread between = within", 20, 5, 1, 60, planted={10: -0.005}, seed=3).found <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tables_of_the_document_are_what_the_simulations_give():
    """A part of each table; `python -m tests.statistics.simulate_history` prints them whole."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = {
        row[1].strip(): [cell.strip() for cell in row[2:-1]]
        for line in text.splitlines()
        if (row := line.split("|"))[1:]
    }
    between = next(iter(BETWEEN))
    for noise in ("heavy tails (t, 3 degrees)", "two modes, one in five"):
        size = (5, 3, 1)
        assert rows[f"{noise}; {between}"][SIZES.index(size)] == false_cell(noise, between, *size)
    assert planted_row(*PLANTED[1]) in text
