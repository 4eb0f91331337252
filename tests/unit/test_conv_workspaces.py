"""cuDNN's workspaces: where they come in a recording, and what cuDNN is asked."""

from __future__ import annotations

from typing import Any

import pytest

from bench.devices import Device, load_device
from bench.errors import Unsupported
from bench.estimators.conv_workspaces import add_workspaces, convolution_of
from bench.estimators.cudnn_plans import Convolution, CudnnPlans, describe_device
from bench.estimators.temporaries import Machine, script_of
from bench.estimators.temporaries.scripts import WORKSPACE, Workspaces
from bench.estimators.tensors import channels_last, contiguous

IMAGE, WEIGHT = contiguous("float32", (2, 4, 9, 9)), contiguous("float32", (8, 4, 3, 3))
POINTWISE, DEPTHWISE = contiguous("float32", (8, 4, 1, 1)), contiguous("float32", (4, 1, 3, 3))
GRADIENT = contiguous("float32", (2, 8, 5, 5))


class Plans:
    """Asks for a byte a sample in the forward, two for the image's gradient, none for the weight's."""

    def __init__(self) -> None:
        self.asked: list[Convolution] = []

    def workspace_bytes(self, convolution: Convolution) -> int | None:
        self.asked.append(convolution)
        return {"forward": 1, "data": 2, "filter": None}[convolution.direction]


def forward(weight: Any = WEIGHT, groups: int = 1) -> tuple[Any, ...]:
    arguments = (IMAGE, weight, None, (2, 2), (1, 1), (1, 1), False, (0, 0), groups)
    return ("aten::convolution", arguments, ((7, 1600),), 2)


def backward(mask: tuple[bool, bool, bool] = (True, True, True)) -> tuple[Any, ...]:
    outputs = tuple((number, 64) for number, wanted in zip((1, 2, 3), mask, strict=True) if wanted)
    arguments = (GRADIENT, IMAGE, WEIGHT, (8,), (2, 2), (1, 1), (1, 1), False, (0, 0), 1, mask)
    return ("aten::convolution_backward", arguments, outputs, 3)


def test_what_a_forward_asks_for_stands_behind_its_arguments() -> None:
    plans: Any = Plans()
    other = ("aten::relu", (), ((9, 4),), 2)
    entries = add_workspaces([None, forward(), other, 7], plans, tf32=True)
    asking = (forward()[0], (*forward()[1], Workspaces(1)), *forward()[2:])
    assert entries == [None, asking, other, 7]
    (asked,) = plans.asked
    assert (asked.result, asked.padding, asked.stride, asked.tf32) == ((2, 8, 5, 5), (1, 1), (2, 2), True)


def test_a_backward_asks_once_for_each_gradient_that_is_wanted() -> None:
    plans: Any = Plans()
    both, image, weight, bias = (
        add_workspaces([backward(mask)], plans, tf32=True)[0][1][-1]
        for mask in ((True, True, True), (True, False, False), (False, True, False), (False, False, True))
    )
    assert (both, image) == (Workspaces(2), Workspaces(2))
    assert (weight, bias) == ((False, True, False), (False, False, True)), "what asks for nothing stays as it is"
    assert [asked.direction for asked in plans.asked] == ["data", "filter", "data", "filter"]


def test_a_workspace_lives_within_its_call_beside_the_copies() -> None:
    machine = Machine(132, 2048, (9, 0), (2, 15))
    turned = channels_last("float32", GRADIENT.shape)
    arguments = (turned, IMAGE, WEIGHT, (8,), (2, 2), (1, 1), (1, 1), False, (0, 0), 1, (True, True, False))
    bare = script_of("aten::convolution_backward", arguments, [64, 64], machine)
    asking = script_of("aten::convolution_backward", (*arguments, Workspaces(10, 20)), [64, 64], machine)
    assert [item for item in asking if item[0] != WORKSPACE] == bare
    assert [nbytes for slot, nbytes in asking if slot == WORKSPACE] == [10, 0, 20, 0]
    at = asking.index((WORKSPACE, 10))
    live = [slot for slot, nbytes in asking[:at] if nbytes and (slot, 0) not in asking[:at]]
    assert 0 in live and any(slot < 0 for slot in live), "the gradient's result and the copy of the turned operand"
    forwards = script_of("aten::convolution", (*forward()[1], Workspaces(5)), [1600], machine)
    assert forwards == [(0, 1600), (WORKSPACE, 5), (WORKSPACE, 0)]


def test_depthwise_and_by_wish_pointwise_convolutions_have_none() -> None:
    plans: Any = Plans()
    for entry in (forward(DEPTHWISE, groups=4),):
        assert add_workspaces([entry], plans, tf32=True) == [entry]
    assert add_workspaces([forward(POINTWISE)], plans, tf32=True, pointwise=False) == [forward(POINTWISE)]
    assert plans.asked == []
    assert add_workspaces([forward(POINTWISE)], plans, tf32=True)[0][1][-1] == Workspaces(1)


def test_transposed_convolutions_are_left_out() -> None:
    entry = forward()
    turned = (entry[0], (*entry[1][:6], True, *entry[1][7:]), *entry[2:])
    assert convolution_of("forward", turned, True) is None


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
