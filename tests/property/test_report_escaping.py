"""Whatever results say, a report stays what it is: no markup, no formula, no control reaches a reader."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import bench
from bench.analysis import judge, summarise_cases
from bench.records import Case, Choice, Status
from tests.results import CPU, GPU, make_results

if TYPE_CHECKING:
    from bench.report.contents import Contents

NASTY = (
    "|",
    "`",
    "``",
    "<script>",
    "</td>",
    "\u202e",
    "\u2066",
    "\n",
    "\r\n",
    "=cmd|' /C calc'!A1",
    "\x1b[31m",
    "\x00",
    "\\",
    "**",
    "[x](javascript:x)",
    "http://e.example",
    "@",
    "-",
    "+",
    "\t",
    "&lt;",
    "{{ 7 * 7 }}",
    "{% raw %}",
    '"',
    "'",
    "#",
    "1.",
    "~~~",
    "```",
    "<!--",
    "\u2028",
    "\ud7ff",
    "\U000e0041",
    "$x$",
    "-->",
    "://",
    "]]>",
    "![x](y)",
)
TEXTS = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=5)), min_size=1, max_size=8).map("".join)
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
OURS = {"details", "summary"}


class Tags(html.parser.HTMLParser):
    """Every tag and attribute, and the text between."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.scripts += tag == "script"
        self.attributes |= {name for name, _ in attrs}


@given(TEXTS)
def test_plain_text_is_one_visible_line(text):
    from bench.report.escape import plain

    shown = plain(text)
    assert "\n" not in shown
    assert not UNSEEN.search(shown)
    assert shown == " ".join(shown.split())


@given(TEXTS)
def test_escaped_markdown_reads_as_the_plain_text(text):
    from bench.report.escape import markdown, plain

    escaped = markdown(text)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escaped) == plain(text)
    for mark in "`*[]<>|~$":
        assert not re.search(rf"(?<!\\)(?:\\\\)*{re.escape(mark)}", escaped), escaped


@given(TEXTS)
def test_a_code_span_holds_the_whole_text_and_ends_where_it_should(text):
    from bench.report.escape import markdown_code

    span = markdown_code(text)
    fence = re.match("`+", span)[0]
    inner = span[len(fence) : -len(fence)]
    assert span.endswith(fence)
    assert all(len(run) != len(fence) for run in re.findall("`+", inner.strip(" ")))
    assert not re.search(r"(?<!\\)\|", markdown_code(text, in_table=True))


@given(TEXTS)
def test_a_fence_ends_where_it_should(text):
    from bench.report.escape import markdown_fence, verbatim

    lines = markdown_fence(text).splitlines()
    assert not any(re.match(rf"\s*`{{{len(lines[0])},}}\s*$", line) for line in lines[1:-1])
    assert not UNSEEN.search(verbatim(text))


@given(TEXTS)
def test_a_csv_cell_is_one_visible_line_and_no_formula(text):
    from bench.report.escape import csv_cell

    cell = str(csv_cell(text))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not UNSEEN.search(cell)
    assert next(csv.reader(io.StringIO(_written(cell)))) == [cell, "x"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.tuples(*[TEXTS] * 6))
@example(tuple(NASTY[:6]))
@example(("=1|`<script>\u202e\n\x1b[2J",) * 6)
def test_a_whole_report_of_two_machines_is_harmless(texts):
    from bench.report import summary_lines
    from bench.report.drawing import to_csv
    from bench.report.render import all_sections, render_html, render_markdown

    with tempfile.TemporaryDirectory() as folder:
        contents = _contents(Path(folder), *texts)
    built = [(section.title, list(section.build(contents))) for section in all_sections()]
    built = [(title, blocks) for title, blocks in built if blocks]
    _hold_html(render_html(contents.title, built, {}, "0"))
    _hold_markdown(render_markdown(contents.title, built))
    for frame in (contents.summary, contents.hardware.cells):
        _hold_csv(to_csv(frame))
    assert all(line.isprintable() for line in summary_lines(contents.frame, None))


def _written(cell: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow([cell, "x"])
    return buffer.getvalue()


def _contents(root: Path, model: str, gpu: str, reason: str, note: str, setting: str, source: str) -> Contents:
    """What two machines measured, every text of theirs hostile."""

    from bench.report.contents import Contents
    from bench.report.hardware import compare_machines

    def change(measurement, case, repeat):
        given = None if measurement.status == Status.OK else reason
        return dataclasses.replace(measurement, reason=given, flags=(reason,), data_source=source)

    cases = [
        Case(Choice.of(f"d{source}"), Choice.of(f"m{model}"), Choice.of("sgd"), size, image_size=28)
        for size in (16, 64, 256)
    ]
    one = dataclasses.replace(GPU, gpu_name=gpu, kernel=setting, torch_version=setting)
    two = dataclasses.replace(CPU, cpu_model=gpu, os_name=setting, git_commit=note)
    for name, environment in (("a", one), ("b", two)):
        make_results(
            root / name,
            cases,
            environment=environment,
            outcomes={2: Status.FAILED},
            change=change,
            repeats=2,
            notes={"name": note, "description": note, "config": {"name": note}, "device": note},
        )
    frame = bench.load(root / "a", root / "b")
    summary = summarise_cases(frame)
    hardware = compare_machines(frame, summary, str(summary["machine"].iloc[0]))
    notes = [note.values for note in bench.store.load_notes(root / "a", root / "b")]
    return Contents("x", frame, summary, judge(frame), notes, sources=("a", note), hardware=hardware)


def _hold_html(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert page.count("<script") == tags.scripts == 3  # the page's own, its library, and their data
    assert tags.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "script",
        "body",
        "main",
        "h1",
        "h2",
        "h3",
        "p",
        "a",
        "nav",
        "ul",
        "li",
        "strong",
        "code",
        "span",
        "pre",
        "div",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "footer",
    }, tags.tags
    assert tags.attributes <= {
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "type",
        "class",
        "id",
        "href",
        "tabindex",
        "scope",
        "aria-label",
    }
    assert not UNSEEN.search(page)


def _hold_markdown(text: str) -> None:
    assert not UNSEEN.search(text)
    outside, fence = [], ""
    for line in text.splitlines():
        mark = re.match("`{3,}", line)
        if mark and not fence:
            fence = mark[0]
        elif fence and line == fence:
            fence = ""
        elif not fence:
            outside.append(line)
    assert fence == ""
    body = re.sub(r"(?<![\\`])(`+)(?!`).+?(?<!`)\1(?!`)", "", "\n".join(outside))
    assert not set(re.findall(r"(?<!\\)<(/?\w*)", body)) - OURS - {f"/{name}" for name in OURS}
    assert "http://" not in body
    for line in outside:
        if line.startswith("| "):
            assert line.endswith(" |")
    for number, line in enumerate(outside):
        if re.fullmatch(r"\|( -+:? \|)+", line):
            row = number - 1
            while row < len(outside) and outside[row].startswith("|"):
                assert _cells(outside[row]) == _cells(line), outside[row]
                row += 1


def _cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


def _hold_csv(text: str) -> None:
    assert not UNSEEN.search(text)
    rows = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in rows} == {len(rows[0])}
    for cell in (cell for row in rows for cell in row):
        assert not cell.startswith(("=", "@", "+", "\t", "\r"))
        assert not cell.startswith("-") or float(cell) < 0
