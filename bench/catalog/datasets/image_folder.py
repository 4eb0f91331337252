"""Images of one's own in a tree with one folder per class, and ImageNet in the same form or synthetic."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from bench.catalog.entries import DatasetEntry, DatasetInfo, FilesFound, Samples
from bench.catalog.image_files import ImageTree, check_images, fingerprint, read_tree, shown
from bench.errors import DataError
from bench.records import ImageSpec

SIDE_PIXELS = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as torchvision's pretrained models expect them (torchvision/transforms/_presets.py)."""
IMAGENET_CLASSES = 1000
IMAGENET_SAMPLES = 1_281_167, 50_000


def _open(tree: ImageTree, channels: int, root: Path, train: bool) -> Samples:
    from bench.catalog.samples import FolderSamples

    return FolderSamples(tree, train, channels)


def _find(tree: ImageTree, root: Path) -> FilesFound:
    return FilesFound(tree.train_samples, fingerprint(tree))


def _described(tree: ImageTree, channels: int, classes: int | None) -> DatasetInfo:
    names = tree.class_names
    grey = sum(MEAN) / 3, sum(STD) / 3
    return DatasetInfo(
        images=ImageSpec(channels, SIDE_PIXELS, SIDE_PIXELS, classes or len(names)),
        class_names=tuple(map(shown, names)) if classes in (None, len(names)) else (),
        mean=MEAN if channels == 3 else grey[:1],
        std=STD if channels == 3 else grey[1:],
        train_samples=tree.train_samples,
        test_samples=tree.test_samples,
        on_disk=lambda root: True,
        open=functools.partial(_open, tree, channels),
        resize=True,
        from_files=classes is None,
        find=functools.partial(_find, tree),
        check=lambda root: check_images(tree),
        notes=tree.notes,
    )


def describe_folder(*, path: str = "", channels: Literal[1, 3] = 3) -> DatasetInfo:
    """A tree of one's own: a folder per class, or `train` and `val` (or `test`) that hold those.

    Images are resized to 224 x 224 (or the case's image size), whatever their shape, and decoded to RGB, or to grey
    with `channels=1`.

    Raises:
        DataError: No path, no such folder, or one that is not a tree of images with two classes or more.
    """
    if not path:
        raise DataError("dataset folder: the path of a folder is required; write folder:PATH, as in folder:~/flowers")
    return _described(read_tree(Path(path)), channels, classes=None)


def describe_imagenet(*, folder: str = "") -> DatasetInfo:
    """1,000 classes at 3 x 224 x 224: ImageNet's shape without its images, or `folder`, a tree as torchvision has it.

    Synthetic images need no decoding of JPEG files, which real ones spend most of the loader's time on.

    Raises:
        DataError: The folder is not there, holds no images, or more than 1,000 classes.
    """
    if folder:
        tree = read_tree(Path(folder), fewest_classes=1)
        if (found := len(tree.class_names)) > IMAGENET_CLASSES:
            raise DataError(f"{folder}: {found:,} class folders, and imagenet has 1,000. Use folder:{folder}")
        return _described(tree, 3, IMAGENET_CLASSES)
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
