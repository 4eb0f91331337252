"""A sweep or an estimate loses nothing to a neighbour's exception.

Entries of the catalog are replaced by ones that raise, or end their process, at some point of build, forward, backward,
the optimizer's making and its step.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import catalog
from bench.catalog.entries import ModelEntry, OptimizerEntry
from bench.errors import describe_failure
from bench.estimators.cases import estimate_apart, estimate_cases
from bench.records import Case, Choice, ImageSpec, Protocol, Status

POINTS = ("build", "forward", "backward", "making", "step")
BUILT_IN = ("ValueError", "RuntimeError", "MemoryError", "RecursionError", "NotImplementedError", "StopIteration")
OUTSIDE = ("KeyboardInterrupt", "SystemExit", "GeneratorExit")
NAMED = {
    name: getattr(__import__("builtins"), name)
    for name in (*BUILT_IN, *OUTSIDE, "TypeError", "AssertionError", "OSError", "KeyError", "ImportError")
}


class Unprintable(RuntimeError):
    """Fails to be printed."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


def act(kind: str) -> None:
    if kind == "leaves":
        os._exit(5)
    if kind == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise Unprintable if kind == "Unprintable" else NAMED[kind]("its own\nand more")


def acting_model(images: ImageSpec, point: str, kind: str) -> torch.nn.Module:
    """One layer that does `kind` at `point` of its forward or backward pass."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(images.channels * images.height * images.width, images.classes)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if point == "forward":
                act(kind)
            output: torch.Tensor = self.layer(batch.flatten(1))
            if point == "backward" and output.requires_grad:
                output.register_hook(lambda gradient: act(kind))
            return output

    return Model()


def acting_optimizer(parameters: list[torch.nn.Parameter], kind: str) -> torch.optim.Optimizer:
    """An optimizer whose step does `kind`."""

    class Optimizer(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            act(kind)

    return Optimizer(parameters, lr=0.1)


def replacements(point: str, kind: str) -> tuple[ModelEntry, OptimizerEntry]:
    """A model and an optimizer of which one does `kind` at `point`."""

    def build_model(images: ImageSpec) -> torch.nn.Module:
        if point == "build":
            act(kind)
        return acting_model(images, point, kind)

    def build_optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        if point == "making":
            act(kind)
        if point != "step":
            return torch.optim.SGD(parameters, lr=0.1)
        return acting_optimizer(parameters, kind)

    name = f"{point}-{kind}"
    state = lambda shapes, element_bytes, settings: 0  # noqa: E731
    return ModelEntry(name, build_model), OptimizerEntry(name, build_optimizer, "", state)


@pytest.fixture
def replace_entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Case]]:
    """Puts a pair of entries into the catalog and returns the case of both."""
    here = Path(__file__)

    def put(point: str, kind: str) -> Case:
        model, optimizer = replacements(point, kind)
        for what, entry in (("model", model), ("optimizer", optimizer)):
            monkeypatch.setitem(catalog.entries(what), entry.name, entry)  # type: ignore[arg-type]
            shipped = catalog._defined(what, catalog._modules(what)[0])  # type: ignore[arg-type]
            monkeypatch.setitem(shipped, entry.name, (entry, here))
        return Case(Choice("mnist"), Choice(model.name), Choice(optimizer.name), 8, image_size=28)

    yield put
    catalog._code_key.cache_clear()


def neighbours() -> list[Case]:
    return [Case(Choice("mnist"), Choice("mlp"), Choice(name), 8, image_size=28) for name in ("sgd", "adam")]


def check_estimates(victims: dict[Case, tuple[str, str]]) -> None:
    """What the estimates of victims and their neighbours are to be."""
    good = neighbours()
    untouched = {made.case_key: made for made in estimate_cases(good, "h200")}
    # Neighbours share the victims' models and optimizers too.
    mixed = [*(Case(one.dataset, one.model, Choice("sgd"), 4, image_size=28) for one in victims), *victims]
    cases = [*mixed[::2], good[0], *mixed[1::2], good[1]]
    found = {made.case_key: made for made, _ in estimate_apart(cases, "h200", workers=2, timeout_s=120)}
    assert len(found) == len(cases)
    assert all(found[key] == made for key, made in untouched.items())
    for case, (point, kind) in victims.items():
        estimate = found[case.key]
        note = estimate.estimate_note or ""
        assert (estimate.formula_bytes is None) == (point in ("build", "forward")), (case, note)
        assert estimate.trace_peak_allocated_bytes is None
        assert "\n" not in note
        assert re.search(expected_reason(kind), note), note
        beside = found[Case(case.dataset, case.model, Choice("sgd"), 4, image_size=28).key]
        if point in ("making", "step"):
            assert beside.formula_bytes and beside.trace_peak_allocated_bytes and beside.estimated_samples_per_s
            assert beside.estimate_note is None


def expected_reason(kind: str) -> str:
    if kind == "leaves":
        return "the process exited with code 5"
    if kind == "is killed":
        return "the process was killed by SIGKILL"
    message = "its message cannot be printed" if kind == "Unprintable" else "'?its own"
    return rf"{kind}: {message}.* \(test_neighbours\.py:\d+"


def test_an_estimate_loses_nothing_to_a_neighbours_end(replace_entries: Callable[[str, str], Case]) -> None:
    kinds = ("ValueError", "KeyboardInterrupt", "is killed")
    check_estimates({replace_entries(*pair): pair for pair in itertools.product(POINTS, kinds)})


@pytest.mark.slow
def test_an_estimate_loses_nothing_to_any_end(replace_entries: Callable[[str, str], Case]) -> None:
    """Each where torch's code is between it and ours, and at one of the other points."""
    kinds = (*NAMED, "Unprintable", "leaves", "is killed")
    others = itertools.cycle(("build", "making", "step"))
    pairs = [*itertools.product(("forward", "backward"), kinds), *zip(others, kinds, strict=False)]
    check_estimates({replace_entries(*pair): pair for pair in pairs})


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_raises_anything_anywhere_is_a_failed_row_with_its_reason(
    point: str, replace_entries: Callable[[str, str], Case]
) -> None:
    from bench.worker import MeasureTask, measure_case

    protocol = Protocol(warmup_steps=1, measured_steps=1, min_window_s=0.0)
    for kind in (*NAMED, "Unprintable"):
        task = MeasureTask(replace_entries(point, kind), protocol, "cpu")
        found = measure_case(task, lambda message: None)
        if kind == "MemoryError":
            assert found["status"] == Status.OOM
        else:
            refused = kind == "ValueError" and point in ("build", "making")  # a constructor refuses its arguments
            assert found["status"] == (Status.SKIPPED if refused else Status.FAILED), (kind, found["reason"])
            assert re.search(expected_reason(kind), found["reason"]), found["reason"]
    (after,) = [measure_case(MeasureTask(case, protocol, "cpu"), lambda message: None) for case in neighbours()[:1]]
    assert after["status"] == Status.OK


@given(st.text(), st.sampled_from(sorted(NAMED)))
def test_any_exception_is_told_in_one_line_that_can_be_stored(text: str, name: str) -> None:
    try:
        raise NAMED[name](text)
    except BaseException as error:  # noqa: BLE001 - interrupts among them
        told = describe_failure(error)
    assert len(told.splitlines()) == 1
    assert told.encode()
    assert told.startswith((f"{name}: ", f"{name} ("))
    assert re.search(r"\(test_neighbours\.py:\d+\)$", told)
