"""The runs of a results folder, read from one file where that file is known to agree with the parts.

Opening thousands of small Parquet files costs milliseconds each. `consolidate` therefore writes the rows of all parts
into one file below `data/consolidated`. The parts stay the journal: the file contains nothing that they do not, nothing
depends on it, and it can be deleted at any time.

It is used only as far as it can be checked. Its name is the SHA-256 of its own bytes, and each of its rows carries the
name and the SHA-256 of the part that it came from. A part that was added, changed or damaged since is read itself, a
row whose part is gone is dropped, and a file that does not match its name or the schema is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.errors import StoreError
from bench.store import schema
from bench.store.parts import (
    NewerFormatError,
    clear_leftovers,
    commit_bytes,
    decode,
    parts,
    read_bytes,
    typed_errors,
    version_of,
)

FOLDER = "consolidated"

WORTH_IT = 100
"""Parts that the file does not cover from which a new one is written; reading as many takes a third of a second."""

JOINED = 100
"""Parts that are read before they become one table: one row in a table of its own takes 200 KiB of memory."""
_MOST_THREADS = 4
"""That read parts. A third of the work holds Python's lock, so that more than three gain nothing."""

_FORMAT = "1"
"""Of the file. Raise it when a part that was accepted before is to be refused, so that every part is checked again."""

_FORMAT_KEY = b"bench.consolidated"
_MAX_BYTES = 4 << 30
PART, PART_HASH = "part", "part_sha256"
_VERSION = "schema_version"
_BESIDE = [pa.field(PART, pa.string()), pa.field(PART_HASH, pa.string()), pa.field(_VERSION, pa.int64())]


@dataclass(frozen=True, slots=True)
class Damaged:
    """A part that could not be used.

    Attributes:
        path: Its path.
        error: The reason; the text begins with the path. `UnreadableError` if the disk cannot read it.
    """

    path: Path
    error: StoreError

    @property
    def reason(self) -> str:
        """The reason, without the path."""
        return str(self.error).removeprefix(f"{self.path}: ")


@dataclass(frozen=True, slots=True)
class StoredRuns:
    """The runs of one results folder.

    Attributes:
        table: One row for each run, ordered by the name of its part, with the columns of `schema.RUN`, those of later
            formats, and `part`, `part_sha256` and `schema_version`.
        damaged: Parts that are not in it.
        uncovered: How many parts the consolidated file does not cover.
    """

    table: pa.Table
    damaged: tuple[Damaged, ...]
    uncovered: int


def read_runs(folder: Path) -> StoredRuns:
    """Every run of a results folder.

    Raises:
        NewerFormatError: A part was written by a newer version.
    """
    kept = _read_consolidated(folder / FOLDER)
    rows_of = {
        name: (digest, row) for row, (name, digest) in enumerate(zip(*_columns(kept, PART, PART_HASH), strict=True))
    }

    def read_part(path: Path) -> int | pa.Table | Damaged:
        """Its row in the consolidated file, or else what it holds."""
        try:
            data = read_bytes(path)
            digest = hashlib.sha256(data).hexdigest()
            known, row = rows_of.get(path.name, ("", -1))
            return row if known == digest else _beside(decode(path, data, "run"), path.name, digest)
        except NewerFormatError:
            raise
        except StoreError as error:
            return Damaged(path, error)

    covered: list[int] = []
    tables: list[pa.Table] = []
    fresh: list[pa.Table] = []
    damaged: list[Damaged] = []
    uncovered = 0
    for found in _map(read_part, parts(folder / "runs")):
        if isinstance(found, int):
            covered.append(found)
        elif isinstance(found, Damaged):
            damaged.append(found)
        else:
            fresh.append(found)
            uncovered += 1
            if len(fresh) == JOINED:
                tables, fresh = [*tables, join_tables(fresh)], []
    if len(covered) < kept.num_rows:
        kept = kept.take(pa.array(covered, pa.int64()))
    table = join_tables([kept, *tables, *fresh])
    if uncovered and kept.num_rows:
        table = table.sort_by(PART)
    return StoredRuns(table, tuple(damaged), uncovered)


def _map(read_part: Callable[[Path], Any], paths: Sequence[Path]) -> Iterator[Any]:
    """What `read_part` says of each path, in order; of many, in threads: pyarrow rarely holds Python's lock."""
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    if len(paths) < WORTH_IT or threads < 2:
        yield from map(read_part, paths)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(read_part, paths)


def consolidate(folder: Path, runs: StoredRuns | None = None) -> Path | None:
    """Write the consolidated file of a results folder again, if enough parts are not in it.

    A part with columns of a newer version is not included. Concurrent readers read the parts.

    Args:
        folder: The results folder.
        runs: What was just read of it; it is read unless given.

    Returns:
        The new file; None if the existing one suffices, or the disk cannot write it: it only saves time.

    Raises:
        NewerFormatError: A part was written by a newer version.
    """
    runs = runs or read_runs(folder)
    if runs.uncovered < WORTH_IT:
        return None
    names = [field.name for field in schema.RUN]
    extra = [name for name in runs.table.column_names if name not in names and name not in (PART, PART_HASH, _VERSION)]
    table = runs.table
    for name in extra:
        table = table.filter(table[name].is_null())
    table = table.select([*names, PART, PART_HASH, _VERSION])
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_statistics=False, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_FORMAT_KEY: _FORMAT})
    data = sink.getvalue()
    place = folder / FOLDER
    target = place / f"runs-{hashlib.sha256(data).hexdigest()}.parquet"
    try:
        with typed_errors(place), contextlib.suppress(FileExistsError):  # another process wrote the same
            place.mkdir(exist_ok=True)
            commit_bytes(data, target)
        clear_leftovers(place)
        for older in parts(place):
            if older != target:
                older.unlink(missing_ok=True)
    except (OSError, StoreError):
        return None
    return target


def join_tables(tables: list[pa.Table]) -> pa.Table:
    """Concatenated tables; for a column with different types in two later versions, the rows of the first."""
    alike: dict[pa.Schema, list[pa.Table]] = {}
    for table in tables:  # joining tables of one schema is cheap, and there may be thousands
        plain = table.replace_schema_metadata(None)
        alike.setdefault(plain.schema, []).append(plain)
    types: dict[str, pa.DataType] = {}
    joined = []
    for group in (pa.concat_tables(group) for group in alike.values()):
        odd = [item.name for item in group.schema if types.setdefault(item.name, item.type) != item.type]
        joined.append(group.drop_columns(odd) if odd else group)
    return pa.concat_tables(joined, promote_options="default").combine_chunks()


def _beside(table: pa.Table, name: str, digest: str) -> pa.Table:
    """The one row of a part, with its origin."""
    values = (name, digest, version_of(table))
    for field, value in zip(_BESIDE, values, strict=True):
        table = table.append_column(field, pa.array([value], field.type))
    return table


def _read_consolidated(place: Path) -> pa.Table:
    """The rows of the consolidated file; none if it does not exist or does not match its name."""
    expected = pa.schema([*schema.RUN, *_BESIDE])
    for path in parts(place):
        try:
            data = read_bytes(path, _MAX_BYTES)
            if path.stem != f"runs-{hashlib.sha256(data).hexdigest()}":
                continue
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                if (file.schema_arrow.metadata or {}).get(_FORMAT_KEY) != _FORMAT.encode():
                    continue
                table = file.read().replace_schema_metadata(None)
        except (StoreError, pa.ArrowException, OSError, ValueError):
            continue  # the parts hold all of it
        if all(field.name in expected.names and expected.field(field.name).equals(field) for field in table.schema):
            return table
    return expected.empty_table()


def _columns(table: pa.Table, *names: str) -> list[list[str]]:
    return [table[name].to_pylist() if name in table.column_names else [] for name in names]
