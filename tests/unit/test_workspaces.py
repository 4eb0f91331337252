"""cuDNN's workspaces: where they come in a recording, and what cuDNN is asked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

from bench.devices import Device, load_device
from bench.errors import Unsupported
from bench.estimators.cudnn_plans import Convolution, CudnnPlans, describe_device
from bench.estimators.recording import Call, Entry, Freed, Output, Phase, Recording, StepEnd, Workspaces
from bench.estimators.temporaries import Machine, script_of
from bench.estimators.temporaries.machine import WORKSPACE
from bench.estimators.tensors import channels_last, contiguous
from bench.estimators.workspaces import add_workspaces, convolution_of

IMAGE, WEIGHT = contiguous("float32", (2, 4, 9, 9)), contiguous("float32", (8, 4, 3, 3))
POINTWISE, DEPTHWISE = contiguous("float32", (8, 4, 1, 1)), contiguous("float32", (4, 1, 3, 3))
GRADIENT = contiguous("float32", (2, 8, 5, 5))


class Plans:
    """Asks for a byte a sample in the forward, two for the image's gradient, none for the weight's."""

    def __init__(self) -> None:
        self.asked: list[Convolution] = []

    def learn(self, convolutions: Iterable[Convolution]) -> None:
        pass

    def workspace_bytes(self, convolution: Convolution) -> int | None:
        self.asked.append(convolution)
        return {"forward": 1, "data": 2, "filter": None}[convolution.direction]


def output(number: int, nbytes: int) -> Output:
    return Output(number, nbytes, GRADIENT)


def forward(weight: Any = WEIGHT, groups: int = 1, transposed: bool = False) -> Call:
    arguments = (IMAGE, weight, None, (2, 2), (1, 1), (1, 1), transposed, (0, 0), groups)
    return Call("aten::convolution", arguments, (output(7, 1600),), Phase.FORWARD)


def backward(mask: tuple[bool, bool, bool] = (True, True, True), gradient: Any = GRADIENT) -> Call:
    outputs = tuple(output(number, 64) for number, wanted in zip((1, 2, 3), mask, strict=True) if wanted)
    arguments = (gradient, IMAGE, WEIGHT, (8,), (2, 2), (1, 1), (1, 1), False, (0, 0), 1, mask)
    return Call("aten::convolution_backward", arguments, outputs, Phase.BACKWARD)


def asked_of(call: Call, plans: Any, **options: Any) -> Workspaces:
    (found,) = add_workspaces(Recording([call]), plans, tf32=True, **options).entries
    assert isinstance(found, Call)
    return found.workspaces


def test_a_forward_gets_what_it_asks_for_and_all_else_stays() -> None:
    plans: Any = Plans()
    entries: list[Entry] = [StepEnd(0), forward(), Call("aten::relu", (), (output(9, 4),), Phase.FORWARD), Freed(7)]
    found = add_workspaces(Recording(entries), plans, tf32=True)
    assert found.entries == [entries[0], forward()._replace(workspaces=Workspaces(1)), *entries[2:]]
    (asked,) = plans.asked
    assert (asked.result, asked.padding, asked.stride, asked.tf32) == ((2, 8, 5, 5), (1, 1), (2, 2), True)


def test_a_backward_asks_once_for_each_gradient_that_is_wanted() -> None:
    plans: Any = Plans()
    masks = ((True, True, True), (True, False, False), (False, True, False), (False, False, True))
    both, image, weight, bias = (asked_of(backward(mask), plans) for mask in masks)
    assert (both, image) == (Workspaces(2), Workspaces(2))
    assert (weight, bias) == (Workspaces(), Workspaces())
    assert [asked.direction for asked in plans.asked] == ["data", "filter", "data", "filter"]


def test_a_workspace_lives_within_its_call_beside_the_copies() -> None:
    machine = Machine(132, 2048, (9, 0), (2, 15))
    turned = backward(gradient=channels_last("float32", GRADIENT.shape))
    bare = script_of(turned, machine)
    asking = script_of(turned._replace(workspaces=Workspaces(10, 20)), machine)
    assert [item for item in asking if item[0] != WORKSPACE] == bare
    assert [nbytes for slot, nbytes in asking if slot == WORKSPACE] == [10, 0, 20, 0]
    at = asking.index((WORKSPACE, 10))
    live = [slot for slot, nbytes in asking[:at] if nbytes and (slot, 0) not in asking[:at]]
    assert 0 in live and any(slot < 0 for slot in live), "the gradient's result and the copy of the turned operand"
    forwards = script_of(forward()._replace(workspaces=Workspaces(5)), machine)
    assert forwards == [(0, 1600), (WORKSPACE, 5), (WORKSPACE, 0)]


def test_depthwise_and_by_wish_pointwise_convolutions_have_none() -> None:
    plans: Any = Plans()
    assert asked_of(forward(DEPTHWISE, groups=4), plans) == Workspaces()
    assert asked_of(forward(POINTWISE), plans, pointwise=False) == Workspaces()
    assert plans.asked == []
    assert asked_of(forward(POINTWISE), plans) == Workspaces(1)


def test_transposed_convolutions_are_left_out() -> None:
    assert convolution_of("forward", forward(transposed=True), True) is None


def test_a_device_file_that_says_too_little_is_refused() -> None:
    with pytest.raises(Unsupported, match="its file lacks compute_capability, multiprocessors"):
        describe_device(Device("bare", "Bare", "cuda"))


def test_the_installed_cudnn_answers_for_a_gpu_that_is_not_here() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is None:
        pytest.skip("this torch comes without cuDNN")
    try:
        plans = CudnnPlans(load_device("h200"))
    except Unsupported as reason:
        pytest.skip(str(reason))
    shapes = (64, 3, 224, 224), (64, 3, 7, 7), (64, 64, 112, 112)
    plain = Convolution("forward", "float32", *shapes, (3, 3), (2, 2), (1, 1))
    assert plans.workspace_bytes(plain) == plans.workspace_bytes(plain)
    nbytes = plans.workspace_bytes(plain)
    assert nbytes is not None and 100 << 20 < nbytes < 1 << 30  # a copy in channels-last order, at least of the result
    halved = Convolution("forward", "bfloat16", *shapes, (3, 3), (2, 2), (1, 1), channels_last=True)
    small = plans.workspace_bytes(halved)
    assert small is not None and small < nbytes
    impossible = Convolution("forward", "float32", (1, 3, 8, 8), (4, 3, 3, 3), (1, 4, 80, 80), (0, 0), (1, 1), (1, 1))
    assert plans.workspace_bytes(impossible) is None


def test_float32_without_tf32_has_the_same_plan_with_and_without_the_engines_that_round() -> None:
    try:
        plans = CudnnPlans(load_device("h200"))
    except Unsupported as reason:
        pytest.skip(str(reason))
    shapes = (64, 64, 56, 56), (64, 64, 3, 3), (64, 64, 56, 56)
    asked = [
        Convolution(direction, "float32", *shapes, (1, 1), (1, 1), (1, 1), channels_last=last, tf32=tf32)
        for direction in ("forward", "data", "filter")
        for last in (False, True)
        for tf32 in (False, True)
    ]
    plans.learn(asked)
    here = [plans._ask(convolution) for convolution in asked]
    assert [plans.workspace_bytes(convolution) for convolution in asked] == here
    assert len(set(here)) > 2


def test_a_cudnn_that_crashes_is_a_reason() -> None:
    try:
        plans = CudnnPlans(load_device("h200"))
    except Unsupported as reason:
        pytest.skip(str(reason))
    plans._ask = lambda convolution: os._exit(3)  # type: ignore[method-assign]
    question = Convolution("forward", "float32", *[(1, 1, 1, 1)] * 3, (0, 0), (1, 1), (1, 1), tf32=False)
    with pytest.raises(Unsupported, match="died"):
        plans.workspace_bytes(question)
    plans._ask = lambda convolution: 7  # type: ignore[method-assign]
    assert plans.workspace_bytes(question) == 7, "the next question starts another process"
