"""The site in a real browser: light, dark, narrow and by keyboard."""

from __future__ import annotations

import dataclasses

import pytest

from tests.browser import CHROMIUM, browser
from tests.bundled import HOSTILE, build, host, pack, steady
from tests.results import GIB, GPU, make_cases

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three hosts, two GPUs, five models, one of which has a hostile name."""
    root = tmp_path_factory.mktemp("site")
    cases = make_cases(["imagenet"], ["resnet18", "resnet50", "vit_b_16", "mlp", HOSTILE + "w" * 300], ["adam"], [16])
    rtx = dataclasses.replace(host(3), gpu_name="NVIDIA GeForce RTX 4090", gpu_total_bytes=24 * GIB)
    environments = {"one": host(1, GPU), "two": host(2, GPU), "three": rtx}
    bundles = [
        pack(root, name, cases=cases, environment=environment, change=steady(1.0 + 0.01 * number))
        for number, (name, environment) in enumerate(environments.items())
    ]
    build(root / "site", bundles)
    return root / "site"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def pages_of(site):
    pages = [site / "index.html", *(min((site / kind).glob("*.html")) for kind in ("models", "devices", "bundles"))]
    return [*pages, max((site / "models").glob("*.html"), key=lambda page: len(page.name))]


@pytest.mark.parametrize(
    "settings",
    [{}, {"dark": True}, {"width": 400}, {"width": 400, "dark": True}],
    ids=["light", "dark", "phone", "both"],
)
def test_pages_load_their_style_and_nothing_else_and_fit(tab, site, settings):
    for page in pages_of(site):
        tab.open(page, **settings)
        assert tab.requests() == [(site / "style.css").resolve().as_uri()]
        assert tab.complaints() == []
        assert tab.value("document.documentElement.scrollWidth") <= settings.get("width", 1280), page
        paper = "rgb(13, 17, 23)" if settings.get("dark") else "rgb(255, 255, 255)"
        assert tab.value("getComputedStyle(document.body).backgroundColor") == paper
        assert tab.value("document.querySelectorAll('h1').length") == 1
        assert tab.value("document.scripts.length") == 0


def test_on_a_phone_the_fastest_case_and_its_tier_are_on_the_first_screen(tab, site):
    tab.open(site / "index.html", width=400, height=800)
    for what in (".value", ".tier", ".source"):
        assert tab.value(f"document.querySelector('#fastest ~ .scroll {what}').getBoundingClientRect().bottom") < 800
    assert tab.value("getComputedStyle(document.querySelector('.cards td')).display") == "block"
    label = "getComputedStyle(document.querySelector('.cards td'), '::before').content"
    assert "NVIDIA" in tab.value(label)


def test_the_keyboard_reaches_the_content_every_link_and_wide_tables(tab, site):
    tab.open(site / "index.html", width=700)

    def press() -> None:
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)

    press()
    assert tab.value("document.activeElement.className") == "skip"
    assert tab.value("document.activeElement.getBoundingClientRect().left") >= 0
    reachable = tab.value("document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length")
    for _ in range(reachable - 1):
        press()
        assert tab.value("document.activeElement !== document.body")
        assert tab.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert tab.value("[...document.querySelectorAll('.scroll')].every(one => one.getAttribute('aria-label'))")


def test_tiers_are_told_apart_by_words_and_can_be_read(tab, site):
    contrast = """(() => {
      const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
      return Math.min(...[...document.querySelectorAll('.tier')].map(one => {
        const style = getComputedStyle(one), pair = [light(style.color), light(style.backgroundColor)].sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05);
      }));
    })()"""
    for dark in (False, True):
        tab.open(site / "index.html", dark=dark)
        assert tab.value("document.querySelectorAll('.tier').length") > 5
        assert tab.value("[...document.querySelectorAll('.tier')].every(one => one.textContent.trim().length > 5)")
        assert tab.value(contrast) >= 4.5
