"""The file of a recording: what is written is read back, and what is none is refused before it can do harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.errors import BenchError, StoreError
from bench.estimators.allocator import Alloc, Free, Mark
from bench.estimators.allocator.replay import ALLOC, FREE_REQUESTED, MARK
from bench.estimators.allocator.replay import FREE_COMPLETED as REPLAYED_FREE
from bench.recordings import FREE_COMPLETED, OOM, OTHER, case_of, files, pack_history, read_recording, write_recording
from bench.records import Case, Choice

from .made_recordings import make_facts, make_recording

EVENTS = [Alloc(0, 1000), Mark("0"), Alloc(1, 5 << 20), Free(1), Mark("1")]


def write(tmp_path: Path, **fields: Any) -> Path:
    path = tmp_path / "r.parquet"
    write_recording(make_recording(EVENTS, **fields), path)
    return path


def forge(path: Path, metadata: dict[bytes, bytes] | None = None, table: pa.Table | None = None) -> None:
    """Write the file again with other content but no other hash."""
    old = pq.read_table(path)
    changed = (table or old).replace_schema_metadata({**(old.schema.metadata or {}), **(metadata or {})})
    pq.write_table(changed, path)


def facts_json(path: Path) -> dict[str, Any]:
    return json.loads(pq.read_schema(path).metadata[b"bench.recording"])


def test_a_recording_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    recording = make_recording(EVENTS)
    object.__setattr__(recording, "stacks", [f"line {index % 2}" for index in range(len(recording.actions))])
    write_recording(recording, tmp_path / "r.parquet")
    assert read_recording(tmp_path / "r.parquet") == recording
    with pytest.raises(FileExistsError):
        write_recording(recording, tmp_path / "r.parquet")


def test_codes_of_actions_are_those_that_the_replay_reads() -> None:
    assert (REPLAYED_FREE, MARK) == (FREE_COMPLETED, files.MARK)
    assert not {OOM, OTHER} & {ALLOC, FREE_REQUESTED, MARK}


def test_a_history_is_packed_with_its_marks_and_without_places_of_this_machine() -> None:
    frames = [
        {"filename": "/home/me/env/lib/python3/site-packages/torch/nn/linear.py", "line": 3, "name": "forward"},
        {"filename": "/home/me/project/train.py", "line": 7, "name": "main"},
    ]
    trace = [
        {"action": "segment_alloc", "addr": 1 << 20, "size": 2 << 20},
        {"action": "alloc", "addr": (1 << 20) + 1024, "size": 700, "frames": frames},
        {"action": "oom", "device_free": 5, "size": 1 << 30},
        {"action": "snapshot", "addr": 0, "size": 0},
    ]
    actions, addresses, sizes, stacks = pack_history(trace, [0, 2, 2, 4])
    assert actions == [files.MARK, 3, 0, files.MARK, files.MARK, OOM, OTHER, files.MARK]
    assert addresses == [0, 0, 2, 0, 0, 0, 0, 0]
    assert sizes == [0, 2 << 20, 700, 1, 2, 1 << 30, 0, 3]
    assert stacks[2] == "torch/nn/linear.py:3 forward\nproject/train.py:7 main"
    assert "".join(stacks[:2] + stacks[3:]) == ""


def test_the_case_of_a_recording_is_that_of_its_axes() -> None:
    case = Case(
        Choice("cifar10"),
        Choice("resnet18"),
        Choice.of("adamw", {"fused": True}),
        16,
        "bf16",
        "channels_last",
        "cached",
        32,
    )
    assert case_of(make_facts(case), "here") == case


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    """One bit of the rows, wherever the page lies."""
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def some_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def other_numbers(path: Path) -> None:
    table = pq.read_table(path)
    sizes = pa.array([value + 512 for value in table["bytes"].to_pylist()])
    forge(path, table=table.set_column(2, "bytes", sizes))


def nulls(path: Path) -> None:
    table = pq.read_table(path)
    forge(path, table=table.set_column(2, "bytes", pa.array([None] * table.num_rows, pa.int64())))


def texts(path: Path) -> None:
    table = pq.read_table(path)
    forge(path, table=table.set_column(2, "bytes", pa.array(["x"] * table.num_rows)))


def more_columns(path: Path) -> None:
    table = pq.read_table(path)
    forge(path, table=table.append_column("extra", table["bytes"]))


def other_facts(path: Path) -> None:
    forge(path, {b"bench.recording": json.dumps({**facts_json(path), "reason": "other"}).encode()})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged or not a Parquet file"),
        (flip, "damaged or not a Parquet file"),
        (empty, "damaged or not a Parquet file"),
        (some_parquet, "a Parquet file, but not a recording of bench record"),
        (other_numbers, "its content does not match its hash"),
        (nulls, "null values among the events"),
        (texts, "its columns are not those of a recording"),
        (more_columns, "its columns are not those of a recording"),
        (other_facts, "its content does not match its hash"),
        (Path.unlink, "no such file. Create recordings with: bench record"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_recording_is_refused_with_a_sentence(tmp_path: Path, damage: Any, message: str) -> None:
    path = write(tmp_path)
    damage(path)
    with pytest.raises(StoreError) as caught:
        read_recording(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("MAX_FILE_BYTES", "larger than"),
        ("MAX_EVENTS", "6 events; the limit is 4"),
        ("MAX_METADATA_BYTES", "its metadata are larger than"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    path = write(tmp_path)
    read_recording(path)
    monkeypatch.setattr(files, limit, 4)
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    with pytest.raises(StoreError) as caught:
        read_recording(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "written by a newer version (format 2; this one reads up to 1)"),
        ({"case_key": "1" * 16}, "its axes and its case_key contradict each other"),
        ({"steps": 2}, "2 memory readings for 2 steps that ended ok"),
        ({"axes": {"model": "mlp"}}, "its axes are missing dataset, optimizer"),
        ({"axes": {**make_facts().axes, "precision": "float8"}}, "precision 'float8' is not one of float32, tf32"),
        ({"axes": {**make_facts().axes, "batch_size": -1}}, "must be whole numbers"),
        ({"axes": {**make_facts().axes, "model": "mpl"}}, 'unknown model "mpl". Nearest: mlp'),
    ],
    ids=str,
)
def test_facts_that_contradict_themselves_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **fields)
    with pytest.raises(BenchError) as caught:
        read_recording(path)
    assert message in str(caught.value)


def test_facts_that_are_none_are_refused_by_their_places(tmp_path: Path) -> None:
    from bench.recordings.facts import parse_facts

    with pytest.raises(StoreError) as caught:
        parse_facts(b'{"format": 1, "loop": "pickle", "steps": "3"}', "f.parquet")
    assert "f.parquet: its metadata are not those of a recording (loop: must be '" in str(caught.value)
    with pytest.raises(StoreError):
        parse_facts(b"[" * 100_000, "f.parquet")
