"""Opening data sets as torchvision's own classes, from whatever form their files have. Imports torch."""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image

from bench.catalog.cifar_files import CifarLayout, read_cifar
from bench.catalog.data_files import class_folders, missing_files, part_folder
from bench.catalog.entries import Samples
from bench.catalog.idx_files import file_names, find_idx, read_idx_pair
from bench.errors import DataError

DECODING_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What PIL raises on images that are damaged, truncated, of another format, or unreasonably large."""


class GreyArraySamples(torchvision.datasets.MNIST):  # type: ignore[misc]
    """torchvision's MNIST over arrays already in memory: images `(N, H, W)` and labels `(N,)`, both uint8."""

    def __init__(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], train: bool) -> None:
        """Keep the arrays; nothing is read or downloaded."""
        torchvision.datasets.VisionDataset.__init__(self, root="")
        self.train = train
        self.data, self.targets = torch.from_numpy(images), torch.from_numpy(labels).long()


class ColourArraySamples(torchvision.datasets.CIFAR10):  # type: ignore[misc]
    """torchvision's CIFAR10 over an array already in memory: images `(N, H, W, 3)` uint8."""

    def __init__(self, images: np.ndarray[Any, Any], labels: list[int], train: bool) -> None:
        """Keep the arrays; nothing is read, checked or downloaded."""
        torchvision.datasets.VisionDataset.__init__(self, root="")
        self.train = train
        self.data, self.targets = images, labels


class FolderSamples(torchvision.datasets.ImageFolder):  # type: ignore[misc]
    """torchvision's ImageFolder that names the file it cannot decode and skips hidden folders."""

    def __init__(self, folder: Path, channels: int) -> None:
        """List the images of `folder`; they are decoded to grey (1 channel) or RGB (3 channels) when asked for."""
        super().__init__(str(folder), loader=functools.partial(decode_image, mode="L" if channels == 1 else "RGB"))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The class folders and the label of each, as `bench.catalog.data_files.class_folders` finds them."""
        names = class_folders(Path(directory))
        return names, {name: label for label, name in enumerate(names)}


def decode_image(path: str | Path, mode: str) -> Image.Image:
    """The image of a file in PIL's `mode` (`L` or `RGB`).

    Raises:
        DataError: PIL cannot decode it.
    """
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except DECODING_FAULTS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: no image that PIL can decode: {reason}. Replace or delete the file") from error


def open_idx(class_name: str, classes: int, root: Path, train: bool) -> Samples:
    """MNIST or a set in its format, from plain or gzipped idx files.

    Raises:
        DataError: The files are not there, or damaged.
    """
    paths = find_idx(class_name, root, train)
    if paths is None:
        wanted = " and ".join(file_names(train))
        raise DataError(
            f"{root / class_name / 'raw'}: no {wanted} (plain or .gz). Fetch them: bench data fetch, or copy them there"
        )
    images, labels = read_idx_pair(paths, (28, 28), classes)
    return GreyArraySamples(images, labels, train)


def open_cifar(layout: CifarLayout, classes: int, root: Path, train: bool) -> Samples:
    """CIFAR-10 or CIFAR-100: by torchvision where every checksum is right, else by the restricted reader.

    Raises:
        DataError: The files are not there, damaged, or hold anything but arrays.
    """
    folder = root / layout.folder
    if missing := missing_files(folder, layout.files(train)):
        raise DataError(f"{folder}: missing {', '.join(missing)}. Fetch them: bench data fetch, or copy them there")
    try:
        samples: Samples = getattr(torchvision.datasets, layout.class_name)(root, train=train)
    except RuntimeError:  # torchvision: a checksum differs, or a file that this part does not need is missing
        return ColourArraySamples(*read_cifar(folder, layout.files(train), layout.label_key, classes), train=train)
    return samples


def open_folder(folder: Path, channels: int, root: Path, train: bool) -> Samples:
    """The images of a tree with one folder a class.

    Args:
        folder: The tree; its own `train` and `val` (or `test`) where it is divided so, else all images for both parts.
        channels: 1 decodes to grey, 3 to RGB.
        root: Not used: the tree lies where its user said.
        train: The training part, or the test part.

    Raises:
        DataError: The tree is not there, or a class folder holds no image.
    """
    try:
        return FolderSamples(part_folder(folder, train), channels)
    except OSError as error:  # a folder that cannot be read; or torchvision's, which names the empty class folders
        raise DataError(f"{folder}: {str(error).strip()} Put images there, or remove the folder") from error
