"""`bench history` as a user runs it, on made-up days with a known truth."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import click.testing
import pandas as pd
import pytest

import bench
from bench.cli import cli
from bench.records import Status
from tests.histories import CASES, make_days
from tests.results import CPU, GPU, make_results


def history(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, ["history", *map(str, arguments)], prog_name="bench")


def read(*arguments: object, code: int = 0):
    done = history(*arguments, "--json")
    assert done.exit_code == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def slower(tmp_path_factory) -> Path:
    """Seven days; a new driver on the fourth makes steps faster, and the newest day has other code and is slower."""
    folder = tmp_path_factory.mktemp("slower")
    changes = {3: {"driver_version": "580.10", "power_limit_w": 600.0}, 6: {"git_commit": "a" * 40}}
    make_days(folder, [1, 1, 1, 1.2, 1.2, 1.2, 1.0], changes=changes)
    return folder


def test_a_regression_of_the_newest_leaves_with_three_and_names_what_differs(slower):
    found = read(slower, code=3)
    assert [item["name"] for item in found["results"]] == [f"day-{day:02d}" for day in range(7)]
    speed = [item for item in found["changes"] if item["metric"] == "samples_per_s"]
    assert [item["after_result"] for item in speed if item["verdict"] == "faster"] == [3, 3]
    assert [item["after_result"] for item in speed if item["regression"]] == [6, 6]
    for item in speed:
        assert item["low"] < item["ratio"] < item["high"]
        fields = {each["field"]: (each["baseline"], each["candidate"]) for each in item["differences"]}
        if item["verdict"] == "faster":
            assert fields["driver_version"] == ("570.86.10", "580.10")
            assert fields["power_limit_w"] == (700.0, 600.0)
        else:
            assert fields == {"git_commit": ("f" * 40, "a" * 40)}


def test_the_terminal_has_the_outcome_the_sides_and_what_differs(slower):
    done = history(slower)
    assert done.exit_code == 3, done.stderr
    assert done.stdout.startswith("A new regression: 2 lines changed for the worse in day-06 (2025-06-21 15:06)")
    for words in ("day-02 → day-03", "day-05 → day-06", "driver_version 570.86.10 → 580.10", "faster", "slower"):
        assert words in done.stdout


def test_a_regression_that_was_seen_before_is_not_new(tmp_path, slower):
    days = make_days(tmp_path, [1, 1, 1, 1.2, 1.2, 1.2, 1.0, 1.0])
    found = read(*days)
    worse = [item for item in found["changes"] if item["verdict"] == "slower"]
    assert {item["after_result"] for item in worse} == {6}
    assert not found["regressed"] and not any(item["regression"] for item in worse)


def test_order_and_names_of_the_arguments_do_not_matter_and_the_page_is_the_same_to_the_byte(slower, tmp_path):
    days = sorted(slower.iterdir())
    shuffled = [days[place] for place in (3, 0, 6, 5, 1, 2, 4)]
    one, two = tmp_path / "one", tmp_path / "two"
    assert history(slower, "--out", one).exit_code == history(*shuffled, "--out", two).exit_code == 3
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert Path("index.html") in names and Path("report.md") in names
    assert Path("figures/history_samples_per_s.png") in names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_the_page_needs_nothing_beside_it_and_says_what_the_text_says(slower, tmp_path):
    done = history(slower, "--out", tmp_path / "page")
    assert f"page: {tmp_path / 'page' / 'index.html'}" in done.stdout
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    text = (tmp_path / "page" / "report.md").read_text(encoding="utf-8")
    assert 'src="http' not in page and "data:image/png;base64," in page
    for words in ("A new regression: 2 lines", "driver_version 570.86.10", "a new regression", "day-05"):
        assert words in page, words
        assert words.replace("_", "\\_") in text or words in text, words
    numbers = (tmp_path / "page" / "figures" / "history_samples_per_s.csv").read_text(encoding="utf-8")
    assert len(numbers.splitlines()) == 1 + 7 * len(CASES)


def test_markup_in_results_is_text_on_the_page(tmp_path):
    hostile = dataclasses.replace(GPU, driver_version="<script>alert(1)</script>|[x](http://y)")
    make_days(tmp_path / "days", [1, 1, 1, 1, 1], environment=hostile, cases=CASES[:1])
    (tmp_path / "days" / "day-04").rename(tmp_path / "days" / "<img src=x>")
    done = history(tmp_path / "days", "--out", tmp_path / "page")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    text = (tmp_path / "page" / "report.md").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x>" not in page
    assert "<script>alert" not in text and "<img src=x>" not in text and "[x](http" not in text


def test_absurd_numbers_have_no_traceback(tmp_path):
    def absurd(measured, case, repeat):
        return dataclasses.replace(measured, started_unix_s=1e300, wall_window_s=1e-300)

    days = make_days(tmp_path / "days", [1] * 5, cases=CASES[:1])
    make_results(tmp_path / "absurd", CASES[:1], environment=GPU, change=absurd)
    done = history(*days, tmp_path / "absurd", "--out", tmp_path / "page", "--json")
    assert done.exit_code in (0, 3), done.output
    assert json.loads(done.stdout)["results"][-1]["started_unix_s"] == 1e300

    def wild(measured, case, repeat):
        window = (1e-300, 1e300, 1.0)[repeat]
        return dataclasses.replace(absurd(measured, case, repeat), wall_window_s=window, peak_allocated_bytes=1 << 62)

    make_results(tmp_path / "wild", CASES[:1], environment=GPU, change=wild)
    for results in ([*days, tmp_path / "wild"], [tmp_path / "wild"]):
        done = history(*results, "--out", tmp_path / "page")
        assert done.exit_code in (0, 3), done.exception
    endless = make_results(
        tmp_path / "endless", CASES[:1], change=lambda measured, *_: dataclasses.replace(measured, started_unix_s=1e999)
    )
    assert "no run says when it started" in history(endless).stderr


def test_results_that_vary_by_themselves_have_no_changes(tmp_path):
    make_days(tmp_path, [1.0, 1.06, 0.97, 1.04, 0.95, 1.03])
    found = read(tmp_path)
    assert found["changes"] == []
    assert history(tmp_path).stdout.startswith("No change was found over 6 results.")


def test_few_results_of_different_days_are_shown_and_not_judged(tmp_path):
    make_days(tmp_path, [1.0, 1.0, 0.5])
    found = read(tmp_path)
    assert found["changes"] == []
    assert any("fewer than 5 results" in note and "bench compare" in note for note in found["notes"])
    assert len(found["points"]) == 2 * 2 * 3


def test_interleaved_versions_of_torch_are_judged_by_their_processes(tmp_path):
    versions = {1: {"torch_version": "2.14.1"}, 2: {"torch_version": "2.15.0"}}
    first = dataclasses.replace(CPU, torch_version="2.13.0")
    make_days(tmp_path, [1.0, 1.2, 0.9], repeats=5, in_turn=True, environment=first, changes=versions)
    found = read(tmp_path, "--metric", "samples_per_s", code=3)
    assert [(item["after_result"], item["verdict"]) for item in found["changes"]] == [(1, "faster"), (2, "slower")] * 2
    assert found["notes"] == []
    assert [each["field"] for each in found["changes"][0]["differences"]] == ["torch_version"]


def test_more_memory_is_a_regression_and_less_is_none(tmp_path):
    make_days(tmp_path / "more", [1] * 6, memory=[1, 1, 1, 1, 1, 1.1], cases=CASES[:1])
    (change,) = read(tmp_path / "more", code=3)["changes"]
    both = make_days(tmp_path / "both", [1, 1, 1, 1, 1, 0.5], memory=[1, 1, 1, 1, 1, 1.1], cases=CASES[:1])
    assert history(*both).stdout.startswith("A new regression: 1 line changed for the worse in day-05")
    assert (change["metric"], change["ratio"]) == ("peak_allocated_bytes", pytest.approx(1.1, abs=1e-5))
    make_days(tmp_path / "less", [1] * 6, memory=[1, 1, 1, 1, 1, 0.9], cases=CASES[:1])
    assert [item["verdict"] for item in read(tmp_path / "less")["changes"]] == ["faster"]
    assert ", less, between day-04 → day-05" in history(tmp_path / "less").stdout


def test_a_case_that_no_longer_runs_is_a_regression(tmp_path):
    days = make_days(tmp_path, [1, 1])
    shutil.rmtree(days[1])
    broken = make_days(tmp_path / "later", [1, 1], outcomes={1: Status.OOM})[1]
    found = read(days[0], broken, code=3)
    (item,) = found["broken"]
    assert (item["status"], item["before_result"], item["after_result"]) == ("oom", 0, 1)
    assert "CUDA out of memory" in item["reason"]
    assert "failed that ran before" in history(days[0], broken).stdout


def test_cases_of_other_code_are_one_result_and_new_code_of_a_case_is_another(tmp_path):
    from bench.comparison import trace_history

    (day,) = make_days(tmp_path, [1])
    frame = bench.load(day)
    cases = frame.assign(code_key=frame["batch_size"].astype(str))  # it is of the case's model and optimizer too
    assert len(trace_history([("day", cases)]).results) == 1
    later = cases.assign(code_key="new", started_unix_s=cases["started_unix_s"] + 1e5)
    found = trace_history([("day", pd.concat([cases, later], ignore_index=True))])
    assert [item.name for item in found.results] == ["day", "day"]
    assert found.points.groupby("line")["result"].nunique().eq(2).all()


def test_the_same_runs_twice_count_once(slower):
    found = read(slower, slower / "day-06", code=3)
    assert len(found["results"]) == 7
    assert any("count once" in note for note in found["notes"])


def test_models_of_devices_have_lines_of_their_own(tmp_path):
    make_days(tmp_path / "a", [1, 1], cases=CASES[:1])
    make_days(tmp_path / "b", [1, 1], cases=CASES[:1], environment=dataclasses.replace(GPU, gpu_name="NVIDIA L4"))
    found = read(tmp_path)
    labels = {(item["label"], item["machine"]) for item in found["points"]}
    assert {machine for _, machine in labels} == {"NVIDIA H200", "NVIDIA L4"}
    assert len(labels) == 2


def test_points_of_one_process_are_shown_and_do_not_count(tmp_path):
    days = make_days(tmp_path, [1, 1, 1, 1, 1, 1], cases=CASES[:1])
    shutil.rmtree(days[5])
    make_days(tmp_path / "one", [1, 1, 1, 1, 1, 0.5], cases=CASES[:1], repeats=1)
    found = read(*days[:5], tmp_path / "one" / "day-05", "--metric", "samples_per_s")
    assert found["changes"] == [] and len(found["points"]) == 6
    assert any("1 point of one process" in note for note in found["notes"])


def test_a_bundle_is_a_result_and_python_has_the_same_answer(slower, tmp_path):
    from bench.bundles import bundle_files, write_bundle

    archive = tmp_path / "newest.zip"
    (tmp_path / "report").mkdir()
    write_bundle(archive, "newest", bundle_files(slower / "day-06", tmp_path / "report", bench.__version__))
    days = [slower / f"day-{day:02d}" for day in range(6)]
    found = bench.history(archive, *days)
    assert found.regressed and found.results[-1].name == "newest"
    assert {change.verdict for change in found.changes} == {"faster", "slower"}
    assert len(bench.history(slower, only=["batch_size=64"]).points) == 7 * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "RESULTS"),
        (["nowhere"], "nowhere: does not exist"),
        (["{slower}", "--metric", "speed"], 'unknown metric "speed"'),
        (["{slower}", "--metric", "speed"], "bench compare --help"),
        (["{slower}", "--out", "{slower}/day-00"], "day-00: holds results"),
        (["{slower}", "--only", "modle=mlp"], 'unknown field "modle". Nearest: model'),
        (["{slower}", "--only", "model=vit"], "no run matches model = vit"),
        (["{slower}", "--margin", "2"], "margin 2"),
        (["{slower}", "--metric", "host_rss_peak_bytes", "--confidence", "x"], '"x" is not a valid fraction'),
    ],
)
def test_mistakes_are_named(arguments, words, slower):
    done = history(*(argument.format(slower=slower) for argument in arguments))
    assert done.exit_code == 2 and words in done.stderr
    assert "Traceback" not in done.stderr


def test_results_in_which_nothing_started_say_so(tmp_path):
    make_results(tmp_path / "planned", CASES, outcomes={0: Status.INTERRUPTED, 1: Status.INTERRUPTED})
    done = history(tmp_path)
    assert done.exit_code == 2 and "no run says when it started" in done.stderr
