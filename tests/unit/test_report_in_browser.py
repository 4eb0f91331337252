"""The page in a real browser, in light, in dark, on a narrow screen and on paper."""

from __future__ import annotations

import pytest

from tests.browser import CHROMIUM, browser
from tests.machines import make_machines
from tests.results import GIB, GPU, make_cases, make_results

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

A4_LANDSCAPE = 1032
"""CSS pixels between margins of 12 mm."""
HOSTILE = "<img src=x onerror=alert(1)>" + "w" * 300


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of one machine with a hostile name, and one of three machines."""
    from bench.report import render_report

    root = tmp_path_factory.mktemp("pages")
    cases = make_cases(["imagenet"], ["resnet50", HOSTILE], ["adam"], [16, 64, 256, 1024])
    make_results(root / "one" / "data", cases, environment=GPU, trace=True, memory_bytes=60 * GIB, repeats=2)
    render_report([root / "one"], root / "one")
    render_report(make_machines(root / "machines", repeats=2), root / "several")
    return [root / "one" / "index.html", root / "several" / "index.html"]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize(
    "settings",
    [{}, {"dark": True}, {"width": 400}, {"paper": True, "width": A4_LANDSCAPE}],
    ids=["light", "dark", "narrow", "paper"],
)
def test_the_page_asks_for_nothing_complains_of_nothing_and_fits(tab, pages, settings):
    for page in pages:
        tab.open(page, **settings)
        assert tab.requests() == []
        assert tab.complaints() == []
        assert tab.value("document.querySelectorAll('figure img').length") > 3
        assert tab.value("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
        assert tab.value("document.documentElement.scrollWidth") <= settings.get("width", 1280)


def test_dark_paper_gets_dark_figures(tab, pages):
    tab.open(pages[1], dark=True)
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert tab.value("document.images[0].currentSrc !== document.images[0].src")
    tab.open(pages[1])
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("document.images[0].currentSrc === document.images[0].src")


def test_paper_is_white_whatever_the_screen(tab, pages):
    tab.open(pages[1], dark=True, paper=True)
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("document.images[0].currentSrc === document.images[0].src")
    assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.pdf().startswith(b"%PDF")


def test_folds_are_open_on_paper(tab, pages):
    tab.open(pages[1], paper=True)
    assert tab.value(
        "[...document.querySelectorAll('details > :not(summary)')].every(inner => inner.checkVisibility())"
    )
    tab.open(pages[1])
    assert not tab.value(
        "[...document.querySelectorAll('details > :not(summary)')].some(inner => inner.checkVisibility())"
    )


def test_every_figure_speaks_to_those_who_do_not_see_it(tab, pages):
    for page in pages:
        tab.open(page)
        assert tab.value("[...document.images].every(image => image.alt.length > 40)")
        assert tab.value("document.querySelectorAll('h1').length") == 1
        assert tab.value("document.documentElement.lang") == "en"


def test_what_a_browser_would_refuse_is_seen(tab, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<body style="width:3000px"><img src="http://192.0.2.1/x.png"><script>console.error("no")</script>')
    tab.open(page)
    assert len(tab.requests()) == 1
    assert tab.complaints()
    assert tab.value("document.documentElement.scrollWidth") > 1280
