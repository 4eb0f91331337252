"""Throughput over batch size, one line a machine, with the knee and where memory ran out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.records import Status
from bench.report import theme
from bench.report.contents import Contents
from bench.report.drawing import Drawing
from bench.report.figures.throughput import legend, short_rate
from bench.report.kinds import FigureKind
from bench.report.machines import KNEE_FRAC, Board, boundary, edge_dashes, knees, lay_out_machines, machine_handles
from bench.units import format_rate

_COLUMNS = [
    "panel",
    "detail",
    "drawn",
    "machine",
    "batch_size",
    "status",
    "processes",
    "samples_per_s",
    "samples_per_s_low",
    "samples_per_s_high",
    "knee",
]


def draw(contents: Contents) -> Drawing | None:
    """A panel a model, data set and combination of the other axes; nothing for a single machine."""
    summary = contents.summary
    timed = summary["samples_per_s"].notna()
    if len(contents.machines) < 2 or not timed.any():
        return None
    board = lay_out_machines(summary, contents.machines, timed | (summary["status"] == Status.OOM))
    board.frame["knee"] = knees(board.frame)
    figure, panels = theme.panels(
        len(board.pairs),
        "Throughput against batch size, machine by machine",
        "higher is better · bars: 95 % interval over processes · ring: the knee · cross: first batch out of memory",
    )
    for axes, pair in zip(panels, board.pairs, strict=True):
        _draw_panel(axes, board, pair)
    out = bool((board.frame["drawn"] & (board.frame["status"] == Status.OOM)).any())
    ring = Line2D(
        [],
        [],
        color=theme.MUTED,
        marker="o",
        markersize=10,
        markerfacecolor="none",
        linestyle="none",
        label=f"knee: {KNEE_FRAC * 100:.0f} % of the best rate",
    )
    legend(figure, [*machine_handles(board, out_of_memory=out), ring])
    return Drawing(
        name="curves",
        title="Throughput against batch size, machine by machine",
        caption=(
            "Both axes are logarithmic. Points are geometric means of one number a process; bars are 95 % intervals "
            "over processes (none where a case ran in one). A line breaks where a planned case has no speed. The ring "
            "marks the knee: the smallest batch size that "
            f"reaches {KNEE_FRAC * 100:.0f} % of the line's best rate. The dashed upright in a machine's colour lies "
            f"between its largest batch size that ran and the first that ran out of memory. {board.left_out}"
        ).strip(),
        alt=_alt(board.frame),
        figure=figure,
        numbers=board.frame[_COLUMNS].reset_index(drop=True),
    )


def _draw_panel(axes: Axes, board: Board, pair: tuple[str, str]) -> None:
    rows = board.rows(pair)
    theme.batch_axis(axes, [int(size) for size in rows["batch_size"]])
    timed = rows[rows["samples_per_s"].notna()]
    if not timed.empty:
        ends = timed[["samples_per_s", "samples_per_s_low", "samples_per_s_high"]].to_numpy(dtype=float)
        theme.log_axis(axes, "y", np.nanmin(ends), np.nanmax(ends), base=10, words=short_rate)
    for machine, look in board.looks.items():
        _draw_line(axes, board.rows(pair, machine), look.colour, look.marker, look.dashes)
    _draw_edges(axes, board, pair)
    theme.finish(axes, pair[0], "batch size", "samples / s", detail=pair[1])


def _draw_edges(axes: Axes, board: Board, pair: tuple[str, str]) -> None:
    """Where each machine runs out of memory: an upright before the first batch size, and a cross at it."""
    edges = {machine: edge for machine in board.looks if (edge := boundary(board.rows(pair, machine))) is not None}
    dashes = edge_dashes({machine: place for machine, (_, place) in edges.items()})
    for machine, (first, place) in edges.items():
        colour, level = board.looks[machine].colour, list(board.looks).index(machine)
        axes.axvline(place, color=colour, linewidth=1.2, linestyle=dashes[machine], zorder=1.5)
        axes.plot(
            float(first),
            0.05 + 0.075 * level,
            marker="X",
            color=colour,
            markersize=7,
            markeredgecolor=theme.PAPER,
            markeredgewidth=0.6,
            linestyle="none",
            transform=axes.get_xaxis_transform(),
        )


def _draw_line(axes: Axes, line: pd.DataFrame, colour: str, marker: str, dashes: object) -> None:
    sizes, middle = line["batch_size"].to_numpy(dtype=float), line["samples_per_s"].to_numpy()
    reach = np.vstack([middle - line["samples_per_s_low"], line["samples_per_s_high"] - middle])
    axes.errorbar(
        sizes,
        middle,
        yerr=np.nan_to_num(reach),
        color=colour,
        marker=marker,
        linestyle=dashes,
        capsize=2.5,
        elinewidth=1.0,
        markeredgecolor=theme.PAPER,
        markeredgewidth=0.6,
    )
    knee = line["knee"].to_numpy()
    axes.plot(
        sizes[knee],
        middle[knee],
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=colour,
        markeredgewidth=1.3,
        linestyle="none",
        zorder=4,
    )


def _alt(frame: pd.DataFrame) -> str:
    found = frame[frame["knee"]].head(8).to_dict("records")
    parts = [
        f"{', '.join(filter(None, (row['panel'], row['detail'])))} on {row['machine']} has its knee at batch "
        f"{row['batch_size']} with {format_rate(row['samples_per_s'], 'samples')}"
        for row in found
    ]
    return f"Lines of throughput over batch size, one a machine. {'; '.join(parts)}."


FIGURE = FigureKind(order=4, draw=draw)
