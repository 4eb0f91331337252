from __future__ import annotations

import errno
import os
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bench
from bench.errors import StoreError
from bench.records import Case, Choice, Environment, Estimate, Measurement, Planned, Protocol, Status
from bench.store import SCHEMA_VERSION, Loaded, Store, load_notes, parts, planned_runs, read_results

CPU = Environment(device="cpu", estimate_device="cpu", cpu_model="test", torch_version="2.15.0")
PROTOCOL = Protocol()
CASES = [Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), batch, image_size=28) for batch in (16, 64)]
PLAN = [Planned(case, repeat, 2 * repeat + index) for repeat in range(2) for index, case in enumerate(CASES)]
OK = Measurement(status=Status.OK, step_times_s=(0.1, 0.2, 0.3), wall_window_s=0.6, peak_allocated_bytes=(1 << 53) + 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "data")
    made.create()
    made.write_plan(PLAN, PROTOCOL, CPU, {"name": "test"})
    return made


def write_all(store: Store, *, environment: Environment = CPU) -> None:
    for run in PLAN:
        store.write_run(run, 0, PROTOCOL, OK, environment)


def test_every_planned_run_is_a_row_before_any_has_run(store: Store) -> None:
    frame = bench.load(store.folder)
    assert list(frame["status"]) == ["interrupted"] * 4
    assert set(frame["device"]) == {"cpu"}
    assert list(frame["case_key"]) == [run.case.key for run in PLAN]


def test_a_run_read_back_is_what_was_written_to_the_byte(store: Store) -> None:
    store.write_run(PLAN[0], 0, PROTOCOL, OK, CPU)
    row = bench.load(store.folder).iloc[0]
    assert row["peak_allocated_bytes"] == (1 << 53) + 1  # a float would have lost the last bit
    assert tuple(row["step_times_s"]) == OK.step_times_s
    assert (row["status"], row["batch_size"], row["seed"], row["cpu_model"]) == ("ok", 16, 42, "test")
    assert row["samples_per_s"] == pytest.approx(16 * 3 / 0.6)
    assert row["median_step_time_s"] == 0.2
    assert row["schema_version"] == SCHEMA_VERSION


def test_what_is_unknown_is_null_and_never_zero(store: Store) -> None:
    write_all(store)
    frame = bench.load(store.folder)
    for column in (
        "peak_reserved_bytes",
        "device_used_bytes",
        "gpu_name",
        "formula_bytes",
        "trace_peak_allocated_bytes",
    ):
        assert frame[column].isna().all(), column


def test_all_public_columns_are_there_in_an_empty_plan_too(store: Store) -> None:
    public = (
        "case_key run_key repeat status reason dataset model optimizer batch_size precision memory_format input image_size "
        "device gpu_name samples_per_s median_step_time_s step_times_s peak_allocated_bytes peak_reserved_bytes "
        "peak_requested_bytes device_used_bytes formula_bytes trace_peak_allocated_bytes trace_peak_reserved_bytes "
        "trace_peak_requested_bytes estimated_device_bytes estimated_samples_per_s schema_version"
    )
    assert set(public.split()) <= set(bench.load(store.folder).columns)


def test_a_run_is_never_overwritten(store: Store) -> None:
    store.write_run(PLAN[0], 0, PROTOCOL, OK, CPU)
    with pytest.raises(FileExistsError):
        store.write_run(PLAN[0], 0, PROTOCOL, replace(OK, reason="again"), CPU)
    assert bench.load(store.folder)["reason"].isna().sum() == 1


def test_attempts_of_one_run_are_both_kept(store: Store) -> None:
    store.write_run(PLAN[0], 0, PROTOCOL, replace(OK, status=Status.THROTTLED), CPU)
    store.write_run(PLAN[0], 1, PROTOCOL, OK, CPU)
    frame = bench.load(store.folder)
    assert list(frame["status"]) == ["throttled", "ok", "interrupted", "interrupted", "interrupted"]


def test_a_changed_environment_never_passes_for_a_repeat(store: Store) -> None:
    write_all(store)
    newer = replace(CPU, torch_version="2.16.0")
    store.write_plan(PLAN, PROTOCOL, newer, {})
    frame = bench.load(store.folder)
    assert frame.groupby("torch_version")["status"].agg(set).to_dict() == {"2.15.0": {"ok"}, "2.16.0": {"interrupted"}}


def test_changed_code_of_a_case_makes_its_runs_missing_again(store: Store) -> None:
    write_all(store)
    store.write_plan([replace(run, code_key="new") for run in PLAN], PROTOCOL, CPU, {})
    assert list(bench.load(store.folder)["status"].value_counts().sort_index()) == [4, 4]


def test_the_same_plan_is_stored_once_and_the_newest_counts(store: Store) -> None:
    store.write_plan(PLAN, PROTOCOL, CPU, {"name": "test"})
    assert [path.name for path in store.folder.glob("plan-*")] == ["plan-0001.parquet"]
    store.write_plan(PLAN[:1], PROTOCOL, CPU, {"name": "less"})
    assert len(bench.load(store.folder)) == 1
    assert load_notes(store.folder)[0].values["name"] == "less"


def test_skipped_cases_carry_their_reason(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    store.write_plan([Planned(CASES[0], 0, 0, "too small")], PROTOCOL, CPU, {})
    row = bench.load(tmp_path).iloc[0]
    assert (row["status"], row["reason"]) == ("skipped", "too small")


def test_each_run_has_the_estimates_of_its_own_sweep_beside_it(tmp_path: Path) -> None:
    """Whatever the parts are called: keys are hashes, and their order says nothing of what is newer."""
    store, upgraded = Store(tmp_path), replace(CPU, torch_version="2.16.0")
    store.create()
    estimate = Estimate(case_key=CASES[0].key, estimate_device="cpu", formula_bytes=1)
    for number, key in enumerate(("c" * 16, "a" * 16, "b" * 16)):
        store.write_estimates([replace(estimate, formula_bytes=number)], key)
    store.write_plan(PLAN, PROTOCOL, CPU, {}, estimate_key="b" * 16)
    store.write_plan(PLAN, PROTOCOL, CPU, {}, estimate_key="a" * 16)  # the estimators changed: the runs stay
    store.write_plan(PLAN, PROTOCOL, upgraded, {}, estimate_key="b" * 16)
    store.write_plan(PLAN, PROTOCOL, replace(CPU, torch_version="2.6.0"), {})  # by a harness that did not note it
    for environment in (CPU, upgraded):
        store.write_run(PLAN[0], 0, PROTOCOL, OK, environment)
    frame = bench.load(tmp_path)
    beside = frame[frame["case_key"] == CASES[0].key].groupby("torch_version")["formula_bytes"].agg(set).to_dict()
    assert beside == {"2.15.0": {1}, "2.16.0": {2}, "2.6.0": {0}}
    keys = frame[frame["case_key"] == CASES[0].key].groupby("torch_version")["estimate_key"].agg(set).to_dict()
    assert keys == {"2.15.0": {"a" * 16}, "2.16.0": {"b" * 16}, "2.6.0": {"c" * 16}}


def test_estimates_that_a_plan_names_and_that_are_damaged_are_unknown_and_not_anothers(store: Store) -> None:
    estimate = Estimate(case_key=CASES[0].key, estimate_device="cpu", formula_bytes=111)
    store.write_estimates([estimate], "a" * 16)
    store.write_estimates([replace(estimate, formula_bytes=222)], "b" * 16)
    store.write_plan(PLAN, PROTOCOL, CPU, {}, estimate_key="b" * 16)
    (part,) = store.estimates_folder.glob("b*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="skipped"):
        frame = bench.load(store.folder)
    assert frame["formula_bytes"].isna().all()


def test_estimates_join_their_case_and_device(store: Store) -> None:
    write_all(store)
    store.write_estimates([Estimate(case_key=CASES[0].key, estimate_device="cpu", formula_bytes=7)], "a" * 16)
    store.write_estimates([Estimate(case_key=CASES[0].key, estimate_device="h200", formula_bytes=9)], "a" * 16)
    frame = bench.load(store.folder)
    assert len(frame) == 4
    assert list(frame[frame["batch_size"] == 16]["formula_bytes"]) == [7, 7]
    assert frame[frame["batch_size"] == 64]["formula_bytes"].isna().all()
    assert store.estimated("a" * 16) == {(CASES[0].key, "cpu"), (CASES[0].key, "h200")}
    assert store.estimated("b" * 16) == set()


@pytest.mark.parametrize(
    ("switches", "trace", "note"),
    [
        ({}, 9, "x"),
        ({"compiled": True}, None, "x; compiled is on, but torch.compile is not modelled"),
        ({"cudnn_benchmark": True, "deterministic": True}, None, "x"),
        (
            {"cudnn_benchmark": True, "deterministic": True},
            9,
            "x; cudnn_benchmark is on, but the memory and choices of cuDNN's trials are not modelled; "
            "deterministic is on, but the kernels and cuBLAS workspaces that it changes are not modelled",
        ),
    ],
)
def test_estimates_say_what_of_their_runs_protocol_they_leave_out(
    tmp_path: Path, switches: dict[str, bool], trace: int | None, note: str
) -> None:
    store = Store(tmp_path / "data")
    store.create()
    first, second = CASES
    estimate = Estimate(case_key=first.key, estimate_device="cpu", formula_bytes=7, trace_peak_allocated_bytes=trace)
    store.write_estimates([replace(estimate, estimate_note="x")], "a" * 16)
    store.write_plan(PLAN, PROTOCOL, CPU, {})
    store.write_run(PLAN[0], 0, PROTOCOL, OK, CPU)  # of another protocol, which the note must not reach
    store.write_plan(PLAN, replace(PROTOCOL, **switches), CPU, {})
    frame = bench.load(tmp_path)
    assert set(frame[frame["planned"] & (frame["case_key"] == first.key)]["estimate_note"]) == {note}
    assert set(frame[~frame["planned"]]["estimate_note"]) <= {"x"}
    assert frame[frame["case_key"] == second.key]["estimate_note"].isna().all()  # no estimate, nothing left out


def test_folders_of_two_hosts_load_together(tmp_path: Path, store: Store) -> None:
    write_all(store)
    other = Store(tmp_path / "other" / "data")
    other.create()
    other.write_plan(PLAN, PROTOCOL, replace(CPU, cpu_model="other"), {})
    assert bench.load(store.folder, tmp_path / "other")["cpu_model"].value_counts().to_dict() == {"test": 4, "other": 4}
    assert len(bench.load(tmp_path)) == 8


def test_columns_that_later_versions_add_do_not_get_lost_or_in_the_way(store: Store) -> None:
    write_all(store)
    path = sorted(store.runs_folder.iterdir())[0]
    table = pq.read_table(path)
    row = {**table.to_pylist()[0], "tomorrows_column": 3}
    schema = table.schema.append(pa.field("tomorrows_column", pa.int64())).remove_metadata()
    path.unlink()
    parts.commit(parts.build_table([row], schema, "run"), path)
    assert bench.load(store.folder)["tomorrows_column"].dropna().tolist() == [3]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_part_is_named_and_its_run_reads_as_interrupted(store: Store, damage: str) -> None:
    write_all(store)
    victim = sorted(store.runs_folder.iterdir())[0]
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[data.index(struct.pack("<d", 0.2))] ^= 0x40  # a step time, changed
    victim.write_bytes({"truncate": data[:-100], "flip": data, "empty": b"", "text": b"hello"}[damage])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = bench.load(store.folder)
    assert str(victim) in str(caught[0].message)
    assert sorted(frame["status"]) == ["interrupted", "ok", "ok", "ok"]


def test_resume_sets_a_damaged_part_aside_so_that_its_run_is_missing(store: Store) -> None:
    write_all(store)
    victim = sorted(store.runs_folder.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="moved aside, to be run again"):
        assert victim.stem not in store.finished_runs()
    assert victim.with_suffix(".damaged").exists()
    assert len(store.finished_runs()) == 3


def test_every_flipped_byte_is_noticed_or_harmless(store: Store) -> None:
    store.write_run(PLAN[0], 0, PROTOCOL, OK, CPU)
    (path,) = store.runs_folder.iterdir()
    good = parts.read(path, "run").to_pylist()
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        try:
            read = parts.read(path, "run").to_pylist()
        except StoreError as error:
            assert str(path) in str(error)
        else:
            known = [{key: value for key, value in row.items() if value is not None} for row in read]
            assert known == [{key: value for key, value in row.items() if value is not None} for row in good]


def test_a_part_of_a_newer_version_is_refused_with_a_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    store.write_run(PLAN[0], 0, PROTOCOL, OK, CPU)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"written by a newer version \(format 2; this one reads up to 1\)"):
        bench.load(store.folder)


def warned(folder: Path) -> Loaded:
    loaded = read_results(folder)
    loaded.warn()
    return loaded


def test_without_a_plan_nothing_counts_and_every_damaged_one_is_named(store: Store) -> None:
    store.write_plan(PLAN[:1], PROTOCOL, CPU, {"name": "test"})
    plans = parts.parts(store.folder, "plan-*.parquet")
    for path in plans:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(StoreError) as caught:
        planned_runs(warned(store.folder))
    assert str(caught.value).startswith(f"{store.folder}: no runs, and {plans[0]}, {plans[1]} are damaged. Restore ")
    write_all(store)
    plans[1].unlink()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(StoreError) as caught:
        planned_runs(warned(store.folder))
    assert f"none of 4 runs count without their plan, and {plans[0]} is damaged. Restore " in str(caught.value)


def test_a_plan_of_nothing_sends_to_the_sweep(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    store.write_plan([], PROTOCOL, CPU, {"name": "test"})
    with pytest.raises(StoreError, match=r"no runs and no plan; run bench sweep first$"):
        planned_runs(read_results(tmp_path))


@pytest.mark.parametrize(("name", "state"), [("nothing", "does not exist"), ("", "holds no results")])
def test_a_path_without_results_says_so(tmp_path: Path, name: str, state: str) -> None:
    with pytest.raises(StoreError) as caught:
        bench.load(tmp_path / name)
    assert str(caught.value) == (f"{tmp_path / name}: {state}; give a folder that `bench sweep` wrote (reports/NAME)")


@pytest.mark.parametrize("call", ["fsync", "link"])
@pytest.mark.parametrize(("code", "advice"), [(errno.ENOSPC, "free some space"), (errno.EIO, "finished runs are kept")])
def test_a_disk_that_refuses_is_a_typed_error_and_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, code: int, advice: str
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StoreError, match=advice):
        store.write_run(PLAN[0], 0, PROTOCOL, OK, CPU)
    monkeypatch.undo()
    assert list(store.runs_folder.iterdir()) == []


def test_without_hard_links_a_part_still_appears_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", refuse)
    write_all(store)
    with pytest.raises(FileExistsError):
        store.write_run(PLAN[0], 0, PROTOCOL, OK, CPU)
    assert set(bench.load(store.folder)["status"]) == {"ok"}


def test_paths_of_the_users_machine_are_not_stored(store: Store) -> None:
    store.write_run(PLAN[0], 0, replace(PROTOCOL, data_root="/home/somebody"), OK, CPU)
    store.write_plan(PLAN, replace(PROTOCOL, data_root="/home/somebody"), CPU, {})
    assert not any(b"somebody" in path.read_bytes() for path in store.folder.rglob("*.parquet"))
