"""What `bench reproduce` makes of results: the plan that it runs, and the answer for each case."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench
from bench.analysis import Reproduced, results_key, told_answers, told_differences
from bench.bundles import bundle_files, open_results, write_bundle
from bench.config import SweepConfig
from bench.errors import BenchError, DeviceError
from bench.records import Status
from bench.report import render_report
from bench.store import load_notes
from bench.sweep import reproducing
from bench.sweep.reproducing import ReproduceOptions, reproduce
from bench.sweep.session import SweepOptions
from bench.terminal import Progress
from tests.results import CPU, GPU, make_cases, make_results

CASES = make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64])
CONFIG = {
    "name": "example",
    "grid": {"dataset": ["mnist"], "model": ["mlp"], "optimizer": ["sgd"], "batch_size": [16, 64]},
    "measure": {"repeats": 5, "warmup_steps": 3, "measured_steps": 8},
}
QUIET = Progress(quiet=True)


def steady(measured, case, repeat, frac=1.0):
    """Equal processes, so that what a test changes is all that differs."""
    steps = (0.01 * frac,) * 8
    return dataclasses.replace(measured, step_times_s=steps, wall_window_s=sum(steps))


def original(folder: Path, config=CONFIG, **changed) -> Path:
    known = {
        "change": steady,
        "cases": CASES,
        "repeats": 5,
        "notes": {"name": "example", "config": config, "device": "cpu"},
        **changed,
    }
    return make_results(folder / "data", **known).parent


def more_bytes(measured, case, repeat):
    more = measured.peak_allocated_bytes + (case.batch_size == 64)
    return steady(dataclasses.replace(measured, peak_allocated_bytes=more), case, repeat)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Results of two cases, five processes each, which no test changes."""
    return original(tmp_path_factory.mktemp("original") / "there")


@pytest.fixture
def machine(monkeypatch):
    """A machine that measures what a test says, in place of a real sweep and a real device."""
    here = SimpleNamespace(environment=CPU, results={}, swept=[])

    def run_sweep(config: SweepConfig, options: SweepOptions, progress: Progress) -> None:
        here.swept.append((config, options))
        notes = {"name": config.name, "config": config.as_json(), "device": options.device, **options.notes}
        if not (options.out / "data").exists():
            known = {
                "change": steady,
                "cases": CASES,
                "repeats": config.measure.repeats,
                "environment": here.environment,
            }
            make_results(options.out / "data", notes=notes, **(known | here.results))

    monkeypatch.setattr(reproducing, "run_sweep", run_sweep)
    monkeypatch.setattr(reproducing, "_here", lambda *given: (here.environment, here.environment.device))
    return here


def answers(found):
    return {int(re.search(r"batch (\d+)", case.label)[1]): (case.answer, case.reason) for case in found.cases}


def test_equal_numbers_are_the_same_and_memory_is_so_to_the_byte(machine, tmp_path, there):
    found = reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    assert found.counts == {"same": 2, "different": 0, "unclear": 0}
    assert re.fullmatch(
        r"speed same, equal in every process; peak memory same, .* in every process", answers(found)[16][1]
    )


def test_a_single_byte_is_a_difference_where_nothing_decides_it(machine, tmp_path, there):
    machine.results["change"] = more_bytes
    found = reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    assert {batch: answer for batch, (answer, _) in answers(found).items()} == {16: "same", 64: "different"}
    assert "nothing that decides it differs" in answers(found)[64][1]


@pytest.mark.parametrize(
    "changed", [{"torch_version": "2.14.0+cpu"}, {"cpu_capability": "AVX512"}, {"cpu_model": "Another"}]
)
def test_other_libraries_may_take_a_byte_more(machine, tmp_path, changed, there):
    machine.environment = dataclasses.replace(CPU, **changed)
    machine.results["change"] = more_bytes
    found = reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    assert answers(found)[64][0] == "same"
    assert set(changed) <= {item.field for item in found.differences}


@pytest.mark.parametrize(("frac", "word"), [(1.2, "slower"), (0.8, "faster")])
def test_another_speed_is_a_difference_whichever_way(machine, tmp_path, frac, word, there):
    machine.results["change"] = functools.partial(steady, frac=frac)
    found = reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    assert found.counts["different"] == 2
    assert f"speed different, {word} here, ratio {1 / frac:.4f}" in answers(found)[16][1]


def test_one_process_a_side_leaves_speed_unclear(machine, tmp_path):
    there = original(tmp_path / "there", {**CONFIG, "measure": {**CONFIG["measure"], "repeats": 1}}, repeats=1)
    found = reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    assert found.counts == {"same": 0, "different": 0, "unclear": 2}
    assert "peak memory same" in answers(found)[16][1]


@pytest.mark.parametrize(
    ("there", "here", "answer"),
    [
        (Status.OOM, Status.OOM, "same"),
        (Status.OK, Status.OOM, "different"),
        (Status.OOM, Status.OK, "different"),
        (Status.OK, Status.FAILED, "different"),
        (Status.OK, Status.SKIPPED, "unclear"),
        (Status.FAILED, Status.FAILED, "unclear"),
        (Status.OK, Status.INTERRUPTED, "unclear"),
    ],
)
def test_cases_that_were_not_measured_are_answered_by_how_they_ended(machine, tmp_path, there, here, answer):
    machine.results["outcomes"] = {1: here}
    found = reproduce(original(tmp_path / "there", outcomes={1: there}), ReproduceOptions(tmp_path / "here"), QUIET)
    assert answers(found)[64][0] == answer
    assert answers(found)[16][0] == "same"


def test_the_plan_has_the_cases_that_ran_and_as_many_processes(machine, tmp_path):
    there = original(tmp_path / "there", outcomes={1: Status.SKIPPED})
    reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    ((config, options),) = machine.swept
    assert options.cases == {CASES[0].key}
    assert options.device == "cpu"
    assert config.measure.repeats == 5


def test_of_a_sweep_that_stopped_by_itself_the_first_processes_count(machine, tmp_path):
    measure = {**CONFIG["measure"], "repeats": 3, "target_interval": 0.01, "max_repeats": 8, "time_budget": 60.0}
    there = original(tmp_path / "there", {**CONFIG, "measure": measure}, repeats=8)
    found = reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    ((config, _),) = machine.swept
    assert (config.measure.repeats, config.measure.target_interval, config.measure.time_budget) == (5, None, None)
    assert set(found.comparison.cases["n_baseline"]) == set(found.comparison.cases["n_candidate"]) == {5}


def test_checking_runs_nothing_and_says_what_differs(machine, tmp_path, there):
    machine.environment = dataclasses.replace(CPU, torch_version="2.14.0+cpu", speed_variables="OMP_NUM_THREADS=1")
    found = reproduce(there, ReproduceOptions(tmp_path / "here", check_only=True), QUIET)
    assert machine.swept == [] and found.out is None and not (tmp_path / "here").exists()
    fields = {item.field: (item.baseline, item.candidate) for item in found.differences}
    assert fields["torch_version"] == ("2.15.0+cpu", "2.14.0+cpu")
    assert fields["speed_variables"] == (None, "OMP_NUM_THREADS=1")
    assert "code_key" in fields  # of made-up runs
    assert "warmup_steps" not in fields


def test_cases_that_cannot_run_here_are_named_before_anything_runs(machine, tmp_path):
    tf32 = make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64], precision="tf32")
    config = {**CONFIG, "grid": {**CONFIG["grid"], "precision": ["tf32"]}}
    there = original(tmp_path / "there", config, cases=tf32, environment=GPU)
    found = reproduce(there, ReproduceOptions(check_only=True), QUIET)
    assert set(found.not_planned) == {case.key for case in tf32}
    assert all("tensor cores" in reason for reason in found.not_planned.values())


def test_other_work_is_refused_before_hours_are_spent_on_it(machine, tmp_path, there):
    machine.environment = dataclasses.replace(CPU, speed_variables="OMP_NUM_THREADS=1")
    with pytest.raises(BenchError, match=r"speed_variables: none set there, OMP_NUM_THREADS=1 here"):
        reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    assert machine.swept == []
    reproduce(there, ReproduceOptions(tmp_path / "here", across=("speed_variables",)), QUIET)
    assert len(machine.swept) == 1


def test_of_several_machines_one_is_chosen(machine, tmp_path):
    original(tmp_path / "both" / "a")
    original(tmp_path / "both" / "b", environment=dataclasses.replace(CPU, cpu_model="Another"))
    with pytest.raises(BenchError, match=r"2 environments .*--only 'cpu_model=Example Eight 3.0 GHz'"):
        reproduce(tmp_path / "both", ReproduceOptions(tmp_path / "here"), QUIET)
    found = reproduce(tmp_path / "both", ReproduceOptions(tmp_path / "here", only=("cpu_model=Example*",)), QUIET)
    assert found.counts["same"] == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "notes no configuration"),
        ("grid = [", "config: not valid TOML"),
        (["grid"], "config: must be a table"),
        ({**CONFIG, "grid": {**CONFIG["grid"], "model": ["mlpp"]}}, r'unknown model "mlpp"\. Nearest: mlp'),
        ({**CONFIG, "grid": {**CONFIG["grid"], "model": ["own.py:net"]}}, r"add --models PATH/own\.py"),
        ({**CONFIG, "run": "rm -rf ~"}, r'config: run: unknown key "run"'),
        (
            {**CONFIG, "grid": {**CONFIG["grid"], "batch_size": [*range(1, 2001)], "image_size": [*range(28, 148)]}},
            "240,000 cases",
        ),
    ],
)
def test_configurations_of_others_are_checked_whole(machine, tmp_path, config, words, there):
    with pytest.raises(BenchError, match=words):
        reproduce(original(tmp_path / "there", config), ReproduceOptions(tmp_path / "here"), QUIET)
    assert machine.swept == []


def test_a_folder_of_other_results_is_left_alone(machine, tmp_path, there):
    other = original(tmp_path / "other", change=functools.partial(steady, frac=1.001))
    for out in (there, other):
        with pytest.raises(
            BenchError, match="holds other results than a reproduction of there; name another with --out"
        ):
            reproduce(there, ReproduceOptions(out), QUIET)
    reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)
    reproduce(there, ReproduceOptions(tmp_path / "here"), QUIET)  # as after a kill
    with pytest.raises(BenchError, match="holds other results"):
        reproduce(other, ReproduceOptions(tmp_path / "here"), QUIET)


def test_the_new_results_name_what_they_reproduce(machine, tmp_path, there):
    machine.results["change"] = functools.partial(steady, frac=1.001)
    bundle = tmp_path / "mine.zip"
    (tmp_path / "report").mkdir()
    written = write_bundle(bundle, "there", bundle_files(there, tmp_path / "report", "0.1.0"))
    found = bench.reproduce(bundle, out=tmp_path / "here", report=False)
    (note,) = load_notes(tmp_path / "here")
    assert (
        Reproduced.of(note.values)
        == found.original
        == Reproduced(results_key(bench.load(there)), "mine", written.digest)
    )
    assert found.original.key == results_key(bench.load(bundle))
    with open_results([bundle]) as (folder,):  # unpacked
        assert results_key(bench.load(folder)) == found.original.key
    assert found.original.key != results_key(bench.load(tmp_path / "here"))


def test_the_answers_stand_in_the_report_of_the_new_results(machine, tmp_path, there):
    machine.results["change"] = more_bytes
    out = tmp_path / "here"
    found = reproduce(there, ReproduceOptions(out), QUIET)
    (note,) = load_notes(out)
    told = told_answers(note.values)
    assert [(each.label, each.answer, each.reason) for each in told] == [
        (case.label, case.answer, case.reason) for case in found.cases
    ]
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "bench reproduce found 2 cases: 1 different, 1 same" in page
    table = page.partition("## Measured again")[2].partition("\n## ")[0]
    assert re.search(r"\| different \| .*there, .* here, and nothing that decides it differs", table)
    assert "Measured again" not in render_report([there / "data"], tmp_path / "plain").read_text(encoding="utf-8")

    plans = sorted((out / "data").glob("plan-*.parquet"))
    reproduce(there, ReproduceOptions(out), QUIET)  # the same answers: the folder says them once
    assert sorted((out / "data").glob("plan-*.parquet")) == plans
    assert (out / "report.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    "note", [None, "text", {"cases": "x"}, {"cases": ["x", {}, {"answer": "yes"}, {"answer": ["same"]}], "differs": 3}]
)
def test_answers_that_nobody_can_have_noted_are_none(note):
    notes = {"reproduces": {"key": "0" * 16, "name": "x"}, "reproduction": note}
    assert (told_answers(notes), told_differences(notes)) == ([], [])
    hostile = {"cases": [{"answer": "same", "label": "<b>" * 999, "reason": None}], "differs": [{}]}
    (answer,) = told_answers({**notes, "reproduction": hostile})
    assert len(answer.label) == 200 and told_answers({"reproduction": hostile}) == []


@pytest.mark.parametrize("device", ["all", "cuda:0,cuda:1", "GPU-1234"])
def test_several_devices_are_refused_with_what_to_do(tmp_path, there, device):
    with pytest.raises(DeviceError, match=r"on one device.*run the command again with its --device and an --out"):
        reproduce(there, ReproduceOptions(tmp_path / "here", device=device), QUIET)
    with pytest.raises(DeviceError, match='unknown "gpu"'):
        reproduce(there, ReproduceOptions(tmp_path / "here", device="gpu"), QUIET)


@pytest.mark.parametrize(
    "note", [None, "text", {}, {"key": "<b>"}, {"key": "A" * 16}, {"key": ["a"]}, {"key": "0" * 17}]
)
def test_notes_that_say_something_else_say_nothing(note):
    assert Reproduced.of({"reproduces": note}) is None


def test_a_hostile_name_is_shortened_and_a_digest_must_be_one():
    found = Reproduced.of({"reproduces": {"key": "0" * 16, "name": "<script>" * 1000, "digest": "javascript:"}})
    assert len(found.name) == 200
    assert found.digest is None
    json.dumps(dataclasses.asdict(found))
