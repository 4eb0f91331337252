"""One recording in one file: columns of numbers as Parquet, the facts beside them as JSON in its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.errors import StoreError
from bench.recordings.facts import Facts, parse_facts
from bench.store.parts import commit, damage_named, read_bytes

FREE_COMPLETED, MARK, OOM, OTHER = 2, 5, 6, 9
"""Codes of the column `action`, beside 0 alloc, 1 free_requested, 3 segment_alloc and 4 segment_free.

An `OOM` holds the rounded bytes that could not be had; `OTHER` is whatever else torch notes.
"""
ADDRESS_UNIT = 512
"""Bytes: every block begins at a multiple of it."""

MAX_FILE_BYTES = 64 << 20
MAX_EVENTS = 2_000_000
MAX_METADATA_BYTES = 1 << 20
_FACTS, _HASH = b"bench.recording", b"bench.sha256"
_COLUMNS = (("action", pa.uint8()), ("address", pa.int64()), ("bytes", pa.int64()))
_STACK = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True, slots=True)
class Recording:
    """Events of one case in order, as columns of equal length, and the facts about them.

    Attributes:
        facts: Case, GPU, versions, what torch reported at each mark.
        actions: Codes, see `MARK` and its neighbours.
        addresses: In units of 512 B above the lowest.
        sizes: Bytes asked for; a mark's number; of segments, their size.
        stacks: What Python ran at each event, innermost line first; empty if that was not recorded.
    """

    facts: Facts
    actions: list[int]
    addresses: list[int]
    sizes: list[int]
    stacks: list[str]


def write_recording(recording: Recording, path: Path) -> None:
    """Write a recording completely or not at all.

    Raises:
        FileExistsError: `path` exists; it is not changed.
        StoreError: The disk cannot write it.
    """
    columns = (recording.actions, recording.addresses, recording.sizes)
    arrays: list[Any] = [pa.array(values, kind) for values, (_, kind) in zip(columns, _COLUMNS, strict=True)]
    names = [name for name, _ in _COLUMNS]
    if recording.stacks:
        arrays.append(pa.array(recording.stacks, pa.string()).dictionary_encode())
        names.append("stack")
    facts = recording.facts.model_dump_json().encode()
    table = pa.table(arrays, names).replace_schema_metadata({_FACTS: facts, _HASH: _digest(facts, columns)})
    commit(table, path)


def read_recording(path: Path) -> Recording:
    """Read a recording from any source.

    Raises:
        StoreError: Absent, damaged, not a recording, larger than one can be, or written by a newer version; the message
            names the file.
        BenchError: Its case names a setting that this version does not know.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such file. Create recordings with: bench record")
    data = read_bytes(path, MAX_FILE_BYTES)
    with damage_named(path):
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            metadata = file.schema_arrow.metadata or file.metadata.metadata or {}
            _check_shape(path, file, metadata)
            stacked = [name for name in file.schema_arrow.names if name == "stack"]
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, read_dictionary=stacked) as file:
            table = file.read(use_threads=False)
        columns = [table.column(name).to_pylist() for name, _ in _COLUMNS]
        stacks = _stacks_of(table)
        is_whole = _digest(metadata[_FACTS], columns) == metadata.get(_HASH)
    if not is_whole:
        raise StoreError(f"{path}: its content does not match its hash; record it again")
    return Recording(parse_facts(metadata[_FACTS], str(path)), columns[0], columns[1], columns[2], stacks)


def _check_shape(path: Path, file: pq.ParquetFile, metadata: dict[bytes, bytes]) -> None:
    """Refuse a file that is not a recording, or has too many events, before decoding it."""
    if _FACTS not in metadata:
        raise StoreError(f"{path}: a Parquet file, but not a recording of bench record")
    if len(metadata[_FACTS]) > MAX_METADATA_BYTES:
        raise StoreError(
            f"{path}: its metadata are larger than {MAX_METADATA_BYTES >> 20} MiB, the limit for a recording"
        )
    rows = file.metadata.num_rows
    if rows > MAX_EVENTS:
        raise StoreError(f"{path}: {rows:,} events; the limit is {MAX_EVENTS:,}")
    types = {field.name: field.type for field in file.schema_arrow}
    is_twice = len(types) < len(file.schema_arrow)
    stack = types.pop("stack", _STACK)
    is_stack = pa.types.is_string(stack.value_type if pa.types.is_dictionary(stack) else stack)
    if is_twice or types != dict(_COLUMNS) or not is_stack:
        raise StoreError(f"{path}: its columns are not those of a recording (action, address, bytes, stack)")


def _stacks_of(table: pa.Table) -> list[str]:
    """The column of stacks; each text is held once, however often it comes."""
    if "stack" not in table.column_names:
        return []
    found: list[str] = []
    for chunk in table.column("stack").chunks:
        texts = chunk.dictionary.to_pylist()
        found += [texts[index] if index is not None else "" for index in chunk.indices.to_pylist()]
    return found


def _digest(facts: bytes, columns: Sequence[Sequence[int]]) -> bytes:
    """The SHA-256 of facts and numbers, as hexadecimal digits. Raises ValueError for a null among the numbers."""
    digest = hashlib.sha256(facts)
    for values, (_, kind) in zip(columns, _COLUMNS, strict=True):
        if None in values:
            raise ValueError("null values among the events")
        digest.update(pa.array(values, kind).buffers()[1])
    return digest.hexdigest().encode()
