"""cuDNN's workspaces: where they come in a recording, and what cuDNN is asked."""

from __future__ import annotations

from typing import Any

import pytest

from bench.devices import Device, load_device
from bench.errors import Unsupported
from bench.estimators.conv_workspaces import FIRST_NUMBER, add_workspaces, convolution_of
from bench.estimators.cudnn_plans import Convolution, CudnnPlans, describe_device
from bench.estimators.tensors import contiguous

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


def test_a_workspace_lives_between_its_call_and_the_next() -> None:
    plans: Any = Plans()
    other = ("aten::relu", (), ((9, 4),), 2)
    entries = add_workspaces([None, forward(), other, 7], plans)
    workspace = ("cudnn::workspace", (), ((FIRST_NUMBER, 1),), 2)
    assert entries == [None, forward(), workspace, FIRST_NUMBER, other, 7]
    (asked,) = plans.asked
    assert (asked.result, asked.padding, asked.stride, asked.tf32) == ((2, 8, 5, 5), (1, 1), (2, 2), True)


def test_a_backward_is_one_call_a_gradient_and_the_bias_comes_last() -> None:
    entries = add_workspaces([backward()], Plans())  # type: ignore[arg-type]
    assert [entry if isinstance(entry, int) else (entry[0], entry[2]) for entry in entries] == [
        ("aten::convolution_backward", ((1, 64),)),
        ("cudnn::workspace", ((FIRST_NUMBER, 2),)),
        FIRST_NUMBER,
        ("aten::convolution_backward", ((2, 64),)),
        ("aten::convolution_backward", ((3, 64),)),
    ]
    masks = [entry[1][10] for entry in entries if not isinstance(entry, int) and entry[1]]
    assert masks == [(True, False, False), (False, True, False), (False, False, True)]


def test_a_bias_alone_asks_for_nothing() -> None:
    plans: Any = Plans()
    (entry,) = add_workspaces([backward((False, False, True))], plans)
    assert (entry[1][10], entry[2], plans.asked) == ((False, False, True), ((3, 64),), [])


def test_depthwise_and_by_wish_pointwise_convolutions_have_none() -> None:
    plans: Any = Plans()
    assert len(add_workspaces([forward(DEPTHWISE, groups=4)], plans)) == 1
    assert len(add_workspaces([forward(POINTWISE)], plans, pointwise=False)) == 1
    assert plans.asked == []
    assert len(add_workspaces([forward(POINTWISE)], plans)) == 3


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
