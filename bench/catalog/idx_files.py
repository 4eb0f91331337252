"""The idx files of MNIST and similar data sets: finding them, and reading them plain or gzipped, with clear errors.

The format (yann.lecun.com/exdb/mnist): two zero bytes, a type (8: unsigned bytes), the number of dimensions, each
dimension as a big-endian 32-bit integer, then the values. torchvision's own reader needs all four files uncompressed,
does not compare images with labels and names no file when one is damaged; hence this one. The samples are handed out
by torchvision's class (`bench.catalog.samples`).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from bench.errors import DataError

if TYPE_CHECKING:
    import numpy as np

DEBIAN_FOLDERS = {"FashionMNIST": Path("/usr/share/datasets/fashion-mnist")}
"""Where Debian's packages (dataset-fashion-mnist) put the gzipped files; read in place, never written to."""

LARGEST_FILE_BYTES = 1 << 30
"""A header that asks for more than this is damaged: the sets of this kind hold less than 1 GiB per file."""


def file_names(train: bool) -> tuple[str, str]:
    """The names of the images' and of the labels' file of one part."""
    part = "train" if train else "t10k"
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def find_idx(class_name: str, root: Path, train: bool) -> tuple[Path, Path] | None:
    """The images' and the labels' file of one part, or `None` if they are not on disk.

    Args:
        class_name: torchvision's class, which names the folder: `<root>/<class_name>/raw/`.
        root: The folder of the data sets.
        train: The training part, or the test part.
    """
    for folder in (root / class_name / "raw", DEBIAN_FOLDERS.get(class_name)):
        if folder is None:
            continue
        pair = [_plain_or_gzipped(folder / name) for name in file_names(train)]
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return None


def _plain_or_gzipped(path: Path) -> Path | None:
    gzipped = path.with_name(f"{path.name}.gz")
    return path if path.is_file() else gzipped if gzipped.is_file() else None


def open_idx_pair(class_name: str, root: Path, train: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images `(N, 28, 28)` and labels `(N,)` of one part of a set of ten classes, from plain or gzipped files.

    Raises:
        DataError: The files are not there, or damaged.
    """
    paths = find_idx(class_name, root, train)
    if paths is None:
        wanted = " and ".join(file_names(train))
        raise DataError(
            f"{root / class_name / 'raw'}: no {wanted} (plain or .gz). Fetch them: bench data fetch, or copy them there"
        )
    return read_idx_pair(paths, (28, 28), 10)


def read_idx_pair(
    paths: tuple[Path, Path], image_shape: tuple[int, int], classes: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images `(N, H, W)` and labels `(N,)`, both uint8, checked against each other.

    Raises:
        DataError: A file is damaged, truncated, of another shape, or does not fit the other.
    """
    images, labels = read_idx(paths[0], dimensions=3), read_idx(paths[1], dimensions=1)
    if images.shape[1:] != image_shape:
        raise _damaged(paths[0], f"its images have the shape {images.shape[1:]}, not {image_shape}")
    if len(images) != len(labels):
        raise _damaged(paths[1], f"it has {len(labels):,} labels for the {len(images):,} images of {paths[0].name}")
    if len(images) == 0:
        raise _damaged(paths[0], "it contains no images")
    if int(labels.max()) >= classes:
        raise _damaged(paths[1], f"it has the label {int(labels.max())}; allowed: 0 to {classes - 1}")
    return images, labels


def read_idx(path: Path, dimensions: int) -> np.ndarray[Any, Any]:
    """The values of one idx file of unsigned bytes, plain or gzipped (by its name), unpacked into memory only.

    Raises:
        DataError: The file is damaged, truncated or longer than its header says.
    """
    import numpy as np

    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            values, shape = _read_values(cast(BinaryIO, stream), path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _read_values(stream: BinaryIO, path: Path, dimensions: int) -> tuple[bytearray, tuple[int, ...]]:
    header = stream.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions:
        raise _damaged(path, f"it ends within its header, after {len(header)} B")
    if header[:4] != bytes((0, 0, 8, dimensions)):
        raise _damaged(
            path, f"it is not an idx file of bytes with {dimensions} dimensions: it begins with {header[:4].hex(' ')}"
        )
    shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))
    size = math.prod(shape)
    if size > LARGEST_FILE_BYTES:
        raise _damaged(path, f"its header asks for {size:,} B")
    values = bytearray(stream.read(size + 1))
    if len(values) != size:
        told = f"{len(values):,} of" if len(values) < size else "more than"
        raise _damaged(path, f"it holds {told} the {size:,} B that its header names")
    return values, shape


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}. Delete it and fetch it again: bench data fetch, or copy an intact file there")
