"""What fuzzing and looking for bombs found, each with its own input: refused with a sentence, in bounded memory."""

from __future__ import annotations

import json
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.catalog import parse_choice
from bench.config import load_config
from bench.devices import load_device
from bench.errors import BenchError, ConfigError, StoreError
from bench.recordings import read_recording
from bench.store import load_notes, load_results
from bench.store.parts import MAX_PART_BYTES, MAX_VALUES, read, rows_hash
from tests.fuzz.targets import TARGETS
from tests.results import make_cases, make_results

Change = Callable[[pa.Table], pa.Table]
PARTS = {"plan": "plan-0001.parquet", "run": "runs/*.parquet", "estimates": "estimates/*.parquet"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return make_results(tmp_path / "data", make_cases(("mnist",), ("mlp",), ("sgd",), (16,)), repeats=1, trace=True)


def part(results: Path, kind: str) -> Path:
    return next(iter(sorted(results.glob(PARTS[kind]))))


def forge(path: Path, change: Change = lambda table: table, notes: bytes | None = None, **options: Any) -> None:
    """Write a part again, changed, with the hash that fits."""
    old = pq.read_table(path)
    table = change(old)
    metadata = {**old.schema.metadata, b"bench.sha256": rows_hash(table.to_pylist()).encode()}
    metadata.pop(b"bench.notes_sha256", None)
    if notes is not None:
        metadata[b"bench.notes"] = notes
    with pq.ParquetWriter(path, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)


def swap(name: str, values: list[Any], kind: pa.DataType) -> Change:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values, kind))


def again(name: str) -> Change:
    return lambda table: table.append_column(name, table.column(name))


def extra(name: str, kind: pa.DataType) -> Change:
    return lambda table: table.append_column(name, pa.nulls(table.num_rows, kind))


COLUMNS = [
    ("run", again("model"), "column model appears twice"),
    ("plan", again("environment_key"), "column environment_key appears twice"),
    ("plan", lambda table: table.drop_columns(["repeat"]), "column repeat is missing"),
    ("run", lambda table: table.drop_columns(["step_times_s"]), "column step_times_s is missing"),
    ("run", swap("data_source", [None], pa.date32()), "column data_source is date32[day], not string"),
    ("estimates", swap("formula_bytes", [1.0], pa.float64()), "column formula_bytes is double, not int64"),
    (
        "run",
        extra("tomorrows", pa.struct([("a", pa.int64())])),
        "column tomorrows is struct<a: int64>, a type that results do not use",
    ),
    ("run", extra("formula_bytes", pa.int64()), "column formula_bytes does not belong in a file of kind run"),
    (
        "estimates",
        extra("samples_per_s", pa.float64()),
        "column samples_per_s does not belong in a file of kind estimates",
    ),
    ("run", lambda table: table.slice(0, 0), "0 rows; the file of a run has one"),
    ("run", lambda table: pa.concat_tables([table, table]), "2 rows; the file of a run has one"),
    (
        "run",
        swap("status", ["great"], pa.string()),
        "status 'great' is not one of ok, oom, timeout, crashed, failed, skipped, nan_loss, throttled, interrupted",
    ),
    ("plan", swap("case_key", [None], pa.string()), "row 0: case_key must not be null"),
    ("run", swap("batch_size", [0], pa.int64()), "row 0: invalid batch size 0"),
    ("run", swap("step_times_s", [[0.1, None]], pa.list_(pa.float64())), "row 0: null value in step_times_s"),
]


@pytest.mark.parametrize(("kind", "change", "message"), COLUMNS, ids=[message for *_, message in COLUMNS])
def test_a_part_whose_hash_fits_but_whose_columns_do_not_is_refused(
    results: Path, kind: str, change: Change, message: str
) -> None:
    path = part(results, kind)
    forge(path, change)
    with pytest.raises(StoreError) as caught:
        read(path, kind)
    assert str(caught.value) == f"{path}: {message}"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_results(results)
    assert [str(item.message) for item in seen if "skipped" in str(item.message)] == [f"skipped: {path}: {message}"]


NOTES = [
    (b"\x80", "its notes are not valid JSON ('utf-8' codec can't decode byte 0x80 in position 0: invalid start byte)"),
    (
        b"{",
        "its notes are not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
    ),
    (
        b"[" * 100_000,
        "its notes are not valid JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string)",
    ),
    (b"[]", "its notes are not a JSON object"),
    (b"{}", "its notes lack the protocol of its runs"),
    (b'{"protocol": {}, "environment": []}', "its notes lack the environment of its runs"),
    (
        json.dumps({"protocol": {"seed": 10**30}, "environment": {}}).encode(),
        "its notes have an invalid value in protocol (Python int too large to convert to C long)",
    ),
]


@pytest.mark.parametrize(("notes", "message"), NOTES, ids=[message[:40] for _, message in NOTES])
def test_a_plan_with_odd_notes_is_refused(results: Path, notes: bytes, message: str) -> None:
    path = part(results, "plan")
    forge(path, notes=notes)
    with pytest.raises(StoreError) as caught:
        read(path, "plan")
    assert str(caught.value) == f"{path}: {message}"
    with pytest.warns(UserWarning, match="skipped"):
        load_notes(results)


def test_two_later_versions_that_disagree_on_a_column_load(results: Path) -> None:
    run = part(results, "run")
    other = run.with_name(f"{run.stem}0.parquet")
    other.write_bytes(run.read_bytes())
    forge(run, extra("tomorrows", pa.int64()))
    forge(other, lambda table: extra("tomorrows", pa.string())(swap("repeat", [1], pa.int64())(table)))
    forge(part(results, "estimates"), extra("tomorrows", pa.bool_()))
    assert len(load_results(results)) == 2


def list_of_nulls(count: int) -> Change:
    def change(table: pa.Table) -> pa.Table:
        values = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.float64()))
        return table.set_column(table.column_names.index("step_times_s"), "step_times_s", values)

    return change


def bomb_of_values(path: Path) -> None:
    """A list of 20 million unknowns, in a few KiB."""
    table = pq.read_table(path)
    metadata = table.schema.metadata
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(list_of_nulls(20_000_000)(table))
        writer.add_key_value_metadata(metadata)
    assert path.stat().st_size < 1 << 20


def bomb_of_bytes(path: Path) -> None:
    """A text of 400 MiB, in some KiB."""
    table = pq.read_table(path)
    metadata = table.schema.metadata
    with pq.ParquetWriter(
        path, table.schema, store_schema=False, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        writer.write_table(swap("reason", ["x" * (400 << 20)], pa.string())(table))
        writer.add_key_value_metadata(metadata)
    assert path.stat().st_size < 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bomb", "message"),
    [(bomb_of_bytes, "400 MiB in memory; the limit is 256 MiB"), (bomb_of_values, "row 0: null value in step_times_s")],
)
def test_a_bomb_in_a_folder_is_refused(results: Path, bomb: Callable[[Path], None], message: str) -> None:
    path = part(results, "run")
    bomb(path)
    with pytest.raises(StoreError) as caught:
        read(path, "run")
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("kind", PARTS)
def test_no_damage_to_a_footer_ends_the_process(results: Path, kind: str) -> None:
    """Asking pyarrow for a damaged entry of a column aborts the process: it was 1 flip of a bit in 250. So nobody asks."""
    path, rng = part(results, kind), random.Random(3)
    data = path.read_bytes()
    start = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    for _ in range(150):
        place, bit = rng.randrange(start, len(data)), 1 << rng.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        try:
            read(path, kind)
        except StoreError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("name", ["address", "stack"])
def test_a_recording_with_a_column_twice_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.parquet"
    path.write_bytes(TARGETS["recording"].seeds(tmp_path)[1])
    old = pq.read_table(path)
    pq.write_table(old.append_column(name, old.column(name)), path)
    with pytest.raises(StoreError) as caught:
        read_recording(path)
    assert str(caught.value) == f"{path}: its columns are not those of a recording (action, address, bytes, stack)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '"a b" = 1\n',
            'in.toml: unknown key "a b". Allowed: name, description, grid, include, exclude, measure, limits, data, launcher',
        ),
        (
            "list = 1\n",
            'in.toml: unknown key "list". Nearest: limits. Allowed: name, description, grid, include, exclude, measure, limits, data, launcher',
        ),
    ],
)
def test_a_key_that_is_no_word_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.toml").write_text(
        f"{text}name = 'x'\n[grid]\ndataset = 'mnist'\nmodel = 'mlp'\noptimizer = 'sgd'\nbatch_size = 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(Path("in.toml"))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory_bytes = " + "9" * 5000, "not valid TOML: a number has thousands of digits"),
        ("memory_bytes = " + "[" * 5000, "not valid TOML: nested too deeply"),
        ("boost_clock_hz = 0x" + "f" * 5000, "a number has thousands of digits"),
        ("x = 1\n" * (1 << 18), "larger than 1 MiB, the limit for a device file"),
    ],
)
def test_an_absurd_device_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(BenchError) as caught:
        load_device(str(path))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 3000, "{a=" * 800], ids=["digits", "brackets", "braces"])
def test_an_absurd_setting_is_refused(value: str) -> None:
    with pytest.raises(BenchError):
        parse_choice("model", f"mlp:hidden={value}")


def test_a_pipe_among_the_parts_is_not_waited_for(results: Path) -> None:
    import os

    os.mkfifo(results / "runs" / "a.parquet")
    with pytest.warns(UserWarning, match=r"a\.parquet: not a regular file"):
        load_results(results)


def test_the_limits_leave_room_for_the_largest_plan() -> None:
    assert MAX_VALUES > 17 * 200_000
    assert MAX_PART_BYTES == 256 << 20
