"""What of a bundle is not what its manifest says: read only, nothing unpacked, nothing written."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from bench.bundles.archive import MAX_FILES, BundleError, Entry, chunks, open_plain, read_index, require_zip
from bench.bundles.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One file that is not what the manifest says.

    Attributes:
        path: Below the bundle's folder; of the archive itself where a byte outside all files is meant.
        what: What is wrong with it.
        detail: A sentence, or nothing.
    """

    path: str
    what: Literal["changed", "missing", "added", "damaged"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verified:
    """What verifying found.

    Attributes:
        differences: By path; none where every byte is what the manifest says.
        files: How many files the manifest names.
        digest: The manifest's, or nothing where there is none to be read.
        name: Of the results.
    """

    differences: tuple[Difference, ...]
    files: int = 0
    digest: str | None = None
    name: str = ""


def verify(path: Path) -> Verified:
    """Hold a bundle, or the folder that one was unpacked to, against its manifest.

    Raises:
        BundleError: `path` does not exist, is a folder without a manifest, or is another kind of file.
    """
    if path.is_dir():
        return _verify_folder(path)
    if not path.exists():
        raise BundleError(f"{path}: does not exist; give a bundle, or the folder that one was unpacked to")
    with open_plain(path) as file:
        require_zip(file, path)
    try:
        with open_plain(path) as file:
            entries = read_index(file, path)
            top = top_folder(entries, path)
            inside = {entry.name.removeprefix(f"{top}/"): entry for entry in entries}
            manifest = manifest_of(file, inside.get(MANIFEST), path)
            sums = {name: _hashed(chunks(file, entry)) for name, entry in inside.items()}
    except BundleError as error:
        return Verified((Difference(path.name, "damaged", str(error)),))
    found = {name: (size, sha256) for name, (size, sha256, _) in sums.items() if name != MANIFEST}
    odd = [Difference(name, "damaged", "its checksum in the archive is not that of its content")
           for name, (*known, crc) in sums.items()
           if crc != inside[name].crc and tuple(known) == manifest.files.get(name, tuple(known))]  # fmt: skip
    return _held(manifest, found, odd)


def top_folder(entries: Iterable[Entry], path: Path) -> str:
    """The one folder that everything lies in. Raises BundleError where there are several, or none."""
    tops = {entry.name.partition("/")[0] for entry in entries if "/" in entry.name}
    if len(tops) != 1 or any("/" not in entry.name for entry in entries):
        raise BundleError(f"{path}: its files do not lie in one folder, as those of a bundle do")
    return tops.pop()


def manifest_of(file: BinaryIO, entry: Entry | None, path: Path) -> Manifest:
    """The manifest of an open archive. Raises BundleError where there is none, or it was changed."""
    if entry is None or entry.size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: no {MANIFEST} in it, or too large a one; bench bundle writes one")
    return parse_manifest(b"".join(chunks(file, entry)), str(path))


def _verify_folder(folder: Path) -> Verified:
    place = folder / MANIFEST
    if not place.is_file():
        raise BundleError(f"{folder}: no {MANIFEST} in it; give a bundle, or the folder that one was unpacked to")
    try:
        with open_plain(place) as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
        manifest = parse_manifest(text, str(folder))
    except BundleError as error:
        return Verified((Difference(MANIFEST, "changed", str(error)),))
    found: dict[str, tuple[int, str]] = {}
    odd = []
    for name, path in _walk(folder):
        if name == MANIFEST:
            continue
        if name not in manifest.files:
            odd.append(Difference(name, "added"))
        elif path.is_symlink() or not path.is_file():
            odd.append(Difference(name, "changed", "a link or another kind of file"))
            found[name] = manifest.files[name]
        else:
            found[name] = _hashed(_file_chunks(path))[:2]
    return _held(manifest, found, odd)


def _held(manifest: Manifest, found: Mapping[str, tuple[int, str]], odd: Iterable[Difference]) -> Verified:
    differences = [*odd]
    for name, (size, sha256) in manifest.files.items():
        if name not in found:
            differences.append(Difference(name, "missing"))
        elif found[name] != (size, sha256):
            detail = "" if found[name][0] == size else f"{found[name][0]:,} bytes where there were {size:,}"
            differences.append(Difference(name, "changed", detail))
    differences += [Difference(name, "added") for name in found if name not in manifest.files]
    ordered = sorted(differences, key=lambda item: (item.path, item.what))
    return Verified(tuple(ordered), len(manifest.files), manifest.digest, manifest.name)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Everything below a folder that is no folder, links to folders included; nothing is followed."""
    count = 0
    for root, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted([*files, *links]):
            count += 1
            if count > 2 * MAX_FILES:
                raise BundleError(f"{folder}: more than {2 * MAX_FILES:,} files; no bundle unpacks to as many")
            yield (Path(root) / name).relative_to(folder).as_posix(), Path(root) / name


def _file_chunks(path: Path) -> Iterator[bytes]:
    with open_plain(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _hashed(pieces: Iterable[bytes]) -> tuple[int, str, int]:
    """Size in bytes, SHA-256 and CRC-32."""
    size, digest, crc = 0, hashlib.sha256(), 0
    for piece in pieces:
        size, crc = size + len(piece), zlib.crc32(piece, crc)
        digest.update(piece)
    return size, digest.hexdigest(), crc
