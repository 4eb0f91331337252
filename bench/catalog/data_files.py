"""Where data sets lie on disk; torch-free, so that the parent process may ask."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The files that torchvision's `ImageFolder` takes for images (torchvision/datasets/folder.py: IMG_EXTENSIONS)."""


def missing_files(folder: Path, file_names: Iterable[str]) -> list[str]:
    """Those of `file_names` that are no files in `folder`, in their order."""
    return [name for name in file_names if not (folder / name).is_file()]


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders of an image tree, sorted; hidden ones (`.git`) are none. Empty where none is.

    Raises:
        OSError: The folder is not there, or cannot be read.
    """
    with os.scandir(folder) as found:
        return sorted(item.name for item in found if item.is_dir() and not item.name.startswith("."))


def count_images(folder: Path, classes: Iterable[str]) -> int:
    """How many image files lie below the class folders of an image tree, at any depth, as torchvision counts them."""
    return sum(
        name.lower().endswith(IMAGE_SUFFIXES)
        for name_of_class in classes
        for _, _, names in os.walk(folder / name_of_class, followlinks=True)
        for name in names
    )


def part_folder(folder: Path, train: bool) -> Path:
    """The part of an image tree: its `train`, and its `val` or `test`, where it is divided so; else the tree itself.

    It is divided where `train` stands beside nothing but `val` and `test`; without those, `train` serves for both.
    """
    parts = {name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if "train" not in parts or not parts.issuperset(class_folders(folder)):
        return folder
    held_out = next((name for name in ("val", "test") if name in parts), "train")
    return folder / ("train" if train else held_out)
