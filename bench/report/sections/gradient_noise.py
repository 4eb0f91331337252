"""What a larger batch does to training, where the gradient noise was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.analysis.gradient_noise import gradient_noise
from bench.analysis.labels import CaseLabels
from bench.report.blocks import Block, Bullets, Notice, Paragraph, Table
from bench.report.contents import Contents, Section
from bench.report.words import integer, known, listed, rate_cell, seconds_cell
from bench.units import MISSING, format_rate

MAX_ROWS = 60
_NAMED = 6


def build(contents: Contents) -> Sequence[Block]:
    """Throughput beside the noise scale, case by case; nothing where it was not measured."""
    found = gradient_noise(contents.frame, contents.summary)
    if found.empty:
        return []
    labels = CaseLabels(contents.summary)
    axes = labels.axes
    records = found.to_dict("records")
    head = [
        "model",
        "data set",
        *(axis.replace("_", " ") for axis in axes),
        "batch",
        "samples/s (95 % interval)",
        "noise scale, samples (95 % interval)",
        "interval over",
        "a step's worth",
        "useful samples/s",
        "images",
        "cost of a pass",
    ]
    rows = [
        [
            *(labels.words(row, axis) for axis in ("model", "dataset", *axes)),
            integer(row["batch_size"]),
            rate_cell(row),
            _scale(row),
            _basis(row),
            _worth(row),
            format_rate(row["useful_samples_per_s"]),
            row["images"] or MISSING,
            seconds_cell(row["cost_s"]),
        ]
        for row in records[:MAX_ROWS]
    ]
    texts = {0, 1, *range(2, 2 + len(axes)), 5 + len(axes), 8 + len(axes)}
    more = f" The first {MAX_ROWS} of {len(found)} cases." if len(found) > MAX_ROWS else ""
    table = Table(head, rows, frozenset(range(len(head))) - texts, f"Speed beside the gradient noise scale.{more}")
    return [Paragraph(_MEANING), *_warnings(records), *_answers(records, labels), table]


_MEANING = (
    "Averaging more samples makes a gradient less noisy, and a step better, up to the noise scale: there, a step is "
    "worth half of one over unlimited samples; well beyond it, twice the batch makes hardly a better step. Useful "
    "samples/s is throughput divided by how many times the fewest samples a training takes at that batch size. Both "
    "follow from the simple noise scale at the beginning of training; it grows later on, and with it the batch size "
    "that pays."
)


def _answers(records: Sequence[Mapping[Any, Any]], labels: CaseLabels) -> list[Block]:
    """For each model and data set, the batch size with the most useful samples a second."""
    best: dict[str, Mapping[Any, Any]] = {}
    for row in records:
        if known(row["useful_samples_per_s"]):
            name = ", ".join(filter(None, (labels.unit(row), labels.detail(row))))
            if name not in best or row["useful_samples_per_s"] > best[name]["useful_samples_per_s"]:
                best[name] = row
    items = [
        f"{name}: of the batch sizes measured, {integer(row['batch_size'])} gives the most useful samples a second "
        f"({format_rate(row['useful_samples_per_s'])} of {format_rate(row['samples_per_s'])}); more samples stop "
        f"helping beyond about {_scale(row)}."
        for name, row in list(best.items())[:_NAMED]
    ]
    return [Bullets(items)] if items else []


def _warnings(records: Sequence[Mapping[Any, Any]]) -> list[Block]:
    """What the numbers are not: every distinct note of the runs."""
    notes = sorted({note for row in records for note in str(row["notes"]).split("; ") if note})
    return [Notice("warning", f"Of the noise scales: {listed(notes, 6)}.")] if notes else []


def _scale(row: Mapping[Any, Any]) -> str:
    if not known(row["scale"]):
        return MISSING
    middle = f"{row['scale']:,.3g}" if row["scale"] < 1000 else f"{row['scale']:,.0f}"
    if not known(row["low"]):
        return f"{middle} (no interval)"
    low, high = (f"{row[end]:,.3g}" if row[end] < 1000 else f"{row[end]:,.0f}" for end in ("low", "high"))
    return f"{middle} ({low} to {high})"


def _basis(row: Mapping[Any, Any]) -> str:
    return f"{integer(row['count'])} {row['basis']}" if row["count"] else MISSING


def _worth(row: Mapping[Any, Any]) -> str:
    return f"{100 / (1 + row['scale'] / row['batch_size']):.0f} %" if known(row["scale"]) else MISSING


SECTION = Section(order=45, title="Batch size and gradient noise", build=build)
