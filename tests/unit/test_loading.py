"""What loading costs: the share that waits, what limits, how many workers would do, and what stays unknown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from bench.analysis import judge, summarise_cases
from bench.analysis.loading import Loading, loading_costs
from bench.records import Case, Measurement, Protocol
from tests.results import CPU, GPU, make_cases, make_results

EVERY = ("synthetic", "cached", "loader")
STEPS = 8


def made(
    folder: Path,
    step_ms: Mapping[str, float],
    *,
    made_ms: float | None = None,
    waiting: float = 0.5,
    workers: int = 2,
    repeats: int = 3,
    noise: Sequence[float] = (0.0, 0.001, -0.001, 0.002, -0.002),
    **settings: Any,
) -> pd.DataFrame:
    """Results whose processes take `step_ms` per step by input path, but for `noise`."""

    def change(measurement: Measurement, case: Case, repeat: int) -> Measurement:
        step = step_ms[case.input] / 1e3 * (1 + noise[repeat])
        loads = case.input == "loader"
        made_s = None if made_ms is None else made_ms / 1e3 * (1 + noise[-1 - repeat])
        return dataclasses.replace(
            measurement,
            step_times_s=(step,) * STEPS,
            wall_window_s=step * STEPS,
            data_wait_times_s=(step * waiting,) * STEPS if loads else (0.0,) * STEPS,
            batch_made_times_s=(made_s,) * STEPS if loads and made_s is not None else (),
        )

    cases = [case for path in step_ms for case in make_cases(["cifar10"], ["mlp"], ["sgd"], [64], input=path)]
    protocol = Protocol(warmup_steps=1, measured_steps=STEPS, loader_workers=workers)
    given = {"environment": GPU, "protocol": protocol, "repeats": repeats, "change": change, **settings}
    return bench.load(make_results(folder / "data", cases, **given))


def costs(frame: pd.DataFrame) -> Loading:
    (found,) = loading_costs(frame, summarise_cases(frame))
    return found


def said(frame: pd.DataFrame) -> str:
    from bench.report.sections.loading import verdict_words

    return verdict_words(costs(frame))


def contents_of(frame: pd.DataFrame) -> Any:
    from bench.report.contents import Contents

    return Contents("x", frame, summarise_cases(frame), judge(frame))


def test_decoding_limits_where_the_loader_is_slower_than_ready_batches(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10.5, "loader": 24}, made_ms=48, waiting=0.6, repeats=5)
    found = costs(frame)
    assert (
        found.limit in ("decoding", "both") and found.cost is not None and found.cost.ratio == pytest.approx(2.4, 0.01)
    )
    assert found.waiting.middle == pytest.approx(0.6) and found.waiting.n == 5
    assert found.predicted_step_s == pytest.approx(0.024, 0.01) and found.holds
    assert found.enough == (5, 5, 5)
    words = said(frame)
    assert (
        "60 % (95 % interval 60 to 60 %, n = 5)" in words
        and "2.40×" in words
        and "5 workers would do; it had 2" in words
    )


def test_copying_limits_where_ready_batches_are_as_slow_as_loaded_ones(tmp_path):
    still = (0.0,) * 5
    frame = made(tmp_path, {"synthetic": 10, "cached": 20, "loader": 20}, made_ms=5, noise=still)
    assert costs(frame).limit == "copying" and costs(frame).enough == (1, 1, 1)
    assert "Copying batches limits" in said(frame)


def test_nothing_limits_where_all_paths_are_alike(tmp_path):
    frame = made(tmp_path, dict.fromkeys(EVERY, 10), made_ms=5, waiting=0.0, noise=(0.0,) * 5)
    assert costs(frame).limit == "neither"
    assert "as long as with synthetic input: 1.00×" in said(frame)


def test_noise_leaves_the_limit_and_the_cost_unclear(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 11}, made_ms=5, noise=(0.3, -0.2, 0.05))
    assert costs(frame).limit == "unclear"
    assert "is unclear" in said(frame) and "more processes" in said(frame)


def test_one_process_has_no_interval_and_no_number_of_workers(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 24}, made_ms=48, repeats=1)
    assert costs(frame).enough is None and costs(frame).limit == "unclear"
    assert "(one process, no interval)" in said(frame) and "takes two processes of each case" in said(frame)
    assert "would do; it" not in said(frame)


def test_a_loader_alone_has_its_share_and_nothing_else(tmp_path):
    from bench.report.figures.loading import FIGURE

    frame = made(tmp_path, {"loader": 24}, made_ms=48)
    assert said(frame).startswith("a step spends 50 %") and said(frame).count(".") == 1
    assert FIGURE.draw(contents_of(frame)) is None


def test_without_the_cached_case_what_limits_is_unknown(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "loader": 24}, made_ms=48)
    assert "Without the case with cached input, what limits is unknown" in said(frame)
    assert costs(frame).enough == (5, 5, 5)


def test_results_that_do_not_say_how_long_a_batch_takes_leave_the_workers_unknown(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 24})
    assert costs(frame).enough is None and costs(frame).predicted_step_s is None
    assert "was not recorded" in said(frame)


def test_without_workers_a_step_waits_as_long_as_its_batch_takes(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 45}, waiting=0.78, workers=0)
    assert costs(frame).typical_made_s == pytest.approx(0.0351, 0.01)
    assert costs(frame).predicted_step_s == pytest.approx(0.0451, 0.01)
    assert "4 workers would do; it had none" in said(frame)


def test_a_model_that_misses_the_case_itself_names_no_number(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 40}, made_ms=48)
    assert costs(frame).holds is False and costs(frame).enough is not None
    assert "How many workers would do is unknown (it had 2): the model gives 24" in said(frame)


def test_workers_of_a_cpu_want_the_processors_of_the_step(tmp_path):
    sixteen = dataclasses.replace(CPU, cpu_cores_usable=16)
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 24}, made_ms=48, environment=sixteen)
    assert "that the step, on the CPU too, leaves free" in said(frame)


def test_more_workers_than_processors_are_called_so(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 24}, made_ms=48)  # which has two
    assert "more than the 2 processors of the machine allow: loading stays" in said(frame)


def test_cases_of_several_versions_of_the_code_stand_alone(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 24}, made_ms=48)
    both = pd.concat([frame, frame.assign(code_key="other")], ignore_index=True)
    found = loading_costs(both, summarise_cases(both))
    assert len(found) == 2 and all(each.cost is None for each in found)


def test_a_run_that_did_not_record_its_waiting_takes_its_case_out(tmp_path):
    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 24}, made_ms=48)
    frame.at[frame.index[frame["input"] == "loader"][0], "data_wait_times_s"] = None
    assert loading_costs(frame, summarise_cases(frame)) == []


def test_the_figure_has_every_path_its_intervals_and_the_model(tmp_path):
    from bench.report import theme
    from bench.report.figures.loading import FIGURE

    frame = made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 24}, made_ms=48)
    with theme.style():
        drawing = FIGURE.draw(contents_of(frame))
    assert drawing is not None and drawing.title.endswith("?")
    numbers = drawing.numbers.set_index("input")
    assert list(numbers.index) == list(EVERY) and (numbers["processes"] == 3).all()
    assert (numbers["step_s_low"] < numbers["step_s"]).all() and (numbers["step_s"] < numbers["step_s_high"]).all()
    loader = numbers.loc["loader"]
    assert loader["limited_by"] == "decoding" and loader["workers_enough"] == 5 and loader["waiting_frac"] == 0.5
    assert loader["modelled_step_s"] == pytest.approx(0.024, 0.01)
    assert numbers["loader_workers"].notna().tolist() == [False, False, True]
    (axes,) = (axes for axes in drawing.figure.axes if axes.get_visible())
    assert [text.get_text() for text in axes.get_yticklabels()] == list(EVERY)


def test_the_report_says_it_and_shows_it(tmp_path, sketched):
    from bench.report import render_report

    made(tmp_path, {"synthetic": 10, "cached": 10, "loader": 24}, made_ms=48)
    render_report([tmp_path / "data"], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "## What loading costs" in text and "workers would do; it had 2" in text
    assert (tmp_path / "report" / "figures" / "loading.csv").is_file()


def test_a_report_without_a_loader_says_nothing_of_it(tmp_path):
    from bench.report.sections.loading import SECTION

    assert SECTION.build(contents_of(made(tmp_path, {"synthetic": 10, "cached": 10}))) == []
