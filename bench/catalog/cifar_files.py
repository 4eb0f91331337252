"""The batch files of CIFAR-10 and CIFAR-100, read without executing their content.

The batches are pickles, and a pickle may run any code. torchvision unpickles them after checking their md5; files with
another checksum (written again, converted, cut down) are read here by an unpickler that knows only arrays of bytes and
plain containers. Even numpy stays out of it: the pickle's arrays are collected as inert parts and checked before an
array is made of them.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bench.errors import DataError

if TYPE_CHECKING:
    import numpy as np

LARGEST_FILE_BYTES = 512 << 20
"""A larger batch is refused unread; the largest real one (CIFAR-100's training part) has 148 MiB."""

UNPICKLING_FAULTS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What the pickle module raises on damaged bytes (its documentation: "not necessarily limited to")."""


@dataclass(frozen=True, slots=True)
class CifarLayout:
    """Which files a set has and how its labels are called; the names are torchvision's."""

    class_name: str
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    meta_file: str
    label_key: str

    def files(self, train: bool) -> tuple[str, ...]:
        """The batch files of one part."""
        return self.train_files if train else self.test_files


def missing_files(folder: Path, file_names: Iterable[str]) -> list[str]:
    """Those of `file_names` that are not files in `folder`, in their order."""
    return [name for name in file_names if not (folder / name).is_file()]


class _Parts:
    """An array or a data type of the pickle, as the arguments it was to be made from. Does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _reconstructed(*arguments: object) -> _Parts:
    return _Parts()


def _from_buffer(values: object, data_type: object, shape: object, order: object) -> _Parts:
    """Numpy's form for pickle protocol 5."""
    parts = _Parts()
    parts.__setstate__((1, shape, data_type, order == "F", values))
    return parts


def _encoded(text: object, encoding: object) -> bytes:
    """How protocol 2 writes bytes from Python 3: a string and its encoding; no other codec is let in."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "ndarray"): _Parts,
    ("numpy", "dtype"): _Parts,
    ("_codecs", "encode"): _encoded,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstructed for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and the parts of arrays; every other name is refused before it is imported."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _KNOWN[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}") from None

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an object outside the file")


def read_cifar(
    folder: Path, file_names: tuple[str, ...], label_key: str, classes: int
) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Images `(N, 32, 32, 3)` uint8 and their labels, from batch files of any checksum.

    Raises:
        DataError: A file is missing, damaged, or holds anything but arrays and plain containers.
    """
    import numpy as np

    images, labels = [], []
    for name in file_names:
        batch = _read_batch(folder / name)
        values = _bytes_array(batch.get("data"), folder / name)
        found = batch.get(label_key)
        if not isinstance(found, list) or len(found) != len(values):
            raise _damaged(folder / name, f'"{label_key}" is not a list of {len(values):,} labels')
        if not all(type(label) is int and 0 <= label < classes for label in found):
            raise _damaged(folder / name, f'"{label_key}" has a label outside 0 to {classes - 1}')
        images.append(values)
        labels.extend(found)
    if not labels:
        raise _damaged(folder, "its batches contain no images")
    return np.vstack(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _read_batch(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise _damaged(path, f"it has {path.stat().st_size:,} B, more than a batch can have")
        with path.open("rb") as stream:
            batch = _ArrayUnpickler(stream, encoding="latin1").load()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except UNPICKLING_FAULTS as error:
        raise _damaged(path, f"not a pickle of arrays and plain containers: {error}") from error
    if not isinstance(batch, dict):
        raise _damaged(path, "it does not contain a dictionary")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in batch.items()}


def _bytes_array(parts: object, path: Path) -> np.ndarray[Any, Any]:
    """The array `(N, 3072)` uint8 of a batch, from its inert parts."""
    import numpy as np

    match getattr(parts, "state", None):
        case (_, (int(count), 3072 as width), _Parts(arguments=("u1", *_)), False | 0, bytes() | bytearray() as values):
            pass
        case (_, (int(count), 3072 as width), _Parts(arguments=("u1", *_)), False | 0, str() as text):
            values = text.encode("latin1", errors="replace")  # as Python 2 wrote bytes: the real files
        case _:
            raise _damaged(path, '"data" is not an array of bytes with 3,072 columns in C order')
    if count < 1 or len(values) != math.prod((count, width)):
        raise _damaged(path, f'"data" has {len(values):,} B for {count:,} images')
    return np.frombuffer(values, dtype=np.uint8).reshape(count, width)


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: {what}. Delete it and fetch the set again: bench data fetch, or copy the original file there"
    )
