"""What a part must look like before its rows are used: it may come from anyone, and its hash is not a signature.

Whoever writes a part can write a matching hash. So sizes, types and everything that readers rely on are checked here,
once: after that, no part is too large for memory, has columns of other types, or lacks its keys.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.errors import StoreError
from bench.records import AXES, Group, Status, columns
from bench.store import schema
from bench.store.pages import unpacked

MAX_PART_BYTES = 256 << 20
"""Of the file, of what it says that it unpacks to, and of each column's text in memory."""

MAX_VALUES = 4_000_000
"""Of all columns together; a plan of 200,000 runs has fewer."""

_KEYS = ("case_key", *AXES, "repeat", "position", *columns(Group))
_COLUMNS = {"plan": schema.PLAN, "run": schema.RUN, "estimates": schema.ESTIMATE}
_NEVER_NULL = {
    "plan": _KEYS,
    "run": ("run_key", "attempt", "status", "device", *_KEYS),
    "estimates": ("case_key", "estimate_device"),
}
_NEEDED = {"plan": ("skip_reason",), "run": ("step_times_s", "wall_window_s", "duration_s"), "estimates": ()}
_DERIVED = ("planned", "schema_version", "samples_per_s", "median_step_time_s")
_SCALARS = (pa.bool_(), pa.int64(), pa.float64(), pa.string())
_TYPES = (*_SCALARS, *(pa.list_(kind) for kind in _SCALARS))


def check_file(path: Path, limit: int = MAX_PART_BYTES) -> None:
    """Refuse a file that is not regular or is larger than `limit` bytes before opening it: a pipe would block.

    Raises:
        StoreError: The reason.
        OSError: The file cannot be examined.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path}: not a regular file")
    if status.st_size > limit:
        raise StoreError(f"{path}: larger than {limit >> 20} MiB, the limit for one file")


def check_columns(path: Path, data: bytes, file: pq.ParquetFile, kind: str) -> None:
    """Refuse a part by its footer and the headers of its pages, before any row is decoded.

    Args:
        path: For messages.
        data: The whole file.
        file: The same, opened.
        kind: The expected kind.

    Raises:
        StoreError: Too large, or its columns are not those of its kind.
        ValueError: The file is damaged.
    """
    found, rows = file.schema_arrow, file.metadata.num_rows
    if kind == "run" and rows != 1:
        raise StoreError(f"{path}: {rows} rows; the file of a run has one")
    if not found.equals(_COLUMNS[kind]):  # what this version writes need not be looked at in detail
        _check_names(path, found.names, kind)
        for field in found:
            _check_type(path, field, kind)
    size, values = unpacked(data, {number for number, item in enumerate(found.types) if pa.types.is_list(item)})
    values += rows * len(found)
    if values > MAX_VALUES or size > MAX_PART_BYTES:
        limit = f"{MAX_VALUES:,} in {MAX_PART_BYTES >> 20} MiB"
        raise StoreError(f"{path}: {values:,} values in {size >> 20} MiB; the limit is {limit}")


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


def texts(file: pq.ParquetFile) -> list[str]:
    """The columns of text, to be read as dictionaries, so that a text in many rows is stored once."""
    if file.metadata.num_rows == 1:
        return []
    return [field.name for field in file.schema_arrow if field.type == pa.string()]


def plain(path: Path, table: pa.Table) -> pa.Table:
    """The table with its dictionaries unfolded. Raises StoreError if that would take too much memory."""
    for index, field in enumerate(table.schema):
        if not pa.types.is_dictionary(field.type):
            continue
        column = table.column(index)
        size = sum(
            pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices).cast(pa.int64())).as_py() or 0
            for chunk in column.chunks
        )
        if size > MAX_PART_BYTES:
            raise StoreError(f"{path}: column {field.name} holds {size >> 20} MiB of text, more than the limit")
        table = table.set_column(index, field.name, column.cast(pa.string()))
    return table


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
