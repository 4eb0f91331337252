"""Throughput against batch size, with its interval and where memory ran out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.analysis import CaseLabels, best_cases
from bench.records import Status
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.layout import Layout, draw_legend, draw_lines, lay_out, line_handles, mark_first_out, tick_rate
from bench.units import format_rate

_RATE = ["samples_per_s", "samples_per_s_low", "samples_per_s_high"]
_COLUMNS = ["machine", "batch_size", "status", "processes", *_RATE]


def draw(contents: Contents) -> Drawing | None:
    """A panel a model and data set, a line a combination of the other axes; several machines have `curves` instead."""
    if contents.hardware is not None:
        return None
    summary = contents.summary
    known = summary[summary["samples_per_s"].notna() | (summary["status"] == Status.OOM)]
    if not known["samples_per_s"].notna().any():
        return None
    layout = lay_out(known, _COLUMNS, theme.MAX_PANELS)
    figure, panels = theme.panels(
        len(layout.pairs),
        "Throughput against batch size",
        f"{' / '.join(contents.machines)} · higher is better · bars: 95 % interval over processes",
    )
    for axes, pair in zip(panels, layout.pairs, strict=True):
        _draw_panel(axes, layout, pair)
    out = bool((layout.frame["drawn"] & (layout.frame["status"] == Status.OOM)).any())
    draw_legend(figure, line_handles(layout, out_of_memory=out))
    return Drawing(
        name="throughput",
        title="How fast does each batch size train?",
        caption=(
            "Both axes are logarithmic. Points are geometric means of one number a process; bars are 95 % intervals "
            "over processes (none where a case ran in one). A cross and the shaded range mark batch sizes that ran out "
            f"of memory. {layout.left_out}"
        ).strip(),
        alt=_alt(summary),
        figure=figure,
        numbers=layout.frame[["panel", "series", "drawn", *_COLUMNS]].reset_index(drop=True),
    )


def _draw_panel(axes: Axes, layout: Layout, pair: tuple[str, str]) -> None:
    rows = layout.rows(pair)
    timed = rows[rows["samples_per_s"].notna()]
    draw_lines(axes, timed, layout, "samples_per_s")
    theme.batch_axis(axes, [int(size) for size in rows["batch_size"]])
    if not timed.empty:
        ends = timed[_RATE].to_numpy(dtype=float)
        theme.log_axis(axes, "y", np.nanmin(ends), np.nanmax(ends), base=10, words=tick_rate)
    _mark_out_of_memory(axes, rows, layout)
    theme.finish(axes, pair[0], "batch size", "samples / s")


def _mark_out_of_memory(axes: Axes, rows: pd.DataFrame, layout: Layout) -> None:
    """A cross where a line first runs out of memory (grey where several do), and a shade from the first of all."""
    out = rows[rows["status"] == Status.OOM]
    if out.empty:
        return
    first = int(out["batch_size"].min())
    below = rows.loc[rows["batch_size"] < first, "batch_size"]
    edge = float(np.sqrt(first * below.max())) if len(below) else first / np.sqrt(2)
    right = max(float(rows["batch_size"].max()), first) * 1.5
    axes.set_xlim(axes.get_xlim()[0], right)
    axes.axvspan(edge, right, color=theme.FILL, zorder=0, linewidth=0)
    axes.axvline(edge, color=theme.MUTED, linewidth=1.0, linestyle=(0, (2, 2)))
    axes.text(
        edge,
        0.97,
        "out of memory",
        transform=axes.get_xaxis_transform(),
        fontsize=7.5,
        va="top",
        ha="left",
        rotation=90,
        rotation_mode="default",
        color=theme.MUTED,
    )
    boundaries = out.groupby("series", sort=False)["batch_size"].min()
    for size, lines in boundaries.groupby(boundaries, sort=True):
        alone = layout.looks[str(lines.index[0])].colour if len(lines) == 1 else theme.MUTED
        mark_first_out(axes, float(size), 0.06, alone)


def _alt(summary: pd.DataFrame) -> str:
    labels = CaseLabels(summary)
    parts = [
        f"{labels.unit(row)} peaks at {format_rate(row['samples_per_s'], 'samples')} at {labels.setting(row)}"
        for row in best_cases(summary).head(6).to_dict("records")
    ]
    return f"Lines of throughput over batch size. {'; '.join(parts)}."


FIGURE = FigureKind(order=20, draw=draw)
