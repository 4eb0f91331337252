"""How much of the device's rated peaks a step uses: MFU, and its distance from the roofline."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.analysis import best_cases
from bench.analysis.labels import CaseLabels
from bench.report.blocks import Block, Table
from bench.report.contents import Contents, Section
from bench.report.words import field_words, integer, seconds_cell, share_cell

_MAX_ROWS = 15


def build(contents: Contents) -> Sequence[Block]:
    """The fastest case of each model and precision; nothing where neither share is known."""
    summary = contents.summary
    known = summary[summary["mfu_frac"].notna() | summary["roofline_frac"].notna()]
    if known.empty:
        return []
    best = pd.concat([best_cases(part) for _, part in known.groupby("precision", sort=False)])
    labels = CaseLabels(summary)
    head = [
        "model",
        "data set",
        "batch",
        *(["with"] if labels.axes else []),
        "arithmetic per step",
        "peak rate",
        "MFU",
        "least time per step",
        "step, median",
        "of the roofline",
    ]
    rows = [
        [
            labels.words(row, "model"),
            labels.words(row, "dataset"),
            integer(row["batch_size"]),
            *([labels.detail(row)] if labels.axes else []),
            field_words("step_flop", row["step_flop"]),
            field_words("peak_flop_per_s", row["peak_flop_per_s"]),
            share_cell(row["mfu_frac"]),
            seconds_cell(row["least_step_time_s"]),
            seconds_cell(row["median_step_time_s"]),
            share_cell(row["roofline_frac"]),
        ]
        for row in best.head(_MAX_ROWS).to_dict("records")
    ]
    left = f" {len(best) - _MAX_ROWS} more are in the whole table." if len(best) > _MAX_ROWS else ""
    caption = (
        f"The fastest case of each model and precision.{left} MFU is the arithmetic of a step's products over its "
        "median time and the device's rated dense peak at that precision. The least time is that of the step's kernels "
        "at the rated peak and bandwidth, without launches and the host; the last column is its share of the measured "
        "time. Boards that run above their rated clock, and tensors that stay in the L2 cache, raise the shares."
    )
    texts = {0, 1} | ({3} if labels.axes else set())
    return [Table(head, rows, frozenset(range(len(head))) - texts, caption)]


SECTION = Section(order=38, title="How close to the hardware", build=build)
