"""A bundle: an uncompressed zip whose bytes follow from the names and contents of its files, and from nothing else.

Files are stored in the order of their names, dated 1980-01-01, with mode 0644, and described by `manifest.json`. So the
same files give the same bytes on every system, nothing expands when it is unpacked, any unzip program opens a bundle,
and verifying one means writing it again from what was read: every byte that differs was changed.

A bundle may come from anybody. Sizes, counts, names and kinds of files are checked before any file is read, files are
compared before any is written, and nothing is written outside a temporary folder or ever run. Parts are read in a
confined child, which writes them again: pyarrow never sees a stranger's bytes in this process.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import re
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from bench import __version__
from bench.confined import run_confined
from bench.errors import StoreError
from bench.launchers import Send
from bench.store.parts import TEMPORARY, NewerFormatError, clear_leftovers, encode, read, typed_errors, whole_or_absent

Content = bytes | Path
"""A file's bytes, or where they are."""

Source = tuple[int, Callable[[], IO[bytes]]]
"""A file's size in bytes, and what opens it."""

MANIFEST = "manifest.json"
FORMAT = 1
"""Of the manifest and of the archive. History: 1 (0.1.0): as below."""

MAX_FILES = 65_535
MAX_BYTES = 4 << 30
"""Of the archive in front of its directory."""
MAX_MANIFEST_BYTES = 64 << 20
MAX_NAME = 200
"""Characters of a path, the bundle's own folder included."""
MAX_DEPTH = 6

_MAX_DIRECTORY_BYTES = MAX_FILES * (46 + MAX_NAME + 28)  # a file's entry: fixed fields, its name, its ZIP64 fields
_PLAIN_ZIP_BYTES = (1 << 31) - 1  # beyond, zipfile writes ZIP64 fields into the directory
_MODE = (stat.S_IFREG | 0o644) << 16
_CHUNK = 1 << 20
_SPARE_BYTES, _MOST_GROWTH = 1 << 30, 4  # what all parts may take in memory: so much, and so often their size
_NEXT = "Ask its author for an intact bundle; if you trust this one, unpack it, and damaged parts are left out"
_PREFIX = f"{TEMPORARY}bench-bundle-"  # the folder around is the user's: no other program names its files like this

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")

_ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, EOFError, struct.error, ValueError, OSError)
"""What zipfile raises for a damaged archive; `NotImplementedError` and `UnicodeDecodeError` are among them."""

_SAID = {"changed": "was changed since it was bundled", "missing": "is missing", "added": "is not in the manifest"}


class BundleError(StoreError):
    """A bundle that cannot be written, or a file that is not what `bench bundle` writes."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says it contains.

    Attributes:
        name: Of the results.
        version: Of bench that wrote it.
        files: `(bytes, sha256)` by path, relative to the bundle's folder.
    """

    name: str
    version: str
    files: Mapping[str, tuple[int, str]]

    @property
    def digest(self) -> str:
        """One SHA-256 for the whole bundle, to be published beside a link to it."""
        return hashlib.sha256(_canonical(self._body)).hexdigest()

    @property
    def text(self) -> bytes:
        """The content of `manifest.json`; equal manifests have equal bytes."""
        return _canonical({**self._body, "digest": self.digest})

    @property
    def _body(self) -> dict[str, Any]:
        files = [{"path": path, "bytes": size, "sha256": sha256} for path, (size, sha256) in sorted(self.files.items())]
        head = {"format": FORMAT, "kind": "stepbench bundle", "name": self.name, "bench_version": self.version}
        return {**head, "files": files}


@dataclass(frozen=True, slots=True)
class Written:
    """A bundle that was written: its path, its files (without the manifest), its size in bytes and its digest."""

    path: Path
    files: int
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class FileDifference:
    """One file that is not what the manifest says.

    Attributes:
        path: Below the bundle's folder; the archive's own name where the archive itself is meant and not a file in it.
        what: What is wrong with it.
        detail: A sentence, or nothing.
    """

    path: str
    what: Literal["changed", "missing", "added", "damaged"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """What verifying found.

    Attributes:
        differences: By path; none where every byte is what the manifest says.
        files: How many files the manifest names.
        digest: The manifest's, or nothing if there is no readable one.
        name: Of the results.
    """

    differences: tuple[FileDifference, ...]
    files: int = 0
    digest: str | None = None
    name: str = ""


def write_bundle(target: Path, name: str, files: Mapping[str, Content], *, force: bool = False) -> Written:
    """Write `files` and their manifest as one archive, whole or not at all.

    Args:
        target: The archive. It gets its name once it is complete.
        name: The folder that it unpacks to; from `safe_name`.
        files: By their path below that folder.
        force: Whether an archive of that name is replaced.

    Raises:
        BundleError: The archive exists and `force` is not set, it would be too large, or a file cannot be read.
        StoreError: The disk refuses.
    """
    exists = f"{target}: already exists; nothing was changed. Replace it with --force, or choose another name with -o"
    if target.exists() and not force:
        raise BundleError(exists)
    require_names(f"{name}/{path}" for path in (*files, MANIFEST))
    opened = {path: partial(_open, content) for path, content in files.items()}
    try:
        sums = {path: _pour(opened[path]) for path in files}
    except OSError as error:
        raise BundleError(f"{error.filename or target}: cannot be read ({error.strerror or error})") from error
    manifest = Manifest(name, __version__, sums)
    opened[MANIFEST] = partial(_open, manifest.text)
    sizes = {path: size for path, (size, _) in sums.items()} | {MANIFEST: len(manifest.text)}
    sources = {f"{name}/{path}": (sizes[path], opened[path]) for path in opened}
    try:
        with typed_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target.parent, _PREFIX)
        with whole_or_absent(target, _PREFIX, replace=force) as file:
            written = write_archive(file, sources)
            for path, found in sums.items():
                if written[f"{name}/{path}"] != found:
                    raise BundleError(f"{path}: changed while it was bundled; is a sweep still running? Try again")
    except FileExistsError as error:  # somebody else wrote it meanwhile
        raise BundleError(exists) from error
    return Written(target, len(files), target.stat().st_size, manifest.digest)


def write_archive(file: IO[bytes] | _Comparison, sources: Mapping[str, Source]) -> dict[str, tuple[int, str]]:
    """Write the zip of files with these names, which are not checked.

    Returns:
        Size in bytes and SHA-256 of what was written, by name.

    Raises:
        BundleError: The archive would be larger than `MAX_BYTES`.
    """
    sums = {}
    with zipfile.ZipFile(file, "w") as archive:
        for name, (size, opened) in sorted(sources.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr, entry.file_size = 3, _MODE, size  # 3: attributes of Unix
            with archive.open(entry, "w") as out:
                sums[name] = _pour(opened, out)
            if file.tell() > MAX_BYTES:
                raise BundleError(f"more than {MAX_BYTES >> 30} GiB; bundle parts of the results separately")
    return sums


def require_names(names: Iterable[str]) -> None:
    """Check that a bundle may have files of these names. Raises BundleError that says which name is wrong and why."""
    names = sorted(names)
    if len(names) > MAX_FILES:
        raise BundleError(f"{len(names):,} files, the limit is {MAX_FILES:,}; bundle parts of the results separately")
    for name in names:
        if (fault := name_fault(name)) is not None:
            raise BundleError(f"{name[:MAX_NAME]!r}: not a valid name in a bundle ({fault})")
    if bad := clashes(names):
        raise BundleError(f"{bad[0]!r}: clashes with the name of another file")


def name_fault(name: str) -> str | None:
    """Why a file in a bundle may not be called `name`, or None if it may.

    Refused are absolute names, `..`, backslashes, drives, hidden files, names that a system reserves for devices, and
    everything outside plain ASCII: what remains is one place below the bundle's folder on every system.
    """
    if len(name) > MAX_NAME:
        return f"longer than {MAX_NAME} characters"
    if name.count("/") >= MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders deep"
    if not _NAME.fullmatch(name):
        return "must consist of letters, digits and . _ - below the bundle's folder"
    if any(_DEVICES.fullmatch(part) for part in name.split("/")):
        return "reserved for a device on some systems"
    return None


def clashes(names: Sequence[str]) -> list[str]:
    """Names that would be one file on some system, or a file where another needs a folder; sorted."""
    first: dict[str, int] = {}
    bad = {name for place, name in enumerate(names) if first.setdefault(name.casefold(), place) != place}
    for name in names:
        parts = name.casefold().split("/")
        if any("/".join(parts[:depth]) in first for depth in range(1, len(parts))):
            bad.add(name)
    return sorted(bad)


def safe_name(text: str) -> str:
    """A folder's name as one that a bundle may have: other characters become `-`."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:60].strip("._-")
    return short if short and name_fault(short) is None else "results"


def parse_manifest(text: bytes) -> Manifest:
    """Read a manifest; what is not exactly what `Manifest.text` writes is refused, so that no byte of it can change.

    Raises:
        BundleError: Not a manifest, of a newer format, or changed.
    """
    changed = f"{MANIFEST} was changed, or is not the manifest of a bundle"
    try:
        found = json.loads(text)
        if found["format"] > FORMAT:
            raise BundleError(f"written by a newer version (format {int(found['format'])}); update bench")
        files = {str(file["path"]): (int(file["bytes"]), str(file["sha256"])) for file in found["files"]}
        manifest = Manifest(str(found["name"]), str(found["bench_version"]), files)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(changed) from error
    if manifest.text != text:
        raise BundleError(f"{changed}: its text does not match its own digest")
    for path in manifest.files:
        if (fault := name_fault(path)) is not None:
            raise BundleError(f"{MANIFEST} names {path[:100]!r}: {fault}")
    return manifest


def verify(path: Path) -> VerifiedBundle:
    """Compare a bundle, or the folder that one was unpacked to, with its manifest. Nothing is unpacked or written.

    Raises:
        BundleError: `path` does not exist, is a folder without a manifest, or is another kind of file.
    """
    if path.is_dir():
        return _verify_folder(path)
    if not path.exists():
        raise BundleError(f"{path}: does not exist; give a bundle, or a folder that one was unpacked to")
    with _open_regular(path) as file:
        _require_zip(file, path)
        try:
            with _open_zip(file, path) as archive:
                return _verify_archive(file, archive, path)
        except BundleError as error:
            return VerifiedBundle((FileDifference(path.name, "damaged", str(error)),))


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[Path]:
    """The folder of an unpacked bundle, for the duration of the context.

    It is verified first: what `verify` finds a difference in is refused before anything is written. Its parts are
    those that this version writes of the same rows and notes; other Parquet files are left out.

    Raises:
        BundleError: Not a bundle, or changed since it was written; the message names the file.
        StoreError: A part is damaged or cannot be read within limits, or the disk refuses.
    """
    with _open_regular(path) as file, tempfile.TemporaryDirectory(prefix="bench-bundle-") as made:
        _require_zip(file, path)
        with _open_zip(file, path) as archive:
            for item in _verify_archive(file, archive, path).differences:
                said = item.detail if item.what == "damaged" else f"{item.path} {_SAID[item.what]}"
                raise BundleError(f"{said}; see bench verify {path}")
            folder = Path(made) / archive.namelist()[0].partition("/")[0]
            with typed_errors(folder):
                archive.extractall(made)  # names, kinds and sizes of all files were checked
        try:
            rewrite_parts(folder)
            yield folder
        except StoreError as error:  # the user knows the bundle's name only
            raise type(error)(str(error).replace(str(folder), str(path))) from error


def manifest_digest(folder: Path) -> str | None:
    """The digest of the bundle that was unpacked to a folder; `None` for a folder without a valid manifest."""
    try:
        with _open_regular(folder / MANIFEST) as file:
            short = os.fstat(file.fileno()).st_size <= MAX_MANIFEST_BYTES
            return parse_manifest(file.read()).digest if short else None
    except BundleError:
        return None


def rewrite_parts(folder: Path) -> None:
    """Replace each part below `folder` by a new one with its content, written by a confined child."""
    kinds = {"runs": "run", "estimates": "estimates"}
    todo, size = [], 0
    for path in sorted(folder.rglob("*.parquet")):
        kind = kinds.get(path.parent.name) or ("plan" if path.name.startswith("plan-") else None)
        if kind is None:  # the consolidated file, whose name proves nothing here
            path.unlink()
        else:
            todo.append((str(path), kind))
            size += path.stat().st_size
    if todo:
        most = _SPARE_BYTES + _MOST_GROWTH * size
        run_confined(_rewrite_task, (todo, most))


def _rewrite_task(argument: tuple[list[tuple[str, str]], int], send: Send) -> dict[str, Any]:
    """Write parts, given as path and kind, again, unless all of them take more than so many bytes of memory or disk."""
    parts, most = argument
    left = most
    for name, kind in parts:
        send({"file": name})
        path = Path(name)
        try:
            table = read(path, kind)
        except NewerFormatError:
            raise
        except StoreError as error:
            raise StoreError(f"{error}. {_NEXT}") from error
        content = encode(table)
        left -= max(table.nbytes, content.size)
        if left < 0:
            raise StoreError(f"{path}: with this part, more than {most >> 20} MiB are needed in memory. {_NEXT}")
        with typed_errors(path):
            path.write_bytes(content)
    return {}


class _BoundedReader(io.BufferedReader):
    """A file of which no more is read at once than a bundle's directory: zipfile trusts the length that is claimed."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise BundleError("its directory is larger than a bundle's can be")
        return super().read(size)


class _Comparison(io.RawIOBase):
    """What zipfile writes to it is compared with a file and not kept.

    Only the starts of the writes that differ are: zipfile writes a header a second time once it knows the CRC.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._place = file, 0
        self._differs: set[int] = set()

    def first_difference(self, size: int) -> int | None:
        """The byte near which the file of `size` bytes differs from what was written, or None if it does not."""
        ends = {self._place, size}
        return min(self._differs | (ends if len(ends) > 1 else set()), default=None)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._place = offset
        return offset

    def tell(self) -> int:
        return self._place

    def write(self, data: Any, /) -> int:
        self._file.seek(self._place)
        same = self._file.read(len(data)) == data
        (self._differs.discard if same else self._differs.add)(self._place)
        self._place += len(data)
        return len(data)


def _open_regular(path: Path) -> _BoundedReader:
    """Open a regular file. Raises BundleError for anything else, without waiting for a pipe or a device."""
    flags = getattr(os, "O_NONBLOCK", 0)
    try:
        raw = io.FileIO(path, opener=lambda name, asked: os.open(name, asked | flags))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise BundleError(f"{path}: not a bundle (not a regular file); bench bundle writes one")
    return _BoundedReader(raw)


def _require_zip(file: IO[bytes], path: Path) -> None:
    """Tell another kind of file, which raises BundleError, from a bundle that lost its beginning or its end."""
    with contextlib.suppress(*_ZIP_ERRORS):
        if file.read(4) != b"PK\3\4" and not zipfile.is_zipfile(file):
            size = os.fstat(file.fileno()).st_size
            raise BundleError(f"{path}: not a bundle ({size:,} bytes); bench bundle writes one")


@contextlib.contextmanager
def _open_zip(file: IO[bytes], path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, once its directory names nothing that a bundle may not have. Raises BundleError, also for damage."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES + _MAX_DIRECTORY_BYTES:
        raise BundleError(f"{path}: {size:,} bytes; a bundle has at most {MAX_BYTES >> 30} GiB")
    try:
        with zipfile.ZipFile(file) as archive:
            _require_plain(archive.infolist(), size)
            yield archive
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    except _ZIP_ERRORS as error:
        raise BundleError(f"{path}: cut short or damaged ({str(error) or 'end of file'})") from error


def _require_plain(infos: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Check everything that the directory of an archive of `size` bytes says. Raises BundleError."""
    require_names(info.orig_filename for info in infos)
    if len({info.filename.partition("/")[0] for info in infos}) != 1 or "/" not in infos[0].filename:
        raise BundleError("its files are not in one folder, as in a bundle")
    for info in infos:
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not stored or info.flag_bits or info.external_attr != _MODE:
            what = "compressed" if not stored else "encrypted" if info.flag_bits & 1 else "not a plain file"
            raise BundleError(
                f"{info.filename} is not stored as bench bundle stores it (it is {what}). If the archive "
                "was repacked, unpack it and run bench verify on the folder"
            )
    if sum(info.file_size for info in infos) > size:
        raise BundleError("the sizes of its files exceed the archive")


def _verify_archive(file: IO[bytes], archive: zipfile.ZipFile, path: Path) -> VerifiedBundle:
    """Write the archive again from what is read, and compare. Raises BundleError if the manifest is not valid."""
    infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if MANIFEST not in infos or infos[MANIFEST].file_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"has no {MANIFEST}, or it is too large; bench bundle writes one")
    sources: dict[str, Source] = {
        info.filename: (info.file_size, partial(_open_entry, archive, info)) for info in infos.values()
    }
    text = io.BytesIO()
    _pour(sources[infos[MANIFEST].filename][1], text)
    manifest = parse_manifest(text.getvalue())
    comparison = _Comparison(file)
    sums = write_archive(comparison, sources)
    verified = _verified(manifest, {name: sums[info.filename] for name, info in infos.items() if name != MANIFEST})
    size = os.fstat(file.fileno()).st_size
    place = comparison.first_difference(size)
    if verified.differences or place is None or (place >= archive.start_dir and size > _PLAIN_ZIP_BYTES):
        return verified
    where = {info.header_offset: name for name, info in infos.items()}.get(place, path.name)
    detail = f"all files are unchanged, but the archive itself was changed near byte {place:,}"
    return replace(verified, differences=(FileDifference(where, "damaged", detail),))


def _verify_folder(folder: Path) -> VerifiedBundle:
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: has no {MANIFEST}; give a bundle, or a folder that one was unpacked to")
    try:
        if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError("too large")
        with _open_regular(folder / MANIFEST) as file:
            manifest = parse_manifest(file.read())
    except BundleError as error:
        return VerifiedBundle((FileDifference(MANIFEST, "changed", str(error)),))
    found: dict[str, tuple[int, str]] = {}
    odd = []
    for count, path in enumerate(folder.rglob("*")):  # links to folders are not followed
        if count > 2 * MAX_FILES:
            raise BundleError(f"{folder}: more than {2 * MAX_FILES:,} files, more than a bundle can have")
        name, link = path.relative_to(folder).as_posix(), path.is_symlink()
        if name == MANIFEST or (path.is_dir() and not link):
            continue
        if name not in manifest.files:
            odd.append(FileDifference(name, "added"))
        elif link or not path.is_file():
            odd.append(FileDifference(name, "changed", "a link or another kind of file"))
        else:
            found[name] = _pour(partial(_open_regular, path))
    return _verified(manifest, found, odd)


def _verified(
    manifest: Manifest, found: Mapping[str, tuple[int, str]], odd: Sequence[FileDifference] = ()
) -> VerifiedBundle:
    """What differs between a manifest and the sizes and hashes that were found, beside the `odd` files."""
    differences = [*odd, *(FileDifference(name, "added") for name in found if name not in manifest.files)]
    named = {item.path for item in odd}
    for name, (size, sha256) in manifest.files.items():
        if name in found and found[name] != (size, sha256):
            detail = "" if found[name][0] == size else f"{found[name][0]:,} bytes instead of {size:,}"
            differences.append(FileDifference(name, "changed", detail))
        elif name not in found and name not in named:
            differences.append(FileDifference(name, "missing"))
    ordered = sorted(differences, key=lambda item: (item.path, item.what))
    return VerifiedBundle(tuple(ordered), len(manifest.files), manifest.digest, manifest.name)


def _open_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """A file's content. Its CRC is left to the comparison, which tells a wrong one from changed content."""
    unchecked = copy.copy(info)
    del unchecked.CRC
    try:
        return archive.open(unchecked)
    except _ZIP_ERRORS as error:
        raise BundleError(f"the header in front of {info.filename} is damaged ({error})") from error


def _open(content: Content) -> IO[bytes]:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _pour(opened: Callable[[], IO[bytes]], out: IO[bytes] | None = None) -> tuple[int, str]:
    """Copy what is opened to `out`; returns its size in bytes and its SHA-256."""
    size, digest = 0, hashlib.sha256()
    with opened() as source:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            digest.update(chunk)
            if out is not None:
                out.write(chunk)
    return size, digest.hexdigest()


def measure_content(content: Content) -> tuple[int, str]:
    """The size in bytes and the SHA-256 of a file's content. Raises OSError."""
    return _pour(partial(_open, content))


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode("ascii")
