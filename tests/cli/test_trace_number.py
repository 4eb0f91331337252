"""`bench trace`: from a number in a report back to the parts that it came from."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

import bench
from bench.analysis import summarise_cases
from bench.cli import cli
from bench.records import Status
from bench.store.parts import read
from bench.units import format_bytes, format_rate
from tests.altered import honest
from tests.results import make_cases

HOSTILE = "odd\x1b[31m\u202e|name"


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="bench")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sketched):
    """A rendered report with its data; nothing here changes it."""
    from bench.report import render_report

    folder = tmp_path_factory.mktemp("traced") / "mine"
    change = lambda measured, case, repeat: (  # noqa: E731
        dataclasses.replace(measured, status=Status.THROTTLED) if (case.batch_size, repeat) == (16, 1) else measured
    )
    honest(folder / "data", cases=make_cases(["mnist"], ["mlp"], ["sgd", "adam"], [16, 64]), repeats=3, change=change)
    render_report([folder], folder)
    return folder


def traced(folder, text):
    result = run("trace", "--json", "--", text, folder)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def row(folder, batch, optimizer):
    summary = summarise_cases(bench.load(folder))
    return summary[(summary["batch_size"] == batch) & (summary["optimizer"] == optimizer)].iloc[0]


def test_a_rate_leads_to_the_parts_whose_mean_it_is(folder):
    case = row(folder, 64, "adam")
    (one,) = traced(folder, format_rate(case["samples_per_s"], "samples"))
    assert (one["case_key"], one["column"], one["title"]) == (
        case["case_key"],
        "samples_per_s",
        "samples/s (95 % interval)",
    )
    values = []
    for source in one["sources"]:
        (run_row,) = read(Path(source["part"]), "run").to_pylist()
        assert (run_row["run_key"], run_row["repeat"]) == (source["run_key"], source["repeat"])
        assert source["value"] == run_row["batch_size"] * len(run_row["step_times_s"]) / run_row["wall_window_s"]
        values.append(source["value"])
    assert len(values) == 3
    assert math.isclose(math.prod(values) ** (1 / 3), one["value"])
    assert any(place.startswith("table.csv, line ") for place in one["places"])
    assert any(place.startswith("figures/throughput.csv, line ") for place in one["places"])


def test_the_lines_named_hold_the_number(folder):
    (one,) = traced(folder, format_rate(row(folder, 64, "adam")["samples_per_s"], "samples"))
    for place in one["places"]:
        name, line, column = place.split(", ")
        lines = (folder / name).read_text().splitlines()
        cells = dict(zip(lines[0].split(","), lines[int(line.split()[1]) - 1].split(","), strict=False))
        if '"' not in lines[int(line.split()[1]) - 1]:
            assert float(cells[column.removeprefix("column ")]) == one["value"]


def test_bytes_and_both_ends_of_an_interval_are_found(folder):
    case = row(folder, 64, "sgd")
    found = traced(folder, format_bytes(case["peak_allocated_bytes"]))
    (peak,) = [one for one in found if one["column"] == "peak_allocated_bytes" and one["case_key"] == case["case_key"]]
    assert peak["value"] == case["peak_allocated_bytes"]
    assert peak["how"] == "the largest over the processes"
    found = traced(folder, repr(float(case["samples_per_s_high"])))
    assert [(one["column"], one["case_key"]) for one in found] == [("samples_per_s_high", case["case_key"])]
    assert found[0]["how"].startswith("end of the 95 % interval")


def test_an_estimate_leads_to_its_part(folder):
    case = row(folder, 64, "adam")
    one = next(one for one in traced(folder, str(case["formula_bytes"])) if one["column"] == "formula_bytes")
    (part,) = one["estimate_parts"]
    estimates = {item["case_key"]: item for item in read(Path(part), "estimates").to_pylist()}
    assert estimates[case["case_key"]]["formula_bytes"] == one["value"]


def test_one_run_s_own_number_is_found_where_no_case_has_it(folder):
    frame = bench.load(folder)
    one_run = frame[frame["batch_size"] == 64].iloc[0]
    (one,) = traced(folder, repr(float(one_run["wall_window_s"])))
    assert one["how"] == "one process's own number"
    assert [source["run_key"] for source in one["sources"]] == [one_run["run_key"]]


def test_a_run_that_does_not_count_is_said_not_to(folder):
    case = row(folder, 16, "sgd")
    (one,) = [one for one in traced(folder, case["case_key"]) if one["column"] == "samples_per_s"]
    assert sorted(source["status"] for source in one["sources"]) == ["ok", "ok", "throttled"]


@pytest.mark.parametrize(
    "text", ["mlp on mnist, batch 64, adam", "MLP mnist 64 adam", "{case_key}", "{run_key}", "{part}"]
)
def test_a_case_is_found_by_its_words_its_key_a_run_s_key_and_a_part_s_name(folder, text):
    case = row(folder, 64, "adam")
    frame = bench.load(folder)
    key = frame.loc[(frame["case_key"] == case["case_key"]), "run_key"].iloc[0]
    part = next(path.name for path in (folder / "data" / "runs").iterdir() if key in path.name)
    found = traced(folder, text.format(case_key=case["case_key"], run_key=key, part=part))
    assert {one["case_key"] for one in found} == {case["case_key"]}
    assert found[0]["value"] == case["samples_per_s"]


def test_what_means_nothing_is_answered_with_the_nearest_case(folder):
    result = run("trace", "mlp on mnits, batch 64, adam", folder)
    assert result.exit_code == 2
    assert "no number, case or run of" in result.output
    assert "Nearest: mlp on mnist, batch 64, adam" in result.output
    assert "Give a number as the report prints it" in result.output
    assert run("trace", "1", "/nowhere").exit_code == 2


def test_text_for_people_names_case_column_runs_and_parts(folder):
    output = run("trace", "mlp 64 adam", folder).output
    assert "samples_per_s = " in output
    assert '(table "All cases", column "samples/s (95 % interval)")' in output
    assert output.count(".parquet") == 6  # three runs, for speed and for memory


def test_hostile_strings_drive_no_terminal(tmp_path):
    honest(tmp_path / "data", cases=make_cases(["mnist"], [HOSTILE], ["sgd"], [16]), repeats=1)
    result = run("trace", "mnist", tmp_path)
    assert result.exit_code == 0
    assert "\x1b" not in result.output and "\u202e" not in result.output
    result = run("trace", "\x1b[31mnothing\u202e", tmp_path)
    assert "\x1b" not in result.output and "\u202e" not in result.output
