"""MNIST and the sets in its format: grey 28 x 28 images of ten classes."""

from __future__ import annotations

import functools
from pathlib import Path

from bench.catalog.entries import DatasetEntry, DatasetInfo, FilesFound, Samples
from bench.catalog.idx_files import find_idx, open_idx_pair
from bench.records import ImageSpec

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _on_disk(class_name: str, root: Path) -> bool:
    return find_idx(class_name, root, train=True) is not None


def _open(class_name: str, root: Path, train: bool) -> Samples:
    from bench.catalog.samples import GreyArraySamples

    return GreyArraySamples(*open_idx_pair(class_name, root, train), train)


def _find(class_name: str, root: Path) -> FilesFound:
    images, labels = open_idx_pair(class_name, root, train=True)
    return FilesFound.of(len(labels), images.tobytes(), labels.tobytes())


def _fetch(class_name: str, root: Path) -> None:
    from bench.catalog.data_fetch import fetch_torchvision

    fetch_torchvision(class_name, f"{class_name}/raw", root)


def _grey(class_name: str, class_names: tuple[str, ...], mean: float, std: float) -> DatasetInfo:
    return DatasetInfo(
        images=ImageSpec(channels=1, height=28, width=28, classes=10),
        class_names=class_names,
        mean=(mean,),
        std=(std,),
        train_samples=60_000,
        test_samples=10_000,
        on_disk=functools.partial(_on_disk, class_name),
        open=functools.partial(_open, class_name),
        fetch=functools.partial(_fetch, class_name),
        find=functools.partial(_find, class_name),
    )


def describe_mnist() -> DatasetInfo:
    """Handwritten digits (LeCun, Cortes, Burges 1998); normalisation of the founding documents."""
    return _grey("MNIST", DIGITS, 0.1307, 0.3081)


def describe_fashion_mnist() -> DatasetInfo:
    """Zalando's articles (arXiv:1708.07747); mean and deviation of its training part's pixels."""
    return _grey("FashionMNIST", CLOTHES, 0.2860, 0.3530)


ENTRIES = (
    DatasetEntry("mnist", describe_mnist, "handwritten digits: grey 28 x 28, 10 classes, 60,000 images"),
    DatasetEntry("fashion_mnist", describe_fashion_mnist, "clothes: grey 28 x 28, 10 classes, 60,000 images"),
)
