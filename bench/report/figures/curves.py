"""Throughput over batch size, one line a machine, with the knee and where memory ran out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.records import Status
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.hardware import KNEE_FRAC, boundary, edge_dashes, knees
from bench.report.layout import (
    Layout,
    draw_legend,
    draw_lines,
    draw_rings,
    lay_out_machines,
    line_handles,
    mark_first_out,
    ring_handle,
    tick_rate,
)
from bench.units import format_rate

_RATE = ["samples_per_s", "samples_per_s_low", "samples_per_s_high"]
_KNOWN = ["machine", "batch_size", "status", "processes", *_RATE]


def draw(contents: Contents) -> Drawing | None:
    """A panel a model, data set and combination of the other axes; nothing for a single machine."""
    summary = contents.summary
    timed = summary["samples_per_s"].notna()
    if len(contents.machines) < 2 or not timed.any():
        return None
    has = timed | (summary["status"] == Status.OOM)
    layout = lay_out_machines(summary, [*_KNOWN, "peak_allocated_bytes"], contents.machines, has)
    layout.frame["knee"] = knees(layout.frame)
    figure, panels = theme.panels(
        len(layout.pairs),
        "Throughput against batch size, machine by machine",
        "higher is better · bars: 95 % interval over processes · ring: the knee · cross: first batch out of memory",
    )
    for axes, pair in zip(panels, layout.pairs, strict=True):
        _draw_panel(axes, layout, pair)
    out = bool((layout.frame["drawn"] & (layout.frame["status"] == Status.OOM)).any())
    ring = ring_handle(f"knee: {KNEE_FRAC * 100:.0f} % of the best rate")
    draw_legend(figure, [*line_handles(layout, out_of_memory=out), ring])
    return Drawing(
        name="curves",
        title="Which machine is fastest at which batch size?",
        caption=(
            "Both axes are logarithmic. Points are geometric means of one number a process; bars are 95 % intervals "
            "over processes (none where a case ran in one). A line breaks where a planned case has no speed. The ring "
            "marks the knee: the smallest batch size that "
            f"reaches {KNEE_FRAC * 100:.0f} % of the line's best rate. The dashed upright in a machine's colour lies "
            f"between its largest batch size that ran and the first that ran out of memory. {layout.left_out}"
        ).strip(),
        alt=_alt(layout.frame),
        figure=figure,
        numbers=layout.frame[["panel", "detail", "drawn", *_KNOWN, "knee"]].reset_index(drop=True),
    )


def _draw_panel(axes: Axes, layout: Layout, pair: tuple[str, str]) -> None:
    rows = layout.rows(pair)
    theme.batch_axis(axes, [int(size) for size in rows["batch_size"]])
    timed = rows[rows["samples_per_s"].notna()]
    if not timed.empty:
        ends = timed[_RATE].to_numpy(dtype=float)
        theme.log_axis(axes, "y", np.nanmin(ends), np.nanmax(ends), base=10, words=tick_rate)
    draw_lines(axes, rows, layout, "samples_per_s")
    for machine, look in layout.looks.items():
        knee = rows[(rows["machine"] == machine) & rows["knee"]]
        draw_rings(axes, knee["batch_size"].to_numpy(dtype=float), knee["samples_per_s"].to_numpy(), look.colour)
    _draw_edges(axes, layout, pair)
    theme.finish(axes, pair[0], "batch size", "samples / s", detail=pair[1])


def _draw_edges(axes: Axes, layout: Layout, pair: tuple[str, str]) -> None:
    """Where each machine runs out of memory: an upright before the first batch size, and a cross at it."""
    edges = {machine: edge for machine in layout.looks if (edge := boundary(layout.rows(pair, machine))) is not None}
    dashes = edge_dashes({machine: place for machine, (_, place) in edges.items()})
    for machine, (first, place) in edges.items():
        colour, level = layout.looks[machine].colour, list(layout.looks).index(machine)
        axes.axvline(place, color=colour, linewidth=1.2, linestyle=dashes[machine], zorder=1.5)
        mark_first_out(axes, float(first), 0.05 + 0.075 * level, colour)


def _alt(frame: pd.DataFrame) -> str:
    found = frame[frame["knee"]].head(8).to_dict("records")
    parts = [
        f"{', '.join(filter(None, (row['panel'], row['detail'])))} on {row['machine']} has its knee at batch "
        f"{row['batch_size']} with {format_rate(row['samples_per_s'], 'samples')}"
        for row in found
    ]
    return f"Lines of throughput over batch size, one a machine. {'; '.join(parts)}."


FIGURE = FigureKind(order=4, draw=draw)
