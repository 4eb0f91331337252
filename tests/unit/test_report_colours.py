from __future__ import annotations

import itertools

import pytest

from tests.colours import VISION, contrast, distance

PLAIN = 15.0
"""Delta E that tells two marks of the same shape apart at a glance; 2.3 is just noticeable."""


@pytest.mark.parametrize("vision", VISION)
def test_hues_are_apart_for_every_eye(vision):
    from bench.report import theme

    distances = {pair: distance(*pair, vision) for pair in itertools.combinations(theme.HUES, 2)}
    assert {pair: far for pair, far in distances.items() if far < PLAIN} == {}


@pytest.mark.parametrize("vision", VISION)
def test_faster_equal_and_slower_are_far_apart_for_every_eye(vision):
    from bench.report import theme

    for pair in itertools.combinations(theme.DIVERGING, 2):
        assert distance(*pair, vision) > 50, pair


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_hues_stand_on_both_papers(dark):
    from bench.report import theme

    paper = theme.DARK[theme.PAPER] if dark else theme.PAPER
    for hue in (*theme.HUES, theme.DIVERGING[0], theme.DIVERGING[2]):
        assert contrast(hue, paper) > 2.2, hue


def test_text_is_readable_on_both_papers():
    from bench.report import theme

    for text in (theme.INK, theme.MUTED):
        assert contrast(text, theme.PAPER) > 4.5
        assert contrast(theme.DARK[text], theme.DARK[theme.PAPER]) > 4.5


def test_hues_are_at_most_six_with_a_marker_each():
    from bench.report import theme

    assert len(theme.HUES) <= 6
    assert len(set(theme.MARKERS)) == len(theme.HUES)


def test_the_scale_of_speed_ups_has_no_colour_that_dark_paper_exchanges():
    from bench.report import theme

    assert not {colour.lower() for colour in theme.DIVERGING} & {colour.lower() for colour in theme.DARK}


def test_the_simulation_confuses_what_is_known_to_be_confused():
    assert distance("#ff0000", "#808000", "deuteranopia") < distance("#ff0000", "#808000") / 2
    assert distance("#0000ff", "#008080", "tritanopia") < distance("#0000ff", "#008080") / 2
    for vision in VISION:
        assert distance("#777777", "#777777", vision) == 0
        assert distance("#777777", "#777778", vision) < 1
