"""Images with masks of the shape of Pascal VOC 2012, for segmentation; synthetic."""

from __future__ import annotations

from bench.catalog.datasets.image_folder import MEAN, STD
from bench.catalog.entries import DatasetEntry, DatasetInfo
from bench.records import ImageSpec

SIDE_PIXELS = 480
"""Of the crops that torchvision trains its segmentation models on; it evaluates them at 520 pixels.

Source: `crop_size` in references/segmentation/train.py of pytorch/vision, and `mean` and `std` in its presets.py.
"""

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SAMPLES = 1_464, 1_449
"""Training and validation images with masks. Source: the Pascal VOC 2012 development kit, table of the segmentation."""


def describe() -> DatasetInfo:
    """21 classes per pixel at 3 x 480 x 480, and pixels that are ignored, which the masks hold as 255."""
    return DatasetInfo(
        images=ImageSpec(3, SIDE_PIXELS, SIDE_PIXELS, len(CLASSES), "segmentation"),
        class_names=CLASSES,
        mean=MEAN,
        std=STD,
        train_samples=SAMPLES[0],
        test_samples=SAMPLES[1],
    )


ENTRIES = (
    DatasetEntry(
        "voc_segmentation",
        describe,
        "images and masks of Pascal VOC's shape, for segmentation: colour 480 x 480, 21 classes; synthetic",
    ),
)
