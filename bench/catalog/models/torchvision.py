"""Every classification model of torchvision, by torchvision's name, adapted to the data set's images.

Names are read from the source of torchvision with `ast`, so that listing them imports neither torch nor torchvision.
A model's family is the file that registers it (`resnet.py`), so that a new torchvision brings its models without a
change here; only families with a smallest image or with arguments of their own stand in the tables below.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.catalog.entries import ModelEntry, Setting
from bench.errors import Unsupported
from bench.records import ImageSpec, SettingValue

if TYPE_CHECKING:
    import torch

SMALLEST_SIDE_PIXELS: Mapping[str, int] = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception": 75,
    "squeezenet": 21,
    "squeezenet1_1": 17,
    "swin_transformer": 4,
    "vgg": 32,
}
"""Smallest height and width a family, or a model of it, can train on; 1 where neither stands here.

Source: `min_size` in the metadata of torchvision's weights, found again by training steps of every size. Two families
go lower than their metadata, which holds the size of the pretrained weights: Swin pads (its patches are 4 pixels), and
EfficientNetV2 trains from 1 pixel on.
"""

AUXILIARY: Mapping[str, int] = {"googlenet": 15, "inception": 299}
"""Families with auxiliary classifiers, which torchvision's constructors add unless told otherwise, and the smallest
height and width that they can train on with them; found by training steps of every size."""

_LARGEST_TO_ONE_PIXEL: Mapping[str, int] = {
    "densenet": 60,
    "efficientnet": 32,
    "googlenet": 46,
    "inception": 106,
    "mnasnet": 32,
    "mobilenetv2": 32,
    "mobilenetv3": 32,
    "regnet": 32,
    "resnet": 32,
    "shufflenetv2": 32,
}
"""Largest height and width that a family's batch norms see as a single pixel somewhere, so that one image alone cannot
train it; found by training steps of every size."""
_LARGEST_TO_ONE_PIXEL_WITH_AUX: Mapping[str, int] = {**_LARGEST_TO_ONE_PIXEL, "inception": 346}

AUXILIARY_WEIGHT = 0.3
"""Of each auxiliary classifier's loss beside the main one's.

Source: Szegedy et al., Going deeper with convolutions, section 5; the paper on Inception v3 names no other.
Torchvision's own training script has no case for these models: it hands all outputs to one cross-entropy, which fails.
"""

_MAXVIT_WINDOW_PIXELS, _MAXVIT_BLOCKS = 7, 4


def skip_reason(name: str, family: str, images: ImageSpec, settings: Mapping[str, SettingValue]) -> str | None:
    """Why the model cannot take these images, or `None`."""
    aux = bool(settings.get("aux")) and family in AUXILIARY
    smallest = AUXILIARY[family] if aux else SMALLEST_SIDE_PIXELS.get(name, SMALLEST_SIDE_PIXELS.get(family, 1))
    size = f"{images.height} x {images.width}"
    if min(images.height, images.width) < smallest:
        named = f"{name}:aux=true" if aux else name
        return f"{named} needs images of at least {smallest} x {smallest}; {size} has too few pixels; set image_size"
    return _MISFITS.get(family, _fits)(name, images)


def smallest_batch(family: str, images: ImageSpec, settings: Mapping[str, SettingValue]) -> int:
    """2 where a batch norm of the family has one value per channel of each image, else 1."""
    largest = _LARGEST_TO_ONE_PIXEL_WITH_AUX if settings.get("aux") else _LARGEST_TO_ONE_PIXEL
    return 2 if max(images.height, images.width) <= largest.get(family, 0) else 1


def build(name: str, family: str, images: ImageSpec, **settings: bool) -> torch.nn.Module:
    """Build torchvision's model on the CPU, untrained, for these images and classes.

    Args:
        name: Torchvision's.
        family: The file of torchvision that registers it.
        images: Shape of a sample, and the classes.
        settings: `aux` in the families of `AUXILIARY`.

    Raises:
        Unsupported: The model cannot take images of this size.
    """
    if reason := skip_reason(name, family, images, settings):
        raise Unsupported(reason)
    from torchvision.models import get_model

    arguments = _ARGUMENTS.get(family, _no_arguments)(images)
    if family in AUXILIARY:
        arguments["aux_logits"] = settings.get("aux", False)
    model: torch.nn.Module = get_model(name, weights=None, num_classes=images.classes, **arguments)
    take_channels(model, images.channels)
    return model


def take_channels(model: torch.nn.Module, channels: int) -> None:
    """Give the first convolution another number of input channels, all else as it was.

    Its weights are the initialised ones, channel by channel, in turn where more than three are asked for: the same
    distribution, whichever way the family initialises, and nothing more is drawn from the random generator.
    """
    from torch import nn

    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != channels:
        turns = [channel % first.in_channels for channel in range(channels)]
        first.weight = nn.Parameter(first.weight.detach()[:, turns].clone())
        first.in_channels = channels


def _fits(name: str, images: ImageSpec) -> str | None:
    return None


def _misfit_of_patches(name: str, images: ImageSpec) -> str | None:
    patch = re.search(r"_(\d+)$", name)
    side = int(patch[1]) if patch else 1
    if images.height == images.width and images.height % side == 0:
        return None
    return (
        f"{name} needs square images whose side is a multiple of its patch of {side} pixels; "
        f"{images.height} x {images.width} does not fit; set image_size, for example {side * max(1, 224 // side)}"
    )


def _misfit_of_windows(name: str, images: ImageSpec) -> str | None:
    """MaxViT halves the image, rounding up, in its stem and in each block; every block needs whole windows."""
    window = _MAXVIT_WINDOW_PIXELS
    for side in (images.height, images.width):
        halved = [-(-side // 2**halvings) for halvings in range(2, _MAXVIT_BLOCKS + 2)]
        if any(grid % window for grid in halved):
            return (
                f"{name} needs sides that divide into windows of {window} x {window} in each of its blocks, such as "
                f"224 and 448; {images.height} x {images.width} does not; set image_size, for example 224"
            )
    return None


_MISFITS: Mapping[str, Callable[[str, ImageSpec], str | None]] = {
    "maxvit": _misfit_of_windows,
    "vision_transformer": _misfit_of_patches,
}


def _no_arguments(images: ImageSpec) -> dict[str, Any]:
    return {}


def _without_own_initialisation(images: ImageSpec) -> dict[str, Any]:
    """Torch's default initialisation, since the family's own takes a minute; no bytes and no time depend on it."""
    return {"init_weights": False}


_ARGUMENTS: Mapping[str, Callable[[ImageSpec], dict[str, Any]]] = {
    "googlenet": _without_own_initialisation,
    "inception": _without_own_initialisation,
    "maxvit": lambda images: {"input_size": (images.height, images.width)},
    "vision_transformer": lambda images: {"image_size": images.height},
}


_REGISTERED = re.compile(r"^(?P<decorators>@register_model\b.*?)^def (?P<name>\w+)\(", re.MULTILINE | re.DOTALL)


def _registered(source: str) -> Iterator[str]:
    """The names that a file of torchvision registers with `@register_model()` or `@register_model(name="...")`.

    Only the decorators are parsed: all of torchvision's source would take ten times as long as the listing does.
    """
    for found in _REGISTERED.finditer(source):
        (function,) = ast.parse(f"{found['decorators']}def {found['name']}(): ...").body
        decorator = cast(ast.Call, cast(ast.FunctionDef, function).decorator_list[0])
        given = [*decorator.args, *(keyword.value for keyword in decorator.keywords if keyword.arg == "name")]
        yield ast.literal_eval(given[0]) if given else found["name"]


def _summary(name: str, family: str) -> str:
    smallest = SMALLEST_SIDE_PIXELS.get(name, SMALLEST_SIDE_PIXELS.get(family, 1))
    words = [f"torchvision, {family}"]
    words += [f"images of at least {smallest} x {smallest}"] if smallest > 1 else []
    return "; ".join(words + [note for note in (_note(family, {}),) if note])


def _note(family: str, settings: Mapping[str, SettingValue]) -> str | None:
    if family not in AUXILIARY or settings.get("aux"):
        return None
    return "without the auxiliary classifiers that torchvision uses for training from scratch; aux=true adds them"


def _loss(output: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, with a share of each auxiliary classifier's where the output is a tuple of the main one's first.

    Args:
        output: `(B, classes)`, or a tuple of such.
        labels: `(B,)` int64.
    """
    from torch.nn.functional import cross_entropy

    main, *others = output if isinstance(output, tuple) else (output,)
    loss = cross_entropy(main, labels)
    for other in others:
        loss = loss + AUXILIARY_WEIGHT * cross_entropy(other, labels)
    return loss


def registered_models(folder: str = "") -> Iterator[tuple[str, str]]:
    """The name and the family of each model that a folder of the installed torchvision's models registers.

    None, with a warning that says so, where torchvision is not installed.

    Args:
        folder: Below torchvision's `models`; files of its own folders are not read.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        warnings.warn(
            "torchvision is not installed, so its models are not listed; pip install torchvision", stacklevel=3
        )
        return
    for path in sorted((Path(found.submodule_search_locations[0]) / "models" / folder).glob("*.py")):
        for name in _registered(path.read_text(encoding="utf-8")):
            yield name, path.stem


def load_entries() -> tuple[ModelEntry, ...]:
    """One entry per classification model of the torchvision installed; none where it is not."""
    entries = []
    for name, family in registered_models():
        entry = ModelEntry(
            name,
            functools.partial(build, name, family),
            _summary(name, family),
            functools.partial(skip_reason, name, family),
            note=functools.partial(_note, family),
            smallest_batch=functools.partial(smallest_batch, family),
        )
        if family in AUXILIARY:
            entry = replace(entry, settings={"aux": Setting(False, bool)}, loss=_loss)
        entries.append(entry)
    return tuple(entries)


ENTRIES = load_entries()
