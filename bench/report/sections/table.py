"""Every case, failures included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.analysis.labels import SERIES_AXES, CaseLabels
from bench.records import Status
from bench.report.blocks import Block, Link, Paragraph, Table
from bench.report.contents import Contents, Section
from bench.report.words import bytes_cell, error_words, integer, known, listed, rate_cell, seconds_cell, share_cell

MAX_ROWS = 200


def _estimate(column: str, error: str) -> Callable[[Mapping[Any, Any]], str]:
    """Bytes with the error beside them."""
    return lambda row: bytes_cell(row[column]) + (f" ({error_words(row[error])})" if known(row[error]) else "")


_COLUMNS: tuple[tuple[str, str, Callable[[Mapping[Any, Any]], str]], ...] = (
    ("samples_per_s", "samples/s (95 % interval)", rate_cell),
    ("step_p50_s", "step, median", lambda row: seconds_cell(row["step_p50_s"])),
    ("step_p90_s", "step, p10 to p90", lambda row: _span(row)),
    ("step_p99_s", "step, p99", lambda row: seconds_cell(row["step_p99_s"])),
    ("mfu_frac", "MFU", lambda row: share_cell(row["mfu_frac"])),
    ("roofline_frac", "of the roofline", lambda row: share_cell(row["roofline_frac"])),
    ("data_wait_frac", "waiting for data", lambda row: share_cell(row["data_wait_frac"], digits=0)),
    (
        "joules_per_sample",
        "J/sample",
        lambda row: f"{row['joules_per_sample']:.3g}" if known(row["joules_per_sample"]) else "–",
    ),
    ("peak_allocated_bytes", "peak allocated", lambda row: bytes_cell(row["peak_allocated_bytes"])),
    ("formula_bytes", "formula (error)", _estimate("formula_bytes", "formula_relative_error")),
    ("trace_peak_allocated_bytes", "trace (error)", _estimate("trace_peak_allocated_bytes", "trace_relative_error")),
    ("peak_reserved_bytes", "peak reserved", lambda row: bytes_cell(row["peak_reserved_bytes"])),
    (
        "trace_peak_reserved_bytes",
        "trace reserved (error)",
        _estimate("trace_peak_reserved_bytes", "trace_reserved_relative_error"),
    ),
    ("device_used_bytes", "device used", lambda row: bytes_cell(row["device_used_bytes"])),
    (
        "estimated_device_bytes",
        "estimated device (error)",
        _estimate("estimated_device_bytes", "device_relative_error"),
    ),
    ("flags", "flags", lambda row: row["flags"]),
)


def build(contents: Contents) -> Sequence[Block]:
    """The table, its first part where it is long, and where all of it is."""
    summary = contents.summary
    labels = CaseLabels(summary)
    axes = labels.axes
    filled = [item for item in _COLUMNS if (summary[item[0]].notna() & (summary[item[0]].astype(str) != "")).any()]
    head = [
        "model",
        "data set",
        *(axis.replace("_", " ") for axis in axes),
        "batch",
        "outcome",
        *(title for _, title, _ in filled),
    ]
    records = summary.head(MAX_ROWS).to_dict("records")
    rows = [
        [
            *(labels.words(row, axis) for axis in ("model", "dataset", *axes)),
            integer(row["batch_size"]),
            _outcome(row),
            *(cell(row) for _, _, cell in filled),
        ]
        for row in records
    ]
    numeric = frozenset(
        {2 + len(axes)} | {4 + len(axes) + place for place, item in enumerate(filled) if item[0] != "flags"}
    )
    fixed = [
        f"{axis.replace('_', ' ')} {labels.words(records[0], axis)}"
        for axis in SERIES_AXES[1:6]
        if axis not in axes and summary[axis].nunique() == 1
    ]
    cut = f"The first {MAX_ROWS} of {len(summary)} cases. " if len(summary) > MAX_ROWS else ""
    same = f"The same for all: {listed(fixed, 9)}. " if fixed else ""
    levels = ["" if row["status"] == Status.OK else "warning" for row in records]
    return [
        Paragraph((f"{cut}{same}Every case with all its numbers is in ", Link("table.csv", "table.csv"), ".")),
        Table(head, rows, numeric, "", levels),
    ]


def column_titles() -> dict[str, str]:
    """The headings of the columns of numbers, by their column of the summary."""
    return {name: title for name, title, _ in _COLUMNS}


def _outcome(row: Mapping[Any, Any]) -> str:
    """`ok 3/3`, or what happened instead: `oom 3/3`, `ok 2, failed 1`; skipped cases with their reason."""
    if row["status"] == Status.SKIPPED:
        return f"skipped: {row['reason']}"
    single = "," not in row["status_counts"]
    return f"{row['status']} {row['runs_planned']}/{row['runs_planned']}" if single else str(row["status_counts"])


def _span(row: Mapping[Any, Any]) -> str:
    if not known(row["step_p10_s"]):
        return "–"
    return f"{seconds_cell(row['step_p10_s'])} to {seconds_cell(row['step_p90_s'])}"


SECTION = Section(order=50, title="All cases", build=build)
