"""The figure of what the switches of one machine cost: its panels, labels, front, and the estimates beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench
from bench.analysis import judge, summarise_cases
from bench.records import Case, Measurement, Status
from tests.machines import A100
from tests.results import GPU, make_cases, make_results

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"checkpointing": "blocks"},
    {"accumulation": 4},
    {"accumulation": 4, "checkpointing": "blocks"},
)
FACTORS = {(): (1.0, 1.0), ("checkpointing",): (0.3, 0.7), ("accumulation",): (0.4, 0.6)}
"""Of peak memory and samples/s; checkpointing beats accumulation in both."""


def changed(measurement: Measurement, case: Case, repeat: int) -> Measurement:
    memory, speed = FACTORS.get(tuple(case.switches), (0.2, 0.5))
    if measurement.peak_allocated_bytes is None or measurement.wall_window_s is None:
        return measurement
    return dataclasses.replace(
        measurement,
        peak_allocated_bytes=int(measurement.peak_allocated_bytes * memory),
        wall_window_s=measurement.wall_window_s / speed,
    )


def contents_of(*folders: Path) -> Any:
    from bench.report.contents import Contents

    frame = bench.load(*folders)
    return Contents("x", frame, summarise_cases(frame), judge(frame))


def switch_cases(
    models: tuple[str, ...] = ("resnet50", "vit_b_16"), batch_sizes: tuple[int, ...] = (64,)
) -> list[Case]:
    return [case for setting in SETTINGS for case in make_cases(["imagenet"], models, ["adam"], batch_sizes, **setting)]


Draw = Callable[..., Any]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    from bench.report import theme
    from bench.report.figures import switches

    def drawn(cases: list[Case], **settings: Any) -> Any:
        make_results(tmp_path / "one", cases, **{"environment": GPU, "change": changed, "trace": True, **settings})
        with theme.style():
            return switches.FIGURE.draw(contents_of(tmp_path / "one"))

    return drawn


def test_each_point_is_named_by_its_switches_and_the_title_is_a_question(draw: Draw) -> None:
    drawing = draw(switch_cases())
    assert drawing is not None
    assert drawing.title.endswith("?")
    panels = [axes for axes in drawing.figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["resnet50 on imagenet", "vit_b_16 on imagenet"]
    for axes in panels:
        words = {text.get_text() for text in axes.texts}
        assert words >= {"as it is", "checkpointed blocks", "4 micro-batches", "4 micro-batches, checkpointed blocks"}
        assert "batch 64" in words
    assert "checkpointed blocks" in drawing.alt


def test_the_front_is_what_no_other_setting_beats(draw: Draw) -> None:
    drawing = draw(switch_cases(("resnet50",)))
    assert drawing is not None
    on_front = drawing.numbers.set_index("switches")["on_front"].to_dict()
    assert on_front == {
        "as it is": True,
        "checkpointed blocks": True,
        "4 micro-batches": False,
        "4 micro-batches, checkpointed blocks": True,
    }
    (axes,) = drawing.figure.axes
    (front,) = (line for line in axes.lines if line.get_drawstyle().startswith("steps"))
    assert len(front.get_xdata()) == 3


def test_estimates_are_hollow_beside_the_measured_points(draw: Draw) -> None:
    drawing = draw(switch_cases(("resnet50",)))
    assert drawing is not None
    (axes,) = drawing.figure.axes
    (hollow,) = (line for line in axes.lines if line.get_markerfacecolor() == "none")
    numbers = drawing.numbers
    assert sorted(hollow.get_xdata()) == sorted(numbers["trace_peak_allocated_bytes"].astype(float))
    assert sorted(hollow.get_ydata()) == pytest.approx(sorted(numbers["estimated_samples_per_s"]))
    filled = next(line for line in axes.lines if line.get_marker() == "o" and line is not hollow)
    assert sorted(filled.get_xdata()) == sorted(numbers["memory_bytes"].astype(float))
    assert "A hollow point is the estimate" in drawing.caption


def test_the_caption_speaks_of_estimates_where_there_are_any(draw: Draw) -> None:
    assert "hollow" not in draw(switch_cases(("resnet50",)), trace=False).caption


def test_what_ran_out_of_memory_stands_at_its_estimate_and_says_so(draw: Draw) -> None:
    drawing = draw(switch_cases(("resnet50",)), outcomes={0: Status.OOM})
    assert drawing is not None
    (axes,) = drawing.figure.axes
    assert "as it is, not measured" in {text.get_text() for text in axes.texts}
    assert not drawing.numbers.set_index("switches")["on_front"]["as it is"]


def test_every_batch_size_has_its_panel(draw: Draw) -> None:
    drawing = draw(switch_cases(("resnet50",), (16, 64)))
    assert drawing is not None
    assert drawing.numbers.groupby("detail").size().to_dict() == {"batch 16": 4, "batch 64": 4}


def test_results_without_switches_have_no_such_figure(draw: Draw) -> None:
    assert draw(make_cases(["imagenet"], ["resnet50", "vit_b_16"], ["adam"], [16, 64])) is None


def test_results_of_several_machines_have_the_figure_that_compares_those(tmp_path: Path) -> None:
    from bench.report.figures import switches

    for name, machine in (("one", GPU), ("two", A100)):
        make_results(tmp_path / name, switch_cases(("resnet50",)), environment=machine, change=changed)
    assert switches.FIGURE.draw(contents_of(tmp_path / "one", tmp_path / "two")) is None


def test_labels_are_moved_apart_as_little_as_it_takes_and_stay_in_the_panel() -> None:
    from bench.report.figures.switches import _LEAST_GAP, _spread

    heights = np.array([0.1, 0.11, 0.5, 0.95, 0.96, 0.97])
    spread = _spread(heights)
    assert (np.diff(spread) >= _LEAST_GAP - 1e-9).all()
    assert spread.max() <= 1.0
    assert _spread(np.array([0.1, 0.5, 0.9])).tolist() == [0.1, 0.5, 0.9]
