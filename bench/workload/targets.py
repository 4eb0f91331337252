"""What a model is to predict, and its loss: a class per image, or a class per pixel. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.records import ImageSpec, Task

IGNORED = 255
"""The value of a mask's pixels that have no class and do not count in the loss, as in Pascal VOC."""

AUXILIARY_WEIGHT = 0.5
"""Of the auxiliary head's loss beside the main one's, in torchvision's reference training."""


def segmentation_loss(output: Tensor | Mapping[str, Tensor], masks: Tensor) -> Tensor:
    """The mean cross-entropy over the pixels that have a class, and half that of the auxiliary head if there is one.

    Source: `criterion` in references/segmentation/train.py of pytorch/vision.

    Args:
        output: `(B, classes, H, W)`, or a mapping as torchvision's models give it: `out`, and perhaps `aux`.
        masks: `(B, H, W)` int64, each pixel a class or `IGNORED`.

    Returns:
        The loss `()`; NaN if no pixel has a class.
    """
    if isinstance(output, Tensor):
        output = {"out": output}
    loss = functional.cross_entropy(output["out"], masks, ignore_index=IGNORED)
    if "aux" in output:
        loss = loss + AUXILIARY_WEIGHT * functional.cross_entropy(output["aux"], masks, ignore_index=IGNORED)
    return loss


LOSSES: Mapping[Task, Callable[[Any, Tensor], Tensor]] = {
    "classification": functional.cross_entropy,
    "segmentation": segmentation_loss,
}
"""The loss of a model whose entry has none of its own: `(output, labels) -> scalar tensor`."""


def draw_targets(images: ImageSpec, batch_size: int, generator: torch.Generator) -> Tensor:
    """Random labels `(B,)` int64, or masks `(B, H, W)` in which as many pixels are ignored as have any one class."""
    shape = (batch_size, *images.target_shape)
    if images.task == "classification":
        return torch.randint(images.classes, shape, generator=generator)
    masks = torch.randint(images.classes + 1, shape, generator=generator)
    return masks.masked_fill_(masks == images.classes, IGNORED)


def draw_masks(images: ImageSpec, count: int, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The same as uint8 `(count, H, W)`, as they lie in files; at most 255 classes."""
    masks = random.integers(0, images.classes + 1, (count, *images.target_shape), dtype=np.uint8)
    masks[masks == images.classes] = IGNORED
    return masks
