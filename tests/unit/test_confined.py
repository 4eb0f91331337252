"""Files of others: what crashes, fills or holds up their reader is one sentence, and this process stays as it was."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bench
from bench.bundles import bundle as bundle_module
from bench.bundles import merge_results, open_bundle, write_bundle
from bench.confined import MEMORY_BYTES, limit_data, run_confined
from bench.errors import BenchError, StoreError
from bench.launchers import Send
from bench.store import consolidate
from bench.store.parts import encode, read, rows_hash
from tests.results import make_cases, make_results

MIB = 1 << 20
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts allocations on Linux only")


def answers(argument: Any, send: Send) -> dict[str, Any]:
    return {"argument": argument, "pid": os.getpid()}


def refuses(argument: Any, send: Send) -> dict[str, Any]:
    raise BenchError("a.parquet: not a recording")


def dies(argument: Any, send: Send) -> dict[str, Any]:
    """As a reader that a file crashes."""
    send({"file": argument[0][0][0] if isinstance(argument, tuple) else argument})
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hangs(argument: Any, send: Send) -> dict[str, Any]:
    send({"file": argument})
    time.sleep(60)
    return {}


def fills(argument: Any, send: Send) -> dict[str, Any]:
    send({"file": argument})
    bytearray(MEMORY_BYTES + MIB)
    return {}


def test_a_task_answers_from_another_process() -> None:
    found = run_confined(answers, [1], timeout_s=60)
    assert found["argument"] == [1]
    assert found["pid"] != os.getpid()


def test_what_the_task_says_to_the_user_arrives_as_it_is() -> None:
    with pytest.raises(StoreError) as caught:
        run_confined(refuses, None, timeout_s=60)
    assert str(caught.value) == "a.parquet: not a recording"


@pytest.mark.parametrize(
    ("task", "timeout_s", "reason"),
    [
        (dies, 60, "the process was killed by SIGSEGV during reading"),
        (hangs, 12, "timed out during reading"),
        pytest.param(fills, 60, "MemoryError", marks=needs_linux),
    ],
)
def test_what_ends_the_child_is_one_error_that_names_the_file(
    task: Callable[..., dict[str, Any]], timeout_s: float, reason: str
) -> None:
    with pytest.raises(StoreError) as caught:
        run_confined(task, "a.parquet", timeout_s=timeout_s)
    said = str(caught.value)
    assert said.startswith(f"a.parquet: cannot be read within 2 GiB and {timeout_s} s ({reason}")
    assert said.endswith("nothing of it was used. Ask its author for an intact copy")


@needs_linux
def test_the_limit_on_memory_is_never_above_one_that_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = list[tuple[int, int]]()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (-1, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: limits.append(both))
    limit_data(5000)
    assert limits == [(1000, 1000)]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return make_results(tmp_path / "own" / "data", make_cases(("mnist",), ("mlp",), ("sgd",), (16,)), repeats=2)


def bundle_of(data: Path) -> Path:
    """A bundle of the files in a folder, whatever they hold."""
    files = {f"data/{path.relative_to(data)}": path for path in data.rglob("*.parquet")}
    return write_bundle(data.with_name("mine.zip"), "mine", files).path  # type: ignore[arg-type,unused-ignore]


def a_run(data: Path) -> Path:
    return min((data / "runs").glob("*.parquet"))


def forge(path: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write a part again, changed, by another writer and with no hash that fits."""
    old = pq.read_table(path)
    with pq.ParquetWriter(path, change(old).schema, store_schema=False, **options) as writer:
        writer.write_table(change(old))
        writer.add_key_value_metadata(old.schema.metadata)


@contextmanager
def little_memory(most_bytes: int) -> Iterator[None]:
    """Check that this process touches no more than so many bytes at once beyond what it has (proc(5), clear_refs)."""

    def peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    yield
    assert peak() - before < most_bytes


def test_parts_of_a_bundle_are_read_as_they_are_and_written_by_this_version(results: Path) -> None:
    run = a_run(results)
    own = run.read_bytes()
    forge(run, lambda table: table, compression="gzip")
    foreign = run.read_bytes()
    assert foreign != own
    with open_bundle(bundle_of(results)) as folder:
        assert (folder / "data" / "runs" / run.name).read_bytes() == own
        pd.testing.assert_frame_equal(bench.load(folder), bench.load(results))
        merge_results(results.parent / "merged", [folder])
    assert (results.parent / "merged" / "data" / "runs" / run.name).read_bytes() == own
    pd.testing.assert_frame_equal(bench.load(results.with_name("mine.zip")), bench.load(results))
    assert run.read_bytes() == foreign


def test_columns_of_a_later_version_stay(results: Path) -> None:
    run = a_run(results)
    table = read(run, "run")
    later = table.append_column("tomorrows", pa.array([7]))
    metadata = {**table.schema.metadata, b"bench.sha256": rows_hash(later.to_pylist()).encode()}
    run.write_bytes(encode(later.replace_schema_metadata(metadata)))
    assert sorted(bench.load(bundle_of(results))["tomorrows"].dropna()) == [7]


def test_a_consolidated_file_in_a_bundle_is_not_read(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is the hash of its bytes, which anybody can write: it could say something else than the parts."""
    monkeypatch.setattr("bench.store.consolidated.WORTH_IT", 1)
    made = consolidate(results)
    assert made is not None
    truth = bench.load(results)
    forge(made, lambda table: table.set_column(table.column_names.index("seed"), "seed", pa.array([99] * len(table))))
    forged = made.read_bytes()
    made.unlink()
    made.with_name(f"runs-{hashlib.sha256(forged).hexdigest()}.parquet").write_bytes(forged)
    assert list(bench.load(results)["seed"]) == [99, 99]
    pd.testing.assert_frame_equal(bench.load(bundle_of(results)), truth)


def refused(bundle: Path) -> str:
    with pytest.raises(StoreError) as caught:
        bench.load(bundle)
    return str(caught.value)


def test_a_damaged_part_of_a_bundle_is_refused_by_its_name_with_what_to_do(results: Path) -> None:
    run = a_run(results)
    run.write_bytes(run.read_bytes()[:-100])
    said = refused(bundle_of(results))
    assert said.startswith(f"{results.with_name('mine.zip')}/data/runs/{run.name}: damaged or not a Parquet file (")
    assert said.endswith(
        "Ask its author for an intact bundle; if you trust this one, unpack it, and damaged parts are left out"
    )


def test_a_part_that_crashes_its_reader_is_named(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_rewrite_task", dies)
    said = refused(bundle_of(results))
    assert said.startswith(f"{results.with_name('mine.zip')}/data/estimates/")
    assert "(the process was killed by SIGSEGV during reading)" in said


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (1, "MiB in memory; the limit is 256 MiB"),
        (12, "takes more memory than there is; damaged, or not written by bench"),
    ],
)
def test_a_bomb_in_a_bundle_goes_off_in_the_child(results: Path, columns: int, message: str) -> None:
    """A part of some hundred KiB that unpacks to 300 MiB, or to more than the child may take."""
    text = pa.array(["x" * (300 * MIB)])
    run = a_run(results)

    def fill(table: pa.Table) -> pa.Table:
        for number in range(columns):
            table = table.append_column(f"tomorrow_{number}", text)
        return table

    forge(run, fill, compression="zstd", use_dictionary=False, write_statistics=False)
    assert run.stat().st_size < MIB
    bundle = bundle_of(results)
    with little_memory(100 * MIB):
        said = refused(bundle)
    assert said.startswith(f"{bundle}/data/runs/{run.name}: ")
    assert message in said


def test_parts_that_are_small_in_the_file_and_large_together_are_refused(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bundle_module, "_SPARE_BYTES", -4 * sum(path.stat().st_size for path in results.rglob("*.parquet"))
    )
    assert "with this part, more than 0 MiB are needed in memory" in refused(bundle_of(results))


def test_a_bundle_without_parts_starts_no_process(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "run_confined", None)
    shutil.rmtree(results)
    with open_bundle(bundle_of(results)) as folder:
        assert [path.name for path in folder.iterdir()] == ["manifest.json"]
