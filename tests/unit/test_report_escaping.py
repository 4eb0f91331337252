from __future__ import annotations

import csv
import dataclasses
import html.parser
import re

import pytest

import bench
from bench.records import Case, Choice, Status
from tests.results import CPU, make_results

HOSTILE = (
    "=cmd|' /C calc'!A1 `<script>alert(1)</script>` [x](http://evil.example) \u202egnp.\u2066 | **b** <!-- \n\n# h"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory, sketched):
    """A report in which every name and reason is hostile."""
    from bench.report import render_report

    folder = tmp_path_factory.mktemp("hostile") / "report"
    dataset, model = Choice.of(f"d{HOSTILE}"), Choice.of(f"={HOSTILE}")
    cases = [Case(dataset, model, Choice.of(f"@o{number}{HOSTILE}"), 16, image_size=28) for number in range(3)]
    environment = dataclasses.replace(CPU, cpu_model=HOSTILE, kernel=HOSTILE, torch_version=f"-{HOSTILE}")

    def change(measurement, case, repeat):
        reason = None if measurement.status == Status.OK else HOSTILE
        return dataclasses.replace(measurement, reason=reason, flags=(HOSTILE,), data_source=HOSTILE)

    notes = {"name": HOSTILE, "description": HOSTILE, "config": {"name": HOSTILE}, "device": HOSTILE}
    make_results(
        folder / "data", cases, environment=environment, outcomes={2: Status.FAILED}, change=change, notes=notes
    )
    render_report([folder], folder)
    return folder


class Tags(html.parser.HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.scripts += tag == "script"
        self.attributes |= {name for name, _ in attrs}


def test_html_has_no_tag_and_no_attribute_of_the_results(report):
    tags = Tags()
    tags.feed((report / "index.html").read_text())
    assert "b" not in tags.found
    assert "img" in tags.found  # the figures
    assert tags.scripts == 3  # uPlot, the page's own, and the block of data
    assert not {name for name in tags.attributes if name.startswith("on")}


def test_no_direction_mark_and_no_control_reaches_a_reader(report):
    for path in (*report.glob("*.md"), *report.glob("*.html"), *report.rglob("*.csv")):
        text = path.read_text()
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\x00-\x08\x0e-\x1f]", text), path
    assert "U+202E" in (report / "report.md").read_text()


def test_markdown_tables_keep_their_columns(report):
    lines = (report / "report.md").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|( -+:? \|)+", line):
            width = _cells(line)
            row = number - 1
            while row < len(lines) and lines[row].startswith("|"):
                assert _cells(lines[row]) == width, lines[row]
                row += 1


def test_markdown_has_no_tag_heading_or_link_of_the_results(report):
    outside, fence = [], ""
    for line in (report / "report.md").read_text().splitlines():
        mark = re.match("`{3,}", line)
        if mark and not fence:
            fence = mark[0]
        elif fence and line == fence:
            fence = ""
        elif not fence:
            outside.append(line)
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", "\n".join(outside))
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", text)
    assert not re.search(r"(?<!\\)\]\(http", text)
    assert "http://" not in text
    assert "\n# h" not in text
    assert fence == ""


def test_no_csv_cell_is_a_formula(report):
    for path in report.rglob("*.csv"):
        with path.open(newline="") as file:
            for row in csv.reader(file):
                for cell in row:
                    assert not cell.startswith(("=", "@", "+", "\t")), (path, cell)
                    assert not cell.startswith("-") or float(cell) < 0


def test_the_shell_commands_quote_what_the_results_say(report):
    (command,) = re.findall(r"^bench sweep .+$", (report / "report.md").read_text(), re.MULTILINE)
    assert "--device '" in command


def test_the_terminal_gets_one_plain_line_each(report):
    from bench.report import summary_lines

    for line in summary_lines(bench.load(report), report / "index.html"):
        assert line.isprintable()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a|b", "a\\|b"),
        ("`x`", "\\`x\\`"),
        ("<b>", "\\<b\\>"),
        ("[x](y)", "\\[x\\](y)"),
        ("a\n\n# b", "a \\# b"),
        ("sgd_momentum", "sgd_momentum"),
        ("_x_", "\\_x\\_"),
        ("https://x.example", "https\\://x.example"),
        ("&lt;", "\\&lt;"),
        ("a\u202eb", "aU+202Eb"),
    ],
)
def test_markdown_shows_text_as_it_is(given, expected):
    from bench.report.escape import markdown

    assert markdown(given) == expected


def test_code_spans_are_fenced_with_more_backticks_than_they_hold():
    from bench.report.escape import markdown_code

    assert markdown_code("a``b") == "```a``b```"
    assert markdown_code("`a`") == "`` `a` ``"
    assert markdown_code("a|b", in_table=True) == "`a\\|b`"


def test_fences_are_longer_than_any_inside():
    from bench.report.escape import markdown_fence

    assert markdown_fence("```\nx") == "````\n```\nx\n````"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1"])
def test_csv_texts_that_a_spreadsheet_would_run_get_an_apostrophe(text):
    from bench.report.escape import csv_cell

    assert str(csv_cell(text)).startswith("'")
    assert csv_cell("a=1") == "a=1"
    assert csv_cell(-1.5) == -1.5


def test_long_texts_are_cut():
    from bench.report.escape import plain

    assert len(plain("x" * 100_000)) == 400
    assert plain("x" * 100_000).endswith("…")


def _cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))
