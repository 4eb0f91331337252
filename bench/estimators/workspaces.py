"""cuDNN's workspaces in a recording: what each call of a convolution asks for.

A workspace is allocated after the result of its call and the copies that the call needs, and freed when the call
returns (aten/src/ATen/native/cudnn/Conv_v8.cpp: run_conv_plan; `temporaries.convolutions` has the order). A backward
makes two calls, for the image's gradient and the weight's. Depthwise convolutions in contiguous float32 run in torch's
own kernel and need none. Convolutions over one or three dimensions and transposed ones are left out. So is what only a
driver brings: without one, cuDNN leaves out the engines that it compiles at run time, which on GPUs it prefers for
depthwise convolutions in channels-last bf16 and fp16, where another engine's workspace is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.estimators.cudnn_plans import Convolution, CudnnPlans, Direction
from bench.estimators.recording import Call, Recording, Workspaces
from bench.estimators.temporaries.convolutions import is_depthwise
from bench.estimators.tensors import Spec, suggests_channels_last


def add_workspaces(recording: Recording, plans: CudnnPlans, *, tf32: bool, pointwise: bool = True) -> Recording:
    """The recording with the `workspaces` of each convolution.

    Args:
        recording: Of some steps.
        plans: What cuDNN would run.
        tf32: Whether convolutions of float32 may round their operands: torch's default, but off in the project's step.
        pointwise: Whether kernels of 1 x 1 have workspaces. The cuDNN 9.1 of torch 2.6 is taken to run them without:
            so said the peaks of RTX 3060 and 4060 that xMem measured (median error 1.0 % without, 1.6 % with).
    """
    return place_workspaces(recording, tuple(call_workspaces(recording, plans, tf32=tf32, pointwise=pointwise)))


def call_workspaces(
    recording: Recording, plans: CudnnPlans, *, tf32: bool, pointwise: bool = True
) -> Iterator[Workspaces]:
    """The workspaces of each call of a convolution, in order; arguments as for `add_workspaces`."""
    known = recording.derived.setdefault(("workspaces", plans, tf32, pointwise), {})
    calls = [call for _, call in convolutions(recording)]
    asked: dict[tuple[str, int], tuple[Call, list[Convolution | None]]] = {}
    for call in calls:  # steps that are alike share their calls' arguments
        key = (call.operator, id(call.arguments))
        if key not in known and key not in asked:
            questions = [way and convolution_of(way, call, tf32) for way in _directions(call)]
            if not pointwise:
                questions = [one and (None if set(one.weight[2:]) == {1} else one) for one in questions]
            asked[key] = call, questions
    plans.learn(one for _, questions in asked.values() for one in questions if one)
    for key, (call, questions) in asked.items():
        sizes = Workspaces(*((one and plans.workspace_bytes(one)) or 0 for one in questions))
        known[key] = call.arguments, sizes
    for call in calls:
        yield known[call.operator, id(call.arguments)][1]


def _directions(call: Call) -> tuple[Direction | None, ...]:
    """What a call of a convolution runs, in the order of `Workspaces`."""
    if call.name == "convolution":
        return ("forward",)
    image, weight, _ = call.arguments[10]
    return ("data" if image else None, "filter" if weight else None)


def place_workspaces(recording: Recording, sizes: Sequence[Workspaces]) -> Recording:
    """The recording with the `workspaces` of its calls of convolutions, in order; as it is where there are none."""
    if not sizes:
        return recording
    entries = list(recording.entries)
    for (place, call), size in zip(convolutions(recording), sizes, strict=True):
        entries[place] = call._replace(workspaces=size)
    return recording.with_entries(entries)


def convolutions(recording: Recording) -> Iterator[tuple[int, Call]]:
    """The calls that ask cuDNN, each with its place."""
    for place, entry in enumerate(recording.entries):
        if type(entry) is Call and entry.operator.startswith("aten::convolution") and entry.name in _ASKING:
            yield place, entry


_ASKING = ("convolution", "convolution_backward")


def convolution_of(direction: Direction, call: Call, tf32: bool) -> Convolution | None:
    """What cuDNN is asked for by a call; None if torch's own kernel runs.

    Args:
        direction: Which of the three.
        call: Of `aten::convolution` or `aten::convolution_backward`.
        tf32: See `add_workspaces`.
    """
    arguments = call.arguments
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
