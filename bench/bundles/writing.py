"""Writing a bundle: whole or absent, and the same bytes for the same files."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import __version__
from bench.bundles.archive import BundleError, write_archive
from bench.bundles.manifest import MANIFEST, Manifest
from bench.store.parts import TEMPORARY, clear_leftovers, typed_errors

_PREFIX = f"{TEMPORARY}bench-bundle-"  # the folder around is the user's: no other program calls its files so

Content = bytes | Path
"""A file's bytes, or where they lie."""


@dataclass(frozen=True, slots=True)
class Written:
    """A bundle that was written: its path, its files (the manifest not counted), its size in bytes and its digest."""

    path: Path
    files: int
    size_bytes: int
    digest: str


def write_bundle(target: Path, name: str, files: Mapping[str, Content], *, force: bool = False) -> Written:
    """Write `files` and their manifest as one archive.

    Args:
        target: The archive. It has its name once it is whole.
        name: The folder that it unpacks to; from `safe_name`.
        files: By their path below that folder.
        force: Whether an archive of that name is replaced.

    Raises:
        BundleError: The archive exists and `force` is not set, it would be too large, or a file cannot be read.
        StoreError: The disk refuses.
    """
    if target.exists() and not force:
        raise BundleError(f"{target}: exists; nothing was changed. Replace it with --force, or name another with -o")
    sums = {path: _sum(content) for path, content in files.items()}
    manifest = Manifest(name, __version__, sums)
    clear_leftovers(target.parent, _PREFIX)
    temporary = target.with_name(f"{_PREFIX}{uuid.uuid4().hex}")

    def read(path: str) -> bytes:
        inner = path.removeprefix(f"{name}/")
        if inner == MANIFEST:
            return manifest.text
        content = _read(files[inner])
        if hashlib.sha256(content).hexdigest() != sums[inner][1]:
            raise BundleError(f"{inner}: changed while it was bundled; is a sweep still running? Try again")
        return content

    with typed_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                write_archive(file, [f"{name}/{path}" for path in (*files, MANIFEST)], read)
                file.flush()
                os.fsync(file.fileno())
            _give_name(temporary, target, force)
        finally:
            temporary.unlink(missing_ok=True)
    return Written(target, len(files), target.stat().st_size, manifest.digest)


def _give_name(temporary: Path, target: Path, force: bool) -> None:
    if force or not hasattr(os, "link"):
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        raise BundleError(f"{target}: somebody else wrote it meanwhile; nothing was changed") from error
    except OSError:  # a file system without hard links
        temporary.replace(target)


def _sum(content: Content) -> tuple[int, str]:
    data = _read(content)
    return len(data), hashlib.sha256(data).hexdigest()


def _read(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise BundleError(f"{content}: cannot be read ({error.strerror or error})") from error
