"""The Python interface: models of the caller's own in forks of the caller, and those of the catalog elsewhere."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench.errors import BenchError
from bench.records import ImageSpec

SMALL: dict[str, Any] = {"sample_shape": (3, 8, 8), "classes": 4, "device": "rtx4090"}


Forward = Callable[["torch.nn.Module", "torch.Tensor"], "torch.Tensor"]


def net(width: int = 8, forward: Forward | None = None) -> torch.nn.Module:
    """A module of a class that nobody can import."""
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(width * 36, 4)
    )

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return forward(self.layers, images) if forward else self.layers(images)

    return Net()


def raising() -> torch.nn.Module:
    def forward(layers: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today\nsecond line")

    return net(forward=forward)


def reading() -> torch.nn.Module:
    return net(forward=lambda layers, images: layers(images) if images.sum() > 0 else images.flatten(1)[:, :4])


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_TRACE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("BENCH_LOGS", str(tmp_path / "logs"))
    return tmp_path / "kept"


def test_a_module_that_only_this_process_knows_is_estimated_and_not_kept(kept: Path) -> None:
    width = 8
    before = torch.random.get_rng_state()
    many = bench.estimate(lambda: net(width), batch_size=[64, 16, 64, 256], optimizer=torch.optim.AdamW, **SMALL)
    one = bench.estimate(net, batch_size=16, optimizer="adamw", **SMALL)
    assert [item.estimate_note for item in many] == [None] * 4
    peaks = [item.trace_peak_allocated_bytes or 0 for item in many]
    assert peaks[1] < peaks[0] == peaks[2] < peaks[3]
    assert one.trace_peak_allocated_bytes == peaks[1]
    assert many[0].formula_bytes is None
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.formula_parameters_bytes == sum(parameter.nbytes for parameter in net().parameters())
    assert not list(kept.rglob("*.trace"))
    assert not torch.cuda.is_initialized()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.formula_bytes = 0  # type: ignore[misc]


def test_what_builds_it_gets_the_images_where_it_asks_for_them() -> None:
    def build(images: ImageSpec) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(images.channels * images.height * images.width, images.classes)
        )

    found = bench.estimate(build, sample_shape=(2, 5, 7), classes=3, batch_size=4, device="rtx4090")
    assert found.formula_parameters_bytes == (2 * 5 * 7 * 3 + 3) * 4


@pytest.mark.parametrize("ask", [bench.estimate, bench.fit, bench.save_memory, bench.timeline])
def test_what_the_callers_model_raises_is_one_line_with_its_place(
    ask: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BenchError) as caught:
        ask(raising, **SMALL)
    assert re.match(r"ValueError: not today \(test_api\.py:\d+\)", str(caught.value))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_step_that_reads_values_is_refused_in_the_note_and_the_place_named() -> None:
    found = bench.estimate(reading, **SMALL)
    assert found.trace_peak_allocated_bytes is None
    assert "reads values from the device" in (found.estimate_note or "")
    assert "test_api.py" in (found.estimate_note or "")


def test_an_exception_under_which_a_temporary_dies_is_the_reason() -> None:
    def fails() -> torch.Tensor:
        raise ValueError("not today")

    def reads(layers: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return torch.relu(layers(images)) * layers(images).mean().item()

    def raises(layers: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        try:
            return torch.relu(layers(images)) * fails()
        except KeyError:
            return layers(images)

    found = bench.estimate(lambda: net(forward=reads), **SMALL)
    assert "reads values from the device" in (found.estimate_note or "")
    with pytest.raises(BenchError, match=r"ValueError: not today \(test_api\.py:\d+\)"):
        bench.estimate(lambda: net(forward=raises), **SMALL)


def test_fit_and_timeline_of_the_callers_model() -> None:
    fitted = bench.fit(net, **{**SMALL, "device": "t4"})
    assert fitted.ended_by in ("memory", "search")
    assert fitted.ladder[0].batch_size == 16
    made = bench.timeline(net, batch_size=[32, 16], **SMALL)
    expected = bench.estimate(net, batch_size=[32, 16], **SMALL)
    assert [item.peak_allocated_bytes for item in made] == [item.trace_peak_allocated_bytes for item in expected]
    assert made[0].tensors


def two_heads() -> torch.nn.Module:
    """It gives two predictions in training, as models with auxiliary heads do."""
    model = net()
    model.second = torch.nn.Linear(8 * 36, 4)
    body, head = model.layers[:3], model.layers[3]

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = body(images)
        return head(features), model.second(features)

    model.forward = forward  # type: ignore[method-assign]
    return model


def of_both(output: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    main, second = (torch.nn.functional.cross_entropy(each, labels) for each in output)
    return main + 0.3 * second


def test_a_model_of_the_caller_trains_with_the_callers_loss_and_with_switches() -> None:
    plain = bench.estimate(two_heads, **SMALL, loss=of_both, batch_size=16)
    assert plain.trace_peak_allocated_bytes is not None, plain.estimate_note
    assert plain.formula_parameters_bytes == (8 * 27 + 8 + 2 * (8 * 36 * 4 + 4)) * 4
    halves = bench.estimate(two_heads, **SMALL, loss=of_both, batch_size=16, accumulation=2, zero_grad="zeros")
    assert halves.trace_activations_bytes < plain.trace_activations_bytes
    with pytest.raises(BenchError, match="cross_entropy"):
        bench.estimate(two_heads, **SMALL, batch_size=16)
    found = bench.save_memory(two_heads, **SMALL, loss=of_both, batch_size=16, precision="float32", update="step")
    assert {option.changes.get("update") for option in found.tried} == {None}
    assert {option.changes.get("accumulation") for option in found.tried} > {None, 2}


def test_what_makes_the_callers_model_fit() -> None:
    found = bench.save_memory(net, batch_size=16, precision="float32", **SMALL)
    assert found.plain.device_bytes == bench.estimate(net, batch_size=16, **SMALL).estimated_device_bytes
    assert found.sentence.startswith("It fits as it is: ")
    assert {option.label for option in found.tried} >= {"2 micro-batches", "update in the backward"}
    assert not any(option.changes_precision for option in found.tried)
    assert "Net has no repeated blocks" in found.unknown["checkpointed blocks"]
    halved = next(option for option in found.tried if option.label == "2 micro-batches")
    assert halved.gives_up == {"accumulation": "2 smaller forwards and backwards"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "mlp", "loss": of_both}, "loss: goes with a model that is a callable"),
        ({"model": lambda: 7}, "TypeError: model returned int, not a torch.nn.Module"),
        ({"model": "resnte18"}, "resnet18"),
        ({"precision": "fp8"}, "precision"),
        ({"optimizer": "adm"}, "adam"),
        ({"batch_size": 0}, "batch_size"),
        ({"device": "rtx4900"}, "unknown device"),
        ({"classes": None}, "classes"),
        ({"sample_shape": (3, 8)}, "sample_shape"),
        ({"dataset": "mnist"}, "sample_shape: stands in place of dataset"),
        ({"sample_shape": None}, "classes: goes with sample_shape"),
        ({"memory": "24 GBit"}, 'memory "24 GBit": invalid memory size'),
        ({"memory": 0}, "memory 0: must be an amount of memory from 1 MiB"),
        ({"memory": True}, "memory true: must be an amount of memory from 1 MiB"),
        ({"memory": "24 GiB"}, "the memory limit of 24 GiB is above the 23.6 GiB (25,386,352,640 B) of rtx4090"),
    ],
)
def test_an_argument_that_is_not_valid_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError, match=re.escape(said)):
        bench.estimate(**{"model": net, **SMALL, **arguments})


def test_a_module_is_not_taken_for_what_builds_it() -> None:
    with pytest.raises(BenchError, match="model: give what builds the module"):
        bench.estimate(net(), **SMALL)  # type: ignore[arg-type]


def test_the_package_is_imported_without_torch_and_has_its_functions() -> None:
    code = (
        "import sys, bench; assert not {'torch', 'pandas', 'pydantic', 'numpy'} & set(sys.modules);"
        "assert set(bench.__all__) <= set(dir(bench)); bench.estimate, bench.compare; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_name_is_the_same_estimate_as_the_callers_own_copy_and_is_kept(kept: Path) -> None:
    def own() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
        )

    named = bench.estimate("mlp", dataset="mnist", batch_size=64, device="rtx4090")
    assert list(kept.rglob("*.trace"))
    mine = bench.estimate(own, dataset="mnist", batch_size=64, device="rtx4090")
    fields = ("formula_bytes", "trace_peak_allocated_bytes", "trace_peak_reserved_bytes", "estimated_step_time_s")
    assert [getattr(named, name) for name in fields] == [getattr(mine, name) for name in fields]


def test_a_device_answers_for_a_smaller_card(kept: Path) -> None:
    case: dict[str, Any] = {"dataset": "cifar10", "optimizer": "adam", "device": "h200"}
    whole = bench.estimate("mlp", batch_size=[64, 1 << 20], **case)
    card = bench.estimate("mlp", batch_size=[64, 1 << 20], memory="4 GiB", **case)
    assert [one.estimated_fit for one in whole] == ["fits", "fits"]
    assert [one.estimated_fit for one in card] == ["fits", "does not fit"]
    assert {one.estimate_device for one in card} == {"h200 as a card of 4 GiB"}
    assert card[0].trace_peak_reserved_bytes == whole[0].trace_peak_reserved_bytes
    assert bench.fit("resnet18", memory=1 << 30, **case).memory_bytes == 1 << 30
    step = bench.timeline("mlp", batch_size=64, memory="4 GiB", **case)
    assert step == bench.timeline("mlp", batch_size=64, **case)
