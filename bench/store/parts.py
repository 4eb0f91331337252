"""One part: written so that it is whole or absent, read so that it is right or refused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.errors import StoreError
from bench.store.schema import SCHEMA_VERSION

Row = dict[str, Any]

_VERSION, _KIND, _HASH, _NOTES = (f"bench.{name}".encode() for name in ("schema_version", "kind", "sha256", "notes"))
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_TEMPORARY = ".tmp-"
MAX_PART_BYTES = 256 << 20


def parts(folder: Path, pattern: str = "*.parquet") -> list[Path]:
    """The finished parts of a folder, by name."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(_TEMPORARY))


def rows_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """The SHA-256 of the rows' values, whatever file holds them; absent columns count as null."""
    lines = (
        json.dumps({key: value for key, value in row.items() if value is not None}, sort_keys=True) for row in rows
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def build_table(
    rows: Sequence[Mapping[str, Any]], schema: pa.Schema, kind: str, notes: Mapping[str, Any] | None = None
) -> pa.Table:
    """Rows as a table whose metadata says the format's version, the kind of part, the rows' hash and `notes`."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    metadata = {
        _VERSION: str(SCHEMA_VERSION),
        _KIND: kind,
        _HASH: rows_hash(table.to_pylist()),
        _NOTES: json.dumps(notes or {}, sort_keys=True),
    }
    return table.replace_schema_metadata(metadata)


def commit(table: pa.Table, target: Path) -> None:
    """Write `table` to `target` so that it is whole or absent, and on the disk when this returns.

    Raises:
        FileExistsError: `target` exists; it is left as it is.
        StoreError: The disk refuses (full, read-only, gone).
    """
    temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    with typed_errors(target):
        try:
            with temporary.open("xb") as file:
                # Small parts are read by the thousand: no compression, statistics or dictionaries halves the time.
                small = table.num_rows < 50
                with pq.ParquetWriter(
                    file, table.schema, compression="none" if small else "zstd", use_dictionary=not small,
                    write_statistics=False, store_schema=False, write_page_checksum=True,
                ) as writer:  # fmt: skip
                    writer.write_table(table)
                    # store_schema=False leaves the schema's metadata out as well: it is what says that this is a part
                    writer.add_key_value_metadata(table.schema.metadata or {})
                file.flush()
                os.fsync(file.fileno())
            _link(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


def read(path: Path, kind: str) -> pa.Table:
    """One part's rows, checked against their hash.

    Raises:
        StoreError: Not a part of this kind, damaged, or written by a newer version; the message names the file.
    """
    try:
        if path.stat().st_size > MAX_PART_BYTES:
            raise StoreError(f"{path}: larger than {MAX_PART_BYTES >> 20} MiB; no part is")
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or file.metadata.metadata or {}
            _check_header(path, metadata, kind)
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(f"{path}: damaged or no Parquet file ({str(error).splitlines()[0]})") from error
    if rows_hash(table.to_pylist()).encode() != metadata.get(_HASH):
        raise StoreError(f"{path}: its rows differ from the hash they were written with; restore or delete it")
    return table


def notes_of(table: pa.Table) -> dict[str, Any]:
    """What the writer noted beside the rows."""
    notes: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_NOTES, b"{}"))
    return notes


def version_of(table: pa.Table) -> int:
    """The format's version that wrote the rows."""
    return int((table.schema.metadata or {}).get(_VERSION, b"0"))


def _check_header(path: Path, metadata: Mapping[bytes, bytes], kind: str) -> None:
    found = metadata.get(_KIND, b"").decode(errors="replace")
    if found != kind:
        raise StoreError(f"{path}: not a part of kind {kind} (it says {found or 'nothing'})")
    version = int(metadata.get(_VERSION, b"0"))
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: written by a newer version (format {version}; this one reads up to {SCHEMA_VERSION})"
        )


def _link(temporary: Path, target: Path) -> None:
    """Give the file its final name without overwriting."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if target.exists():  # the folder's lock makes this check and the rename one step
            raise FileExistsError(errno.EEXIST, "exists already", str(target)) from error
        temporary.rename(target)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def typed_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a StoreError that names the path; a taken name passes as it is."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        hint = {errno.ENOSPC: "free some space and run the same command again", errno.EROFS: "choose another --out"}
        advice = hint.get(error.errno or 0, "what was finished is kept; run the same command again to go on")
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error
