"""Every segmentation model of torchvision, by torchvision's name, untrained and with the data set's classes.

Their loss is that of torchvision's reference training, the default of the task (`bench.workload.targets`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.catalog.entries import ModelEntry, Setting
from bench.catalog.models.torchvision import registered_models, take_channels
from bench.records import ImageSpec, SettingValue

if TYPE_CHECKING:
    import torch

AUXILIARY = ("deeplabv3", "fcn")
"""Families with an auxiliary head, which torchvision's constructors add if told to (`aux_loss`)."""

_LARGEST_TO_ONE_PIXEL: Mapping[str, int] = {"fcn": 8, "lraspp": 16}
"""Largest height and width that a family's batch norms see as a single pixel somewhere, so that one image alone cannot
train it; found by training steps of every size. DeepLabV3 pools images of any size to one pixel before a batch norm."""


def smallest_batch(family: str, images: ImageSpec, settings: Mapping[str, SettingValue]) -> int:
    """2 where a batch norm of the family has one value per channel of each image, else 1."""
    largest = _LARGEST_TO_ONE_PIXEL.get(family)
    return 2 if largest is None or max(images.height, images.width) <= largest else 1


def build(name: str, family: str, images: ImageSpec, **settings: bool) -> torch.nn.Module:
    """Build torchvision's model on the CPU, untrained, for these images and classes.

    In training it maps float32 `(B, C, H, W)` to a dictionary of `(B, classes, H, W)`: `out`, and `aux` if asked for.

    Args:
        name: Torchvision's.
        family: The file of torchvision that registers it.
        images: Shape of a sample, and the classes.
        settings: `aux` in the families of `AUXILIARY`.
    """
    from torchvision.models import get_model

    head = {"aux_loss": settings.get("aux", False)} if family in AUXILIARY else {}
    untrained = {"weights": None, "weights_backbone": None}
    model: torch.nn.Module = get_model(name, **untrained, num_classes=images.classes, **head)
    take_channels(model, images.channels)
    return model


def _note(family: str, settings: Mapping[str, SettingValue]) -> str | None:
    if family not in AUXILIARY or settings.get("aux"):
        return None
    return "without the auxiliary head that torchvision's reference training uses; aux=true adds it"


def load_entries() -> tuple[ModelEntry, ...]:
    """One entry per segmentation model of the torchvision installed; none where it is not."""
    return tuple(
        ModelEntry(
            name,
            functools.partial(build, name, family),
            "; ".join(filter(None, (f"torchvision, {family}", "segmentation", _note(family, {})))),
            settings={"aux": Setting(False, bool)} if family in AUXILIARY else {},
            note=functools.partial(_note, family),
            smallest_batch=functools.partial(smallest_batch, family),
            task="segmentation",
        )
        for name, family in registered_models("segmentation")
    )


ENTRIES = load_entries()
