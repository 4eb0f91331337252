"""Every case, failures included: as a table, and as what the page's script sorts, filters and draws."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.analysis import Weakens, last_attempts
from bench.analysis.findings import group_keys
from bench.analysis.labels import SERIES_AXES, CaseLabels
from bench.records import Status
from bench.report.blocks import Block, Explorer, Link, Paragraph, Table
from bench.report.contents import Contents, Section
from bench.report.escape import plain
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
    every = summary.to_dict("records")
    records = every[:MAX_ROWS]
    texts = [
        *([labels.words(row, axis) for row in every] for axis in ("model", "dataset", *axes)),
        [integer(row["batch_size"]) for row in every],
        [_outcome(row) for row in every],
        *([cell(row) for row in every] for _, _, cell in filled),
    ]
    rows = [list(cells) for cells in zip(*(column[:MAX_ROWS] for column in texts), strict=True)]
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
    names = ["model", "dataset", *axes, "batch_size", "outcome", *(name for name, _, _ in filled)]
    columns = [
        {"name": name, "title": title, **_coded(cells)} for name, title, cells in zip(names, head, texts, strict=True)
    ]
    return [
        Paragraph((f"{cut}{same}Every case with all its numbers is in ", Link("table.csv", "table.csv"), ".")),
        Explorer(Table(head, rows, numeric, "", levels), _explored(contents, columns)),
    ]


_QUANTITIES = (
    ("samples_per_s", "throughput, samples/s", "rate"),
    ("median_step_time_s", "median step time", "seconds"),
    ("peak_allocated_bytes", "peak allocated, measured", "bytes"),
    ("formula_bytes", "peak allocated, by formula", "bytes"),
    ("trace_peak_allocated_bytes", "peak allocated, by trace", "bytes"),
    ("peak_reserved_bytes", "peak reserved, measured", "bytes"),
    ("device_used_bytes", "device memory used", "bytes"),
    ("joules_per_sample", "energy a sample, J", "joules"),
)
"""What curves are drawn of: column, words, and the unit that the script prints."""


def _explored(contents: Contents, columns: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the page's script works on, a value a case in every list.

    Args:
        contents: Of the report.
        columns: The table's, for every case: `name` (in the summary where it is there), `title`, `words`, `places`.
    """
    summary = contents.summary
    names = [column["name"] for column in columns]
    codes = _codes(contents, Weakens.READING, Weakens.PUBLISHING)
    judged = {"trust": _trust(contents), **_verdicts(contents)}
    unseen = [name for name in ("machine", "optimizer", "status") if name not in names]
    drawn = [item for item in _QUANTITIES if summary[item[0]].notna().any()]
    ends = [f"{name}{end}" for name, _, _ in drawn for end in ("", "_low", "_high")]
    numbers = dict.fromkeys(name for name in ("batch_size", "processes", *names, *ends) if _is_number(summary, name))
    return {
        "columns": [
            *columns,
            *({"name": name, "title": name, **_coded(texts)} for name, texts in {**judged, "findings": codes}.items()),
            *({"name": name, "title": name, "hidden": True, **_coded(summary[name])} for name in unseen),
        ],
        "numbers": {name: [_number(value) for value in summary[name]] for name in numbers},
        "quantities": [
            {"name": name, "title": title, "unit": unit, "estimate": name.startswith(("formula_", "trace_"))}
            for name, title, unit in drawn
        ],
        "filters": ["machine", "model", "dataset", "optimizer", "status", *judged],
        "lines": _lines(summary),
        "runs": _runs(contents),
        "keys": [_key(*map(str, group)) for group in group_keys(summary)],
    }


def _lines(summary: pd.DataFrame) -> Mapping[str, Any]:
    """The curve that each case is a point of; curves that differ by their machine alone stand beside each other."""
    labels, rows = CaseLabels(summary), summary.to_dict("records")
    alike = [", ".join(filter(None, (labels.unit(row), labels.detail(row, without=("machine",))))) for row in rows]
    machines = [row["machine"] if "machine" in labels.axes else "" for row in rows]
    lines = [", ".join(filter(None, pair)) for pair in zip(alike, machines, strict=True)]
    ranks = {text: rank for rank, text in enumerate(dict.fromkeys(alike))}
    beside = sorted(dict.fromkeys(zip(alike, lines, strict=True)), key=lambda pair: ranks[pair[0]])
    return _coded(lines, [text for _, text in beside])


def _coded(texts: Iterable[str], first: Iterable[str] = ()) -> dict[str, Any]:
    """Texts as the distinct ones, those of `first` at their head, and the place of each among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(map(plain, first)))}
    found = [places.setdefault(plain(text), len(places)) for text in texts]
    return {"words": list(places), "places": found}


def _is_number(summary: pd.DataFrame, name: str) -> bool:
    return name in summary and pd.api.types.is_numeric_dtype(summary[name]) and summary[name].dtype != bool


def _number(value: Any) -> int | float | None:
    """Integers as they are, others to six digits; what JSON cannot say is null."""
    if not known(value) or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 1 << 53 else float(f"{value:.6g}")


def _key(*parts: str) -> str:
    """A short name for addresses of views."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]


def _runs(contents: Contents) -> list[str]:
    """The keys of each case's runs that count."""
    found: dict[Any, list[str]] = {}
    runs = last_attempts(contents.frame)
    for group, key in zip(group_keys(runs), runs["run_key"], strict=True):
        found.setdefault(group, []).extend([plain(key)] if known(key) else [])
    return [" ".join(found.get(group, ())) for group in group_keys(contents.summary)]


def _codes(contents: Contents, *weakened: Weakens) -> list[str]:
    """What was found about each case."""
    found: dict[Any, list[str]] = {}
    for finding in (finding for what in weakened for finding in contents.findings.weakening(what)):
        for group in finding.runs:
            found.setdefault(group, []).append(finding.code.replace("_", " "))
    return [", ".join(found.get(group, ())) for group in group_keys(contents.summary)]


def _trust(contents: Contents) -> list[str]:
    """Whether a finding weakens each case's numbers."""
    return ["weakened" if codes else "sound" for codes in _codes(contents, Weakens.READING)]


def _verdicts(contents: Contents) -> dict[str, list[str]]:
    """How each case compares with the baseline's, where there are several machines, and the role of clocks in it."""
    hardware = contents.hardware
    if hardware is None:
        return {}
    cells = hardware.cells.to_dict("records")
    found = {
        (row["machine"], row["case_key"]): row["verdict"] if known(row["verdict"]) else row["outcome"] for row in cells
    }
    pairs = list(zip(contents.summary["machine"], contents.summary["case_key"], strict=True))
    judged = {"verdict": found}
    if hardware.cells["clocks"].notna().any():
        judged["clocks"] = {
            (row["machine"], row["case_key"]): str(row["clocks"]).replace("_", " ")
            if known(row["clocks"])
            else "unknown"
            for row in cells
        }
    return {
        name: ["baseline" if pair[0] == hardware.baseline else str(words.get(pair, "none")) for pair in pairs]
        for name, words in judged.items()
    }


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
