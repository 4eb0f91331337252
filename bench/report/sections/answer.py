"""The first page: the answer, its figure, what was measured on what, what to mind, the best case of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from bench.analysis import Weakens, best_cases, estimator_errors, headline
from bench.analysis.headline import error_summary_words
from bench.analysis.labels import CaseLabels
from bench.comparison import Comparison
from bench.records import Status
from bench.report.blocks import Block, Bullets, Headline, Notice, Strong, Table, Words
from bench.report.contents import Contents, Section
from bench.report.hardware import SPEED
from bench.report.verdict import verdict_notice
from bench.report.words import error_words, integer, listed, rate_cell, ratio_words
from bench.units import MISSING, format_bytes

_MAX_ROWS = 15


def build(contents: Contents) -> Sequence[Block]:
    """The sentence and its figure come first; then the scope and a small table."""
    blocks: list[Block] = [Headline(_answer(contents))]
    blocks += [replace(contents.headline, headed=False)] if contents.headline else []
    blocks += [verdict_notice(contents), _scope(contents)]
    blocks += [Notice("note", finding.text) for finding in contents.findings if finding.code in _FIRST_PAGE]
    blocks += _best(contents)
    return blocks


def _answer(contents: Contents) -> str:
    """The speeds and the estimates' errors; of several machines, how fast they are against the baseline."""
    hardware = contents.hardware
    compared = {} if hardware is None else hardware.comparisons
    means = {name: (found, found.geomean.get(SPEED)) for name, found in compared.items()}
    parts = [
        f"{name} trains at {ratio_words(mean.ratio, mean.low, mean.high)} its throughput, in the geometric mean of "
        f"{mean.n} of {mean.n_planned} cases ({_called(found)} of {mean.n} called different)"
        for name, (found, mean) in means.items()
        if mean is not None and mean.ratio is not None
    ]
    if hardware is None or not parts:
        return headline(contents.summary)
    return f"Against {hardware.baseline}: {'; '.join(parts)}. In brackets: 95 % intervals over the cases."


def _called(found: Comparison) -> int:
    """How many cases are faster or slower than the baseline's, beyond chance and margin."""
    return int(found.cases.loc[found.cases["metric"] == SPEED, "verdict"].isin(["faster", "slower"]).sum())


_FIRST_PAGE = ("cpu_only", "synthetic_data")


def _scope(contents: Contents) -> Bullets:
    """What was measured, on what, how often, and how far to trust it, a line each."""
    summary, frame = contents.summary, contents.frame
    ran = summary[summary["status"] != Status.SKIPPED]
    planned, ok = int(ran["runs_planned"].sum()), int(ran["runs_ok"].sum())
    processes = sorted({int(count) for count in summary["processes"] if count > 0})
    weak = [finding.code.replace("_", " ") for finding in contents.findings.weakening(Weakens.READING)]
    warmup = sorted({int(count) for count in frame["warmup_steps"].dropna()})
    spread = f"{processes[0]} to {processes[-1]}" if len(processes) > 1 else f"{processes[0]}" if processes else "no"
    noun = "process" if processes == [1] else "processes"
    models, datasets = (listed(dict.fromkeys(summary[axis]), 6) for axis in ("model", "dataset"))
    items: list[Words] = [
        (
            Strong("Measured: "),
            f"{len(ran)} cases ({models} on {datasets}) on {listed(contents.machines, 4)}; "
            f"{ok} of {planned} runs ended well.",
        ),
        (
            Strong("How: "),
            f"{spread} fresh {noun} a case, every step timed after {listed(warmup, 4)} steps of warm-up; "
            "intervals are over processes.",
        ),
        (
            Strong("Trust: "),
            f"the numbers are weakened by: {listed(weak, 9)}; see Validity."
            if weak
            else "no problems found with the numbers; what they do not cover is under Validity.",
        ),
    ]
    described = contents.noted("description")
    return Bullets([*([(Strong("Sweep: "), described[0])] if described else []), *items])


def _best(contents: Contents) -> list[Block]:
    """The best case of each model, data set and machine."""
    best = best_cases(contents.summary)
    if best.empty:
        return []
    several = contents.summary["machine"].nunique() > 1
    labels = CaseLabels(contents.summary)
    axes = [axis for axis in labels.axes if axis != "machine"]
    with_trace = bool(contents.summary["trace_relative_error"].notna().any())
    head = [
        *(["machine"] if several else []),
        "model",
        "data set",
        "best batch",
        *(["with"] if axes else []),
        "samples/s (95 % interval)",
        "peak allocated",
        "formula error",
        *(["trace error"] if with_trace else []),
        "largest batch that ran",
        "out of memory at",
    ]
    rows = [_row(row, several, labels, with_trace) for row in best.head(_MAX_ROWS).to_dict("records")]
    errors = "; ".join(
        f"{row['title']} {error_summary_words(row)}" for row in estimator_errors(contents.summary).to_dict("records")
    )
    left = f" {len(best) - _MAX_ROWS} more are in the whole table." if len(best) > _MAX_ROWS else ""
    texts = frozenset({0, 1} | ({2} if several else set()))
    shift = 3 + several
    numeric = frozenset(range(len(head))) - texts - ({shift} if axes else set())
    caption = f"The case with the highest throughput of each model.{left}"
    caption += f" The estimates over all cases: {errors}." if errors else ""
    return [Table(head, rows, numeric, caption)]


def _row(row: Mapping[Any, Any], several: bool, labels: CaseLabels, with_trace: bool) -> list[str]:
    detail = [axis for axis in labels.axes if axis != "machine"]
    peak = row["peak_allocated_bytes"]
    return [
        *([str(row["machine"])] if several else []),
        labels.words(row, "model"),
        labels.words(row, "dataset"),
        integer(row["batch_size"]),
        *([labels.detail(row, without=("machine",))] if detail else []),
        rate_cell(row),
        format_bytes(None if pd.isna(peak) else int(peak)),
        error_words(row["formula_relative_error"]),
        *([error_words(row["trace_relative_error"])] if with_trace else []),
        integer(row["largest_batch_ok"]),
        integer(row["smallest_batch_oom"]) if row["smallest_batch_oom"] is not None else MISSING,
    ]


SECTION = Section(order=10, title="", build=build)
