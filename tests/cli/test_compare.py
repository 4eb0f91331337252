"""`bench compare` as a user runs it, on made-up results with a known truth."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import click.testing
import pytest

from bench.cli import cli
from bench.records import Choice, Measurement, Protocol, Status
from tests.results import CPU, GPU, make_cases, make_results

CASES = make_cases(datasets=["mnist"], optimizers=("sgd", "adam"), batch_sizes=(16, 64, 256))
PROTOCOL = Protocol(warmup_steps=3, measured_steps=8)


def compare(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, ["compare", *map(str, arguments)], prog_name="bench")


def read(*arguments: object, code: int = 0):
    done = compare(*arguments, "--json")
    assert done.exit_code == code, done.stderr
    return json.loads(done.stdout)


def times(factor: float, *, batch_size: int | None = None):
    """A change to a measurement: throughput is multiplied."""

    def change(measurement, case, repeat):
        if measurement.wall_window_s is None or batch_size not in (None, case.batch_size):
            return measurement
        return dataclasses.replace(
            measurement,
            wall_window_s=measurement.wall_window_s / factor,
            step_times_s=tuple(value / factor for value in measurement.step_times_s),
        )

    return change


def larger(factor: float):
    def change(measurement, case, repeat):
        return dataclasses.replace(measurement, peak_allocated_bytes=round(measurement.peak_allocated_bytes * factor))

    return change


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_results(tmp_path_factory.mktemp("results") / "before", CASES, repeats=5, environment=GPU)


@pytest.fixture
def after(tmp_path):
    def make(name: str = "after", cases=CASES, **settings) -> Path:
        return make_results(tmp_path / name, cases, **{"repeats": 5, "seed": 7, "environment": GPU, **settings})

    return make


@pytest.mark.parametrize(
    ("given", "name"),
    [(".", "before"), ("..", "before"), ("{base}/", "before"), ("{base}/sub/..", "before"), ("latest", "latest")],
)
def test_a_side_has_a_name_however_its_folder_is_written(base, after, tmp_path, monkeypatch, given, name):
    (base / "sub").mkdir(exist_ok=True)
    (tmp_path / "latest").symlink_to(base)
    monkeypatch.chdir({".": base, "..": base / "sub"}.get(given, tmp_path))
    other = after(change=times(0.5))
    done = compare(given.format(base=base), other, "--price", f"{name}=1")
    assert done.exit_code == 3, done.stderr
    assert f"Ratios are candidate over baseline ({name})." in done.stdout


def test_data_named_by_itself_goes_by_the_folder_around_it(base, after, tmp_path, monkeypatch):
    after("inner/data")
    monkeypatch.chdir(tmp_path / "inner")
    assert "What differs between before and inner besides" in compare(base, "data").stdout


def test_the_same_code_twice_has_no_difference_and_leaves_with_zero(base, after):
    found = read(base, after(), "--margin", "5%")
    assert found["differences"] == []
    assert {row["verdict"] for row in found["cases"]} == {"same"}
    assert found["regressions"] == []
    for metric in ("samples_per_s", "peak_allocated_bytes"):
        whole = found["geomean"][metric]
        assert (whole["n"], whole["n_planned"]) == (6, 6)
        assert whole["low"] <= 1 <= whole["high"]


def test_slower_cases_are_called_and_leave_with_three(base, after):
    found = read(base, after(change=times(0.9, batch_size=64)), code=3)
    speed = {row["batch_size"]: row for row in found["cases"] if row["metric"] == "samples_per_s"}
    assert speed[64]["verdict"] == "slower"
    assert speed[64]["low"] < speed[64]["ratio"] < speed[64]["high"] < 1
    assert speed[64]["ratio"] == pytest.approx(0.9, abs=0.02)
    assert {row["batch_size"] for row in found["regressions"]} == {64}
    assert {row["verdict"] for size, row in speed.items() if size != 64} <= {"same", "unclear"}
    assert set(speed[16]) >= {
        "case_key",
        "metric",
        "ratio",
        "low",
        "high",
        "verdict",
        "reason",
        "n_baseline",
        "p_adjusted",
    }


def test_faster_is_no_regression(base, after):
    found = read(base, after(change=times(1.2)))
    assert {row["verdict"] for row in found["cases"] if row["metric"] == "samples_per_s"} == {"faster"}


def test_memory_beyond_the_margin_is_a_regression_and_reads_more(base, after):
    grown = after(change=larger(1.02))
    found = read(base, grown, "--metric", "peak_allocated_bytes", code=3)
    assert {row["verdict"] for row in found["cases"]} == {"slower"}
    assert {row["metric"] for row in found["cases"]} == {"peak_allocated_bytes"}
    text = compare(base, grown, "--metric", "peak_allocated_bytes").stdout
    assert "6 more" in text and "slower" not in text
    assert read(base, grown, "--metric", "peak_allocated_bytes", "--margin", "0.03")["regressions"] == []
    assert {
        row["verdict"]
        for row in read(base, after("less", change=larger(0.9)), "--metric", "peak_allocated_bytes")["cases"]
    } == {"faster"}


def test_what_differs_comes_first_and_the_telling_fields_lead(base, after):
    other = dataclasses.replace(
        GPU,
        gpu_name="NVIDIA L4",
        driver_version="580.1",
        power_limit_w=72.0,
        torch_version="2.14.0",
        git_commit="a" * 40,
    )
    results = after(environment=other)
    found = read(base, results, "--margin", "10%")["differences"]
    assert [item["field"] for item in found] == [
        "gpu_name",
        "driver_version",
        "power_limit_w",
        "torch_version",
        "git_commit",
    ]
    assert {item["field"]: item["kind"] for item in found}["git_commit"] == "code"
    assert found[0] == {"field": "gpu_name", "baseline": "NVIDIA H200", "candidate": "NVIDIA L4", "kind": "environment"}
    lines = compare(base, results, "--margin", "10%").stdout.splitlines()
    assert lines[0] == "What differs between before and after besides the cases"
    assert lines[2].split() == ["environment", "gpu_name", "NVIDIA", "H200", "NVIDIA", "L4"]


def test_unknown_against_known_is_a_difference(base, after):
    results = after(environment=dataclasses.replace(GPU, power_limit_w=None))
    assert "power_limit_w" in {item["field"] for item in read(base, results, "--margin", "10%")["differences"]}
    assert "unknown" in compare(base, results, "--margin", "10%").stdout


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("compiled", {"protocol": dataclasses.replace(PROTOCOL, compiled=True)}),
        ("cudnn_benchmark", {"protocol": dataclasses.replace(PROTOCOL, cudnn_benchmark=True)}),
        ("data_source", {"data_source": "synthetic"}),
        ("speed_variables", {"environment": dataclasses.replace(GPU, speed_variables="NVIDIA_TF32_OVERRIDE=1")}),
    ],
)
def test_other_flags_are_refused_by_name_unless_compared_across(base, after, field, settings):
    results = after(**settings)
    done = compare(base, results)
    assert done.exit_code == 2
    assert f"error: {field} differs: " in done.stderr
    assert f"--across {field}" in done.stderr
    found = read(base, results, "--across", field, "--margin", "10%")
    assert {row["verdict"] for row in found["cases"]} == {"same"}
    assert found["across"] == [field]


def test_how_long_it_was_measured_is_a_difference_and_no_refusal(base, after):
    found = read(base, after(protocol=dataclasses.replace(PROTOCOL, measured_steps=9)), "--margin", "10%")
    assert [(item["field"], item["kind"]) for item in found["differences"]] == [("measured_steps", "protocol")]


@pytest.mark.parametrize(
    ("axis", "value", "axes"),
    [
        ("precision", "bf16", {"precision": "bf16"}),
        ("input", "loader", {"input": "loader"}),
        ("model", "resnet18", {"models": ["resnet18"]}),
        ("memory_format", "channels_last", {"memory_format": "channels_last"}),
    ],
)
def test_other_axes_are_refused_by_name_unless_compared_across(base, after, axis, value, axes):
    results = after(
        cases=make_cases(**{"datasets": ["mnist"], "optimizers": ("sgd", "adam"), "batch_sizes": (16, 64, 256), **axes})
    )
    done = compare(base, results)
    assert done.exit_code == 2
    assert "error: the sides have no case in common" in done.stderr
    assert f"{axis} differs: " in done.stderr and value in done.stderr
    assert f"--across {axis}" in done.stderr
    done = compare(base, results, "--across", axis, "--json")
    assert done.exit_code in (0, 3)
    rows = [row for row in json.loads(done.stdout)["cases"] if row["metric"] == "samples_per_s"]
    assert len(rows) == 6
    assert {row[f"{axis}_candidate"] for row in rows} == {value}


def test_two_precisions_of_one_folder(tmp_path):
    both = [
        *make_cases(batch_sizes=(64,), datasets=["mnist"]),
        *make_cases(batch_sizes=(64,), datasets=["mnist"], precision="bf16"),
    ]
    folder = make_results(tmp_path / "both", both, environment=GPU, repeats=5)
    found = read(folder, "--across", "precision=float32,bf16", "--margin", "10%")
    assert (found["baseline"], found["candidate"]) == ("float32", "bf16")
    assert {(row["precision"], row["precision_candidate"]) for row in found["cases"]} == {("float32", "bf16")}
    other = make_results(tmp_path / "other", both, environment=GPU, repeats=5, seed=3)
    ambiguous = compare(folder, other, "--across", "precision")
    assert ambiguous.exit_code == 2
    assert "across precision: the baseline has several values for one case (float32, bf16)" in ambiguous.stderr


def test_only_narrows_both_sides(base, after):
    results = after()
    rows = read(base, results, "--only", "batch_size=64", "--only", "optimizer=sg*", "--margin", "10%")["cases"]
    assert {(row["batch_size"], row["optimizer"]) for row in rows} == {(64, "sgd")}
    done = compare(base, results, "--only", "model=resnet*")
    assert done.exit_code == 2
    assert "error: before: no run matches model = resnet*. Available: mlp" in done.stderr
    wrong = compare(base, results, "--only", "modle=x").stderr
    assert 'unknown field "modle". Nearest: model' in wrong and "Available: " in wrong and "gpu_name" in wrong


def test_a_single_process_or_unequal_numbers_are_unclear_with_the_reason(base, after, tmp_path):
    found = read(base, after("four", repeats=4, change=times(0.5)))
    assert {row["verdict"] for row in found["cases"]} == {"unclear"}
    (reason,) = {row["reason"] for row in found["cases"]}
    assert reason.startswith("5 processes against 4: unequal numbers give no verdict; ") and "--processes N" in reason
    alone = [
        make_results(tmp_path / name, CASES, repeats=1, change=change)
        for name, change in (("one", None), ("two", times(0.5)))
    ]
    found = read(*alone)
    assert {row["verdict"] for row in found["cases"]} == {"unclear"}
    assert {row["low"] for row in found["cases"]} == {None}
    assert {row["reason"] for row in found["cases"]} == {
        "one process per side shows nothing about variation between processes"
    }


def test_the_first_processes_alone_are_counted_and_later_ones_never_fill_in(base, after):
    def failing(measurement, case, repeat):
        late = times(0.5)(measurement, case, repeat) if repeat >= 5 else measurement
        failed = case.batch_size == 64 and repeat == 2
        return Measurement(status=Status.CRASHED, reason="made up") if failed else late

    grown = after(repeats=8, change=failing)
    found = read(base, grown, "--processes", "5", "--margin", "10%")
    assert found["processes"] == 5
    verdicts = {(row["batch_size"], row["verdict"]) for row in found["cases"]}
    assert verdicts == {(16, "same"), (64, "unclear"), (256, "same")}
    assert {row["reason"] for row in found["cases"] if row["batch_size"] == 64} == {
        "of the first 5 processes, 5 against 4 measured; later ones do not count"
    }
    assert {row["verdict"] for row in read(base, grown, "--margin", "10%")["cases"]} == {"unclear"}
    assert "Only the first 5 processes of each case count" in compare(base, grown, "--processes", "5").stdout
    assert "processes 1: a verdict needs at least 2 per case" in compare(base, grown, "--processes", "1").stderr


def test_missing_cases_come_in_a_readers_order(base, after):
    one = after(cases=CASES[:1])
    sizes = [(item["label"].rsplit(", ", 1)[1], item["label"]) for item in read(base, one)["missing"]]
    labels = [label for _, label in sizes]
    assert labels == [
        *(f"mlp on mnist, batch {size}, adam" for size in (16, 64, 256)),
        *(f"mlp on mnist, batch {size}, sgd" for size in (64, 256)),
    ]


def test_where_images_were_from_is_no_difference_for_a_run_that_failed_before_it_knew(base, after):
    def failing(measurement, case, repeat):
        failed = case.batch_size == 64 and repeat == 2
        return Measurement(status=Status.CRASHED, reason="made up") if failed else measurement

    assert read(base, after(change=failing), "--margin", "10%")["differences"] == []


def test_variables_that_are_not_set_read_so(base, after):
    results = after(environment=dataclasses.replace(GPU, speed_variables="NVIDIA_TF32_OVERRIDE=1"))
    assert "speed_variables differs: none set in the baseline, NVIDIA" in compare(base, results).stderr
    text = compare(base, results, "--across", "speed_variables", "--margin", "10%").stdout
    (line,) = [line for line in text.splitlines() if "speed_variables" in line]
    assert "none set" in line and "unknown" not in line


def test_values_with_commas_and_brackets_are_told_apart(tmp_path):
    settings = [Choice.of("mlp", {"hidden": sizes}) for sizes in ((256, 128), (512, 2))]
    cases = [dataclasses.replace(case, model=model) for model in settings for case in CASES[:1]]
    folder = make_results(tmp_path / "both", cases, environment=GPU, repeats=5)
    values = "mlp:hidden=[256,128]", "mlp:hidden=[512,2]"
    found = read(folder, "--across", f"model={','.join(values)}", "--margin", "10%")
    assert (found["baseline"], found["candidate"]) == values
    assert {(row["model"], row["model_candidate"]) for row in found["cases"]} == {values}
    done = compare(folder, "--across", f"model={values[0]},nothing")
    assert "needs the values of two sides" in done.stderr


def test_missing_is_listed_and_is_not_zero(base, after):
    more = make_cases(datasets=["mnist"], optimizers=["sgd"], batch_sizes=(4096,))
    found = read(base, after(cases=[*CASES[1:], *more], outcomes={0: Status.SKIPPED}), "--margin", "10%")
    missing = {(item["label"], item["side"]): item for item in found["missing"]}
    assert missing["mlp on mnist, batch 16, sgd", "candidate"]["status"] == "not planned"
    assert missing["mlp on mnist, batch 4096, sgd", "baseline"]["status"] == "not planned"
    assert missing["mlp on mnist, batch 64, sgd", "candidate"]["reason"] == "excluded by a rule of the example"
    (skipped,) = [row for row in found["cases"] if row["candidate"] is None and row["metric"] == "samples_per_s"]
    assert skipped["ratio"] is None
    assert skipped["reason"] == "not measured in the candidate (candidate: skipped, excluded by a rule of the example)"
    assert found["geomean"]["samples_per_s"]["n"] == 4
    assert found["geomean"]["samples_per_s"]["n_planned"] == 7


def test_a_case_that_no_longer_runs_is_a_regression(base, after):
    found = read(base, after(outcomes={2: Status.OOM}), "--margin", "10%", code=3)
    assert {(row["batch_size"], row["verdict"]) for row in found["regressions"]} == {(256, "unclear")}
    (item,) = found["missing"]
    assert (item["side"], item["status"], item["broken"]) == ("candidate", "oom", True)
    gained = read(after("worse", outcomes={2: Status.OOM}), after("better", seed=9), "--margin", "10%")
    assert [(item["side"], item["broken"]) for item in gained["missing"]] == [("baseline", False)]


def test_throttled_runs_say_nothing_about_speed(base, after):
    found = read(
        base,
        after(outcomes={0: Status.THROTTLED}, change=times(0.5, batch_size=16)),
        "--only",
        "dataset=mnist",
        "--only",
        "optimizer=sgd",
        "--margin",
        "10%",
    )
    throttled = {row["metric"]: row for row in found["cases"] if row["batch_size"] == 16}
    assert throttled["samples_per_s"]["verdict"] == "unclear"
    assert throttled["samples_per_s"]["n_candidate"] == 0
    assert throttled["peak_allocated_bytes"]["verdict"] == "same"


def test_more_than_two_are_compared_with_the_chosen_baseline(base, after):
    slow, fast = after("slow", change=times(0.5)), after("fast", change=times(2.0))
    found = read(slow, base, fast, "--baseline", "before", code=3)
    assert found["baseline"] == "before"
    assert [item["candidate"] for item in found["comparisons"]] == ["slow", "fast"]
    verdicts = [
        {row["verdict"] for row in item["cases"] if row["metric"] == "samples_per_s"} for item in found["comparisons"]
    ]
    assert verdicts == [{"slower"}, {"faster"}]
    text = compare(slow, base, fast, "--baseline", "before").stdout
    assert "throughput, more is better" in text and re.search(
        r"^  slow: geometric mean 0\.(49|50)\d\d \(interval .*\) over 6 of 6 cases; 6 slower$", text, re.MULTILINE
    )
    assert re.search(r"^  mlp on mnist, batch 16, .*  0\.\d{4} \(0\.\d{4} to 0\.\d{4}\) slower ", text, re.MULTILINE)
    assert read(base, slow, fast, code=3)["baseline"] == "before"
    assert 'no results are called "befor". Nearest: before' in compare(slow, base, "--baseline", "befor").stderr


def test_several_candidates_are_ordered_by_the_worst_and_say_why_they_are_unclear(base, after):
    bad, few = after("bad", change=times(0.5, batch_size=256)), after("few", repeats=4)
    text = compare(base, bad, few, "--worst-first", "--metric", "samples_per_s", "--margin", "10%").stdout
    rows = re.findall(r"^  mlp on mnist, batch (\d+),", text, re.MULTILINE)
    assert rows[:2] == ["256", "256"]
    assert "  few: unclear (6): 5 processes against 4" in text


def test_prices_and_energy_are_given_per_sample(base, after):
    found = read(base, after(), "--price", "before=3.6", "--margin", "10%")
    rate = next(row for row in found["cases"] if row["metric"] == "samples_per_s")
    priced = {(item["case_key"], item["name"]): item for item in found["cost"]}
    assert priced[rate["case_key"], "before"]["price_per_million_samples"] == pytest.approx(1000 / rate["baseline"])
    assert priced[rate["case_key"], "after"]["price_per_million_samples"] is None
    assert priced[rate["case_key"], "after"]["joules_per_sample"] == pytest.approx(420 / rate["candidate"], rel=0.01)
    assert "price of a million samples" in compare(base, after("again"), "--price", "before=3.6").stdout
    for wrong in ("before", "before=x", "before=-1", "nobody=1"):
        assert compare(base, after(wrong), "--price", wrong).exit_code == 2


def test_energy_can_be_compared_and_is_refused_where_nobody_measured_it(base, after, tmp_path):
    found = read(base, after(), "--metric", "joules_per_sample", "--margin", "10%")
    assert {row["verdict"] for row in found["cases"]} == {"same"}
    sides = [make_results(tmp_path / name, CASES, seed=seed, environment=CPU) for seed, name in enumerate("ab")]
    assert "neither side measured joules_per_sample" in compare(*sides, "--metric", "joules_per_sample").stderr
    assert 'unknown metric "samples". Nearest: samples_per_s' in compare(*sides, "--metric", "samples").stderr


def test_worst_first_orders_by_what_got_worse(base, after):
    results = after(change=times(0.9, batch_size=256))
    rows = [row for row in read(base, results, "--worst-first", code=3)["cases"] if row["metric"] == "samples_per_s"]
    assert [row["ratio"] for row in rows] == sorted(row["ratio"] for row in rows)
    assert {row["batch_size"] for row in rows[:2]} == {256}


def test_runs_of_two_environments_are_not_mixed(tmp_path, base):
    for seed, driver in enumerate(("570.1", "580.1")):
        make_results(
            tmp_path / "mixed", CASES, repeats=5, seed=seed, environment=dataclasses.replace(GPU, driver_version=driver)
        )
    done = compare(base, tmp_path / "mixed")
    assert done.exit_code == 2
    assert "the candidate has runs of one case with different driver_version (570.1, 580.1)" in done.stderr
    assert compare(base, tmp_path / "mixed", "--margin", "10%").exit_code == 2


def test_hostile_text_reaches_no_terminal(base, after):
    nasty = "\x1b[31mred\u202e|\n# <script>"
    text = compare(base, after(environment=dataclasses.replace(GPU, gpu_name=nasty)), "--margin", "10%").stdout
    assert "\x1b" not in text and "\u202e" not in text
    assert "script" in text


def test_sides_measured_one_after_the_other_are_noted(base, after):
    later = after(change=lambda found, case, repeat: dataclasses.replace(found, started_unix_s=1.8e9))
    notes = read(base, later, "--margin", "10%")["notes"]
    assert len(notes) == 1 and "one after the other" in notes[0]
    clone = dataclasses.replace(GPU, cpu_model="Another")  # made from the same image, it has the same hash
    later = after("clone", environment=clone, change=lambda found, *_: dataclasses.replace(found, started_unix_s=1.8e9))
    assert not any("one after the other" in note for note in read(base, later, "--margin", "10%")["notes"])
    assert read(base, after("meanwhile"), "--margin", "10%")["notes"] == []


def test_the_same_runs_twice_are_noted(base, tmp_path):
    copy = make_results(tmp_path / "copy", CASES, repeats=5, environment=GPU)
    assert read(base, copy)["notes"] == ["Both sides contain the same runs."]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}"], "give two results, or one and the values to compare"),
        (["{base}", "{base}"], "is given twice"),
        (["{base}", "nowhere"], "nowhere: does not exist"),
        (["{base}", "{other}", "--margin", "2"], "margin 2: must be a fraction between 0 and 1"),
        (["{base}", "{other}", "--margin", "x"], '"x" is not a valid fraction; write it like 0.02 or 2%'),
        (["{base}", "{other}", "--confidence", "1"], "confidence 1: must be a fraction of at least 0.5 and below 1"),
        (
            ["{base}", "{other}", "--across", "precison"],
            'unknown field to compare across "precison". Nearest: precision',
        ),
        (["{base}", "{other}", "--across", "precision=a,b,c"], "needs the values of two sides"),
    ],
)
def test_wrong_use_is_refused_with_a_sentence(base, after, arguments, message):
    other = after()
    done = compare(*(item.format(base=base, other=other) for item in arguments))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


def over(folder: Path, spread: str, places: dict[str, float], change: float, cases=CASES[:1]) -> Path:
    """Results whose repeats were spread over hosts or cards, each of its own speed; the plan is the first one's."""
    field = {"hosts": "host_hash", "gpus": "gpu_uuid_hash"}[spread]
    for number, (place, speed) in enumerate(places.items()):
        environment = dataclasses.replace(GPU, spread=spread, **{field: place})
        made = make_results(
            folder / place,
            cases,
            repeats=len(places),
            seed=number + round(100 * change),
            environment=environment,
            change=times(speed * change),
        )
        for part in (made / "runs").iterdir():
            if int(part.name.split("-r")[1].split("-")[0]) % len(places) != number:
                part.unlink()
        if number:
            for part in (made / "runs").iterdir():
                part.rename(folder / next(iter(places)) / "runs" / part.name)
            shutil.rmtree(made)
    return folder


SPEEDS = {"one": 1.0, "two": 1.08, "three": 0.94, "four": 1.03, "five": 0.97, "six": 1.05, "seven": 0.91}


@pytest.mark.parametrize(("spread", "words"), [("hosts", "n counts hosts"), ("gpus", "n counts pairs of processes")])
def test_sides_on_the_same_hosts_or_cards_are_compared_within_each(tmp_path, spread, words):
    before = over(tmp_path / "before", spread, SPEEDS, 1.0)
    found = read(before, over(tmp_path / "after", spread, SPEEDS, 1.06))
    rows = [row for row in found["cases"] if row["metric"] == "samples_per_s"]
    assert {(row["verdict"], row["within"], row["n_baseline"]) for row in rows} == {("faster", spread, 7)}
    assert any("1 of 1 case compared within each" in note and words in note for note in found["notes"])
    elsewhere = {f"other {name}": speed for name, speed in SPEEDS.items()}
    found = read(before, over(tmp_path / "elsewhere", spread, elsewhere, 1.06))
    rows = [row for row in found["cases"] if row["metric"] == "samples_per_s"]
    assert {(row["verdict"], row["within"]) for row in rows} == {("unclear", None)}


def test_hosts_that_only_one_side_had_do_not_count_where_the_others_are_shared(tmp_path):
    few = dict(list(SPEEDS.items())[:5])
    found = read(over(tmp_path / "before", "hosts", SPEEDS, 1.0), over(tmp_path / "after", "hosts", few, 1.0))
    rows = [row for row in found["cases"] if row["metric"] == "samples_per_s"]
    assert {(row["within"], row["n_baseline"], row["n_candidate"]) for row in rows} == {("hosts", 5, 5)}


def clocked(clock_hz: float, factor: float = 1.0, **readings: float | None):
    """A change to a measurement: its clock, and its throughput multiplied."""

    def change(measurement, case, repeat):
        known = {f"{name}_clock_{end}_hz": clock_hz for name in ("sm", "memory") for end in ("start", "end")}
        known |= {f"memory_clock_{end}_hz": 2.6e9 for end in ("start", "end")}
        return dataclasses.replace(times(factor)(measurement, case, repeat), **{**known, **readings})

    return change


def test_a_difference_that_is_one_of_clocks_is_called_so_and_stays_a_regression(after):
    one = after("one", repeats=10, seed=3, change=clocked(2e9))
    two = after("two", repeats=10, seed=3, change=clocked(1.8e9, 0.9))
    found = read(one, two, "--margin", "3%", code=3)
    for row in found["cases"]:
        if row["metric"] == "samples_per_s":
            assert (row["verdict"], row["clocks"], row["cycles_verdict"]) == ("slower", "can_explain", "same")
            assert row["clock_ratio"] == pytest.approx(0.9)
            assert row["cycles_ratio"] == pytest.approx(1.0)
        else:
            assert {row[name] for name in ("clocks", "clocks_reason", "clock_ratio", "cycles_ratio")} == {None}
    assert len(found["regressions"]) == 6
    assert "The clocks of the two sides differ" in found["notes"][-1]
    text = compare(one, two, "--margin", "3%").stdout
    assert text.count("at clocks 10.0 % lower: no difference in cycles") == 6
    assert "verdict is the one in seconds" in text


def test_clocks_that_are_equal_cannot_explain_a_difference(after):
    found = read(after("one", change=clocked(2e9)), after("two", change=clocked(2e9, 0.8)), code=3)
    assert {row["clocks"] for row in found["cases"] if row["metric"] == "samples_per_s"} == {"cannot_explain"}
    assert not any("clocks" in note for note in found["notes"])


def test_where_clocks_moved_the_reason_is_said_and_on_a_cpu_nothing(after, tmp_path):
    moved = after("two", change=clocked(2e9, sm_clock_end_hz=1.7e9))
    text = compare(after("one", change=clocked(2e9)), moved, "--margin", "10%").stdout
    assert "not compared in cycles (6): the clock at the end of the window was not that at its start" in text
    assert "in 30 of 60" not in text and "in 5 of 10 runs" in text
    sides = [make_results(tmp_path / name, CASES, environment=CPU, repeats=3, seed=5) for name in ("c", "d")]
    assert "clock" not in compare(*sides).stdout and "cycles" not in compare(*sides).stdout
    found = read(*sides)["cases"]
    assert {row["clocks_reason"] for row in found if row["metric"] == "samples_per_s"} == {"no clock was read"}
