"""The models of the catalog: the founding facts, every model of torchvision, and adding one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision

import bench.catalog.models
from bench import catalog
from bench.catalog.models import torchvision as family_of_torchvision
from bench.catalog.models.torchvision import SMALLEST_SIDE_PIXELS, load_entries
from bench.errors import BenchError, Unsupported
from bench.records import Choice, ImageSpec
from tests.each import each

MNIST = ImageSpec(1, 28, 28, 10)
CIFAR10 = ImageSpec(3, 32, 32, 10)

ONE_A_FAMILY = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
)
SMALLEST_MEMBERS = {
    "alexnet": "alexnet",
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "googlenet": "googlenet",
    "inception": "inception_v3",
    "squeezenet": "squeezenet1_0",
    "squeezenet1_1": "squeezenet1_1",
    "swin_transformer": "swin_v2_t",
    "vgg": "vgg11",
}
TRAINS_BELOW_ITS_METADATA = ("swin_", "efficientnet_v2_", "vit_", "maxvit_")


def names_in_torchvision() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def square(side: int, channels: int = 3, classes: int = 10) -> ImageSpec:
    return ImageSpec(channels, side, side, classes)


def parameter_count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def train_one_step(model: torch.nn.Module, images: ImageSpec, *, channels: int | None = None) -> torch.Tensor:
    device = next(model.parameters()).device
    batch = torch.zeros(2, channels or images.channels, images.height, images.width, device=device)
    output = model(batch)
    torch.nn.functional.cross_entropy(output, torch.zeros(2, dtype=torch.int64, device=device)).backward()
    return output


def reason(name: str, images: ImageSpec) -> str | None:
    return catalog.model(name).skip_reason(images, {})


@pytest.mark.parametrize(("images", "parameters"), [(MNIST, 101_770), (CIFAR10, 394_634)])
def test_founding_mlp_has_the_founding_number_of_parameters(images: ImageSpec, parameters: int) -> None:
    model = catalog.model("mlp").build(images)
    assert parameter_count(model) == parameters
    assert sum(parameter.nbytes for parameter in model.parameters()) == parameters * 4


def test_founding_mlp_is_flatten_linear_relu_linear() -> None:
    assert [type(layer) for layer in catalog.model("mlp").build(MNIST)] == [
        torch.nn.Flatten,
        torch.nn.Linear,
        torch.nn.ReLU,
        torch.nn.Linear,
    ]


@pytest.mark.parametrize(("hidden", "widths"), [(64, [784, 64, 10]), ((32, 16), [784, 32, 16, 10]), ((), [784, 10])])
def test_hidden_widths_are_a_setting(hidden: int | tuple[int, ...], widths: list[int]) -> None:
    model = catalog.model("mlp").build(MNIST, hidden=hidden)
    linear = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == widths
    assert isinstance(model[-1], torch.nn.Linear)


def test_mlp_takes_any_batch() -> None:
    model = catalog.model("mlp").build(CIFAR10)
    assert [model(torch.zeros(batch, 3, 32, 32)).shape for batch in (1, 7)] == [(1, 10), (7, 10)]


@pytest.mark.parametrize(
    "text", ["mlp:hidden=0", "mlp:hidden=-1", "mlp:hidden=true", "mlp:hidden=1.5", "mlp:hidden=[8,0]"]
)
def test_hidden_width_that_is_no_width_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match=r"setting hidden: .* is not allowed"):
        catalog.parse_choice("model", text)


def test_every_classification_model_of_torchvision_is_listed_and_no_other() -> None:
    assert sorted(entry.name for entry in load_entries()) == sorted(names_in_torchvision())


def test_models_are_listed_without_importing_torch() -> None:
    code = (
        "import sys; from bench import catalog; assert len(catalog.names('model')) > 50; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_models_are_listed_in_less_than_150_ms() -> None:
    times_s = []
    for _ in range(5):
        start = time.process_time()
        load_entries()
        times_s.append(time.process_time() - start)
    assert min(times_s) < 0.15


def test_without_torchvision_its_models_are_missing_and_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="torchvision is not installed, so its models are not listed"):
        assert load_entries() == ()


def test_explicit_name_of_a_registered_model_is_taken() -> None:
    source = '@register_model(name="other")\ndef builder(): ...\n@register_model()\n@legacy(\n    x=("a", None)\n)\n'
    source += "def plain(\n    *, a: int): ...\ndef no(): ...\n"
    assert list(family_of_torchvision._registered(source)) == ["other", "plain"]


@each("name", names_in_torchvision)
def test_model_of_torchvision_predicts_in_training_mode_at_224(name: str) -> None:
    from bench.estimators.layers import build_on_meta

    images = square(224)
    assert reason(name, images) is None
    model = build_on_meta(Choice(name), images)
    assert model.training
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_family_trains_every_parameter_in_a_step_at_224(name: str) -> None:
    from bench.estimators.layers import build_on_meta

    model = build_on_meta(Choice(name), square(224))
    train_one_step(model, square(224))
    assert [path for path, parameter in model.named_parameters() if parameter.grad is None] == []


@each("name", names_in_torchvision)
def test_smallest_size_is_that_of_torchvisions_metadata(name: str) -> None:
    """Where the metadata says how small images may be, rather than how large the pretrained weights' were."""
    weights = torchvision.models.get_model_weights(name)
    smallest = min(side for weight in weights for side in weight.meta["min_size"])
    if name.startswith(TRAINS_BELOW_ITS_METADATA):
        smallest_here = next(side for side in range(1, 225) if reason(name, square(side)) is None)
        assert smallest_here < smallest
    else:
        assert reason(name, square(smallest)) is None
        assert smallest == 1 or "too few pixels" in str(reason(name, square(smallest - 1)))


@pytest.mark.parametrize(("key", "side"), SMALLEST_SIDE_PIXELS.items())
def test_family_trains_at_its_smallest_size_and_not_below(key: str, side: int) -> None:
    from bench.estimators.layers import build_on_meta

    name = SMALLEST_MEMBERS[key]
    model = build_on_meta(Choice(name), square(side))
    train_one_step(model, square(side))
    assert "too few pixels" in str(reason(name, square(side - 1)))
    with pytest.raises(RuntimeError, match=r"(?i)kernel size|too small"):
        train_one_step(model, square(side - 1))


@each("name", lambda: [name for name in ONE_A_FAMILY if reason(name, square(1)) is None])
def test_family_without_a_smallest_size_trains_on_one_pixel(name: str) -> None:
    from bench.estimators.layers import build_on_meta

    assert train_one_step(build_on_meta(Choice(name), square(1)), square(1)).shape == (2, 10)


LARGEST_THAT_ONE_IMAGE_CANNOT_TRAIN = {
    Choice("densenet121"): 60,
    Choice("efficientnet_b0"): 32,
    Choice("googlenet"): 46,
    Choice.of("googlenet", {"aux": True}): 46,
    Choice("inception_v3"): 106,
    Choice.of("inception_v3", {"aux": True}): 346,
    Choice("mnasnet0_5"): 32,
    Choice("mobilenet_v2"): 32,
    Choice("mobilenet_v3_small"): 32,
    Choice("regnet_y_400mf"): 32,
    Choice("resnet18"): 32,
    Choice("shufflenet_v2_x0_5"): 32,
}


@pytest.mark.parametrize("choice", LARGEST_THAT_ONE_IMAGE_CANNOT_TRAIN, ids=str)
def test_one_image_is_too_few_exactly_where_a_batch_norm_refuses_it(choice: Choice) -> None:
    from bench.estimators.layers import build_on_meta

    largest = LARGEST_THAT_ONE_IMAGE_CANNOT_TRAIN[choice]
    model, smallest_batch = build_on_meta(choice, square(largest)), catalog.model(choice.name).smallest_batch
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.zeros(1, 3, largest, largest, device="meta"))
    model(torch.zeros(1, 3, largest + 1, largest + 1, device="meta"))
    assert smallest_batch(square(largest), choice.options) == 2
    assert smallest_batch(square(largest + 1), choice.options) == 1


def test_models_without_a_batch_norm_that_sees_one_pixel_take_one_image() -> None:
    sides = {"mlp": 1, "alexnet": 63, "vgg11_bn": 32, "squeezenet1_1": 17, "convnext_tiny": 32}
    assert {catalog.model(name).smallest_batch(square(side), {}) for name, side in sides.items()} == {1}


def test_mnist_is_too_small_or_does_not_fit_for_these_models_only() -> None:
    skipped = {name.split("_")[0].rstrip("0123456789") for name in names_in_torchvision() if reason(name, MNIST)}
    assert skipped == {"alexnet", "convnext", "densenet", "inception", "maxvit", "vgg", "vit"}
    assert reason("vit_h_14", MNIST) is None


def test_cifar10_is_too_small_or_does_not_fit_for_these_models_only() -> None:
    skipped = [name for name in names_in_torchvision() if reason(name, CIFAR10)]
    assert skipped == ["alexnet", "inception_v3", "maxvit_t", "vit_h_14"]


def test_reason_says_what_is_needed_what_is_given_and_what_to_do() -> None:
    assert reason("alexnet", MNIST) == (
        "alexnet needs images of at least 63 x 63; 28 x 28 has too few pixels; set image_size"
    )


def test_a_narrow_image_is_measured_by_its_shorter_side() -> None:
    assert reason("vgg11", ImageSpec(3, 224, 31, 10)) is not None
    assert reason("vgg11", ImageSpec(3, 224, 32, 10)) is None


@pytest.mark.parametrize(
    ("name", "fits", "misfits"),
    [
        ("vit_b_16", (16, 224), (15, 28)),
        ("vit_b_32", (32, 96), (16, 48)),
        ("vit_h_14", (28,), (32,)),
        ("maxvit_t", (221, 448), (28, 112, 220, 225)),
    ],
)
def test_model_of_patches_or_windows_is_skipped_exactly_where_it_cannot_be_built(
    name: str, fits: tuple[int, ...], misfits: tuple[int, ...]
) -> None:
    from bench.estimators.layers import build_on_meta

    option = (lambda side: {"input_size": (side, side)}) if name == "maxvit_t" else (lambda side: {"image_size": side})
    for side in fits:
        assert reason(name, square(side)) is None
        train_one_step(build_on_meta(Choice(name), square(side)), square(side))
    for side in misfits:
        assert "set image_size, for example 224" in str(reason(name, square(side)))
        with pytest.raises((ValueError, AssertionError, RuntimeError)), torch.device("meta"):
            model = torchvision.models.get_model(name, **option(side))
            model(torch.zeros(2, 3, side, side))


def test_building_for_images_that_do_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(Unsupported, match="alexnet needs images of at least 63 x 63"):
        catalog.model("alexnet").build(MNIST)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_first_convolution_takes_the_images_channels_and_nothing_else_changes(name: str) -> None:
    from bench.estimators.layers import build_on_meta

    colour, grey = (build_on_meta(Choice(name), square(224, channels)) for channels in (3, 1))
    shapes = [{path: tuple(p.shape) for path, p in model.named_parameters()} for model in (colour, grey)]
    first = next(module for module in grey.modules() if isinstance(module, torch.nn.Conv2d))
    changed = [path for path in shapes[0] if shapes[0][path] != shapes[1][path]]
    assert list(shapes[0]) == list(shapes[1])
    assert len(changed) == 1
    out_channels, _, height, width = shapes[0][changed[0]]
    assert shapes[1][changed[0]] == (out_channels, 1, height, width)
    assert first(torch.zeros(2, 1, 224, 224, device="meta")).shape[1] == out_channels == first.out_channels


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channel_counts_are_initialised_like_the_first_convolution(channels: int) -> None:
    models = []
    for count in (3, channels):
        torch.manual_seed(42)
        models.append(catalog.model("squeezenet1_1").build(square(32, count)))
    colour, other = (model.features[0] for model in models)
    assert (other.in_channels, other.out_channels, other.kernel_size, other.stride) == (channels, 64, (3, 3), (2, 2))
    assert torch.equal(other.bias, colour.bias)
    for channel in range(channels):
        assert torch.equal(other.weight[:, channel], colour.weight[:, channel % 3])
    assert other.weight.is_leaf
    assert other.weight.is_contiguous()
    assert torch.equal(models[0].classifier[1].weight, models[1].classifier[1].weight)
    train_one_step(models[1], square(32, channels))
    assert torch.isfinite(other.weight.grad).all()


def test_real_model_has_the_number_of_classes_asked_for_and_follows_the_seed() -> None:
    built = []
    for _ in range(2):
        torch.manual_seed(42)
        built.append(catalog.model("squeezenet1_1").build(square(32, classes=7)))
    assert built[0](torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in built), strict=True))
    assert next(built[0].parameters()).std() > 0


def test_unknown_model_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(BenchError, match=r'unknown model "resnte18"\. Nearest: resnet18'):
        catalog.model("resnte18")


def forget_entries() -> None:
    for function in vars(catalog).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def folder_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files count as lying in `bench/catalog/models`."""
    monkeypatch.setattr(bench.catalog.models, "__path__", [*bench.catalog.models.__path__, str(tmp_path)])
    forget_entries()
    yield tmp_path
    monkeypatch.undo()
    forget_entries()
    sys.modules.pop("bench.catalog.models.one_pixel", None)


def test_adding_a_model_is_one_new_file(folder_of_models: Path) -> None:
    assert "one_pixel" not in catalog.names("model")
    forget_entries()
    (folder_of_models / "one_pixel.py").write_text(
        textwrap.dedent('''\
        """Judges an image by the mean of its pixels."""

        from bench.catalog.entries import ModelEntry


        def build(images, *, bias: bool = True):
            from torch import nn

            head = nn.Linear(images.channels, images.classes, bias)
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


        ENTRIES = (ModelEntry("one_pixel", build, "the mean of the pixels"),)
        ''')
    )
    assert "one_pixel" in catalog.names("model")
    choice = catalog.parse_choice("model", "one_pixel:bias=false")
    model = catalog.model(choice.name).build(MNIST, **choice.options)
    assert parameter_count(model) == 10
    assert train_one_step(model, MNIST).shape == (2, 10)


@each("name", names_in_torchvision)
def test_a_model_is_what_torchvision_builds_by_that_name_unless_it_says_otherwise(name: str) -> None:
    from bench.estimators.layers import _BlankTensorsOnMeta, build_on_meta

    images = ImageSpec(3, 299 if name == "inception_v3" else 224, 299 if name == "inception_v3" else 224, 1000)
    own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with _BlankTensorsOnMeta():
        theirs = parameter_count(torchvision.models.get_model(name, weights=None, **own))
    ours = parameter_count(build_on_meta(Choice(name), images))
    note = catalog.model_note(Choice(name))
    assert (ours == theirs) == (note is None)
    if note is not None:
        assert note in catalog.model(name).summary
        assert parameter_count(build_on_meta(Choice.of(name, {"aux": True}), images)) == theirs


AUXILIARY = [("googlenet", 64, 2, (6_624_904, 13_004_888)), ("inception_v3", 299, 1, (23_834_568, 27_161_264))]


@pytest.mark.parametrize(("name", "side", "heads", "parameters"), AUXILIARY)
def test_auxiliary_classifiers_are_trained_with_three_tenths_of_their_loss(
    name: str, side: int, heads: int, parameters: tuple[int, int]
) -> None:
    from bench.estimators.layers import build_on_meta
    from bench.records import Case, Protocol
    from bench.workload import build_workload

    images = ImageSpec(3, side, side, 1000)
    case = Case(Choice("imagenet"), catalog.parse_choice("model", f"{name}:aux=true"), Choice("sgd"), 2)
    workload = build_workload(case, images, Protocol(), torch.device("cpu"))
    assert workload.parameter_count == parameters[1]
    labels = torch.tensor([1, 2])
    workload.step(iter([(torch.randn(2, *images.shape), labels)]))
    assert workload.kept is not None
    (main, *others), loss = workload.kept
    assert len(others) == heads
    expected = torch.nn.functional.cross_entropy(main, labels) + 0.3 * sum(
        torch.nn.functional.cross_entropy(o, labels) for o in others
    )
    assert loss.item() == pytest.approx(expected.item())
    assert all(parameter.grad is not None for parameter in workload.model.parameters())
    assert parameter_count(build_on_meta(Choice(name), images)) == parameters[0]


def test_the_setting_for_auxiliary_classifiers_leaves_the_default_as_it_was() -> None:
    assert catalog.parse_choice("model", "googlenet:aux=false") == Choice("googlenet")
    assert catalog.model_note(catalog.parse_choice("model", "googlenet:aux=true")) is None
    with pytest.raises(BenchError, match='resnet18 has no setting "aux"'):
        catalog.parse_choice("model", "resnet18:aux=true")
    reason = catalog.model("inception_v3").skip_reason(ImageSpec(3, 224, 224, 1000), {"aux": True})
    assert reason is not None and reason.startswith("inception_v3:aux=true needs images of at least 299 x 299")
    assert catalog.model("inception_v3").skip_reason(ImageSpec(3, 224, 224, 1000), {}) is None


def test_estimates_follow_the_auxiliary_classifiers() -> None:
    from bench.estimators.cases import estimate_cases
    from bench.records import Case

    plain, aux = estimate_cases(
        [
            Case(Choice("cifar10"), catalog.parse_choice("model", name), Choice("sgd"), 8, image_size=32)
            for name in ("googlenet", "googlenet:aux=true")
        ],
        "h200",
    )
    assert plain.estimate_note is aux.estimate_note is None
    assert plain.formula_parameters_bytes is not None and aux.formula_parameters_bytes is not None
    assert aux.formula_parameters_bytes > 1.7 * plain.formula_parameters_bytes
    assert aux.trace_parameters_bytes is not None and aux.trace_gradients_bytes is not None
    assert aux.trace_parameters_bytes + aux.trace_gradients_bytes > 3 * (plain.trace_parameters_bytes or 0)
    assert (aux.estimated_step_time_s or 0) > (plain.estimated_step_time_s or 0)
