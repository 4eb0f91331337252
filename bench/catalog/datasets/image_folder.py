"""Images of one's own in a tree with one folder a class, and ImageNet in the same form or synthetic."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from bench.catalog.data_files import class_folders, count_images, part_folder
from bench.catalog.entries import DatasetEntry, DatasetInfo, Samples
from bench.errors import DataError
from bench.records import ImageSpec

SIDE_PIXELS = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as torchvision's pretrained models expect them (torchvision/transforms/_presets.py)."""
IMAGENET_CLASSES = 1000
IMAGENET_SAMPLES = 1_281_167, 50_000


def _open(folder: Path, channels: int, root: Path, train: bool) -> Samples:
    from bench.catalog.samples import open_folder

    return open_folder(folder, channels, root, train)


@functools.lru_cache(maxsize=16)  # a plan describes the set for each of its cases, and ImageNet has a million files
def _surveyed(folder: Path) -> tuple[tuple[str, ...], int, int]:
    """The class names, and how many images the training and the test part have."""
    try:
        train, test = part_folder(folder, train=True), part_folder(folder, train=False)
        names = class_folders(train)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}. Give a folder that holds one folder of images a class") from error
    if not names:
        raise DataError(f"{folder}: it has no class folders. Put the images of each class into a folder of its own")
    if (count := count_images(train, names)) == 0:
        raise DataError(
            f"{train}: no images in its {len(names)} class folders. JPEG, PNG, WebP, BMP, PPM, TIFF are read"
        )
    return tuple(names), count, count if test == train else count_images(test, names)


def _described(folder: Path, channels: int, classes: int | None) -> DatasetInfo:
    names, train_samples, test_samples = _surveyed(folder.expanduser())
    grey = sum(MEAN) / 3, sum(STD) / 3
    return DatasetInfo(
        images=ImageSpec(channels, SIDE_PIXELS, SIDE_PIXELS, classes or len(names)),
        class_names=names if classes in (None, len(names)) else (),
        mean=MEAN if channels == 3 else grey[:1],
        std=STD if channels == 3 else grey[1:],
        train_samples=train_samples,
        test_samples=test_samples,
        on_disk=lambda root: True,
        open=functools.partial(_open, folder.expanduser(), channels),
        resize=True,
    )


def describe_folder(*, path: str = "", channels: Literal[1, 3] = 3) -> DatasetInfo:
    """A tree of one's own: a folder a class, or `train` and `val` (or `test`) that hold those.

    Images are resized to 224 x 224 (or the case's image size), whatever their shape, and decoded to RGB, or to grey
    with `channels=1`.

    Raises:
        DataError: No path, no such folder, or no images in it.
    """
    if not path:
        raise DataError("dataset folder: it needs the path of a folder; write folder:PATH, as in folder:~/flowers")
    return _described(Path(path), channels, classes=None)


def describe_imagenet(*, folder: str = "") -> DatasetInfo:
    """1,000 classes at 3 x 224 x 224: ImageNet's shape without its images, or `folder`, a tree as torchvision has it.

    Synthetic images need no decoding of JPEG files, which real ones spend most of the loader's time on.

    Raises:
        DataError: The folder is not there, holds no images, or more than 1,000 classes.
    """
    if folder:
        info = _described(Path(folder), 3, IMAGENET_CLASSES)
        if (found := len(_surveyed(Path(folder).expanduser())[0])) > IMAGENET_CLASSES:
            raise DataError(f"{folder}: {found:,} class folders, and imagenet has 1,000. Use folder:{folder}")
        return info
    return DatasetInfo(
        images=ImageSpec(3, SIDE_PIXELS, SIDE_PIXELS, IMAGENET_CLASSES),
        class_names=(),
        mean=MEAN,
        std=STD,
        train_samples=IMAGENET_SAMPLES[0],
        test_samples=IMAGENET_SAMPLES[1],
    )


ENTRIES = (
    DatasetEntry("folder", describe_folder, "an image folder of your own: folder:PATH, 224 x 224", positional="path"),
    DatasetEntry(
        "imagenet", describe_imagenet, "ImageNet's shape: colour 224 x 224, 1,000 classes; synthetic, or folder=PATH"
    ),
)
