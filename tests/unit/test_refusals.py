"""A case that torch cannot run is told from one that fails, by torch's own refusals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import catalog
from bench.catalog.entries import ModelEntry, OptimizerEntry
from bench.errors import Unsupported, describe_failure, message_of
from bench.records import Case, Choice, ImageSpec, Protocol

GREY = ImageSpec(1, 8, 8, 10)


def step_of(model: torch.nn.Module, batch: int = 2, optimizer: str = "SGD", **settings: Any) -> None:
    """One step of a model on grey images of 8 x 8 pixels."""
    from bench.workload.step import Workload

    workload = Workload(
        model.train(), getattr(torch.optim, optimizer)(model.parameters(), lr=0.1, **settings), torch.device("cpu")
    )
    workload.step(iter([(torch.zeros(batch, 1, 8, 8), torch.zeros(batch, dtype=torch.long))]))


def head(*layers: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.LazyLinear(10))


REFUSED: dict[str, tuple[Callable[[], None], str]] = {
    "batch norm": (
        lambda: step_of(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10)), 1),
        "Expected more than 1 value per channel when training, got input size torch.Size([1, 10]); a norm in the model",
    ),
    "instance norm": (
        lambda: step_of(head(torch.nn.Conv2d(1, 4, 8), torch.nn.InstanceNorm2d(4))),
        "Expected more than 1 spatial element when training, got input size torch.Size([2, 4, 1, 1]); a norm",
    ),
    "capturable": (lambda: step_of(head(), optimizer="Adam", capturable=True), "must be on supported devices"),
    "sparse": (lambda: step_of(head(), optimizer="SparseAdam"), "SparseAdam does not support dense gradients"),
    "kernel larger than the images": (
        lambda: step_of(head(torch.nn.Conv2d(1, 4, 11))),
        "Kernel size can't be greater than actual input size; the images are too small for this model",
    ),
    "nothing left to pool": (
        lambda: step_of(head(torch.nn.MaxPool2d(16))),
        "Output size is too small; the images are too small for this model",
    ),
    "channels": (
        lambda: step_of(head(torch.nn.Conv2d(3, 4, 3))),
        "to have 3 channels, but got 1 channels; the model does not accept images of this shape",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_whatever_the_memory_and_the_values_is_unsupported(name: str) -> None:
    act, words = REFUSED[name]
    with pytest.raises(Unsupported) as caught:
        act()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def slips(act: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """A model with a fault of its own: `act` makes it of the output."""

    class Slips(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return act(self.layer(images.flatten(1)))

    return Slips()


FAILS: dict[str, Callable[[], None]] = {
    "shapes": lambda: step_of(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 10))),
    "inner channels": lambda: step_of(head(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(8, 4, 3))),
    "batch of the output": lambda: step_of(slips(lambda output: output[:1])),
    "a type": lambda: step_of(slips(lambda output: output.long())),
    "a name": lambda: step_of(slips(lambda output: output.no_such_thing)),
    "out of memory": lambda: step_of(slips(lambda output: output + torch.empty(1 << 60, dtype=torch.uint8)[0])),
}


@pytest.mark.parametrize("name", FAILS)
def test_a_fault_of_the_model_is_not_a_case_that_cannot_run(name: str) -> None:
    with pytest.raises((RuntimeError, ValueError, AttributeError)):
        FAILS[name]()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\"slow_conv2d_cpu\" not implemented for 'Half'", "use another precision"),
        (
            "Could not run 'torchvision::nms' with arguments from the 'CUDA' backend. This could be because ...",
            "Could not run 'torchvision::nms' with arguments from the 'CUDA' backend; torch has no such kernel",
        ),
        (
            "`fused=True` requires all the params to be floating point Tensors of supported devices: ['cpu'] but "
            "torch.float32 and cuda",
            "but torch.float32 and cuda; remove fused here",
        ),
        ("torch.compile is not supported on Python 3.15+", "turn measure.compiled off here"),
        (
            "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')",
            "No working C++ compiler found; install one (g++), or turn measure.compiled off here",
        ),
        (
            "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl.",
            "Failed to find C compiler; install one (gcc), or turn measure.compiled off here",
        ),
        (
            "Cannot find a working triton installation. Either the package is not installed or it is too old.",
            "Cannot find a working triton installation; install triton, or turn measure.compiled off here",
        ),
    ],
)
def test_words_of_other_machines_are_known(text: str, reason: str) -> None:
    from bench.workload.step import refusal_of

    wrapped = RuntimeError("backend='inductor' raised")
    wrapped.__cause__ = NotImplementedError(text)
    for error in (RuntimeError(text), wrapped):
        assert reason in str(refusal_of(error))


@pytest.mark.parametrize("text", ["\"addmm_impl_cpu_\" not implemented for 'Long'", "CUDA out of memory", ""])
def test_other_words_are_failures(text: str) -> None:
    from bench.workload.step import refusal_of

    assert refusal_of(RuntimeError(text)) is None


def test_a_long_message_costs_no_time_and_keeps_its_ends() -> None:
    from bench.workload.step import refusal_of

    message = message_of(RuntimeError(f"first line\n{'x' * 3_000_000}\nCUDA out of memory"))
    assert len(message) < 20_000
    assert message.startswith("first line\n") and message.endswith("\nCUDA out of memory")
    started = time.perf_counter()
    assert refusal_of(RuntimeError("x" * 3_000_000)) is None
    assert time.perf_counter() - started < 5  # minutes where patterns search all of it


def test_an_exception_whose_class_raises_too_is_told() -> None:
    from bench.workload.step import refusal_of

    class Nameless(type):
        @property
        def __name__(cls) -> str:
            raise RuntimeError

    class Fault(Exception, metaclass=Nameless):
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    error = Fault("said")
    error.__cause__ = Fault("another")
    assert describe_failure(error) == "an exception that cannot be described"
    assert refusal_of(error) is None


def refusing(**settings: Any) -> torch.nn.Module:
    return torch.nn.Conv2d(3, 3, 1, groups=2)


def slipping(**settings: Any) -> torch.nn.Module:
    one, _ = (1, 2, 3)
    return torch.nn.Linear(one, 1)


def build(monkeypatch: pytest.MonkeyPatch, model: Any, optimizer: Any) -> None:
    from bench.workload import build_workload

    monkeypatch.setattr(catalog, "model", lambda name: ModelEntry(name, lambda images: model()))
    monkeypatch.setattr(catalog, "optimizer", lambda name: OptimizerEntry(name, optimizer))
    build_workload(Case(Choice("mnist"), Choice("m"), Choice("o"), 1), GREY, Protocol(), torch.device("cpu"))


def test_arguments_that_a_constructor_refuses_are_unsupported_and_its_slips_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=-1.0)

    with pytest.raises(Unsupported, match="m cannot be built: ValueError: in_channels must be divisible by groups"):
        build(monkeypatch, refusing, torch.optim.SGD)
    with pytest.raises(ValueError, match="too many values to unpack"):
        build(monkeypatch, slipping, torch.optim.SGD)
    with pytest.raises(Unsupported, match=r"o cannot be built: ValueError: Invalid learning rate: -1\.0"):
        build(monkeypatch, lambda: torch.nn.Linear(1, 1), sgd)
