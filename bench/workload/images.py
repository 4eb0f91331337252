"""From a data set's files to normalised tensors and back; synthetic samples where there are no files. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.catalog import DatasetInfo
from bench.catalog.entries import Samples
from bench.catalog.image_files import convert_image
from bench.errors import DataError, Unsupported
from bench.records import Choice
from bench.workload.targets import IGNORED, draw_masks

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""PIL's name for images of so many channels."""

POOL_BYTES = 16 << 20
POOL_SAMPLES = 1024


class SyntheticSamples:
    """Random uint8 images of a data set's shape, the same for the same seed and index, with labels or PIL masks.

    A pool of at most 1,024 images (16 MiB) is drawn once and handed out by index, so that asking for one costs what
    it costs where a data set lies in memory. The decoding of JPEG files is left out.
    """

    def __init__(self, info: DatasetInfo, train: bool, seed: int) -> None:
        """Draw the pool for one part of the data set.

        Raises:
            Unsupported: PIL has no images of so many channels, or no masks of so many classes.
        """
        channels, height, width = info.images.shape
        if channels not in MODES:
            raise Unsupported(
                f"images of {channels} channels cannot go through the loader: PIL supports 1, 3 or 4; use synthetic"
            )
        if info.images.task == "segmentation" and info.images.classes > IGNORED:
            raise Unsupported(
                f"masks of {info.images.classes} classes cannot go through the loader: their pixels are bytes, and "
                f"{IGNORED} is ignored; use synthetic"
            )
        self._length = (info.train_samples if train else info.test_samples) or POOL_SAMPLES
        count = max(1, min(POOL_SAMPLES, self._length, POOL_BYTES // (channels * height * width)))
        random = np.random.default_rng([seed, train])
        shape = (count, height, width) if channels == 1 else (count, height, width, channels)
        self._images = random.integers(0, 256, shape, dtype=np.uint8)
        if info.images.task == "segmentation":
            self._labels = [Image.fromarray(mask) for mask in draw_masks(info.images, count, random)]
        else:
            self._labels = random.integers(0, info.images.classes, count).tolist()

    def __len__(self) -> int:
        """As many as the real part has."""
        return self._length

    def __getitem__(self, index: int, /) -> tuple[Image.Image, Any]:
        """The image and its label or mask; an index out of range raises IndexError."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        at = index % len(self._images)
        return Image.fromarray(self._images[at]), self._labels[at]


class _Converted:
    """PIL images in the data set's mode: a grey photograph in a folder of coloured ones becomes RGB."""

    def __init__(self, channels: int) -> None:
        self.mode = MODES.get(channels)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if self.mode is None or image.mode == self.mode else convert_image(image, self.mode)


class TransformedSamples(torch.utils.data.Dataset[tuple[torch.Tensor, Any]]):
    """Samples through transforms, so that one torch data set serves every source."""

    def __init__(
        self,
        samples: Samples,
        transform: Callable[[Any], torch.Tensor],
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        """Keep them; nothing is read yet. Labels stay as they are unless they have a transform."""
        self._samples, self._transform, self._target_transform = samples, transform, target_transform

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        """The normalised image, float32 `(C, H, W)`, and its label, or its mask, int64 `(H, W)`.

        Raises:
            DataError: It cannot be made of the sample.
        """
        image, label = self._samples[index]
        try:
            return self._transform(image), label if self._target_transform is None else self._target_transform(label)
        except DataError as error:
            raise DataError(f"image {index} of the data set: {error}") from error


def image_shape(info: DatasetInfo, image_size: int) -> tuple[int, int, int]:
    """`(C, H, W)` as the model sees it: `image_size` pixels square, or the data set's own where that is 0."""
    channels, height, width = info.images.shape
    return (channels, image_size or height, image_size or width)


def build_transform(info: DatasetInfo, image_size: int = 0) -> Callable[[Any], torch.Tensor]:
    """PIL image -> float32 `(C, H, W)`: resized if needed, scaled to [0, 1], normalised."""
    from torchvision import transforms  # for seconds, and an estimate of somebody's own model needs none of it

    shape = image_shape(info, image_size)
    steps: list[Any] = [_Converted(info.images.channels)]
    if info.resize or shape != info.images.shape:
        steps.append(transforms.Resize(shape[1:]))
    transform: Callable[[Any], torch.Tensor] = transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(info.mean, info.std)]
    )
    return transform


def build_target_transform(info: DatasetInfo, image_size: int = 0) -> Callable[[Any], Any] | None:
    """PIL mask -> int64 `(H, W)`, resized to the nearest pixel where images are; `None` for labels."""
    if info.images.task == "classification":
        return None
    shape = image_shape(info, image_size)
    resized = info.resize or shape != info.images.shape

    def transform(mask: Image.Image) -> torch.Tensor:
        mask = mask.resize((shape[2], shape[1]), Image.Resampling.NEAREST) if resized else mask
        return torch.from_numpy(np.array(mask, dtype=np.int64))

    return transform


def undo_normalisation(image: torch.Tensor, info: DatasetInfo) -> torch.Tensor:
    """A normalised image `(C, H, W)` as it is looked at: float32 in [0, 1], channels last, `(H, W, C)`."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    return (image * std + mean).clamp(0, 1).movedim(0, -1)


def open_samples(
    dataset: Choice, info: DatasetInfo, root: Path, *, train: bool, seed: int
) -> tuple[Samples, str, str | None]:
    """The samples of a data set, from its files where they are on disk, else synthetic.

    Returns:
        The samples; `files` or `synthetic`; and why they are synthetic, in one line, or `None`.

    Raises:
        DataError: Files are there and damaged.
        Unsupported: Synthetic images of so many channels cannot be made.
    """
    if info.open is not None and info.on_disk(root):
        return info.open(root, train), "files", None
    if info.open is None:
        note = f"{dataset}: synthetic images of its shape; it has no files"
    else:
        note = f"{dataset}: synthetic images of its shape; its files are not under {root}"
        note += f" (bench data fetch {dataset.name})" if info.fetch else ""
    return SyntheticSamples(info, train, seed), "synthetic", note
