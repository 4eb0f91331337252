"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): colour 32 x 32 images."""

from __future__ import annotations

import functools
from pathlib import Path

from bench.catalog.cifar_files import CifarLayout, missing_files, read_cifar
from bench.catalog.entries import DatasetEntry, DatasetInfo, FilesFound, Samples
from bench.records import ImageSpec

CIFAR10 = CifarLayout(
    class_name="CIFAR10",
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test_files=("test_batch",),
    meta_file="batches.meta",
    label_key="labels",
)
CIFAR100 = CifarLayout(
    class_name="CIFAR100",
    folder="cifar-100-python",
    train_files=("train",),
    test_files=("test",),
    meta_file="meta",
    label_key="fine_labels",
)

CIFAR10_NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# fmt: off
CIFAR100_NAMES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on


def _on_disk(layout: CifarLayout, root: Path) -> bool:
    return not missing_files(root / layout.folder, layout.files(train=True))


def _open(layout: CifarLayout, classes: int, root: Path, train: bool) -> Samples:
    from bench.catalog.samples import open_cifar

    return open_cifar(layout, classes, root, train)


def _find(layout: CifarLayout, classes: int, root: Path) -> FilesFound:
    images, labels = read_cifar(root / layout.folder, layout.files(train=True), layout.label_key, classes)
    return FilesFound.of(len(labels), images.tobytes(), bytes(labels))


def _fetch(layout: CifarLayout, root: Path) -> None:
    from bench.catalog.data_fetch import fetch_torchvision

    fetch_torchvision(layout.class_name, layout.folder, root)


def _colour(
    layout: CifarLayout, class_names: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> DatasetInfo:
    classes = len(class_names)
    return DatasetInfo(
        images=ImageSpec(channels=3, height=32, width=32, classes=classes),
        class_names=class_names,
        mean=mean,
        std=std,
        train_samples=50_000,
        test_samples=10_000,
        on_disk=functools.partial(_on_disk, layout),
        open=functools.partial(_open, layout, classes),
        fetch=functools.partial(_fetch, layout),
        find=functools.partial(_find, layout, classes),
    )


def describe_cifar10() -> DatasetInfo:
    """Ten classes; normalisation and class names of the founding documents."""
    return _colour(CIFAR10, CIFAR10_NAMES, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def describe_cifar100() -> DatasetInfo:
    """A hundred fine classes; mean and deviation of its training part's pixels, as commonly published."""
    return _colour(CIFAR100, CIFAR100_NAMES, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


ENTRIES = (
    DatasetEntry("cifar10", describe_cifar10, "things and animals: colour 32 x 32, 10 classes, 50,000 images"),
    DatasetEntry("cifar100", describe_cifar100, "things and animals: colour 32 x 32, 100 classes, 50,000 images"),
)
