"""The consolidated file: what it holds is what the parts hold, and it is believed only as far as they agree."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.records import Environment, Measurement, Planned, Protocol, Status
from bench.store import Store, consolidate, consolidated, parts, read_results
from bench.store.parts import build_table, commit, read
from tests.results import CPU, make_cases, make_results


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of every status, and no consolidated file yet; any number of parts is worth one."""
    monkeypatch.setattr(consolidated, "WORTH_IT", 1)
    outcomes = dict(enumerate([Status.OK, Status.OOM, Status.SKIPPED, Status.INTERRUPTED, Status.THROTTLED]))
    return make_results(tmp_path / "data", make_cases()[:6], repeats=2, outcomes=outcomes)


def runs(folder: Path) -> list[Path]:
    return parts.parts(folder / "runs")


def read_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the parts that are decoded from now on."""
    seen: list[str] = []
    decode = consolidated.decode

    def spy(path, data, kind):
        seen.append(path.name)
        return decode(path, data, kind)

    monkeypatch.setattr(consolidated, "decode", spy)
    return seen


def assert_loads_as(folder: Path, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(bench.load(folder), expected)


def test_loading_from_the_file_gives_the_same_frame_and_opens_no_part(results, monkeypatch):
    before = bench.load(results)
    consolidate(results)
    seen = read_parts(monkeypatch)
    assert_loads_as(results, before)
    assert seen == []


def test_deleting_the_file_loses_nothing(results):
    before = bench.load(results)
    consolidate(results)
    shutil.rmtree(results / "consolidated")
    assert_loads_as(results, before)


def test_a_part_added_later_is_read_itself(results, monkeypatch):
    made = consolidate(results)
    extra = make_cases()[6]
    Store(results).write_run(Planned(extra, 0, 99), 0, Protocol(), Measurement(status=Status.OK), CPU)
    seen = read_parts(monkeypatch)
    assert extra.key in set(bench.load(results)["case_key"])
    assert len(seen) == 1
    assert consolidate(results) != made
    assert len(list((results / "consolidated").iterdir())) == 1


def test_a_row_whose_part_is_gone_is_dropped(results):
    victim = runs(results)[0]
    key = read(victim, "run")["run_key"][0].as_py()
    consolidate(results)
    victim.unlink()
    frame = bench.load(results)
    assert key not in set(frame["run_key"])
    assert "interrupted" in set(frame["status"])


def test_a_part_that_was_replaced_counts_as_it_is_now(results):
    victim = runs(results)[0]
    consolidate(results)
    row = {**read(victim, "run").to_pylist()[0], "duration_s": 1234.5}
    victim.unlink()
    commit(build_table([row], read(runs(results)[0], "run").schema, "run"), victim)
    assert 1234.5 in set(bench.load(results)["duration_s"])


def test_a_damaged_part_is_named_though_its_row_is_in_the_file(results):
    victim = runs(results)[0]
    consolidate(results)
    victim.write_bytes(victim.read_bytes()[:-9])
    loaded = read_results(results)
    assert [part.path for part in loaded.damaged] == [victim]
    assert loaded.damaged[0].reason and str(victim) not in loaded.damaged[0].reason
    with pytest.warns(UserWarning, match=f"skipped: {victim}"):
        bench.load(results)


@pytest.mark.parametrize("damage", ["flipped", "cut", "renamed", "empty", "folder", "pipe"])
def test_a_file_that_is_not_what_its_name_says_is_ignored(results, damage):
    before = bench.load(results)
    made = consolidate(results)
    data = bytearray(made.read_bytes())
    made.unlink()
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        made.write_bytes(data)
    elif damage == "cut":
        made.write_bytes(data[:-20])
    elif damage == "renamed":
        made.with_name(f"runs-{'0' * 64}.parquet").write_bytes(data)
    elif damage == "empty":
        made.write_bytes(b"")
    elif damage == "folder":
        made.mkdir()
    else:
        import os

        os.mkfifo(made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_loads_as(results, before)


def test_a_file_of_another_format_is_ignored(results, monkeypatch):
    before = bench.load(results)
    consolidate(results)
    monkeypatch.setattr(consolidated, "_FORMAT", "2")
    seen = read_parts(monkeypatch)
    assert_loads_as(results, before)
    assert len(seen) == len(runs(results))


def test_a_read_only_folder_is_no_fault(results, monkeypatch):
    def refuse(data, target):
        raise parts.StoreError(f"{target}: cannot be written (Read-only file system)")

    monkeypatch.setattr(consolidated, "commit_bytes", refuse)
    assert consolidate(results) is None


def test_few_parts_are_not_worth_a_file(tmp_path):
    folder = make_results(tmp_path / "data", make_cases()[:2], repeats=2)
    assert consolidate(folder) is None
    assert not (folder / "consolidated").exists()


def test_a_column_of_a_later_version_stays_with_its_part(results, monkeypatch):
    import pyarrow as pa

    row = read(runs(results)[0], "run").to_pylist()[0]
    table = build_table([{**row, "run_key": "f" * 16, "repeat": 7}], read(runs(results)[0], "run").schema, "run")
    later = table.append_column("later_s", pa.array([1.5]))
    target = results / "runs" / "later.parquet"
    commit(build_table(later.to_pylist(), later.schema.remove_metadata(), "run"), target)
    before = bench.load(results)
    assert before["later_s"].max() == 1.5
    consolidate(results)
    seen = read_parts(monkeypatch)
    pd.testing.assert_frame_equal(bench.load(results), before, check_like=True)
    assert seen == ["later.parquet"]


def test_a_resumed_sweep_knows_its_runs_from_the_file(results, monkeypatch):
    before = Store(results).finished_runs()
    consolidate(results)
    seen = read_parts(monkeypatch)
    assert Store(results).finished_runs() == before
    assert seen == []


def test_environments_stay_apart(results):
    other = replace(CPU, torch_version="2.16.0")
    assert isinstance(other, Environment)
    make_results(results, make_cases()[:2], environment=other, repeats=1, seed=2)
    before = bench.load(results)
    consolidate(results)
    assert_loads_as(results, before)


def test_a_schema_is_looked_at_in_detail_once_and_one_that_is_wrong_each_time(results, monkeypatch):
    seen: list[str] = []
    check_names = parts._check_names

    def spy(path, names, kind):
        seen.append(path.name)
        check_names(path, names, kind)

    monkeypatch.setattr(parts, "_check_names", spy)
    monkeypatch.setattr(parts, "_ACCEPTED", {kind: [known] for kind, known in parts._COLUMNS.items()})
    for older in runs(results)[:3]:
        table = read(older, "run").drop_columns(["lost_tries"])  # as before there was that column
        older.unlink()
        commit(table, older)
    monkeypatch.setattr(consolidated, "_MOST_THREADS", 1)
    assert len(bench.load(results)) and len(seen) == 1
    wrong = read(runs(results)[0], "run").drop_columns(["status"])
    runs(results)[0].unlink()
    commit(wrong, runs(results)[0].parent / "wrong.parquet")
    for _ in range(2):
        assert [str(part.path.name) for part in read_results(results).damaged] == ["wrong.parquet"]
    assert seen.count("wrong.parquet") == 2


def test_threads_and_one_thread_read_the_same(results, monkeypatch):
    runs(results)[1].write_bytes(b"damaged")
    runs(results)[0].write_bytes(b"damaged")
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(consolidated, "_MOST_THREADS", threads)
        loaded = read_results(results)
        found.append((loaded.frame, [part.path for part in loaded.damaged]))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == runs(results)[:2]
