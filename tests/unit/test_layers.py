"""The table of layers, against what real models do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from bench import catalog
from bench.errors import Unsupported
from bench.records import Choice, ImageSpec

if TYPE_CHECKING:
    from bench.estimators.layers import Layer

MNIST = ImageSpec(1, 28, 28, 10)
COLOUR = ImageSpec(3, 64, 64, 10)


def table_of(name: str, images: ImageSpec) -> tuple[Layer, ...]:
    from bench.estimators.layers import build_on_meta, layer_table

    return layer_table(build_on_meta(Choice(name), images), images)


def test_founding_mlp_is_listed_layer_by_layer_for_one_sample() -> None:
    from bench.estimators.layers import layer_table

    rows = layer_table(catalog.model("mlp").build(MNIST), MNIST)
    assert [(row.path, row.kind, row.output_shape, row.parameters, row.activation_bytes) for row in rows] == [
        ("0", "Flatten", (784,), 0, 0),
        ("1", "Linear", (128,), 100_480, 512),
        ("2", "ReLU", (128,), 0, 0),
        ("3", "Linear", (10,), 1_290, 0),
    ]
    assert [row.output_bytes for row in rows] == [784 * 4, 512, 512, 40]


def test_bytes_grow_with_the_batch_and_shapes_do_not() -> None:
    from bench.estimators.layers import build_on_meta, layer_table

    model = build_on_meta(Choice("mlp"), MNIST)
    one, many = layer_table(model, MNIST), layer_table(model, MNIST, batch_size=64)
    assert [row.output_shape for row in one] == [row.output_shape for row in many]
    assert [row.output_bytes * 64 for row in one] == [row.output_bytes for row in many]
    assert many[1].activation_bytes == 64 * 128 * 4


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_b_32", "swin_t", "swin_v2_t", "convnext_tiny", "squeezenet1_1", "googlenet", "maxvit_t"]
)
def test_parameters_of_the_rows_add_up_to_the_models(name: str) -> None:
    from bench.estimators.layers import build_on_meta

    images = ImageSpec(3, 224, 224, 10)
    rows = table_of(name, images)
    model = build_on_meta(Choice(name), images)
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    assert len({row.path for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_shapes_and_bytes_are_those_of_a_real_forward_pass(name: str) -> None:
    from bench.estimators.layers import layer_table

    model = catalog.model(name).build(COLOUR).train()
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, path=path: seen.setdefault(path, []).append(out))
        for path, module in model.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        model(torch.rand(2, 3, 64, 64))
    for handle in handles:
        handle.remove()
    rows = layer_table(model, COLOUR, batch_size=2)
    assert [row.path for row in rows] == list(seen)
    for row in rows:
        assert row.output_shape == seen[row.path][-1].shape[1:]
        assert row.output_bytes == sum(output.nbytes for output in seen[row.path])
        assert row.calls == len(seen[row.path])


def test_layer_called_twice_counts_twice() -> None:
    relu = next(row for row in table_of("resnet18", COLOUR) if row.path == "layer1.0.relu")
    assert (relu.calls, relu.output_shape, relu.output_bytes) == (2, (64, 16, 16), 2 * 64 * 16 * 16 * 4)


def test_attention_that_calls_none_of_its_projections_is_one_layer() -> None:
    rows = {row.path: row for row in table_of("vit_b_32", ImageSpec(3, 224, 224, 10))}
    attention = rows["encoder.layers.encoder_layer_0.self_attention"]
    assert (attention.kind, attention.output_shape) == ("MultiheadAttention", (50, 768))
    assert attention.parameters == 4 * 768 * 768 + 4 * 768
    assert attention.activation_bytes == 50 * 768 * 4
    assert not any("out_proj" in path for path in rows)


def test_attention_that_calls_some_of_its_parts_is_a_layer_too() -> None:
    rows = {row.path: row for row in table_of("swin_v2_t", ImageSpec(3, 224, 224, 10))}
    attention = rows["features.1.0.attn"]
    assert attention.activation_bytes == 56 * 56 * 96 * 4
    assert rows["features.1.0.attn.cpb_mlp.0"].parameters == 2 * 512 + 512


def test_table_that_does_not_depend_on_the_images_does_not_grow_with_the_batch() -> None:
    from bench.estimators.layers import build_on_meta, layer_table, model_shapes

    images = ImageSpec(3, 224, 224, 10)
    model = build_on_meta(Choice("swin_v2_t"), images)
    path = "features.1.0.attn.cpb_mlp.0"
    sizes = [{row.path: row for row in layer_table(model, images, batch)}[path].output_bytes for batch in (1, 64)]
    assert sizes == [15 * 15 * 512 * 4] * 2
    assert model_shapes(Choice("swin_v2_t"), images).fixed_elements > 15 * 15 * 512


def test_module_with_parameters_of_its_own_is_listed_for_them_and_its_output_not_counted_again() -> None:
    rows = {row.path: row for row in table_of("vit_b_32", ImageSpec(3, 224, 224, 10))}
    assert (rows["encoder"].parameters, rows["encoder"].activation_bytes) == (50 * 768, 0)
    assert (rows["(model)"].parameters, rows["(model)"].output_bytes) == (768, 0)


def test_prediction_is_the_one_output_with_parameters_that_is_not_counted() -> None:
    rows = [row for row in table_of("resnet18", COLOUR) if row.parameters and not row.activation_bytes]
    assert [row.path for row in rows] == ["fc"]


def test_last_convolution_is_counted_where_the_prediction_is_pooled_from_it() -> None:
    rows = {row.path: row for row in table_of("squeezenet1_1", COLOUR)}
    assert rows["classifier.1"].activation_bytes == 10 * 3 * 3 * 4


def test_model_of_a_single_layer_has_one_row() -> None:
    from bench.estimators.layers import layer_table

    model = torch.nn.Conv2d(1, 4, 3)
    rows = layer_table(model, MNIST)
    assert [(row.path, row.parameters, row.activation_bytes) for row in rows] == [("(model)", 40, 0)]
    assert rows[0].output_bytes == 4 * 26 * 26 * 4


def test_model_is_left_as_it_was() -> None:
    from bench.estimators.layers import layer_table

    model = catalog.model("resnet18").build(COLOUR)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    layer_table(model, COLOUR)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_when_the_model_raises() -> None:
    from bench.estimators.layers import layer_table

    class Broken(torch.nn.Flatten):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise ValueError("broken")

    model = torch.nn.Sequential(torch.nn.Flatten(), Broken())
    with pytest.raises(ValueError, match="broken"):
        layer_table(model, MNIST)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["regnet_y_400mf", "swin_v2_t", "maxvit_t", "mlp"])
def test_building_on_meta_takes_no_memory_and_gives_the_real_models_shapes(name: str) -> None:
    from bench.estimators.layers import build_on_meta

    images = ImageSpec(3, 224, 224, 10)
    state = torch.get_rng_state()
    model = build_on_meta(Choice(name), images)
    assert torch.equal(state, torch.get_rng_state())
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    real = catalog.model(name).build(images)
    assert [(path, p.shape) for path, p in model.named_parameters()] == [
        (path, p.shape) for path, p in real.named_parameters()
    ]


def test_shapes_of_a_model_are_had_once() -> None:
    from bench.estimators.layers import model_shapes

    choice = Choice.of("mlp", {"hidden": 77})
    hits = model_shapes.cache_info().hits
    assert model_shapes(choice, MNIST) is model_shapes(choice, MNIST)
    assert model_shapes.cache_info().hits == hits + 1
    assert model_shapes(choice, MNIST).trained == ((77, 784), (77,), (10, 77), (10,))


def test_frozen_parameters_get_no_gradient_and_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.estimators.layers import model_shapes

    entry = catalog.model("mlp")

    def build_frozen(images: ImageSpec, **settings: int) -> torch.nn.Module:
        model = entry.build(images, **settings)
        model[1].requires_grad_(False)
        return model

    frozen = type(entry)("mlp", build_frozen, settings=entry.settings)
    monkeypatch.setattr(catalog, "model", lambda name: frozen)
    shapes = model_shapes(Choice.of("mlp", {"hidden": 33}), MNIST)
    model_shapes.cache_clear()
    assert shapes.trained == ((10, 33), (10,))
    assert shapes.parameter_bytes - shapes.trained_bytes == (784 * 33 + 33) * 4


def test_model_that_cannot_take_the_images_is_refused_with_the_reason() -> None:
    from bench.estimators.layers import build_on_meta

    with pytest.raises(Unsupported, match="vgg11 needs images of at least 32 x 32"):
        build_on_meta(Choice("vgg11"), MNIST)
