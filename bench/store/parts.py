"""One part: written so that it is whole or absent, read so that it is right or refused.

A hash is no signature: whoever writes a part can write the hash that fits it. So types, sizes and what readers rely on
are checked here, once for all of them, before its rows are used. What this cannot hold is pyarrow itself, which takes
what memory a file asks for: parts that others wrote are therefore read in a confined child (`bench.bundles`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bench.errors import StoreError
from bench.records import AXES, SWITCHES, Group, Status, columns
from bench.store import schema
from bench.store.schema import SCHEMA_VERSION

MAX_PART_BYTES = 256 << 20
"""Of the file, and of its rows in memory."""

MAX_VALUES = 4_000_000
"""Rows times columns; a plan of 200,000 runs has fewer."""

_KEYS = ("case_key", *(axis for axis in AXES if axis not in SWITCHES), "repeat", "position", *columns(Group))
_COLUMNS = {"plan": schema.PLAN, "run": schema.RUN, "estimates": schema.ESTIMATE, "order": schema.ORDER}
_NEVER_NULL = {
    "plan": _KEYS,
    "run": ("run_key", "attempt", "status", "device", *_KEYS),
    "estimates": ("case_key", "estimate_device"),
    "order": ("case_key", "repeat", "position", "code_key", "case_code_key"),
}
_NEEDED = {
    "plan": ("skip_reason",),
    "run": ("step_times_s", "wall_window_s", "duration_s"),
    "estimates": (),
    "order": ("skip_reason", "data_source"),
}
_DERIVED = ("planned", "schema_version", "samples_per_s", "median_step_time_s", "mfu_frac", "roofline_frac")
_ACCEPTED = {kind: [columns] for kind, columns in _COLUMNS.items()}
"""Schemas that need not be looked at in detail: what this version writes, and what was found to be in order."""

_FEW_SCHEMAS = 8
_SCALARS = (pa.bool_(), pa.int64(), pa.float64(), pa.string())
_TYPES = (*_SCALARS, *(pa.list_(kind) for kind in _SCALARS))


def check_columns(path: Path, found: pa.Schema, rows: int, kind: str) -> None:
    """Refuse a part by its footer: by the number of its rows, and by columns that are not those of its kind.

    Raises:
        StoreError: The reason.
    """
    if kind == "run" and rows != 1:
        raise StoreError(f"{path}: {rows} rows; the file of a run has one")
    accepted = _ACCEPTED[kind]
    if not any(found.equals(schema) for schema in accepted):  # thousands of parts have few schemas
        _check_names(path, found.names, kind)
        for field in found:
            _check_type(path, field, kind)
        accepted[_FEW_SCHEMAS - 1 :] = [found.remove_metadata()]
    if rows * len(found) > MAX_VALUES:
        raise StoreError(f"{path}: {rows * len(found):,} values; the limit is {MAX_VALUES:,}")


def _check_names(path: Path, names: Sequence[str], kind: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StoreError(f"{path}: column {twice[0]} appears twice")
    if missing := [name for name in (*_NEVER_NULL[kind], *_NEEDED[kind]) if name not in names]:
        raise StoreError(f"{path}: column {missing[0]} is missing")


def _check_type(path: Path, field: pa.Field, kind: str) -> None:
    """A known column has its own type; one that a later version added has a plain type and an unused name."""
    own = _COLUMNS[kind]
    if field.name in own.names:
        expected = own.field(field.name).type
        if field.type != expected:
            raise StoreError(f"{path}: column {field.name} is {field.type}, not {expected}")
    elif field.type not in _TYPES:
        raise StoreError(f"{path}: column {field.name} is {field.type}, a type that results do not use")
    elif field.name in _DERIVED or any(field.name in other.names for other in _COLUMNS.values()):
        raise StoreError(f"{path}: column {field.name} does not belong in a file of kind {kind}")


def check_rows(path: Path, rows: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Refuse rows that bench never writes: without their keys, with an unknown status, with gaps in a list.

    Raises:
        StoreError: With the row and the column.
    """
    for number, row in enumerate(rows):
        for name in _NEVER_NULL[kind]:
            if row[name] is None:
                raise StoreError(f"{path}: row {number}: {name} must not be null")
        if kind != "estimates" and row["batch_size"] < 1:
            raise StoreError(f"{path}: row {number}: invalid batch size {row['batch_size']}")
        if kind == "run" and row["status"] not in tuple(Status):
            raise StoreError(f"{path}: status {row['status'][:40]!r} is not one of {', '.join(Status)}")
        for name, value in row.items():
            if isinstance(value, list) and None in value:
                raise StoreError(f"{path}: row {number}: null value in {name}")


def parse_notes(path: Path, text: bytes, kind: str) -> dict[str, Any]:
    """The notes stored with the rows; those of a plan have the protocol and the environment of its runs.

    Raises:
        StoreError: They are not what bench writes.
    """
    try:
        notes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: its notes are not valid JSON ({error})") from error
    if not isinstance(notes, dict):
        raise StoreError(f"{path}: its notes are not a JSON object")
    for name in ("protocol", "environment") if kind == "plan" else ():
        if not isinstance(notes.get(name), dict):
            raise StoreError(f"{path}: its notes lack the {name} of its runs")
        try:
            pa.Table.from_pylist([notes[name]], schema=schema.RUN)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: its notes have an invalid value in {name} ({error})") from error
    return notes


Row = dict[str, Any]

_VERSION, _KIND, _HASH, _NOTES, _NOTES_HASH = (
    f"bench.{name}".encode() for name in ("schema_version", "kind", "sha256", "notes", "notes_sha256")
)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
TEMPORARY = ".tmp-"
"""Prefix of unfinished files, which nobody reads."""

LEFTOVER_AGE_S = 3600.0
"""No commit takes longer: the writer of an older unfinished file is dead."""


class UnreadableError(StoreError):
    """The disk cannot read a part: its content is unknown, and it stays where it is."""


class NewerFormatError(StoreError):
    """A part of a newer format, which a newer version can read."""


def parts(folder: Path, pattern: str = "*.parquet") -> list[Path]:
    """The finished parts of a folder, by name."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(TEMPORARY))


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
    noted = json.dumps(notes or {}, sort_keys=True)
    metadata = {
        _VERSION: str(SCHEMA_VERSION),
        _KIND: kind,
        _HASH: rows_hash(table.to_pylist()),
        _NOTES: noted,
        _NOTES_HASH: hashlib.sha256(noted.encode()).hexdigest(),
    }
    return table.replace_schema_metadata(metadata)


def commit(table: pa.Table, target: Path) -> None:
    """Write `table` to `target` completely or not at all; it is on disk when this returns.

    Raises:
        FileExistsError: `target` exists; it is not changed.
        StoreError: The disk cannot write it (full, read-only, gone).
    """
    commit_bytes(encode(table), target)


def encode(table: pa.Table) -> pa.Buffer:
    """The content of the part with these rows, notes and hash. Equal tables give equal bytes."""
    # Small parts are read by the thousand: no compression, statistics or dictionaries halves the time.
    small = table.num_rows < 50
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="none" if small else "zstd",
        use_dictionary=not small,
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table)
        # store_schema=False leaves the schema's metadata out as well: it is what says that this is a part
        writer.add_key_value_metadata(table.schema.metadata or {})
    return sink.getvalue()


def commit_bytes(data: pa.Buffer | bytes, target: Path) -> None:
    """Write a file as `commit` does."""
    with whole_or_absent(target) as file:
        file.write(data)


@contextlib.contextmanager
def whole_or_absent(target: Path, prefix: str = TEMPORARY, *, replace: bool = False) -> Iterator[BinaryIO]:
    """A file to write to that gets the name `target` once it is complete and on the disk; gone after any error.

    Args:
        target: The name; its folder exists.
        prefix: Of the unfinished file's name, for `clear_leftovers`.
        replace: Whether a file of that name is replaced.

    Raises:
        FileExistsError: `target` exists and must not be replaced; it is not changed.
        StoreError: The disk cannot write it (full, read-only, gone).
    """
    temporary = target.parent / f"{prefix}{uuid.uuid4().hex}"
    with typed_errors(target):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(target)
            else:
                _link(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


def read(path: Path, kind: str) -> pa.Table:
    """One part's rows, checked against their hash, as are its notes; see `checking` for what else must hold.

    Raises:
        UnreadableError: The disk cannot read it.
        NewerFormatError: Written by a newer version.
        StoreError: Not a part of this kind, or not as it was written. All three name the file.
    """
    return decode(path, read_bytes(path), kind)


def read_bytes(path: Path, limit: int = MAX_PART_BYTES) -> bytes:
    """A file's content. Whether it is a regular file is looked up before it is opened: a pipe would block.

    Raises:
        UnreadableError: The disk cannot read it.
        StoreError: Not a regular file, or larger than `limit` bytes.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path}: not a regular file")
        if status.st_size > limit:
            raise StoreError(f"{path}: larger than {limit >> 20} MiB, the limit for one file")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror or error}); nothing was changed") from error


def decode(path: Path, data: bytes, kind: str) -> pa.Table:
    """The rows of a part whose content is `data`. Raises as `read`; `path` is for messages."""
    with damage_named(path), pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        found_schema = file.schema_arrow
        metadata = found_schema.metadata or file.metadata.metadata or {}
        _check_header(path, metadata, kind)
        check_columns(path, found_schema, file.metadata.num_rows, kind)
        table = file.read(use_threads=False)
        # adding up the sizes of all columns takes a fifth of the whole time, and few parts can be that large
        if pa.total_allocated_bytes() + len(data) > MAX_PART_BYTES and table.nbytes > MAX_PART_BYTES:
            raise StoreError(f"{path}: {table.nbytes >> 20} MiB in memory; the limit is {MAX_PART_BYTES >> 20} MiB")
        rows = table.to_pylist()
        check_rows(path, rows, kind)
        found = rows_hash(rows).encode()
    if found != metadata.get(_HASH):
        raise StoreError(f"{path}: its rows do not match their hash; restore or delete it")
    return table.replace_schema_metadata(metadata)  # the one that was checked; a file can hold two


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises while it reads a damaged file into a StoreError that names the file."""
    try:
        yield
    except MemoryError as error:  # pyarrow's own is one too
        raise StoreError(f"{path}: takes more memory than there is; damaged, or not written by bench") from error
    except (pa.ArrowException, OSError, ValueError) as error:  # Arrow says of some damage that it is an OSError
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"{path}: damaged or not a Parquet file ({said[:200]})") from error


def clear_leftovers(folder: Path, prefix: str = TEMPORARY) -> None:
    """Delete what killed writers left in `folder`; one that may still be running keeps its file."""
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it costs space, no more
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                path.unlink()


def notes_of(table: pa.Table) -> dict[str, Any]:
    """The notes that the writer stored with the rows."""
    notes: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_NOTES, b"{}"))
    return notes


def version_of(table: pa.Table) -> int:
    """The format's version that wrote the rows."""
    return int((table.schema.metadata or {}).get(_VERSION, b"0"))


def _check_header(path: Path, metadata: Mapping[bytes, bytes], kind: str) -> None:
    found = metadata.get(_KIND, b"").decode(errors="replace")
    if found != kind:
        raise StoreError(f"{path}: not a results file of kind {kind} (its kind is {found or 'missing'})")
    version = int(metadata.get(_VERSION, b"0"))
    if version > SCHEMA_VERSION:
        raise NewerFormatError(
            f"{path}: written by a newer version (format {version}; this one reads up to {SCHEMA_VERSION})"
        )
    noted = metadata.get(_NOTES_HASH)  # parts of before have none
    if noted is not None and hashlib.sha256(metadata.get(_NOTES, b"")).hexdigest().encode() != noted:
        raise StoreError(f"{path}: its notes do not match their hash; restore or delete it")
    parse_notes(path, metadata.get(_NOTES, b"{}"), kind)


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
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
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
    """Turn errors of the operating system into a StoreError that names the path; FileExistsError passes unchanged."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        hint = {errno.ENOSPC: "free some space and run the same command again", errno.EROFS: "choose another --out"}
        advice = hint.get(error.errno or 0, "finished runs are kept; run the same command again to resume")
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error
