"""Throughput against memory: which cases no other case beats in both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.analysis.labels import SERIES_AXES
from bench.records import SWITCHES
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.hardware import extreme
from bench.report.layout import (
    EDGE,
    Layout,
    draw_intervals,
    draw_legend,
    draw_rings,
    lay_out_machines,
    line_handles,
    pareto_fronts,
    ring_handle,
    tick_bytes,
    tick_rate,
)
from bench.units import format_bytes, format_rate

_RATE = ["samples_per_s", "samples_per_s_low", "samples_per_s_high"]
_CASE = ["machine", "batch_size", "optimizer", "precision", "memory_format", "input", "image_size", *SWITCHES]
_COLUMNS = ["panel", "drawn", *_CASE, "peak_allocated_bytes", *_RATE, "on_front_of_machine", "on_front"]

_ONE_WAY = dict.fromkeys(axis for axis in SERIES_AXES if axis != "machine")
"""The axes taken out of the rows, so that every way to train a model shares its panel."""


def draw(contents: Contents) -> Drawing | None:
    """A panel a model and data set with every way to train it; nothing for a single machine."""
    summary = contents.summary
    rows = summary[summary["samples_per_s"].notna() & summary["peak_allocated_bytes"].notna()]
    if len(contents.machines) < 2 or rows.empty:
        return None
    columns = [*_CASE, "peak_allocated_bytes", *_RATE]
    has = rows["samples_per_s"].notna()
    layout = lay_out_machines(rows.assign(**_ONE_WAY), columns, contents.machines, has)
    layout.frame[_CASE] = rows[_CASE]
    layout.frame["on_front_of_machine"] = pareto_fronts(layout.frame, ["panel", "machine"], "peak_allocated_bytes")
    layout.frame["on_front"] = pareto_fronts(layout.frame, ["panel"], "peak_allocated_bytes")
    figure, panels = theme.panels(
        len(layout.pairs),
        "Throughput against memory",
        "up and to the left is better · steps: the front of each machine · ring: beaten by no case of any machine",
    )
    for axes, pair in zip(panels, layout.pairs, strict=True):
        _draw_panel(axes, layout, pair)
    draw_legend(figure, [*line_handles(layout), ring_handle("on the front of all machines")])
    return Drawing(
        name="pareto",
        title="Which cases give the most speed for their memory?",
        caption=(
            "Both axes are logarithmic; a point is a case with its 95 % interval over processes. The stepped line is "
            "the Pareto front of a machine: of its cases, none is at least as fast with less memory, or faster with as "
            "little. Rings mark the front over all machines; it goes by the middles, so that neighbours whose "
            f"intervals overlap may change places. {layout.left_out}"
        ).strip(),
        alt=_alt(layout.frame),
        figure=figure,
        numbers=layout.frame[_COLUMNS].reset_index(drop=True),
    )


def _draw_panel(axes: Axes, layout: Layout, pair: tuple[str, str]) -> None:
    rows = layout.rows(pair)
    memory = rows["peak_allocated_bytes"].to_numpy(dtype=float)
    theme.log_axis(axes, "x", memory.min(), memory.max(), base=2, words=tick_bytes)
    ends = rows[_RATE].to_numpy(dtype=float)
    theme.log_axis(axes, "y", np.nanmin(ends), np.nanmax(ends), base=10, words=tick_rate)
    axes.tick_params(axis="x", labelrotation=30)
    for machine, look in layout.looks.items():
        line = layout.rows(pair, machine).sort_values(["peak_allocated_bytes", "samples_per_s"], kind="stable")
        x, (y, low, high) = line["peak_allocated_bytes"].to_numpy(dtype=float), line[_RATE].to_numpy(dtype=float).T
        axes.plot(x, y, color=look.colour, marker=look.marker, linestyle="none", **EDGE)
        spans = np.column_stack([x, low, high])
        spans = spans[~np.isnan(spans).any(axis=1)]
        draw_intervals(axes, spans, [look.colour] * len(spans))
        front = line["on_front_of_machine"].to_numpy()
        axes.step(x[front], y[front], where="post", color=look.colour, linestyle=look.dashes, linewidth=1.0)
        best = line["on_front"].to_numpy()
        draw_rings(axes, x[best], y[best], look.colour)
    theme.finish(axes, pair[0], "peak allocated", "samples / s")


def _alt(frame: pd.DataFrame) -> str:
    parts = []
    for panel, rows in frame.groupby("panel", sort=False):
        front = rows[rows["on_front"]]
        fastest = extreme(front, "samples_per_s")
        parts.append(
            f"{panel}: {len(front)} of {len(rows)} cases are on the front of all machines, the fastest on "
            f"{fastest['machine']} with {format_rate(fastest['samples_per_s'], 'samples')} in "
            f"{format_bytes(int(fastest['peak_allocated_bytes']))}"
        )
    return f"Points of throughput over peak memory with Pareto fronts. {'; '.join(parts[:6])}."


FIGURE = FigureKind(order=6, draw=draw)
