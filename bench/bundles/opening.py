"""Opening a bundle that may come from anybody: checked first, unpacked into a folder of its own, gone afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from bench.bundles.archive import BundleError, Entry, chunks, open_plain, read_index
from bench.bundles.manifest import MANIFEST
from bench.bundles.verifying import manifest_of, top_folder
from bench.errors import StoreError
from bench.store.parts import typed_errors


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[Path]:
    """The folder of an unpacked bundle, for the time of the context.

    Names, types, sizes and order of the files are checked before anything is written (`bench.bundles.archive`), and
    each file against the manifest while it is. An archive takes no more room than it is long. Nothing in it is
    ever run, and nothing is written outside the temporary folder.

    Raises:
        BundleError: Not a bundle, or changed since it was written; the message names the file.
        StoreError: The disk refuses.
    """
    with open_plain(path) as file, tempfile.TemporaryDirectory(prefix="bench-bundle-") as made:
        entries = read_index(file, path)
        top = top_folder(entries, path)
        inside = {entry.name.removeprefix(f"{top}/"): entry for entry in entries}
        files = manifest_of(file, inside.get(MANIFEST), path).files
        if odd := sorted(set(files) ^ (set(inside) - {MANIFEST})):
            where = "missing from it" if odd[0] in files else "not named in its manifest"
            raise BundleError(f"{path}: {odd[0]} is {where}; see bench verify {path}")
        folder = Path(made) / top
        with typed_errors(folder):
            for name, entry in inside.items():
                digest = _unpack(file, entry, folder / name)
                if name != MANIFEST and (entry.size, digest) != files[name]:
                    raise BundleError(f"{path}: {name} was changed since it was bundled; see bench verify {path}")
        try:
            yield folder
        except StoreError as error:  # of the bundle the user knows its name only
            raise type(error)(str(error).replace(str(folder), str(path))) from error


@contextlib.contextmanager
def open_results(paths: Iterable[str | os.PathLike[str]]) -> Iterator[list[Path]]:
    """Results as folders, for the time of the context: bundles are opened, folders are passed on as they are.

    Raises:
        BundleError: A file that is no bundle.
    """
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(open_bundle(path)) if path.is_file() else path for path in map(Path, paths)
        ]  # fmt: skip


def _unpack(file: BinaryIO, entry: Entry, target: Path) -> str:
    """Write one file that is not there yet; returns its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("xb") as out:
        for chunk in chunks(file, entry):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()
