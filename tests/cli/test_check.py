"""`bench check`: publishable or not, by exit code, and every reason by name."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from bench.cli import cli
from tests.altered import honest, rewrite
from tests.results import GPU, make_cases

pytestmark = pytest.mark.usefixtures("sketched")

HOSTILE = "a|b`c`<script>alert(1)</script>\u202e=1+1\x1b[31m"


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="bench")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def codes(*arguments):
    result = run("check", *arguments, "--interval", "0.05", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["publishable"] else 4)
    return {finding["code"]: finding for finding in found["findings"] if finding["blocks"]}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, sketched):
    """An honest report with its data; tests work on copies."""
    from bench.report import render_report

    folder = tmp_path_factory.mktemp("rendered") / "mine"
    honest(folder / "data", cases=make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64]))
    render_report([folder], folder)
    return folder


@pytest.fixture
def report(rendered, tmp_path):
    import shutil

    return shutil.copytree(rendered, tmp_path / "mine")


def test_honest_results_and_their_report_are_publishable(report):
    for place in (report, report / "index.html", report / "report.md", report / "data"):
        assert codes(place) == {}
    result = run("check", report, "--interval", "0.05")
    assert result.exit_code == 0
    assert result.output.rstrip().endswith(": publishable")


def test_what_forbids_it_is_named_with_cases_and_runs_and_exit_code_4(report):
    from bench.report import render_report

    (key,) = rewrite(report / "data", lambda row: {"other_process_count": 2} if row["batch_size"] == 64 else {}, "-r3-")
    render_report([report], report)
    finding = codes(report)["contaminated"]
    assert [(case["case"], case["run_keys"]) for case in finding["cases"]] == [("mlp on mnist, batch 64", [key])]
    result = run("check", report, "--interval", "0.05")
    assert result.exit_code == 4
    assert f"mlp on mnist, batch 64  runs {key}" in result.output
    assert "not publishable: 1 problem" in result.output


def test_all_names_every_case(tmp_path):
    honest(tmp_path, cases=make_cases(["mnist"], ["mlp"], ["sgd"], [2**power for power in range(12)]), repeats=1)
    assert "and 2 more; --all lists them" in run("check", tmp_path).output
    everything = run("check", tmp_path, "--all").output
    assert "more; --all" not in everything
    assert all(f"batch {2**power}  runs" in everything for power in range(12))


def test_a_figure_s_csv_that_was_changed_is_named(report):
    place = report / "figures" / "throughput.csv"
    frame = pd.read_csv(place)
    frame.loc[0, "samples_per_s"] *= 1.1
    frame.to_csv(place, index=False)
    finding = codes(report)["figure_differs"]
    assert "figures/throughput.csv" in finding["text"]
    assert "throughput.png" not in finding["text"]


def test_a_figure_that_shows_something_else_than_its_csv_is_named(report):
    place = report / "figures" / "throughput.png"
    with Image.open(place) as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(place)
    finding = codes(report)["figure_differs"]
    assert "figures/throughput.png" in finding["text"]
    assert "throughput.csv" not in finding["text"]


@pytest.mark.parametrize("name", ["report.md", "index.html", "table.csv", "config.toml"])
def test_a_number_changed_in_the_report_is_named(report, name):
    text = (report / name).read_text()
    (report / name).write_text(text.replace("64", "65", 1))
    assert name in codes(report)["report_differs"]["text"]


def test_a_figure_that_is_gone_or_was_never_drawn_is_named(report):
    (report / "figures" / "memory.png").unlink()
    (report / "figures" / "invented.png").write_bytes(b"\x89PNG")
    found = codes(report)
    assert "figures/memory.png" in found["report_incomplete"]["text"]
    assert "figures/invented.png" in found["figure_differs"]["text"]


def test_checking_changes_nothing(report):
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    run("check", report)
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before


def test_a_part_that_was_changed_on_the_disk_is_named(report):
    part = sorted((report / "data" / "runs").iterdir())[0]
    whole = part.read_bytes()
    part.write_bytes(whole[:-200] + b"\0" * 200)
    found = codes(report)
    assert part.name in found["damaged_part"]["text"]
    assert "interrupted" in found


def test_a_report_apart_from_its_data_is_held_against_them(report, tmp_path):
    from bench.report import render_report

    render_report([report], tmp_path / "apart")
    result = run("check", tmp_path / "apart")
    assert result.exit_code == 2
    assert "holds no results" in result.output
    assert codes(tmp_path / "apart", "--data", report) == {}
    (tmp_path / "apart" / "table.csv").write_text("a\n")
    assert "report_differs" in codes(tmp_path / "apart", "--data", report)


def test_the_report_carries_the_verdict_at_its_top(report):
    first = (report / "report.md").read_text().split("\n- ")[0]
    assert "Not publishable: noisy" in first  # ±1 % is asked for on a GPU, and nothing else was not kept
    assert "Fit to publish?" in (report / "index.html").read_text()


def test_a_publishable_report_says_so(tmp_path):
    from bench.report import render_report

    def steady(measured, case, repeat):
        return dataclasses.replace(measured, step_times_s=(0.01,) * 12, wall_window_s=0.12 + repeat * 1e-5)

    honest(tmp_path / "data", cases=make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64]), change=steady)
    render_report([tmp_path], tmp_path)
    assert "Publishable: every rule" in (tmp_path / "report.md").read_text().split("\n- ")[0]
    assert run("check", tmp_path).exit_code == 0


def test_hostile_strings_drive_no_terminal(tmp_path):
    from bench.report import render_report

    honest(
        tmp_path / "data",
        cases=make_cases(["mnist"], ["mlp"], ["sgd"], [16]),
        environment=dataclasses.replace(GPU, gpu_name=HOSTILE, driver_version=None),
        change=lambda measured, case, repeat: dataclasses.replace(measured, flags=(HOSTILE,), reason=HOSTILE),
    )
    render_report([tmp_path], tmp_path)
    output = run("check", tmp_path).output
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert "Flagged" in output
    assert (tmp_path / "index.html").read_text().count("<script") == 3  # the page's own
    assert "<script>" not in (tmp_path / "report.md").read_text().replace("\\<script", "")
    assert "\u202e" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere: does not exist; give a folder that `bench sweep` wrote"),
        (["{}"], "holds no results"),
        (["{}", "--interval", "0"], "0.0 is not in the range"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(arguments, message, tmp_path):
    result = run("check", *(argument.format(tmp_path) for argument in arguments))
    assert message in result.output
    assert result.exit_code == 2
