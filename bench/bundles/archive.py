"""The one shape that a bundle's file has: a zip of stored files whose every byte follows from names and contents.

Files lie in the order of their names, uncompressed, without gaps, comments or extra fields, dated 1980-01-01, with mode
0644; the directory and the end record follow. (Structure: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.)
So the same files give the same bytes on every system and under every version of zlib, a byte that is not content is
one that can be computed and compared, and an archive cannot unpack to more than it is. Any unzip program opens it.

Reading refuses everything else: compressed entries, links and other types of files, encryption, ZIP64, gaps, bytes
before or behind, entries over each other, names that lead elsewhere.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bench.bundles.names import MAX_NAME, clashes, fault_of
from bench.errors import StoreError

MAX_FILES = 65_535
MAX_BYTES = (1 << 32) - 1
"""Of the whole archive: where a zip would need its 64-bit extension."""

_LOCAL, _CENTRAL, _END = "<4s5H3L2H", "<4s6H3L5H2L", "<4s4H2LH"
_VERSION, _UNIX, _DATE = 20, 3 << 8, 1 << 5 | 1  # 2.0: plain files; attributes of Unix; 1980-01-01 00:00
_MODE = (stat.S_IFREG | 0o644) << 16
_CHUNK = 1 << 20
_MAX_COMMENT = 0xFFFF  # behind the end record of other programs' zips


class BundleError(StoreError):
    """A bundle that cannot be written, or that is not what `bench bundle` writes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive.

    Attributes:
        name: Its path, the bundle's folder first.
        size: In bytes.
        crc: CRC-32 of its content.
        start: Where its header begins.
    """

    name: str
    size: int
    crc: int
    start: int

    @property
    def local(self) -> bytes:
        """The header in front of the content."""
        name = self.name.encode("ascii")
        return (
            struct.pack(_LOCAL, b"PK\3\4", _VERSION, 0, 0, 0, _DATE, self.crc, self.size, self.size, len(name), 0)
            + name
        )

    @property
    def central(self) -> bytes:
        """The entry in the directory."""
        name = self.name.encode("ascii")
        return struct.pack(
            _CENTRAL, b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, 0, 0, _DATE, self.crc, self.size, self.size, len(name),
            0, 0, 0, 0, _MODE, self.start,
        ) + name  # fmt: skip

    @property
    def content_start(self) -> int:
        """Where the content begins."""
        return self.start + struct.calcsize(_LOCAL) + len(self.name)


def write_archive(file: BinaryIO, names: Sequence[str], read: Callable[[str], bytes]) -> None:
    """Write the files `names`, whose contents `read` gives.

    Raises:
        BundleError: Too many files, too many bytes, or a name that a bundle may not have.
    """
    ordered = sorted(names)
    if len(ordered) > MAX_FILES:
        raise BundleError(
            f"{len(ordered):,} files; a bundle holds {MAX_FILES:,}. Bundle parts of the results on their own"
        )
    for name in ordered:
        if (fault := fault_of(name)) is not None:
            raise BundleError(f"{name!r}: no name for a file of a bundle ({fault})")
    if bad := clashes(ordered):
        raise BundleError(f"{bad[0]!r}: clashes with another file's name")
    entries, place = [], 0
    for name in ordered:
        content = read(name)
        entry = Entry(name, len(content), zlib.crc32(content), place)
        place = entry.content_start + entry.size
        if place > MAX_BYTES:
            raise BundleError(f"more than {MAX_BYTES >> 30} GiB; bundle parts of the results on their own")
        file.write(entry.local)
        file.write(content)
        entries.append(entry)
    directory = b"".join(entry.central for entry in entries)
    file.write(directory)
    file.write(_end(len(entries), len(directory), place))


def open_plain(path: Path) -> BinaryIO:
    """The file to read; a pipe or a device is not waited for.

    Raises:
        BundleError: No such file, not a regular one, or not readable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BundleError(f"{path}: no bundle: not a regular file; bench bundle writes one")
    return os.fdopen(handle, "rb")


def require_zip(file: BinaryIO, path: Path) -> None:
    """Tell a file that never was a zip from one that was changed: it has neither a first header nor an end record.

    Raises:
        BundleError: It has neither.
    """
    total, size = os.fstat(file.fileno()).st_size, struct.calcsize(_END)
    file.seek(0)
    first = file.read(4)
    file.seek(max(0, total - size - _MAX_COMMENT))
    if first != b"PK\3\4" and b"PK\5\6" not in file.read(size + _MAX_COMMENT):
        raise BundleError(f"{path}: no bundle: another kind of file ({total:,} bytes); bench bundle writes one")


def read_index(file: BinaryIO, path: Path) -> list[Entry]:
    """Every file of the archive, by name, each header held against the one that its name and content call for.

    Args:
        file: The open archive; nothing is read but headers and the directory.
        path: Its name, for messages.

    Raises:
        BundleError: A byte outside the contents is not what `write_archive` writes; the message says which.
    """
    total = os.fstat(file.fileno()).st_size
    count, length, start = _read_end(file, path, total)
    file.seek(start)
    directory = file.read(length)
    entries, place, at = [], 0, 0
    for _ in range(count):
        entry = _parse(directory, at, place, path)
        file.seek(entry.start)
        if file.read(len(entry.local)) != entry.local:
            raise BundleError(f"{path}: the header in front of {entry.name} is not what bench bundle writes")
        entries.append(entry)
        at, place = at + len(entry.central), entry.content_start + entry.size
        if place > start:
            raise BundleError(f"{path}: {entry.name} reaches beyond the contents")
    names = [entry.name for entry in entries]
    if at != length or place != start:
        raise BundleError(f"{path}: bytes that belong to no file lie between the contents and the directory")
    if names != sorted(names) or clashes(names):
        raise BundleError(f"{path}: names out of order or the same twice")
    return entries


def chunks(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The content of a file in pieces; fewer bytes come where the archive ends early."""
    file.seek(entry.content_start)
    left = entry.size
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        left -= len(chunk)
        yield chunk


def _end(count: int, length: int, start: int) -> bytes:
    return struct.pack(_END, b"PK\5\6", 0, 0, count, count, length, start, 0)


def _read_end(file: BinaryIO, path: Path, total: int) -> tuple[int, int, int]:
    """How many files there are, and the directory's length and start."""
    size = struct.calcsize(_END)
    if not size <= total <= MAX_BYTES:
        raise BundleError(f"{path}: no bundle ({total:,} bytes); bench bundle writes one")
    file.seek(total - size)
    end = file.read(size)
    if not end.startswith(b"PK\5\6"):
        raise BundleError(f"{path}: no bundle: it is cut short, has bytes behind its end, or is another kind of file")
    count, length, start = struct.unpack(_END, end)[4:7]
    if start + length + size != total or length > count * (struct.calcsize(_CENTRAL) + MAX_NAME):
        raise BundleError(f"{path}: the directory is not where a bundle has it; bytes were added or cut")
    if end != _end(count, length, start):
        raise BundleError(f"{path}: the end record is not what bench bundle writes")
    return count, length, start


def _parse(directory: bytes, at: int, place: int, path: Path) -> Entry:
    """The directory's entry at `at`, whose content must begin at `place`."""
    size = struct.calcsize(_CENTRAL)
    if at + size > len(directory):
        raise BundleError(f"{path}: the directory is cut short")
    fields = struct.unpack_from(_CENTRAL, directory, at)
    crc, length, name_length = fields[7], fields[9], fields[10]
    raw = directory[at + size : at + size + name_length]
    name = raw.decode("ascii", errors="replace")
    if (fault := fault_of(name)) is not None:
        raise BundleError(f"{path}: {name[:MAX_NAME]!r}: {fault}. Nothing was unpacked")
    entry = Entry(name, length, crc, place)
    if directory[at : at + len(entry.central)] != entry.central:
        what = "compressed" if fields[4] else "a link, a device or a folder" if fields[15] != _MODE else "misplaced"
        raise BundleError(
            f"{path}: {name}: its entry is not what bench bundle writes (it may be {what}). If somebody packed it "
            "anew, unpack it and give the folder to bench verify"
        )
    return entry
