"""Copies that convolutions make of their operands.

Sources: aten/src/ATen/native/Convolution.cpp (convolution, convolution_backward, select_conv_backend),
aten/src/ATen/native/cudnn/ConvShared.cpp (cudnn_convolution, cudnn_convolution_backward),
aten/src/ATen/native/cuda/DepthwiseConv2d.cu. Left out: cuDNN's workspaces.
"""

from __future__ import annotations

from typing import Any

from bench.estimators.temporaries.machine import Machine
from bench.estimators.temporaries.scripts import Script
from bench.estimators.temporaries.sums import sum_buffers
from bench.estimators.tensors import Spec, is_channels_last_contiguous, is_contiguous, suggests_channels_last


def _copy_bytes(spec: Spec, last: bool) -> int:
    packed = is_channels_last_contiguous(spec) if last else is_contiguous(spec)
    return 0 if packed else spec.numel * spec.item_bytes


def _works_in_channels_last(image: Spec, weight: Spec) -> bool:
    return image.dtype != "float64" and (suggests_channels_last(image) or suggests_channels_last(weight))


def is_depthwise(image: Spec, weight: Spec, groups: int, transposed: bool) -> bool:
    """Whether there is one group a channel (Convolution.cpp: ConvParams::is_depthwise)."""
    channels = image.shape[1]
    return not transposed and len(image.shape) == 4 and channels == groups and groups > 1 and weight.shape[0] % channels == 0


def _forward(arguments: tuple[Any, ...], outputs: list[int], machine: Machine) -> Script:
    image, weight = arguments[:2]
    last = _works_in_channels_last(image, weight)
    before, after = _copy_bytes(image, last), _copy_bytes(weight, last)
    script: Script = [(-1, before)] if before else []
    script += [(0, outputs[0])]
    script += [(-2, after), (-2, 0)] if after else []
    return [*script, (-1, 0)] if before else script


def _backward(arguments: tuple[Any, ...], outputs: list[int], machine: Machine) -> Script:
    """Gradients of image and weight in cuDNN or the depthwise kernel, then that of the bias as a sum."""
    gradient, image, weight = arguments[:3]
    transposed, groups, mask = arguments[7], arguments[9], arguments[10]
    last = _works_in_channels_last(image, weight)
    slots = [sum(mask[:index]) for index in range(3)]
    wanted = [index for index in (0, 1) if mask[index]]
    if is_depthwise(image, weight, groups, transposed) and not last:
        wanted.reverse()
    copies = [(-1, _copy_bytes(gradient, last))] + [(-2, _copy_bytes(image, last))] * mask[1] + [(-3, _copy_bytes(weight, last))] * mask[0]
    copies = [copy for copy in copies if copy[1] and wanted]
    script: Script = copies[:1]
    script += [(slots[index], outputs[slots[index]]) for index in wanted]
    script += [(slot, 0) for slot, _ in reversed(copies[:1])]
    if mask[2]:
        dims = tuple(dim for dim in range(len(gradient.shape)) if dim != 1)
        script += [(slots[2], outputs[slots[2]]), *sum_buffers(gradient, dims, None, machine)]
    return script


RULES = {"aten::convolution": _forward, "aten::convolution_backward": _backward}
