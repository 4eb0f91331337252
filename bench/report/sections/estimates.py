"""How far the estimates are off, what they foresaw of running out of memory, and the context that runs measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.analysis import CaseLabels, estimator_errors
from bench.analysis.estimates import measured_contexts, oom_predictions
from bench.analysis.reasons import counted, group_reasons, more_reasons
from bench.report.blocks import Block, Bullets, Code, Notice, Table, Words
from bench.report.contents import Contents, Section
from bench.report.words import error_words, known, listed
from bench.units import MISSING, format_bytes

_NOTES = 6


def build(contents: Contents) -> Sequence[Block]:
    """What they rest on and leave out, two tables and a line a GPU; tables where an estimate has a measurement."""
    tables = [*_errors(contents), *_predictions(contents)]
    return [*_described(contents), *(_notes(contents) if tables else ()), *tables, *_contexts(contents)]


def _described(contents: Contents) -> list[Block]:
    """Of GPUs that no device file describes: what the estimates rest on instead."""
    files = listed(contents.devices, 4)
    return [
        Notice("note", f"{remark}. All of it, with the source of each value, is in {files}.")
        for remark in contents.noted("device_remark")
    ]


def _errors(contents: Contents) -> list[Block]:
    """The error table: one row an estimator, over all cases that have both numbers."""
    rows: list[list[Words]] = [
        [
            row["title"],
            row["against"],
            str(row["n"]),
            _percent(row["median_abs"]),
            _percent(row["p90_abs"]),
            error_words(row["worst"]),
            error_words(row["bias"]),
            f"{row['exact']}/{row['n']}",
        ]
        for row in estimator_errors(contents.summary).to_dict("records")
    ]
    if not rows:
        return []
    head = ["estimator", "of", "cases", "median error", "90th percentile", "worst", "bias", "exact"]
    caption = (
        "Errors are (estimate - measured) / measured. Median and 90th percentile are of absolute errors; worst and "
        "bias (the mean) are signed: negative means underestimated. No estimate was made from these measurements."
    )
    return [Table(head, rows, frozenset(range(2, 8)), caption)]


def _notes(contents: Contents) -> list[Block]:
    """What the estimates are not: every distinct note of the cases."""
    summary = contents.summary
    labels, rows = CaseLabels(summary), summary[summary["estimate_note"].notna()].to_dict("records")
    said = [(note, row) for row in rows for note in dict.fromkeys(str(row["estimate_note"]).split("; "))]
    notes = []
    for reason in group_reasons(note for note, _ in said):
        such = "such as " if reason.count > 1 else ""
        of = f" ({counted(reason.count, len(summary), 'case')}: {such}{labels.case(said[reason.places[0]][1])})"
        notes.append(reason.text if reason.count == len(summary) else reason.text + of)
    more = more_reasons(len(notes) - _NOTES, "table.csv")
    return [Notice("note", f"Of the estimates: {'; '.join([*notes[:_NOTES], *more])}.")] if notes else []


def _predictions(contents: Contents) -> list[Block]:
    """Out of memory, predicted and not; counts beside the ratios, so that few cases show as few."""
    found = oom_predictions(contents.summary).to_dict("records")
    if not found:
        return []
    rows: list[list[Words]] = [
        [
            row["title"],
            str(row["n"]),
            str(row["true_positive"]),
            str(row["false_positive"]),
            str(row["false_negative"]),
            str(row["true_negative"]),
            _percent(row["precision"]),
            _percent(row["recall"]),
        ]
        for row in found
    ]
    head = [
        "estimator",
        "cases",
        "OOM predicted (hit)",
        "false alarm",
        "missed OOM",
        "ran, as predicted",
        "precision",
        "recall",
    ]
    caption = (
        "Out of memory (OOM): an estimate above the device's memory predicts it. Precision is the share of predictions "
        "that came true, recall the share of out-of-memory cases that were predicted."
    )
    return [Table(head, rows, frozenset(range(1, 8)), caption)]


def _contexts(contents: Contents) -> list[Block]:
    """What to put into a device file."""
    items: list[Words] = []
    for found in measured_contexts(contents.frame):
        runs = f"{found.n} run{'s' if found.n != 1 else ''}"
        items.append(
            (
                f"On {found.machine} the CUDA context and loaded modules took {format_bytes(found.median_bytes)} in "
                f"the median ({format_bytes(found.low_bytes)} to {format_bytes(found.high_bytes)}, {runs}). In its "
                "device file: ",
                Code(f"context_bytes = {found.median_bytes}"),
                ", ",
                Code(f"context_low_bytes = {found.low_bytes}"),
                ", ",
                Code(f"context_high_bytes = {found.high_bytes}"),
                ".",
            )
        )
    return [Bullets(items)] if items else []


def _percent(frac: Any) -> str:
    """A share or a size without sign: `3.21 %`."""
    return f"{float(frac) * 100:.3g} %" if known(frac) else MISSING


SECTION = Section(order=35, title="Estimates against measurements", build=build)
