"""Memory over a step as data and as a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.estimators.allocator import AllocatorConfig
from bench.estimators.recording import Call, Entry, Freed, Output, Phase, Recording, StepEnd, Workspaces
from bench.estimators.temporaries import Machine
from bench.estimators.tensors import Spec, contiguous
from bench.estimators.timeline import MAX_POINTS, LiveTensor, Timeline, build_timeline, read_timeline
from bench.launchers import LocalLauncher, Outcome
from bench.records import TRACE_PARTS, Case, Choice

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
H200 = Machine(132, 2048, (9, 0), (2, 15))


IMAGE = contiguous("float32", (1, 1, 8, 8))
BYTES = contiguous("uint8", (1,))


def call(
    operator: str, phase: Phase, storage: int, nbytes: int, spec: Spec = BYTES, module: str | None = None, **more: Any
) -> Call:
    return Call(f"aten::{operator}", (), (Output(storage, nbytes, spec),), phase, module=module, **more)


def made_up(middle: int = 1) -> Timeline:
    """Three steps of a model with one parameter; the second is the highest and has `middle` short-lived temporaries."""
    weight, images = contiguous("float32", (1024, 1024)), contiguous("float32", (64, 8192))
    entries: list[Entry] = [call("empty", Phase.SETUP, 1, 4 * MIB, weight)]
    entries += [call("copy", Phase.SETUP, 2, 2 * MIB, images), StepEnd(0)]
    entries += [call("relu", Phase.FORWARD, 3, 8 * MIB), call("mul", Phase.BACKWARD, 4, 4 * MIB), Freed(3), StepEnd(1)]
    entries += [Freed(4)]
    entries += [call("relu.default", Phase.FORWARD, 5, 8 * MIB, contiguous("bfloat16", (4, 1024)), "layers.0")]
    for number in range(1000, 1000 + middle):
        entries += [call("add", Phase.FORWARD, number, 3 * MIB, module="layers.1"), Freed(number)]
    convolution = call("convolution", Phase.BACKWARD, 6, 4 * MIB, weight, "layers.0.conv")
    entries += [convolution._replace(arguments=(IMAGE, IMAGE), workspaces=Workspaces(12 * MIB + 5))]
    entries += [Freed(5), call("sqrt", Phase.OPTIMIZER, 8, MIB + 1), Freed(8), StepEnd(2)]
    entries += [Freed(6), call("relu", Phase.FORWARD, 9, MIB), Freed(9), StepEnd(3)]
    roles = {1: "parameters", 2: "batch", 4: "gradients", 6: "gradients"}
    holders = {1: ("layers.0.weight", ""), 6: ("layers.0.weight", "")}
    return build_timeline(Recording(entries, roles, holders), H200, AllocatorConfig())


def test_the_step_with_the_highest_peak_is_taken_with_its_phases() -> None:
    timeline = made_up()
    assert timeline.step == 2
    assert timeline.event_count == 10
    assert timeline.phases == (("zero_grad", 0), ("forward", 1), ("backward", 4), ("optimizer", 8))
    assert timeline.peak_event == 6
    assert timeline.categories["workspaces"][6] == 12 * MIB + 5
    assert timeline.categories["gradients"][:2] == (4 * MIB, 0)


def test_categories_and_rounding_sum_up_to_allocated_at_every_moment() -> None:
    timeline = made_up()
    assert set(timeline.categories) == set(TRACE_PARTS)
    for place, allocated in enumerate(timeline.allocated):
        assert sum(sizes[place] for sizes in timeline.categories.values()) == allocated
        assert allocated <= timeline.reserved[place]
    assert max(timeline.categories["rounding"]) >= 507


def test_the_peaks_tensors_are_named() -> None:
    labels = [(tensor.category, tensor.label, tensor.size_bytes) for tensor in made_up().tensors]
    assert labels == [
        ("workspaces", "layers.0.conv convolution workspace", 12 * MIB + 5),
        ("activations", "layers.0 relu (4, 1024) bfloat16", 8 * MIB),
        ("parameters", "layers.0.weight (1024, 1024) float32", 4 * MIB),
        ("gradients", "layers.0.weight (1024, 1024) float32", 4 * MIB),
        ("batch", "images (64, 8192) float32", 2 * MIB),
    ]


def test_long_steps_are_thinned_and_keep_every_highest() -> None:
    timeline = made_up(middle=9000)
    assert timeline.event_count == 18_008
    assert len(timeline.events) <= MAX_POINTS
    assert timeline.events[0] == 0
    assert timeline.events[-1] == timeline.event_count
    short = made_up(middle=1)
    assert {part: max(sizes) for part, sizes in timeline.categories.items()} == {
        part: max(sizes) for part, sizes in short.categories.items()
    }
    assert max(timeline.allocated) == timeline.peak_allocated_bytes == short.peak_allocated_bytes
    assert timeline.peak_event in timeline.events


def test_a_timeline_survives_json() -> None:
    timeline = made_up()
    assert read_timeline(json.loads(json.dumps(asdict(timeline)))) == timeline


def both_task(case: Case, send: Any) -> dict[str, Any]:
    from bench.devices import load_device
    from bench.estimators.memory import Target, estimate_trace
    from bench.estimators.timeline import estimate_timeline

    target = Target.of(load_device("h200"))
    return {"trace": estimate_trace(case, target), "timeline": asdict(estimate_timeline(case, target))}


@pytest.mark.parametrize(("model", "optimizer"), [("mlp", "adam"), ("resnet18", "sgd")])
def test_the_peak_is_the_trace_estimates_to_the_byte(model: str, optimizer: str) -> None:
    case = Case(Choice("cifar10"), Choice(model), Choice(optimizer), 64)
    answer = LocalLauncher().run(both_task, case, timeout_s=240)
    assert answer.outcome is Outcome.ANSWERED, answer.reason
    trace, timeline = answer.value["trace"], read_timeline(answer.value["timeline"])
    assert max(timeline.allocated) == timeline.peak_allocated_bytes == trace["trace_peak_allocated_bytes"]
    assert timeline.peak_reserved_bytes <= trace["trace_peak_reserved_bytes"]
    at_peak = {part: sizes[timeline.events.index(timeline.peak_event)] for part, sizes in timeline.categories.items()}
    assert sum(at_peak.values()) == timeline.peak_allocated_bytes
    if optimizer == "adam":  # the estimate's parts are those of the highest moment of all steps, the first among them
        assert at_peak == {part: trace[f"trace_{part}_bytes"] for part in TRACE_PARTS}
    sizes = [tensor.size_bytes for tensor in timeline.tensors]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= timeline.peak_allocated_bytes
    for tensor in timeline.tensors:
        held = sum(item.size_bytes for item in timeline.tensors if item.category == tensor.category)
        assert held <= at_peak[tensor.category]


def test_layers_look_as_in_the_reports_categories() -> None:
    from bench.report.figures import categories
    from bench.report.timeline import LAYERS

    elsewhere = {item.name: (item.colour, item.hatch) for item in categories._CATEGORIES}
    assert {layer.part: (layer.colour, layer.hatch) for layer in LAYERS} == elsewhere
    assert {layer.part for layer in LAYERS} == set(TRACE_PARTS)


def test_the_drawing_carries_its_numbers_and_says_what_it_shows() -> None:
    from bench.report.timeline import draw_timeline

    timeline = made_up()
    drawing = draw_timeline(timeline, "a model", "h200")
    parts = drawing.numbers[[f"{part}_bytes" for part in TRACE_PARTS]]
    assert list(parts.sum(axis=1)) == list(timeline.allocated) == list(drawing.numbers["allocated_bytes"])
    assert list(drawing.numbers["phase"]) == ["zero_grad"] * 2 + ["forward"] * 3 + ["backward"] * 4 + ["optimizer"] * 2
    assert "30.0 MiB allocated in the backward" in drawing.alt
    assert "layers.0.conv convolution workspace, 12.0 MiB" in drawing.alt
    texts = [text.get_text() for text in drawing.figure.findobj() if hasattr(text, "get_text")]
    for words in ("forward", "backward", "optimizer", "peak 30.0 MiB allocated", "layers.0 relu (4, 1024) bfloat16"):
        assert words in texts


def test_hostile_names_are_drawn_as_they_are_and_cut() -> None:
    from bench.report.drawing import render_drawing
    from bench.report.timeline import draw_timeline

    hostile = LiveTensor("activations", "$x^{$\\frac\n\u202e" + "y" * 500, "add", "float32", (1,), 5)
    drawing = draw_timeline(replace(made_up(), tensors=(hostile,)), "$\\bad{", "h\n200")
    assert render_drawing(drawing, ".png").startswith(b"\x89PNG")
    texts = [text.get_text() for text in drawing.figure.findobj() if hasattr(text, "get_text")]
    (shown,) = (text for text in texts if text.startswith("$x^{$"))
    assert "U+202E" in shown
    assert len(shown) <= 96


DRAW = """
import sys
from tests.unit.test_timeline import made_up
from bench.report.drawing import SUFFIXES, render_drawing
from bench.report.timeline import draw_timeline
from bench.report.drawing import to_csv
import hashlib, json
made = {suffix: render_drawing(draw_timeline(made_up(), "a model", "h200"), suffix) for suffix in SUFFIXES}
made[".csv"] = to_csv(draw_timeline(made_up(), "a model", "h200").numbers).encode()
heads = {".png": b"\\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".csv": b"event,"}
assert all(made[suffix].startswith(head) for suffix, head in heads.items())
print(json.dumps({suffix: hashlib.sha256(content).hexdigest() for suffix, content in made.items()}))
"""


def test_pictures_are_equal_to_the_byte_in_other_processes() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", DRAW],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **extra},
        ).stdout
        for extra in ({"PYTHONHASHSEED": "1", "TZ": "UTC"}, {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu"})
    ]
    assert found[0] == found[1]
    assert len(json.loads(found[0])) == 4


def test_data_and_drawing_need_no_torch() -> None:
    code = "import sys, bench.estimators.timeline, bench.report.timeline, bench.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
