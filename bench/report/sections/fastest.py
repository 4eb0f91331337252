"""The fastest case of each model: its speed, its memory, and where memory ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.analysis import best_cases, estimator_errors
from bench.analysis.headline import error_summary_words
from bench.analysis.labels import CaseLabels
from bench.report.blocks import Block, Table
from bench.report.contents import Contents, Section
from bench.report.words import error_words, integer, rate_cell
from bench.units import MISSING, format_bytes

_MAX_ROWS = 15


def build(contents: Contents) -> Sequence[Block]:
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


SECTION = Section(order=18, title="Fastest cases", build=build)
