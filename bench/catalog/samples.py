"""Opening data sets as torchvision's own classes, from whatever form their files have. Imports torch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from bench.catalog.cifar_files import CifarLayout, missing_files, read_cifar
from bench.catalog.entries import Samples
from bench.catalog.image_files import ImageTree, decode_image
from bench.errors import DataError


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
    """torchvision's ImageFolder over a tree as `bench.catalog.image_files` understands it.

    Hidden and system folders are left out, a held-out part has the labels of the training part, and a file that cannot
    be decoded is named.
    """

    def __init__(self, tree: ImageTree, train: bool, channels: int) -> None:
        """List the images of a part; they are decoded to grey (1 channel) or RGB (3 channels) when asked for."""
        self._tree, self._train = tree, train
        mode = "L" if channels == 1 else "RGB"
        root = tree.train if train else tree.test
        super().__init__(str(root), loader=functools.partial(decode_image, mode=mode), allow_empty=True)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The class folders of the training part, and the label of each."""
        names = self._tree.class_names
        return list(names), {name: label for label, name in enumerate(names)}

    def make_dataset(self, directory: str, *_: Any, **__: Any) -> list[tuple[str, int]]:
        """The images of the part, each with its label."""
        return [(f"{directory}/{name}", label) for name, label in self._tree.files(self._train)]


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
