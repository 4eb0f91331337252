"""The gradient noise scale: against problems whose answer is known, and as a run and a report have it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import bench
from bench.analysis import judge, summarise_cases
from bench.analysis.gradient_noise import gradient_noise, ratio_interval
from bench.errors import Unsupported
from bench.records import Case, Choice, ImageSpec, Measurement, Protocol, Status
from tests.results import make_cases, make_results
from tests.sketches import sketching
from tests.unit.written_files import grey_images, write_idx

if TYPE_CHECKING:
    from bench.report.contents import Contents
    from bench.workload.gradient_noise import Batch

FEATURES, NOISE, OFFSET = 10, 2.0, 0.5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small take many times as long where several threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear_regression(batch_size: int, seed: int) -> Iterator[Batch]:
    """Standard normal features, and targets whose best weights are 0 and whose noise is known."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        features = torch.randn(batch_size, FEATURES, generator=generator)
        yield features, NOISE * torch.randn(batch_size, generator=generator)


def regression_gradient(features: torch.Tensor, targets: torch.Tensor) -> Sequence[torch.Tensor]:
    """Of half the mean squared error, at weights that are all `OFFSET`, in two parameters."""
    weights = torch.full((FEATURES,), OFFSET, requires_grad=True)
    loss = ((features @ weights - targets) ** 2).mean() / 2
    (gradient,) = torch.autograd.grad(loss, weights)
    return gradient[:3], gradient[3:]


SQUARED = FEATURES * OFFSET**2  # |G|^2: G is the offset itself
TRACE = (FEATURES + 1) * SQUARED + FEATURES * NOISE**2  # E|x|^2 (x.w - e)^2 - |G|^2, with the normal's fourth moments


@pytest.mark.parametrize(("batch_size", "count"), [(16, 8), (64, 8), (64, 2), (37, 5)])
def test_linear_regression_has_the_noise_scale_that_theory_gives(batch_size: int, count: int) -> None:
    from bench.workload.gradient_noise import noise_of

    batches = linear_regression(batch_size, seed=1)
    found = noise_of(regression_gradient, batches, count, steps=400)
    assert found.microbatch == batch_size // count
    g2, trace = (torch.tensor(values, dtype=torch.float64) for values in (found.g2_values, found.trace_values))
    for values, truth in ((g2, SQUARED), (trace, TRACE)):
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(len(values))
    ratio, low, high = ratio_interval(found.trace_values, found.g2_values)
    assert low is not None
    assert high is not None
    assert low < TRACE / SQUARED < high
    assert high / low < 1.8
    assert low < ratio < high


def test_intervals_over_steps_hold_the_truth_nineteen_times_in_twenty() -> None:
    from bench.workload.gradient_noise import STEPS, noise_of

    batches, held = linear_regression(128, seed=2), 0
    for _ in range(120):
        found = noise_of(regression_gradient, batches, 8, STEPS)
        _, low, high = ratio_interval(found.trace_values, found.g2_values)
        held += low is not None and high is not None and low < TRACE / SQUARED < high
    assert 0.89 <= held / 120 <= 0.99


def test_a_ratio_without_a_sign_has_no_interval_and_no_value() -> None:
    assert ratio_interval([4.0, 6.0], [1.0, 1.0]) == (5.0, pytest.approx(0.38, abs=0.1), pytest.approx(65.5, abs=20))
    assert ratio_interval([4.0], [2.0]) == (2.0, None, None)
    assert ratio_interval([4.0, 5.0], [3.0, -1.0])[1:] == (None, None)
    assert math.isnan(ratio_interval([4.0, 5.0], [-3.0, -1.0])[0])


def test_nothing_is_made_up_where_there_is_no_scale() -> None:
    from bench.workload.gradient_noise import STEPS, GradientNoise

    drowned = GradientNoise((-1.0, 0.5), (3.0, 4.0), 2).fields([])
    assert (
        drowned["gradient_noise_note"]
        == "no scale: the estimate of |G|^2 is not positive: the noise exceeds the gradient"
    )
    assert "gradient_noise_scale" not in drowned
    assert (drowned["gradient_noise_g2"], drowned["gradient_noise_trace"]) == (-0.25, 3.5)
    assert (
        GradientNoise((1.0, 1.0), (-3.0, 1.0), 2)
        .fields([])["gradient_noise_note"]
        .startswith("no scale: the estimate of tr")
    )
    overflown = GradientNoise((1.0,), (2.0,), 2).fields(["x"])
    assert overflown["gradient_noise_note"] == f"x; only 1 of {STEPS} steps had finite gradients"
    assert GradientNoise((1.0, 3.0), (2.0, 4.0), 2).fields([])["gradient_noise_scale"] == 1.5


def test_steps_whose_gradients_overflow_are_left_out() -> None:
    from bench.workload.gradient_noise import noise_of

    def sometimes(features: torch.Tensor, targets: torch.Tensor) -> Sequence[torch.Tensor]:
        return [features.sum(0) * (math.inf if len(seen) % 8 == 0 else 1.0) for _ in (seen.append(1),)]

    seen: list[int] = []
    assert len(noise_of(sometimes, linear_regression(8, 1), 4, 6).g2_values) == 3


@pytest.mark.parametrize(("batch_size", "count"), [(2, 2), (3, 2), (4, 2), (8, 4), (16, 8), (1024, 8)])
def test_microbatches_have_two_samples_where_there_are_four(batch_size: int, count: int) -> None:
    from bench.workload.gradient_noise import microbatch_count

    assert microbatch_count(batch_size) == count
    with pytest.raises(Unsupported, match=r"^a batch of 1 cannot be split into smaller ones$"):
        microbatch_count(1)


CASE = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 8, image_size=28)
PROTOCOL = Protocol(
    warmup_steps=1, measured_steps=2, min_window_s=1e-9, loader_workers=0, threads=1, gradient_noise=True
)


def run(case: Case = CASE, protocol: Protocol = PROTOCOL, repeat: int = 0) -> Measurement:
    from bench.worker import MeasureTask, measure_case

    phases: list[str] = []
    value = measure_case(MeasureTask(case, protocol, "cpu", repeat=repeat), lambda news: phases.append(news["phase"]))
    assert ("gradient noise" in phases) is protocol.gradient_noise
    assert not phases[phases.index("measure") :].count("gradient noise") or phases[-1] == "gradient noise"
    return Measurement(**{**value, "status": Status(value["status"])})


def test_a_run_measures_it_after_everything_else_and_says_what_it_cost() -> None:
    from bench.workload.gradient_noise import STEPS

    with_noise, without = run(), run(protocol=replace(PROTOCOL, gradient_noise=False))
    assert with_noise.status is Status.OK
    assert with_noise.gradient_noise_scale is not None
    assert with_noise.gradient_noise_scale == pytest.approx(
        with_noise.gradient_noise_trace / with_noise.gradient_noise_g2  # type: ignore[operator]
    )
    assert (with_noise.gradient_noise_microbatch, with_noise.gradient_noise_steps) == (2, STEPS)
    assert len(with_noise.gradient_noise_g2_values) == len(with_noise.gradient_noise_trace_values) == STEPS
    assert with_noise.gradient_noise_cost_s > 0  # type: ignore[operator]
    assert with_noise.gradient_noise_data_source == "synthetic"
    assert with_noise.gradient_noise_note == "synthetic images with random labels: not representative of training"
    assert with_noise.phase is None
    assert with_noise.peak_allocated_bytes == without.peak_allocated_bytes
    assert with_noise.final_loss == without.final_loss
    assert without.gradient_noise_cost_s is None


def test_repeats_draw_other_samples_and_the_same_repeat_the_same() -> None:
    first, again, other = (run(repeat=repeat).gradient_noise_g2_values for repeat in (0, 0, 1))
    assert first == again != other


def test_it_is_measured_on_real_images_where_there_are_any(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw", *grey_images(64), part=part)
    found = run(protocol=replace(PROTOCOL, data_root=str(tmp_path)))
    assert (found.data_source, found.gradient_noise_data_source) == ("synthetic", "files")
    assert "synthetic" not in (found.gradient_noise_note or "")


def test_a_batch_of_one_has_none_and_the_run_stands() -> None:
    found = run(replace(CASE, batch_size=1))
    assert (found.status, found.gradient_noise_scale) == (Status.OK, None)
    assert found.gradient_noise_note == "no scale: a batch of 1 cannot be split into smaller ones"


def test_what_goes_wrong_in_the_pass_costs_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("the pass broke")

    monkeypatch.setattr("bench.worker.measure_gradient_noise", fails)
    found = run()
    assert (found.status, found.phase) == (Status.OK, None)
    assert found.step_times_s
    assert found.gradient_noise_note is not None
    assert found.gradient_noise_note.startswith("no scale: RuntimeError: the pass broke (")


def test_training_that_diverges_has_none() -> None:
    diverging = replace(CASE, optimizer=Choice.of("sgd", {"lr": 1e18}))
    found = run(diverging)
    assert found.gradient_noise_scale is None
    assert str(found.gradient_noise_note).startswith("no scale: the loss is ")


def test_batch_norm_is_noted() -> None:
    from bench.workload import build_workload
    from bench.workload.gradient_noise import has_batch_norm

    images = ImageSpec(3, 32, 32, 10)
    cpu = torch.device("cpu")
    plain = build_workload(replace(CASE, dataset=Choice("cifar10"), image_size=32), images, PROTOCOL, cpu)
    normed = build_workload(
        replace(CASE, dataset=Choice("cifar10"), model=Choice("resnet18"), image_size=32), images, PROTOCOL, cpu
    )
    assert (has_batch_norm(plain.model), has_batch_norm(normed.model)) == (False, True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_agrees_with_float32_about(precision: str) -> None:
    from bench.workload import build_workload
    from bench.workload.gradient_noise import measure_gradient_noise

    scales, traces = [], []
    for word in ("float32", precision):
        case = replace(CASE, precision=word, batch_size=32)  # type: ignore[arg-type]
        workload = build_workload(case, ImageSpec(1, 28, 28, 10), PROTOCOL, torch.device("cpu"))
        generator = torch.Generator().manual_seed(5)
        means = torch.randn(10, 1, 28, 28, generator=generator)

        def batches(means: torch.Tensor = means, generator: torch.Generator = generator) -> Iterator[Batch]:
            while True:
                labels = torch.randint(10, (32,), generator=generator)
                yield means[labels] + torch.randn(32, 1, 28, 28, generator=generator), labels

        fields = measure_gradient_noise(workload, batches(), 32).fields([])
        scales.append(fields["gradient_noise_trace"] / fields["gradient_noise_g2"])
        traces.append(fields["gradient_noise_trace"])
    assert traces[1] == pytest.approx(traces[0], rel=0.35)  # in the unit of the gradient, whatever the scaler's scale
    assert scales[1] == pytest.approx(scales[0], rel=0.35)


def test_the_key_of_a_protocol_without_it_is_what_it_was() -> None:
    assert Protocol().key == "fbc4623570822c49"
    assert Protocol(gradient_noise=True).key != Protocol().key


def made_up(measurement: Measurement, case: Case, repeat: int) -> Measurement:
    """A noise scale of 200 samples with some spread; none at batch 16."""
    if case.batch_size == 16:
        return replace(
            measurement,
            gradient_noise_cost_s=0.1,
            gradient_noise_note="no scale: | <b>drowned</b>",
            gradient_noise_data_source="synthetic",
        )
    g2 = 1.0 + 0.1 * repeat
    return replace(
        measurement,
        gradient_noise_g2=g2,
        gradient_noise_trace=220.0,
        gradient_noise_scale=220.0 / g2,
        gradient_noise_microbatch=8,
        gradient_noise_steps=2,
        gradient_noise_cost_s=1.5 + repeat,
        gradient_noise_data_source="files",
        gradient_noise_g2_values=(0.9, 1.1),
        gradient_noise_trace_values=(200.0, 240.0),
    )


CASES = make_cases(datasets=("mnist",), optimizers=("sgd",), batch_sizes=(16, 64, 1024))


def test_the_processes_make_the_interval_and_one_process_its_steps(tmp_path: Path) -> None:
    several = bench.load(make_results(tmp_path / "three", CASES, change=made_up))
    found = gradient_noise(several, summarise_cases(several)).set_index("batch_size")
    assert list(found.index) == [16, 64, 1024]
    assert found.loc[64, "scale"] == pytest.approx(220 / 1.1)
    assert (found.loc[64, "basis"], found.loc[64, "count"], found.loc[64, "cost_s"]) == ("processes", 3, 3.5)
    assert found.loc[64, "low"] < 200 < found.loc[64, "high"]
    assert math.isnan(found.loc[16, "scale"])
    assert found.loc[64, "useful_samples_per_s"] == pytest.approx(found.loc[64, "samples_per_s"] / (1 + 64 / 200))
    single = bench.load(make_results(tmp_path / "one", CASES, repeats=1, change=made_up))
    alone = gradient_noise(single, summarise_cases(single)).set_index("batch_size")
    assert (alone.loc[64, "basis"], alone.loc[64, "count"]) == ("steps", 2)
    assert alone.loc[64, "scale"] == pytest.approx(220.0)


def test_the_report_has_the_section_where_it_was_measured_and_only_there(tmp_path: Path) -> None:
    from bench.report import render_report

    with sketching():
        page = render_report([make_results(tmp_path / "plain", CASES)], tmp_path / "a")
    plain = page.with_name("report.md").read_text()
    assert "Batch size and gradient noise" not in plain
    results = make_results(tmp_path / "noise", CASES, change=made_up)
    with sketching():
        page = render_report([results], tmp_path / "b")
    text = page.with_name("report.md").read_text()
    assert "| files |" in text
    section = text.partition("## Batch size and gradient noise")[2].partition("\n## ")[0]
    assert "more samples stop helping beyond about 200 (" in section
    rows = [line for line in section.splitlines() if line.startswith("| mlp")]
    assert len(rows) == 3
    assert "3 processes" in rows[1]
    assert "24 %" in rows[1]  # 64 of 200 samples: 1 / (1 + 200 / 64)
    assert "<b>" not in section
    assert "drowned" in section


def test_the_best_batch_is_of_all_cases_and_not_of_those_that_the_table_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.report.contents import Contents

    frame = bench.load(make_results(tmp_path, CASES, change=made_up))
    contents = Contents("x", frame, summarise_cases(frame), judge(frame))
    whole, short = (text_of(contents, rows, monkeypatch) for rows in (60, 1))
    said = "gives the most useful samples a second"
    assert said in whole
    assert said in short  # batch 16, the one row of that table, has no scale


def text_of(contents: Contents, rows: int, monkeypatch: pytest.MonkeyPatch) -> str:
    from bench.report.blocks import Table
    from bench.report.sections import gradient_noise as section

    monkeypatch.setattr(section, "MAX_ROWS", rows)
    blocks = section.build(contents)
    assert [len(block.rows) for block in blocks if isinstance(block, Table)] == [min(rows, len(CASES))]
    return str(blocks)


def test_older_parts_without_the_columns_read_as_null(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "reports" / "example-cpu" / "data"
    frame = bench.load(folder)
    assert frame["gradient_noise_cost_s"].isna().all() if "gradient_noise_cost_s" in frame else True
    assert gradient_noise(frame, summarise_cases(frame)).empty


def test_the_whole_pass_is_as_many_steps_as_the_documents_say() -> None:
    from bench.workload.gradient_noise import LEAD_STEPS, STEPS

    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f"`gradient_noise` adds {LEAD_STEPS + STEPS} steps to each run" in text
