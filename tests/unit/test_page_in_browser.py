"""What the page's script offers, in a real browser: every control, by mouse and by keyboard, on results of any kind."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import tarfile

import pandas as pd
import pytest

from bench.records import Case, Choice, Status
from tests.browser import CHROMIUM, browser
from tests.machines import make_machines
from tests.results import CPU, make_cases, make_results
from tests.sketches import sketching

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

AXE, AXE_SHA256 = "axe-core@4.14.1", "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
HOSTILE = "=1+1</script><script>document.title='taken'</script><img src=x onerror=alert(1)>\u2028\u202e'\"," + "w" * 300


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of one machine, of several, and of results in which every text is hostile and every number absurd."""
    from bench.report import render_report

    root = tmp_path_factory.mktemp("pages")
    cases = make_cases(["mnist"], ["mlp", "resnet18"], ["sgd", "adam"], [16, 64, 256])
    make_results(root / "one" / "data", cases, outcomes={1: Status.FAILED, 11: Status.OOM})
    names = [
        Case(Choice.of(HOSTILE), Choice.of(f"@m{HOSTILE}"), Choice.of(f"-o{n}{HOSTILE}"), 2**n) for n in (0, 3, 47)
    ]

    def change(measurement, case, repeat):
        return dataclasses.replace(
            measurement,
            reason=None if measurement.status == Status.OK else HOSTILE,
            flags=(HOSTILE,),
            peak_allocated_bytes=2**62 if case.batch_size > 8 else 1,
            step_times_s=tuple((1e-300, 1e300, 1.0)[repeat] for _ in measurement.step_times_s),
        )

    environment = dataclasses.replace(CPU, cpu_model=HOSTILE, torch_version=HOSTILE)
    make_results(root / "hostile" / "data", names, environment=environment, change=change, outcomes={1: Status.FAILED})
    with sketching():
        render_report([root / "one"], root / "one")
        render_report([root / "hostile"], root / "hostile")
        render_report(make_machines(root / "machines", repeats=2), root / "several")
    return {name: root / name / "index.html" for name in ("one", "several", "hostile")}


@pytest.fixture(scope="module")
def browsed(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def tab(browsed, pages):
    """The page of one machine, freshly opened; whatever a test does, nothing was asked for and nothing complained of."""
    browsed.open(pages["one"])
    yield browsed
    assert browsed.requests() == []
    assert browsed.complaints() == []


def choose(tab, control, value):
    """Set a control as a reader would, with its event."""
    tab.value(
        f"(() => {{ const one = document.getElementById({control!r}); one.value = {json.dumps(value)};"
        "one.dispatchEvent(new Event(one.tagName === 'SELECT' ? 'change' : 'input')) })()"
    )


def press(tab, words, among="#explorer"):
    """Click the button that says so."""
    tab.value(
        f"[...document.querySelectorAll('{among} button')].find(one => one.textContent === {json.dumps(words)}).click()"
    )


def rows(tab, column=None, table="#explorer .cases table"):
    """The cells of a column of the table of cases, by its heading; all rows where none is named."""
    every = tab.value(
        f"[...document.querySelector('{table}').rows].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return every[1:] if column is None else [row[every[0].index(column)] for row in every[1:]]


def text(tab, place):
    return tab.value(f"document.querySelector({place!r}).textContent")


def offered(tab, control):
    return tab.value(f"[...document.getElementById({control!r}).options].map(one => one.value)")


def table_csv(page):
    return pd.read_csv(page.parent / "table.csv")


def test_without_scripts_the_page_reads_as_ever(browsed, pages):
    browsed.open(pages["one"], scripts=False)
    browsed.call("Emulation.setScriptExecutionDisabled", value=False)  # this asks; the page's own did not run
    assert browsed.value("document.getElementById('explorer')") is None
    assert browsed.value("document.querySelector('#cases table').checkVisibility()")
    assert len(rows(browsed, table="#cases table")) == 12


def test_on_paper_the_plain_table_takes_the_place_of_the_controls(browsed, pages):
    browsed.open(pages["one"], paper=True)
    assert browsed.value("document.querySelector('#cases table').checkVisibility()")
    assert not browsed.value("document.getElementById('explorer').checkVisibility()")


def test_the_table_says_what_the_plain_one_says(tab):
    plain, shown = rows(tab, table="#cases table"), rows(tab)
    assert [row[1 : 1 + len(plain[0])] for row in shown] == plain


@pytest.mark.parametrize(
    ("control", "value", "column"),
    [("only-model", "mlp", "model"), ("only-optimizer", "adam", "optimizer"), ("only-trust", "sound", "trust")],
)
def test_a_filter_keeps_the_rows_that_say_so(tab, control, value, column):
    every = rows(tab, column)
    choose(tab, control, value)
    assert rows(tab, column) == [value] * every.count(value)
    assert 0 < every.count(value) < len(every)
    assert text(tab, "#count") == f"{every.count(value)} of 12 cases"
    press(tab, "Reset")
    assert rows(tab, column) == every
    assert tab.value("location.href").endswith("/index.html")


def test_status_verdict_and_text_are_filtered(tab, browsed, pages):
    choose(tab, "only-status", "failed")
    assert [row.split()[0] for row in rows(tab, "outcome")] == ["failed"]
    browsed.open(pages["several"])
    verdicts = rows(browsed, "verdict")
    assert set(offered(browsed, "only-verdict")) == {"", *verdicts} and "slower" in verdicts
    choose(browsed, "only-verdict", "slower")
    assert set(rows(browsed, "verdict")) == {"slower"}
    press(browsed, "Reset")
    choose(browsed, "find", "RESNET50 a100 adam")
    assert len(rows(browsed)) == 5
    choose(browsed, "find", "no such words")
    assert rows(browsed) == [] and text(browsed, "#count") == "0 of 34 cases"
    assert "No line is shown" in text(browsed, "#chart")


def test_a_heading_sorts_by_number_and_what_is_missing_comes_last(tab, pages):
    press(tab, "samples/s (95 % interval)")
    known = table_csv(pages["one"])["samples_per_s"].dropna()
    ascending = rows(tab, "samples/s (95 % interval)")
    press(tab, "samples/s (95 % interval)")
    descending = rows(tab, "samples/s (95 % interval)")
    missing = [cell for cell in ascending if cell == "–"]
    assert len(missing) == 12 - len(known) > 0
    assert descending == ascending[: len(known)][::-1] + missing
    leading = [float(cell.split(" ")[0].replace(",", "")) for cell in ascending[: len(known)]]
    assert leading == pytest.approx(sorted(known), rel=0.006)
    assert tab.value("document.querySelector('#explorer [aria-sort]').ariaSort") == "descending"


def test_every_table_of_rows_sorts(tab):
    place = "main table:not(#explorer table, #cases table)"
    before = rows(tab, "best batch", place)
    tab.value(
        f"[...document.querySelectorAll('{place} button.sort')].find(b => b.textContent === 'samples/s (95 % interval)').click()"
    )
    rates = [float(cell.split(" ")[0].replace(",", "")) for cell in rows(tab, "samples/s (95 % interval)", place)]
    assert len(before) > 1 and rates == sorted(rates)


def test_dates_and_versions_sort_as_such(browsed, tmp_path):
    from bench.report.blocks import Table
    from bench.report.render import render_html

    cells = [["2026-10-02 10:00", "2.14.0"], ["2026-10-11 10:00", "2.9.1"], ["2026-10-02 09:00", "2.10.0"]]
    (tmp_path / "page.html").write_text(render_html("x", [("", [Table(("when", "torch"), cells)])], {}, "0"))
    browsed.open(tmp_path / "page.html")
    for heading, order in (("when", (2, 0, 1)), ("torch", (1, 2, 0))):
        press(browsed, heading, "main")
        assert rows(browsed, table="main table") == [cells[place] for place in order]
    assert browsed.complaints() == []


def told(page, batch, model="mlp", optimizer="sgd"):
    """What the chart must say of a case, from the results themselves."""
    import bench

    frame = bench.load(page.parent)
    found = frame[(frame["model"] == model) & (frame["optimizer"] == optimizer) & (frame["batch_size"] == batch)]
    return found["run_key"].tolist()


def test_the_keyboard_walks_along_curves_and_says_value_interval_n_and_run_keys(tab, pages):
    tab.value("document.getElementById('chart').focus()")
    first = text(tab, "#readout")
    tab.press("ArrowRight")
    second = text(tab, "#readout")
    head = tab.value("[...document.querySelectorAll('#explorer .cases th')].map(cell => cell.textContent)")
    place = head.index("samples/s (95 % interval)")
    assert head[1:5] == ["model", "data set", "optimizer", "batch"]
    for words, batch in ((first, 16), (second, 64)):
        optimizer = "adam" if "adam" in words else "sgd"
        assert f"mlp on mnist, {optimizer}, batch {batch} ·" in words
        (cell,) = [
            row[place] for row in rows(tab) if f"mlp|{optimizer}|{batch}|" in "|".join((row[1], row[3], row[4], ""))
        ]
        rate, low, _, high = cell.replace("(", "").replace(")", "").split(" ")
        assert words.startswith(f"{rate} samples/s (95 % interval {low} to {high}; n = 3 processes)")
        keys = told(pages["one"], batch, optimizer=optimizer)
        assert len(keys) == 3 and words.endswith(f"run keys: {' '.join(keys)}")
    tab.press("ArrowLeft")
    assert text(tab, "#readout") == first
    tab.press("ArrowDown")
    assert text(tab, "#readout") not in (first, second)
    tab.press("ArrowUp")
    tab.press("Enter")
    assert "a" in text(tab, "#pinned h3") and tab.value("document.querySelectorAll('#pinned thead th').length") == 2


def test_the_mouse_says_the_same_where_it_points_and_pins_where_it_clicks(tab):
    tab.value("document.getElementById('chart').scrollIntoView()")
    box = tab.value(
        "(b => [b.left, b.top, b.width, b.height])(document.querySelector('.u-over').getBoundingClientRect())"
    )
    said = set()
    for across in range(1, 20):
        for down in range(1, 12):
            tab.point(box[0] + box[2] * across / 20, box[1] + box[3] * down / 12)
            said.add(text(tab, "#readout"))
    said.discard("")
    assert len(said) > 6 and all("interval" in words and "run keys: " in words for words in said)
    tab.value("document.getElementById('chart').focus()")
    tab.point(box[0] + box[2] - 3, box[1] + 20, click=True)
    assert "Pinned cases" in text(tab, "#pinned")


def test_lines_are_hidden_and_shown(tab):
    lines = tab.value("document.querySelectorAll('.legend input').length")
    assert lines > 2 and f"{lines} lines" in tab.value("document.getElementById('chart').ariaLabel")
    tab.value("document.querySelector('.legend input').click()")
    assert f"{lines - 1} lines" in tab.value("document.getElementById('chart').ariaLabel")
    assert "lines=" in tab.value("location.hash")
    tab.value("document.querySelector('.legend input').click()")
    assert f"{lines} lines" in tab.value("document.getElementById('chart').ariaLabel")


def test_axes_and_quantities_change_what_is_drawn(tab):
    seen = [tab.value("document.querySelector('#chart canvas').toDataURL()")]
    for control, value in (("x-axis", "linear"), ("y-axis", "linear"), ("quantity", "peak_allocated_bytes")):
        choose(tab, control, value)
        seen.append(tab.value("document.querySelector('#chart canvas').toDataURL()"))
    assert len(set(seen)) == 4
    assert "peak allocated" in tab.value("document.getElementById('chart').ariaLabel")
    for value in offered(tab, "quantity"):
        choose(tab, "quantity", value)
        tab.value("document.activeElement.blur(), document.getElementById('chart').focus()")
        assert ("an estimate" in text(tab, "#readout")) == value.startswith(("formula_", "trace_"))
        assert not tab.value("document.getElementById('chart').ariaLabel").endswith(" 0 points")


def test_two_cases_stand_side_by_side_with_their_ratio(tab, pages):
    pins = "document.querySelectorAll('#explorer .cases tbody button')"
    for place in (0, 2, 3):
        tab.value(f"{pins}[{place}].click()")
    pinned = rows(tab, table="#pinned table")
    third, fourth = (rows(tab)[place] for place in (2, 3))
    assert [row[1] for row in pinned] == third[1:] and [row[2] for row in pinned] == fourth[1:]
    bytes_of = table_csv(pages["one"])["peak_allocated_bytes"]
    (ratio,) = [row[3] for row in pinned if row[0] == "peak allocated"]
    assert float(ratio.rstrip("×")) == pytest.approx(bytes_of[3] / bytes_of[2], rel=0.006)
    assert tab.value(f"[...{pins}].map(one => one.ariaPressed)").count("true") == 2
    press(tab, "Unpin", "#pinned")
    assert len(rows(tab, table="#pinned table")[0]) == 2


def test_an_address_restores_the_view(tab, pages):
    choose(tab, "only-optimizer", "adam")
    choose(tab, "find", "resnet18")
    choose(tab, "quantity", "formula_bytes")
    choose(tab, "x-axis", "linear")
    tab.value("document.querySelector('.legend input').click()")
    press(tab, "peak allocated")
    press(tab, "peak allocated")
    for place in (1, 2):
        tab.value(f"document.querySelectorAll('#explorer .cases tbody button')[{place}].click()")
    tab.value("document.activeElement.blur()")
    address = tab.value("location.hash")
    state = "document.getElementById('explorer').innerHTML + [...document.querySelectorAll('#explorer select, #explorer input')].map(one => one.value + one.checked)"
    before = tab.value(state)
    tab.open(pages["one"], fragment=address)
    assert tab.value(state) == before
    assert tab.value("location.hash") == address
    tab.value("location.hash = '#q=&y=samples_per_s'")
    assert (
        tab.value("new Promise(done => setTimeout(() => done(document.getElementById('count').textContent), 300))")
        == "12 of 12 cases"
    )


@pytest.mark.parametrize(
    "address",
    ["#y=__proto__&sort=constructor&pin=x.y&lines=z", "#model=%3Cimg%3E&q=%3Cimg%20src%3Dx%3E", "#%", "#=&=&%00"],
)
def test_an_address_that_asks_for_what_is_not_there_gets_the_rest(tab, pages, address):
    tab.open(pages["one"], fragment=address)
    assert text(tab, "#count").endswith("of 12 cases")
    assert tab.value("document.querySelectorAll('#explorer img').length") == 0


def test_rows_are_copied_as_csv_with_the_numbers_of_the_table(tab, pages):
    tab.value("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    choose(tab, "only-model", "mlp")
    press(tab, "Copy rows as CSV")
    copied = pd.read_csv(io.StringIO(tab.value("copied")))
    whole = table_csv(pages["one"])
    whole = whole[whole["model"] == "mlp"].reset_index(drop=True)
    for name in ("model", "optimizer", "batch_size", "peak_allocated_bytes", "formula_bytes", "status"):
        pd.testing.assert_series_equal(copied[name], whole[name], check_dtype=False)
    for name in ("samples_per_s", "samples_per_s_low", "median_step_time_s"):
        assert copied[name].tolist() == pytest.approx(whole[name].tolist(), rel=1e-5, nan_ok=True)
    assert text(tab, "#copied").startswith(f"{len(whole)} rows copied")
    press(tab, "Copy a link to this view")
    assert tab.value("copied").endswith("index.html#model=mlp")


def test_copying_works_where_the_clipboard_is_closed(tab):
    tab.value(
        "navigator.clipboard.writeText = async () => { throw new Error('no') }; document.execCommand = () => { window.taken = getSelection().toString() || document.activeElement.value }"
    )
    press(tab, "Copy rows as CSV")
    assert tab.value("new Promise(done => setTimeout(() => done(window.taken), 300))").startswith("model,")
    assert tab.value("document.querySelectorAll('textarea').length") == 0


def test_figures_lead_to_their_curves(tab):
    tab.value("document.querySelector('#memory figcaption a[href^=\"#y\"]').click()")
    assert (
        tab.value("new Promise(done => setTimeout(() => done(document.getElementById('quantity').value), 300))")
        == "peak_allocated_bytes"
    )


def test_hostile_results_change_nothing_but_the_text(browsed, pages):
    browsed.open(pages["hostile"])
    assert browsed.value("document.title").startswith("example")
    assert (
        browsed.value("document.querySelectorAll('img:not(figure img), [onerror], main script:not([type])').length")
        == 0
    )
    assert browsed.value("document.querySelectorAll('script').length") == 3
    assert len(rows(browsed)) == 3
    for value in offered(browsed, "quantity"):
        for scale in ("linear", "log"):
            choose(browsed, "quantity", value)
            choose(browsed, "y-axis", scale)
            choose(browsed, "x-axis", scale)
            browsed.value("document.getElementById('chart').focus()")
            browsed.press("ArrowRight")
    for place in (0, 1):
        browsed.value(f"document.querySelectorAll('#explorer .cases tbody button')[{place}].click()")
    browsed.value("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    press(browsed, "Copy rows as CSV")
    for row in csv.reader(io.StringIO(browsed.value("copied"))):
        assert not any(
            cell.startswith(("=", "+", "@", "\t")) or (cell.startswith("-") and cell != "-" and not cell[1:2].isdigit())
            for cell in row
        )
    assert "'=1+1" in browsed.value("copied")
    assert browsed.value("document.querySelectorAll('#explorer img, #explorer script').length") == 0
    assert browsed.value("document.documentElement.scrollWidth") <= 1280
    assert browsed.complaints() == [] and browsed.requests() == []


def test_a_script_that_is_not_the_pages_own_does_not_run(browsed, pages):
    browsed.open(pages["one"])
    browsed.value(
        "(() => { const one = document.createElement('script'); one.textContent = 'window.ran = 1'; document.body.append(one) })()"
    )
    assert browsed.value("window.ran") is None
    assert "Content Security Policy" in "".join(browsed.complaints())


def test_on_a_phone_the_answer_comes_first_and_how_far_to_trust_it_soon(browsed, pages):
    for page in pages.values():
        browsed.open(page, width=390, height=800)
        assert browsed.value("document.documentElement.scrollWidth") <= 390
        top = "document.querySelector({!r}).getBoundingClientRect().top"
        assert browsed.value(top.format(".answer")) < 800
        assert browsed.value(top.format(".notice")) < 5 * 800
        assert browsed.value("document.querySelectorAll('.notice ~ ul')[0].children.length") <= 4


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The checker's source, fetched from npm's registry and held to its hash."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, so axe-core cannot be fetched")
    folder = tmp_path_factory.mktemp("axe")
    try:
        done = subprocess.run([npm, "pack", AXE], cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm's registry does not answer, so axe-core cannot be fetched")
    found = list(folder.glob("*.tgz"))
    if done.returncode or not found:
        pytest.skip(f"axe-core cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
    assert hashlib.sha256(found[0].read_bytes()).hexdigest() == AXE_SHA256
    with tarfile.open(found[0]) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("settings", [{}, {"dark": True}, {"width": 390}], ids=["light", "dark", "phone"])
@pytest.mark.parametrize("name", ["one", "several"])
def test_axe_finds_no_violation(browsed, pages, axe, name, settings):
    browsed.open(pages[name], **settings)
    for place in (0, 1):
        browsed.value(f"document.querySelectorAll('#explorer .cases tbody button')[{place}].click()")
    browsed.value("document.getElementById('chart').focus()")
    browsed.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
    browsed.value(f"{axe};0")
    found = browsed.value(
        "axe.run().then(({violations}) => violations.map(({id, nodes}) => [id, nodes.length, nodes[0].html.slice(0, 200), nodes[0].failureSummary]))"
    )
    assert found == []
