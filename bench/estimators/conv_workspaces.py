"""cuDNN's workspaces in a recording: each convolution's calls are told apart and their workspaces put between them.

A workspace is allocated after the result of its call and freed when the call returns (aten/src/ATen/native/cudnn/
Conv_v8.cpp: run_conv_plan). A backward makes two calls, for the image's gradient and the weight's, and sums up the
bias's last, so that its entry becomes one entry a gradient. Depthwise convolutions in contiguous float32 run in
torch's own kernel and need none. Convolutions over one or three dimensions and transposed ones are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.estimators.cudnn_plans import Convolution, CudnnPlans, Direction
from bench.estimators.temporaries.convolutions import is_depthwise
from bench.estimators.tensors import Spec, suggests_channels_last
from bench.estimators.trace_events import CONV_WORKSPACE

FIRST_NUMBER = 1 << 40
"""Of the storages that are added; a recording's own numbers are far below."""


def add_workspaces(
    entries: Sequence[Any], plans: CudnnPlans, *, tf32: bool = True, pointwise: bool = True
) -> list[Any]:
    """The entries of a `Recording` with a call and a death for each workspace that is not empty.

    Args:
        entries: Of a `Recording`.
        plans: What cuDNN would run.
        tf32: Whether convolutions of float32 may round their operands; torch's default.
        pointwise: Whether kernels of 1 x 1 have workspaces. The cuDNN 9.1 of torch 2.6 is taken to run them without:
            so said the peaks of RTX 3060 and 4060 that xMem measured (median error 1.0 % without, 1.6 % with).
    """
    found: list[Any] = []
    number = FIRST_NUMBER
    for entry in entries:
        if entry is None or isinstance(entry, int):
            found.append(entry)
            continue
        for call, direction in _calls(entry):
            found.append(call)
            nbytes = _asked_bytes(direction, call, plans, tf32, pointwise) if direction else 0
            if nbytes:
                found += [(CONV_WORKSPACE, (), ((number, nbytes),), call[3]), number]
                number += 1
    return found


def _calls(entry: Any) -> list[tuple[Any, Direction | None]]:
    """The calls of cuDNN that an entry makes, as entries."""
    operator = entry[0].partition(".")[0]
    if operator == "aten::convolution":
        return [(entry, "forward")]
    if operator != "aten::convolution_backward":
        return [(entry, None)]
    outputs = iter(entry[2])
    directions: tuple[Direction | None, ...] = ("data", "filter", None)
    made = zip(directions, [next(outputs) if wanted else None for wanted in entry[1][10]], strict=True)
    return [
        (_only(entry, index, output), direction) for index, (direction, output) in enumerate(made) if output is not None
    ]


def _only(entry: Any, index: int, output: Any) -> Any:
    """The entry with one gradient wanted."""
    wanted = tuple(place == index for place in range(3))
    return (entry[0], (*entry[1][:10], wanted, *entry[1][11:]), (output,), entry[3])


def _asked_bytes(direction: Direction, call: Any, plans: CudnnPlans, tf32: bool, pointwise: bool) -> int:
    question = convolution_of(direction, call, tf32)
    if question is None or (not pointwise and set(question.weight[2:]) == {1}):
        return 0
    return plans.workspace_bytes(question) or 0


def convolution_of(direction: Direction, call: Any, tf32: bool) -> Convolution | None:
    """What cuDNN is asked for by a call; None where torch's own kernel runs.

    Args:
        direction: Which of the three.
        call: An entry of `aten::convolution`, or of `aten::convolution_backward` with one gradient wanted.
        tf32: See `add_workspaces`.
    """
    arguments = call[1]
    first = 0 if direction == "forward" else 1
    image, weight = arguments[first], arguments[first + 1]
    stride, padding, dilation, transposed = arguments[3:7] if direction == "forward" else arguments[4:8]
    groups = arguments[8] if direction == "forward" else arguments[9]
    last = suggests_channels_last(image) or suggests_channels_last(weight)
    if transposed or len(image.shape) != 4 or (is_depthwise(image, weight, groups, transposed) and not last):
        return None
    pads, steps, gaps = (_pair(values) for values in (padding, stride, dilation))
    result = _result_shape(image, weight, pads, steps, gaps)
    shapes = tuple(image.shape), tuple(weight.shape), result
    return Convolution(direction, image.dtype, *shapes, pads, steps, gaps, last, tf32)


def _pair(values: Any) -> tuple[int, int]:
    numbers = tuple(values)
    return (numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _result_shape(image: Spec, weight: Spec, padding: Any, stride: Any, dilation: Any) -> tuple[int, ...]:
    sides = (
        (image.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (weight.shape[2 + axis] - 1) - 1) // stride[axis]
        + 1
        for axis in range(2)
    )
    return (image.shape[0], weight.shape[0], *sides)
