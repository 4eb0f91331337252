"""The founding multi-layer perceptrons: flatten, then linear layers with ReLU between them.

One hidden layer of 128 gives the founding documents' 101,770 parameters on MNIST and 394,634 on CIFAR-10. The model
never names the batch size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from bench.catalog.entries import ModelEntry, Within
from bench.records import ImageSpec

if TYPE_CHECKING:
    import torch

Width = Annotated[int, Within(gt=0, le=1 << 24)]


def build(images: ImageSpec, *, hidden: Width | tuple[Width, ...] = 128) -> torch.nn.Module:
    """An MLP on the CPU mapping float32 `(B, C, H, W)` to `(B, classes)`.

    Args:
        images: Shape of a sample and number of classes.
        hidden: Width of the hidden layer, or one width a hidden layer; an empty tuple is plain softmax regression.
    """
    from torch import nn

    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    sides = (images.channels * images.height * images.width, *widths, images.classes)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sides):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


ENTRIES = (ModelEntry("mlp", build, "flatten, linear layers with ReLU between them; the founding documents' model"),)
