"""Segmentation: models that predict a class per pixel, on images with masks, with the loss of torchvision's reference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import bench
from bench import catalog
from bench.catalog import ModelEntry, describe_dataset
from bench.config import check_config
from bench.errors import Unsupported
from bench.estimators.formula import estimate_formula
from bench.plan import build_cases, image_spec
from bench.records import Case, Choice, ImageSpec, Protocol

VOC = Choice("voc_segmentation")
NAMES = (
    *("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet101", "deeplabv3_resnet50", "fcn_resnet101", "fcn_resnet50"),
    "lraspp_mobilenet_v3_large",
)
WITH_AUX = [name for name in NAMES if not name.startswith("lraspp")]
PATHS = ("synthetic", "cached", "loader")


def square(side: int, classes: int = 21) -> ImageSpec:
    return ImageSpec(3, side, side, classes, "segmentation")


def batch_of(**settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from bench.workload.inputs import build_inputs

    case = Case(VOC, Choice("lraspp_mobilenet_v3_large"), Choice("sgd"), **{"batch_size": 4, **settings})
    with build_inputs(case, describe_dataset(VOC), Protocol(loader_workers=0), torch.device("cpu")) as inputs:
        return next(inputs)


def test_every_segmentation_model_of_torchvision_is_listed_and_no_other() -> None:
    listed = [name for name in catalog.names("model") if catalog.model(name).task == "segmentation"]
    assert sorted(listed) == sorted(NAMES)
    assert sorted(NAMES) == torchvision.models.list_models(module=torchvision.models.segmentation)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_what_torchvision_builds_by_that_name(name: str) -> None:
    from bench.estimators.layers import build_on_meta

    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        with_head = None
        if name in WITH_AUX:
            with_head = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    expected = {path: parameter.shape for path, parameter in theirs.named_parameters()}
    built = build_on_meta(Choice(name), square(64))
    assert {path: parameter.shape for path, parameter in built.named_parameters()} == expected
    note = catalog.model_note(Choice(name))
    assert (note is not None) == (name in WITH_AUX)
    if with_head is not None:
        built = build_on_meta(Choice.of(name, {"aux": True}), square(64))
        expected = {path: parameter.shape for path, parameter in with_head.named_parameters()}
        assert {path: parameter.shape for path, parameter in built.named_parameters()} == expected
        assert catalog.model_note(Choice.of(name, {"aux": True})) is None


@pytest.mark.parametrize(
    ("name", "largest"), [("fcn_resnet50", 8), ("lraspp_mobilenet_v3_large", 16), ("deeplabv3_resnet50", 96)]
)
def test_one_image_is_too_few_exactly_where_a_batch_norm_refuses_it(name: str, largest: int) -> None:
    from bench.estimators.layers import build_on_meta

    model, smallest_batch = build_on_meta(Choice(name), square(largest)), catalog.model(name).smallest_batch
    assert smallest_batch(square(largest), {}) == 2
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.zeros(1, 3, largest, largest, device="meta"))
    if not name.startswith("deeplabv3"):  # which refuses one image of any size
        assert smallest_batch(square(largest + 1), {}) == 1
        model(torch.zeros(1, 3, largest + 1, largest + 1, device="meta"))
    assert model(torch.zeros(2, 3, 1, 1, device="meta"))["out"].shape == (2, 21, 1, 1)


def test_the_loss_is_that_of_torchvisions_reference() -> None:
    from bench.workload.targets import IGNORED, segmentation_loss

    out, aux = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    masks = torch.randint(5, (2, 4, 4))
    masks[0, :2] = IGNORED
    counted = masks != IGNORED

    def mean(scores: torch.Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(scores.movedim(1, -1)[counted], masks[counted]))

    assert float(segmentation_loss({"out": out, "aux": aux}, masks)) == pytest.approx(mean(out) + 0.5 * mean(aux))
    assert float(segmentation_loss({"out": out}, masks)) == pytest.approx(mean(out))
    assert float(segmentation_loss(out, masks)) == pytest.approx(mean(out))


@pytest.mark.parametrize("model", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large:aux=true"])
def test_a_step_trains_every_parameter_with_that_loss(model: str) -> None:
    from bench.workload import build_workload
    from bench.workload.targets import segmentation_loss

    case = Case(VOC, catalog.parse_choice("model", model), Choice("sgd"), 2, image_size=32)
    workload = build_workload(case, image_spec(VOC, 32), Protocol(), torch.device("cpu"))
    images, masks = batch_of(batch_size=2, image_size=32)
    workload.step(iter([(images, masks)]))
    assert workload.kept is not None
    output, loss = workload.kept
    assert output["out"].shape == (2, 21, 32, 32)
    assert loss.item() == pytest.approx(segmentation_loss(output, masks).item())
    assert ("aux" in output) == ("aux" in model)
    assert [path for path, parameter in workload.model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("size", "side"), [(0, 480), (40, 40)])
def test_batches_have_masks_of_the_images_size_with_classes_and_ignored_pixels(path: Any, size: int, side: int) -> None:
    from bench.workload.targets import IGNORED

    images, masks = batch_of(input=path, image_size=size)
    assert images.shape == (4, 3, side, side)
    assert (masks.shape, masks.dtype) == ((4, side, side), torch.int64)
    assert set(masks.unique().tolist()) == {*range(21), IGNORED}
    assert float((masks == IGNORED).float().mean()) == pytest.approx(1 / 22, rel=0.2)
    again = batch_of(input=path, image_size=size)
    assert torch.equal(images, again[0])
    assert torch.equal(masks, again[1])


def test_masks_of_a_resized_image_take_the_nearest_pixel() -> None:
    from PIL import Image

    from bench.workload.images import build_target_transform

    transform = build_target_transform(describe_dataset(VOC), 2)
    assert transform is not None
    mask = Image.new("L", (4, 4), color=3)
    mask.paste(255, (2, 0, 4, 2))
    assert transform(mask).tolist() == [[3, 255], [3, 3]]
    assert build_target_transform(describe_dataset(Choice("cifar10")), 2) is None


def test_the_cached_path_counts_the_bytes_of_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.workload import inputs

    case = Case(VOC, Choice("lraspp_mobilenet_v3_large"), Choice("sgd"), 1, input="cached", image_size=32)
    counts = []
    for sample_bytes in (32 * 32 * 3 * 4, 32 * 32 * (3 * 4 + 8)):
        monkeypatch.setattr(inputs, "CACHED_BYTES", 4 * sample_bytes)
        with inputs.build_inputs(case, describe_dataset(VOC), Protocol(), torch.device("cpu")) as batches:
            firsts = [float(images.sum()) for images, _ in itertools.islice(batches, 20)]
        counts.append(len(set(firsts)))
    assert counts == [2, 4]


def test_masks_of_more_classes_than_a_byte_holds_are_refused() -> None:
    from dataclasses import replace

    from bench.workload.images import SyntheticSamples

    info = describe_dataset(VOC)
    with pytest.raises(Unsupported, match="masks of 256 classes cannot go through the loader"):
        SyntheticSamples(replace(info, images=square(8, classes=256)), True, 1)
    SyntheticSamples(replace(info, images=square(8, classes=255)), True, 1)


def reasons(dataset: str, model: str) -> set[str | None]:
    grid = {"dataset": dataset, "model": model, "optimizer": "sgd", "batch_size": 2, "image_size": 32}
    return set(build_cases(check_config({"name": "n", "grid": grid}, "test"), "cpu").values())


def test_a_model_is_skipped_on_data_of_another_task_and_runs_on_its_own() -> None:
    end = "choose a model and a data set of the same task"
    assert reasons("cifar10", "fcn_resnet50") == {
        f"fcn_resnet50 is a segmentation model, and the data set is for classification; {end}"
    }
    assert reasons("voc_segmentation", "resnet18") == {
        f"resnet18 is a classification model, and the data set is for segmentation; {end}"
    }
    assert reasons("voc_segmentation", "fcn_resnet50") == reasons("cifar10", "resnet18") == {None}


def test_building_is_refused_in_the_worker_too() -> None:
    from bench.workload import build_workload

    case = Case(VOC, Choice("mlp"), Choice("sgd"), 2, image_size=32)
    with pytest.raises(Unsupported, match="mlp is a classification model"):
        build_workload(case, image_spec(VOC, 32), Protocol(), torch.device("cpu"))


def test_the_formula_counts_masks_with_the_batch() -> None:
    case = Case(VOC, Choice("lraspp_mobilenet_v3_large"), Choice("sgd"), 4)
    assert estimate_formula(case)["formula_batch_bytes"] == 4 * 480 * 480 * (3 * 4 + 8)


def test_estimates_and_the_batch_of_the_trace_include_masks() -> None:
    from bench.estimators.cases import estimate_cases

    case = Case(VOC, Choice("lraspp_mobilenet_v3_large"), Choice("sgd"), 4, image_size=64)
    (found,) = estimate_cases([case], "h200", workspaces=False)
    assert found.estimate_note is None
    assert found.trace_batch_bytes == 4 * 64 * 64 * (3 * 4 + 8)
    assert (found.estimated_samples_per_s or 0) > 0
    assert (found.trace_peak_allocated_bytes or 0) > (found.formula_parameters_bytes or 0)


def pixelwise(images: ImageSpec) -> torch.nn.Module:
    """One convolution: a plain tensor `(B, classes, H, W)`, without a dictionary around it."""
    return torch.nn.Conv2d(images.channels, images.classes, 1)


def zero_loss(output: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    assert masks.dim() == 3
    return output.sum() * 0


@pytest.mark.parametrize("loss", [None, zero_loss])
def test_an_entry_of_ones_own_sets_task_and_loss(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.workload import build_workload

    monkeypatch.setitem(catalog._lent["model"], "own", ModelEntry("own", pixelwise, loss=loss, task="segmentation"))
    workload = build_workload(
        Case(VOC, Choice("own"), Choice("sgd"), 2), image_spec(VOC, 32), Protocol(), torch.device("cpu")
    )
    images, masks = batch_of(batch_size=2, image_size=32)
    output = workload.model(images)
    expected = 0.0 if loss else torch.nn.functional.cross_entropy(output, masks, ignore_index=255).item()
    workload.step(iter([(images, masks)]))
    assert workload.loss == pytest.approx(expected)


def test_a_callable_takes_the_task_of_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TRACE_CACHE", str(tmp_path))

    def build(images: ImageSpec) -> torch.nn.Module:
        return pixelwise(images)

    found = bench.estimate(build, dataset="voc_segmentation", image_size=64, batch_size=2)
    assert found.estimate_note is None
    assert found.trace_batch_bytes == 2 * 64 * 64 * (3 * 4 + 8)


def test_the_gradient_noise_of_a_loss_over_pixels_is_refused_with_the_reason() -> None:
    from bench.worker import MeasureTask, measure_case

    protocol = Protocol(warmup_steps=1, measured_steps=1, min_window_s=0.0, gradient_noise=True, loader_workers=0)
    case = Case(VOC, Choice("lraspp_mobilenet_v3_large"), Choice("sgd"), 2, image_size=32)
    found = measure_case(MeasureTask(case, protocol, "cpu"), lambda message: None)
    assert found["status"] == "ok", found["reason"]
    assert found["peak_allocated_bytes"] > 0
    note = "no scale: the loss is a mean over pixels that have a class, of which images have different numbers"
    assert found["gradient_noise_note"] == note


def test_a_picture_shows_images_with_their_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import gallery

    drawn: list[Any] = []
    monkeypatch.setattr(gallery, "_draw", lambda pictures, title, target: drawn.extend(pictures))
    gallery.render_samples(VOC, tmp_path, tmp_path / "a.png", count=2)
    assert [(image.shape, mask.shape) for image, mask in drawn] == [((480, 480, 3), (480, 480))] * 2
    monkeypatch.undo()
    gallery.render_samples(VOC, tmp_path, tmp_path / "a.png", count=2)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
