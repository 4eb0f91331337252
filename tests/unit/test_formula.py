"""The founding formula: its worked table to the byte, and what it says of other cases."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import time
from typing import Any

import pytest

from bench import catalog
from bench.errors import Unsupported
from bench.estimators.formula import estimate_formula, formula_bytes
from bench.records import Case, Choice, Estimate, ImageSpec

KB, MB = 1024, 1024 * 1024
MNIST = ImageSpec(1, 28, 28, 10)
CIFAR10 = ImageSpec(3, 32, 32, 10)
PARTS = ("parameters", "gradients", "optimizer_state", "batch", "activations")


def case(model: str = "mlp", optimizer: str = "sgd", batch_size: int = 64, **axes: Any) -> Case:
    choices = catalog.parse_choice("model", model), catalog.parse_choice("optimizer", optimizer)
    return Case(Choice("mnist"), *choices, batch_size, **axes)


def of(images: ImageSpec = MNIST, **axes: Any) -> dict[str, int]:
    """The formula's parts by their short names, `total` beside them."""
    found = estimate_formula(case(**axes), images)
    assert found["formula_bytes"] is not None
    return {part: found[f"formula_{part}_bytes"] or 0 for part in PARTS} | {"total": found["formula_bytes"]}


@pytest.mark.parametrize(
    ("batch_size", "batch_bytes", "activation_bytes", "total_bytes"),
    [
        (64, 200_704, 32_768, 1_047_632),
        (256, 802_816, 131_072, 1_748_048),
        (1024, 3_211_264, 524_288, 4_549_712),
        (4096, 12_845_056, 2_097_152, 15_756_368),
    ],
)
def test_worked_table_to_the_byte(batch_size: int, batch_bytes: int, activation_bytes: int, total_bytes: int) -> None:
    assert of(batch_size=batch_size) == {
        "parameters": 407_080,
        "gradients": 407_080,
        "optimizer_state": 0,
        "batch": batch_bytes,
        "activations": activation_bytes,
        "total": total_bytes,
    }


@pytest.mark.parametrize(
    ("batch_size", "batch_bytes", "activation_bytes", "total_mb", "rounded_to_mb"),
    [
        (64, 192 * KB, 32 * KB, 1.0, 0.1),
        (256, 768 * KB, 128 * KB, 1.7, 0.1),
        (1024, 3 * MB, 512 * KB, 4.5, 0.5),
        (4096, 12 * MB, 2 * MB, 15, 1),
    ],
)
def test_worked_table_as_the_documents_print_it(
    batch_size: int, batch_bytes: int, activation_bytes: int, total_mb: float, rounded_to_mb: float
) -> None:
    """They take a sample of 3,136 B as 3 KB, and round totals to the last digit they print (4.5: to the half)."""
    found = of(batch_size=batch_size)
    assert found["batch"] - batch_bytes == batch_size * (3136 - 3 * KB)
    assert found["activations"] == activation_bytes
    assert abs(found["total"] / MB - total_mb) <= rounded_to_mb / 2


def test_colour_mlp_counts_its_larger_samples_and_weights() -> None:
    assert of(CIFAR10, batch_size=32) == {
        "parameters": 394_634 * 4,
        "gradients": 394_634 * 4,
        "optimizer_state": 0,
        "batch": 32 * 12_288,
        "activations": 32 * 128 * 4,
        "total": 2 * 394_634 * 4 + 32 * 12_288 + 32 * 128 * 4,
    }


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [("sgd", 0), ("sgd_momentum", 1), ("sgd:momentum=0.9", 1), ("adam", 2), ("adam:amsgrad=true", 3), ("rmsprop", 1)],
)
def test_optimizers_state_is_so_many_copies_of_the_parameters(optimizer: str, copies: int) -> None:
    found = of(optimizer=optimizer)
    assert found["optimizer_state"] == copies * 407_080
    assert found["total"] == sum(found[part] for part in PARTS)


def test_fused_adam_keeps_a_counter_a_parameter_tensor_on_the_device() -> None:
    assert of(optimizer="adam:fused=true")["optimizer_state"] == 2 * 407_080 + 4 * 4


@pytest.mark.parametrize(("precision", "element_bytes"), [("float32", 4), ("tf32", 4), ("bf16", 2), ("fp16", 2)])
def test_autocast_halves_activations_and_nothing_else(precision: Any, element_bytes: int) -> None:
    found, full = of(optimizer="adam", precision=precision), of(optimizer="adam")
    assert found["activations"] == 64 * 128 * element_bytes
    assert all(found[part] == full[part] for part in PARTS if part != "activations")


def test_every_hidden_layer_counts() -> None:
    assert of(model="mlp:hidden=[256,32]", batch_size=10)["activations"] == 10 * (256 + 32) * 4
    assert of(model="mlp:hidden=[]", batch_size=10)["activations"] == 0


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "swin_v2_t", "squeezenet1_1"])
def test_activations_are_those_of_the_layer_table(name: str) -> None:
    from bench.estimators.layers import build_on_meta, layer_table

    images = ImageSpec(3, 224, 224, 1000)
    rows = layer_table(build_on_meta(Choice(name), images), images, batch_size=7)
    assert of(images, model=name, batch_size=7)["activations"] == sum(row.activation_bytes for row in rows)


def test_resnet18_activations_are_its_convolutions_and_norms() -> None:
    side = {64: 56, 128: 28, 256: 14, 512: 7}
    blocks = sum(4 * 2 * width * grid * grid for width, grid in side.items())
    shortcuts = sum(2 * width * side[width] ** 2 for width in (128, 256, 512))
    stem = 2 * 64 * 112 * 112
    found = of(ImageSpec(3, 224, 224, 1000), model="resnet18", batch_size=1)
    assert found["activations"] == (stem + blocks + shortcuts) * 4
    assert found["parameters"] == 11_689_512 * 4


def test_fields_are_columns_of_an_estimate() -> None:
    found = estimate_formula(case(), MNIST)
    names = {field.name for field in dataclasses.fields(Estimate) if field.name.startswith("formula_")}
    assert set(found) == names
    assert Estimate(case_key="x", estimate_device="cpu", **found).formula_bytes == 1_047_632


def test_unknown_optimizer_state_leaves_the_total_unknown_and_the_parts_known() -> None:
    found = estimate_formula(case(optimizer="sparse_adam"), MNIST)
    assert (found["formula_optimizer_state_bytes"], found["formula_bytes"]) == (None, None)
    assert found["formula_parameters_bytes"] == 407_080


def test_memory_format_and_input_make_no_difference() -> None:
    assert of(memory_format="channels_last", input="loader") == of()


def test_images_are_looked_up_where_they_are_not_given() -> None:
    assert estimate_formula(case()) == estimate_formula(case(), MNIST)
    assert estimate_formula(case(image_size=14)) == estimate_formula(case(), ImageSpec(1, 14, 14, 10))


def test_model_that_cannot_take_the_images_is_refused() -> None:
    with pytest.raises(Unsupported, match="alexnet needs images of at least 63 x 63"):
        estimate_formula(case(model="alexnet"), MNIST)


def test_arithmetic_needs_no_torch() -> None:
    code = (
        "import sys; from bench.estimators.formula import formula_bytes; "
        "print(formula_bytes(parameter_bytes=407080, gradient_bytes=407080, optimizer_state_bytes=0, "
        "image_elements=784, sample_elements=128, batch_size=64)['formula_bytes'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1047632", "False"]


def test_outputs_that_do_not_grow_with_the_batch_count_once() -> None:
    def total(batch_size: int) -> int:
        found = formula_bytes(
            parameter_bytes=0,
            gradient_bytes=0,
            optimizer_state_bytes=0,
            image_elements=0,
            sample_elements=3,
            fixed_elements=5,
            batch_size=batch_size,
        )
        return found["formula_bytes"] or 0

    assert [total(1), total(10)] == [(3 + 5) * 4, (30 + 5) * 4]


def test_a_thousand_cases_of_a_mixed_grid_take_seconds() -> None:
    from bench.estimators.layers import model_shapes

    model_shapes.cache_clear()
    models = ("mlp", "resnet18", "resnet50", "vit_b_32", "mobilenet_v3_small")
    grid = itertools.product(models, ("sgd", "adam", "adafactor", "adam:fused=true"), range(16, 816, 16))
    cases = [case(*axes, image_size=64) for axes in grid]
    start = time.perf_counter()
    totals = {estimate_formula(item, ImageSpec(3, 64, 64, 10))["formula_bytes"] for item in cases}
    assert len(cases) == 1000
    assert len(totals) > 900
    assert time.perf_counter() - start < 10
