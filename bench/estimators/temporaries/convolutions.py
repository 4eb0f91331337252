"""Copies that convolutions make of their operands.

Sources: aten/src/ATen/native/Convolution.cpp (convolution, convolution_backward, select_conv_backend),
aten/src/ATen/native/cudnn/ConvShared.cpp (cudnn_convolution, cudnn_convolution_backward),
aten/src/ATen/native/cuda/DepthwiseConv2d.cu. cuDNN's workspaces are innermost (Conv_v8.cpp: run_conv_plan); their
sizes are those that `workspaces.add_workspaces` noted.
"""

from __future__ import annotations

from bench.estimators.recording import Call, Workspaces
from bench.estimators.temporaries.machine import Machine, Script, around, workspace
from bench.estimators.temporaries.sums import sum_buffers
from bench.estimators.tensors import (
    Spec,
    channels_last,
    contiguous,
    is_channels_last_contiguous,
    is_contiguous,
    suggests_channels_last,
)

Result = tuple[int, int] | None
"""Slot and bytes of a gradient, None if it is not wanted."""


def _copy_bytes(spec: Spec, last: bool) -> int:
    packed = is_channels_last_contiguous(spec) if last else is_contiguous(spec)
    return 0 if packed else spec.numel * spec.item_bytes


def _works_in_channels_last(image: Spec, weight: Spec) -> bool:
    return image.dtype != "float64" and (suggests_channels_last(image) or suggests_channels_last(weight))


def is_depthwise(image: Spec, weight: Spec, groups: int, transposed: bool) -> bool:
    """Whether there is one group a channel (Convolution.cpp: ConvParams::is_depthwise)."""
    channels = image.shape[1]
    return (
        not transposed
        and len(image.shape) == 4
        and channels == groups
        and groups > 1
        and weight.shape[0] % channels == 0
    )


def _forward(call: Call, machine: Machine) -> Script:
    image, weight = call.arguments[:2]
    last = _works_in_channels_last(image, weight)
    before, after = _copy_bytes(image, last), _copy_bytes(weight, last)
    script: Script = [(-1, before)] if before else []
    script += [(0, call.sizes[0]), *around(after, first=-2, within=workspace(call.workspaces.image))]
    return [*script, (-1, 0)] if before else script


def _backward(call: Call, machine: Machine) -> Script:
    """Gradients of image and weight in cuDNN or the depthwise kernel, then that of the bias as a sum."""
    gradient, image, weight = call.arguments[:3]
    transposed, groups, mask = call.arguments[7], call.arguments[9], call.arguments[10]
    sizes = iter(enumerate(call.sizes))
    made = [next(sizes) if wanted else None for wanted in mask]
    by_cudnn = not is_depthwise(image, weight, groups, transposed) or _works_in_channels_last(image, weight)
    if by_cudnn:
        script = _by_cudnn(gradient, image, weight, made[0], made[1], call.workspaces)
    else:
        script = _by_depthwise(gradient, image, weight, made[0], made[1])
    if made[2] is not None:
        dims = tuple(dim for dim in range(len(gradient.shape)) if dim != 1)
        script += [made[2], *sum_buffers(gradient, dims, None, machine)]
    return script


def _by_cudnn(
    gradient: Spec, image: Spec, weight: Spec, for_image: Result, for_weight: Result, asked: Workspaces
) -> Script:
    """The image is packed first where the weight's gradient needs it, then the gradient takes the image's format.

    Each half then copies what is not packed.
    """
    format_ = _works_in_channels_last(image, weight)
    packed = _copy_bytes(image, format_) if for_weight else 0
    if packed:
        image = (channels_last if format_ else contiguous)(image.dtype, image.shape)
    script: Script = [(-5, packed)] if packed else []
    last = suggests_channels_last(image)
    converted = suggests_channels_last(gradient) != last and (for_image or for_weight)
    if converted:
        gradient = (channels_last if last else contiguous)(gradient.dtype, gradient.shape)
        script.append((-1, gradient.nbytes))
    if for_image:
        format_ = suggests_channels_last(gradient) or suggests_channels_last(weight)
        copies = _copy_bytes(weight, format_), _copy_bytes(gradient, format_)
        script += [for_image, *around(*copies, first=-2, within=workspace(asked.image))]
    if for_weight:
        format_ = suggests_channels_last(image) or suggests_channels_last(gradient)
        copies = _copy_bytes(gradient, format_), _copy_bytes(image, format_)
        script += around(*copies, first=-2, within=[for_weight, *workspace(asked.weight)])
    script += [(-1, 0)] if converted else []
    return [*script, (-5, 0)] if packed else script


def _by_depthwise(gradient: Spec, image: Spec, weight: Spec, for_image: Result, for_weight: Result) -> Script:
    """A packed gradient serves both halves, a packed image that of the weight."""
    halves: Script = around(_copy_bytes(image, False), first=-2, within=[for_weight]) if for_weight else []
    halves += [for_image] if for_image else []
    return around(_copy_bytes(gradient, False), within=halves)


RULES = {"aten::convolution": _forward, "aten::convolution_backward": _backward}
