"""An optimizer's part recorded apart and put into another's recording: the very recording of the whole step, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench import catalog
from bench.catalog import parse_choice
from bench.estimators.recording import Call, Freed, Output, Phase, StepEnd
from bench.estimators.tensors import contiguous
from bench.launchers import LocalLauncher, Outcome
from bench.records import Case

RESNET = Case(
    parse_choice("dataset", "imagenet"),
    parse_choice("model", "resnet18"),
    parse_choice("optimizer", "sgd"),
    4,
    image_size=32,
)
MLP = replace(RESNET, model=parse_choice("model", "mlp"))
SHARED = ("adam", "rmsprop:foreach=false", "adafactor", "muon")
WHOLE = ("adagrad", "radam:foreach=false")
"""One makes its state before the first step, the other takes more steps until they are alike."""
ELSEWHERE = tuple(replace(MLP, **changes) for changes in ({"update": "in_backward"}, {"zero_grad": "zeros"}))
"""The optimizer works within the backward, or keeps the gradients."""


def parts_task(argument: list[tuple[Case, tuple[str, ...]]], send: Any) -> dict[str, Any]:
    """For each optimizer of each case whether its column was shared, and whether that equals the one recorded whole."""
    from bench.devices import load_device
    from bench.estimators import kept
    from bench.estimators.memory_settings import MemorySettings
    from bench.estimators.optimizer_parts import renumber

    machine = kept.machine_of(load_device("h200"), MemorySettings("2.15.0"))
    found: list[tuple[bool, bool]] = []
    for base, optimizers in argument:
        kept._record_column(base, machine)
        (first,) = kept._whole
        for optimizer in optimizers:
            case = replace(base, optimizer=parse_choice("optimizer", optimizer))
            kept._whole[:] = [first]
            column, _ = kept._record_column(case, machine)
            shared = kept._whole == [first]
            kept._whole.clear()
            whole, _ = kept._record_column(case, machine)
            assert column is not None and whole is not None
            same = renumber(column.recording) == renumber(whole.recording) and column.varying == whole.varying
            found.append((shared, same))
    return {"found": found}


def test_a_part_gives_the_recording_of_the_whole_step_or_is_recorded_whole() -> None:
    asked = [(RESNET, (*SHARED, *WHOLE)), *((case, ("adam",)) for case in ELSEWHERE)]
    answer = LocalLauncher().run(parts_task, asked, timeout_s=240)
    assert answer.outcome is Outcome.ANSWERED, answer.reason
    found = answer.value["found"]
    assert [shared for shared, _ in found] == [True] * len(SHARED) + [False] * len((*WHOLE, *ELSEWHERE))
    assert all(same for _, same in found)


def test_a_column_serves_cases_that_differ_in_an_optimizer_of_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.estimators.optimizer_parts import Whole

    whole: Any = Whole(MLP, "a GPU", None, [])  # type: ignore[arg-type]
    other = replace(MLP, optimizer=parse_choice("optimizer", "adam"))
    assert whole.serves(other, "a GPU") and not whole.serves(other, "another GPU")
    assert not whole.serves(replace(other, precision="bf16"), "a GPU")
    for changes in ({"precision": "fp16"}, {"update": "in_backward"}, {"zero_grad": "zeros"}):
        assert not Whole(replace(MLP, **changes), whole.machine, None, []).serves(  # type: ignore[arg-type]
            replace(other, **changes), whole.machine
        )
    monkeypatch.setattr(catalog, "is_external", lambda kind, name: (kind, name) == ("optimizer", "adam"))
    assert not whole.serves(other, "a GPU")
    assert not Whole(other, whole.machine, None, []).serves(MLP, whole.machine)  # type: ignore[arg-type]


def step(*head: Any, tail: tuple[Any, ...] = ()) -> list[Any]:
    """Entries of a step: numbers are storages that a kernel makes, of the backward and behind that of the optimizer."""
    one = contiguous("float32", (1,))

    def entry(item: Any, phase: Phase) -> Any:
        return Call("aten::empty", (), (Output(item, 4, one),), phase) if isinstance(item, int) else item

    backward, optimizer = (
        [entry(item, Phase.BACKWARD) for item in head],
        [entry(item, Phase.OPTIMIZER) for item in tail],
    )
    return [*backward, *optimizer, StepEnd(1)]


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        pytest.param((6,), (9,), id="the gradient outlives the step"),
        pytest.param((6, Freed(5)), (9,), id="the gradient dies behind the first kernel"),
        pytest.param((Freed(5), 6), (9, Freed(6)), id="the optimizer frees what it did not make"),
        pytest.param((Freed(5), Freed(4), 6), (9,), id="something else dies too"),
        pytest.param((Freed(5), 6), (9, *step(8)), id="a backward follows the optimizer"),
    ],
)
def test_an_optimizer_that_holds_or_frees_what_is_not_its_own_is_refused(head: Any, tail: Any) -> None:
    from bench.estimators.optimizer_parts import PartDiffersError, Trained, _check_step, _optimizer_begins

    one = contiguous("float32", (1,))
    before = [Trained("weight", 1, one, (5, one))]
    good = step(Freed(5), 6, tail=(9, Freed(9)))
    _check_step(good, _optimizer_begins(good), before, set(), bare=True)
    with pytest.raises(PartDiffersError):
        bad = step(*head, tail=tail)
        _check_step(bad, _optimizer_begins(bad), before, set(), bare=True)
