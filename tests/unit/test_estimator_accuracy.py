"""The error table, what was predicted of running out of memory, and the context that runs measured."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

import bench
from bench.analysis import estimator_errors, summarise_cases
from bench.analysis.estimates import measured_contexts, oom_predictions
from bench.records import Case, Measurement, Status
from bench.store import parts
from tests.results import CPU, GPU, MIB, make_cases, make_results
from tests.sketches import sketching

CASES = make_cases(["imagenet"], ["resnet50"], ["adam"], [16, 64, 256, 1024])
"""Estimates of these grow from some 0.5 to some 2.5 GiB for the formula; the trace adds 17 % and the context."""


def summary_on(
    memory_bytes: int, folder: Path, outcomes: dict[int, Status], cases: list[Case] = CASES, **settings: Any
) -> pd.DataFrame:
    machine = dataclasses.replace(GPU, gpu_total_bytes=memory_bytes)
    made = make_results(folder, cases, environment=machine, trace=True, outcomes=outcomes, **settings)
    return summarise_cases(bench.load(made))


def between(summary: pd.DataFrame, column: str, below: int) -> int:
    """A memory between the estimates of two neighbours: the first `below` cases fit."""
    sizes = sorted(int(value) for value in summary[column])
    return (sizes[below - 1] + sizes[below]) // 2


def counts(row: pd.Series) -> tuple[int, int, int, int]:
    return tuple(int(row[kind]) for kind in ("true_positive", "false_positive", "false_negative", "true_negative"))


def section_of(results: Path, target: Path) -> str:
    """The section of the estimates, in Markdown."""
    from bench.report import render_report

    with sketching():
        render_report([results], target)
    text = (target / "report.md").read_text(encoding="utf-8")
    return text.split("## Estimates against measurements")[1].split("\n## ")[0]


def test_what_ran_out_is_compared_with_what_each_estimator_predicted(tmp_path: Path) -> None:
    cases = make_cases(["imagenet"], ["resnet50"], ["adam"], [16 << power for power in range(10)])
    plain = summary_on(1 << 44, tmp_path / "plain", {}, cases, repeats=1)
    memory = between(plain, "estimated_device_bytes", 5)  # the trace foretells that the five largest run out
    predicted = int((plain["formula_bytes"] > memory).sum())
    outcomes = dict.fromkeys((0, 1, 5, 6, 7, 8), Status.OOM)
    found = oom_predictions(summary_on(memory, tmp_path / "full", outcomes, cases, repeats=1)).set_index("name")
    assert counts(found.loc["trace"]) == (4, 1, 2, 3)
    assert (found.loc["trace", "precision"], found.loc["trace", "recall"]) == (4 / 5, 4 / 6)
    assert counts(found.loc["formula"]) == (predicted - 1, 1, 7 - predicted, 3)
    assert list(found["n"]) == [10, 10]


def test_nothing_predicted_and_nothing_out_of_memory_leave_the_ratios_unknown(tmp_path: Path) -> None:
    found = oom_predictions(summary_on(1 << 40, tmp_path, {}))
    assert counts(found.iloc[0]) == (0, 0, 0, 4)
    assert math.isnan(found["precision"].iloc[0]) and math.isnan(found["recall"].iloc[0])


def test_cases_that_say_nothing_of_memory_do_not_count(tmp_path: Path) -> None:
    outcomes = {0: Status.CRASHED, 1: Status.SKIPPED, 2: Status.NAN_LOSS}
    assert list(oom_predictions(summary_on(1 << 40, tmp_path, outcomes))["n"]) == [2, 2]


def test_a_cpu_is_not_asked(tmp_path: Path) -> None:
    summary = summarise_cases(bench.load(make_results(tmp_path, environment=CPU, outcomes={0: Status.OOM})))
    assert oom_predictions(summary).empty


def test_exact_cases_are_counted(tmp_path: Path) -> None:
    cases = make_cases(["imagenet"], ["resnet50"], ["adam"], [16, 48, 64])  # made-up traces of multiples of 3 are off
    summary = summarise_cases(bench.load(make_results(tmp_path, cases, environment=GPU, trace=True)))
    found = estimator_errors(summary).set_index("name")
    assert (found.loc["trace", "exact"], found.loc["trace", "n"]) == (2, 3)
    assert (found.loc["formula", "exact"], found.loc["formula", "n"]) == (0, 3)


def test_the_context_is_what_the_driver_shows_beyond_what_torch_reserves(tmp_path: Path) -> None:
    def change(run: Measurement, case: object, repeat: int) -> Measurement:
        if repeat == 0:  # NVML lists no process: the worker's own reading
            return dataclasses.replace(run, device_used_bytes=None, context_bytes=500 * MIB)
        return dataclasses.replace(run, alloc_retries=3 if repeat == 1 else 0)

    frame = bench.load(make_results(tmp_path, CASES, environment=GPU, change=change))
    (found,) = measured_contexts(frame)
    assert (found.low_bytes, found.median_bytes, found.high_bytes, found.n) == (500 * MIB, 555 * MIB, 610 * MIB, 8)
    assert found.machine == "NVIDIA H200"
    assert measured_contexts(bench.load(make_results(tmp_path / "cpu", environment=CPU))) == []


def test_the_report_has_the_tables_and_what_to_put_into_a_device_file(tmp_path: Path) -> None:
    plain = summary_on(1 << 40, tmp_path / "plain", {})
    memory = between(plain, "estimated_device_bytes", 2)
    summary_on(memory, tmp_path / "full", {1: Status.OOM, 3: Status.OOM})
    section = section_of(tmp_path / "full", tmp_path / "report")
    assert "| trace, with the context | 4 | 1 | 1 | 1 | 1 | 50 % | 50 % |" in section
    assert "| formula | peak allocated | 2 |" in section and "| 0/2 |" in section
    assert f"context_bytes = {610 * MIB}" in section and "6 runs" in section


def test_estimates_of_before_the_interval_still_load(tmp_path: Path) -> None:
    folder = make_results(tmp_path, CASES, environment=GPU, trace=True)
    added = ["estimated_device_low_bytes", "estimated_device_high_bytes", "estimated_device_basis"]
    (path,) = (folder / "estimates").iterdir()
    table = pq.read_table(path).drop_columns(added)
    path.unlink()
    parts.commit(parts.build_table(table.to_pylist(), table.schema.remove_metadata(), "estimates"), path)
    frame = bench.load(folder)
    assert frame[added].isna().all(axis=None)
    assert frame["estimated_device_bytes"].notna().all()
    assert summarise_cases(frame)["device_relative_error"].notna().all()


def test_a_cpus_report_has_no_table_of_running_out(tmp_path: Path) -> None:
    section = section_of(make_results(tmp_path / "data", environment=CPU), tmp_path / "report")
    assert "| formula | peak allocated |" in section
    assert "OOM predicted" not in section and "context_bytes" not in section
