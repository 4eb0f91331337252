"""A figure of a data set: random samples with their labels or masks. Imports torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.catalog import DatasetInfo
from bench.errors import BenchError, DataError
from bench.plan import describe
from bench.records import Choice
from bench.workload.images import build_target_transform, build_transform, open_samples, undo_normalisation
from bench.workload.targets import IGNORED

PARTS = ("train", "test")
LARGEST_COUNT = 400
SMALL_SIDE_PIXELS = 100
"""Images smaller than this are drawn with their pixels visible; larger ones are smoothed."""
LONGEST_LABEL = 18
MASK_COLOURS = 20


def render_samples(
    choice: Choice, root: Path, target: Path, *, count: int = 16, seed: int = 42, split: str = "train"
) -> str:
    """Draw samples of a data set as a PNG, the same for the same seed and files.

    Each image is processed like those of a training step, to a normalised tensor, and back: normalisation undone,
    channels moved last. So a wrong mean or layout is visible.

    Args:
        choice: Which data set.
        root: The folder of the data sets.
        target: The PNG to write; its folder is made if needed.
        count: How many samples, 1 to 400; all of them if the split has fewer.
        seed: Which samples are drawn.
        split: `train` or `test`.

    Returns:
        `files`, or `synthetic` if there are none.

    Raises:
        BenchError: Unknown data set or split, or invalid count.
        DataError: The files are damaged, or the figure cannot be written.
    """
    if split not in PARTS:
        raise BenchError(f'"{split}" is not a split of a data set. Allowed: {", ".join(PARTS)}')
    if not 1 <= count <= LARGEST_COUNT:
        raise BenchError(f"{count} samples cannot be shown. Allowed: 1 to {LARGEST_COUNT}")
    info = describe(choice)
    samples, source, _ = open_samples(choice, info, root, train=split == "train", seed=seed)
    transform, target_transform = build_transform(info), build_target_transform(info)
    drawn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    pictures = []
    for index in drawn:
        image, label = samples[index]
        shown = undo_normalisation(transform(image), info)
        pictures.append((shown, _label(info, label) if target_transform is None else target_transform(label).numpy()))
    origin = "" if source == "files" else ", synthetic images"
    _draw(pictures, f"{choice}: {len(drawn)} of {len(samples):,} {split} samples{origin}", target)
    return source


def _label(info: DatasetInfo, label: int) -> str:
    name = info.class_names[label] if info.class_names else f"class {label}"
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


Picture = tuple[torch.Tensor, str | np.ndarray[Any, Any]]
"""An image `(H, W, C)`, and its label or its mask `(H, W)`."""


def _draw(pictures: list[Picture], title: str, target: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    side_inch = 1.15
    figure = Figure(figsize=(max(columns, 3) * side_inch, rows * (side_inch + 0.1) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, fontweight="bold", parse_math=False)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in axes:
        place.set_axis_off()
    for place, (image, label) in zip(axes, pictures, strict=False):
        interpolation = "nearest" if image.shape[0] < SMALL_SIDE_PIXELS else "antialiased"
        place.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation=interpolation)
        if isinstance(label, str):
            place.set_title(label, fontsize=8, pad=3, parse_math=False)
        else:  # classes in colours that repeat; what is ignored, and class 0, the background, keep the image's own
            hidden = np.ma.masked_where((label == IGNORED) | (label == 0), label % MASK_COLOURS)
            place.imshow(hidden, cmap="tab20", vmin=0, vmax=MASK_COLOURS - 1, alpha=0.5, interpolation="nearest")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="png", dpi=150, metadata={"Software": None})
    except OSError as error:
        raise DataError(f"{target}: cannot write the image: {error.strerror or error}") from error
