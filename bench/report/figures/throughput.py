"""Throughput against batch size, with its interval and where memory ran out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis import CaseLabels, best_cases
from bench.records import Status
from bench.report import theme
from bench.report.contents import Contents
from bench.report.drawing import Drawing
from bench.report.kinds import FigureKind
from bench.report.series import Layout, lay_out
from bench.units import format_rate

_COLUMNS = [
    "panel",
    "series",
    "drawn",
    "machine",
    "batch_size",
    "status",
    "processes",
    "samples_per_s",
    "samples_per_s_low",
    "samples_per_s_high",
]


def draw(contents: Contents) -> Drawing | None:
    """A panel a model and data set, a line a combination of the other axes; several machines have `curves` instead."""
    if contents.hardware is not None:
        return None
    summary = contents.summary
    known = summary[summary["samples_per_s"].notna() | (summary["status"] == Status.OOM)]
    if not known["samples_per_s"].notna().any():
        return None
    layout = lay_out(known, theme.MAX_PANELS)
    figure, panels = theme.panels(
        len(layout.panels),
        "Throughput against batch size",
        f"{' / '.join(contents.machines)} · higher is better · bars: 95 % interval over processes",
    )
    for axes, panel in zip(panels, layout.panels, strict=True):
        _draw_panel(axes, layout, panel)
    _legend(figure, layout)
    return Drawing(
        name="throughput",
        title="Throughput against batch size",
        caption=(
            "Both axes are logarithmic. Points are geometric means of one number a process; bars are 95 % intervals "
            "over processes (none where a case ran in one). A cross and the shaded range mark batch sizes that ran out "
            f"of memory. {layout.left_out}"
        ).strip(),
        alt=_alt(summary),
        figure=figure,
        numbers=layout.frame[_COLUMNS].reset_index(drop=True),
    )


def _draw_panel(axes: Axes, layout: Layout, panel: str) -> None:
    rows = layout.frame[(layout.frame["panel"] == panel) & layout.frame["drawn"]]
    timed = rows[rows["samples_per_s"].notna()]
    for series, look in layout.looks.items():
        line = timed[timed["series"] == series]
        if line.empty:
            continue
        middle = line["samples_per_s"].to_numpy()
        reach = np.vstack([middle - line["samples_per_s_low"], line["samples_per_s_high"] - middle])
        axes.errorbar(
            line["batch_size"].to_numpy(dtype=float),
            middle,
            yerr=np.nan_to_num(reach),
            color=look.colour,
            marker=look.marker,
            linestyle=look.dashes,
            capsize=2.5,
            elinewidth=1.0,
            markeredgecolor=theme.PAPER,
            markeredgewidth=0.6,
        )
    theme.batch_axis(axes, [int(size) for size in rows["batch_size"]])
    if not timed.empty:
        ends = timed[["samples_per_s", "samples_per_s_low", "samples_per_s_high"]].to_numpy(dtype=float)
        theme.log_axis(axes, "y", np.nanmin(ends), np.nanmax(ends), base=10, words=short_rate)
    _mark_out_of_memory(axes, rows, layout)
    theme.finish(axes, panel, "batch size", "samples / s")


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
        axes.plot(
            float(size),
            0.06,
            marker="X",
            color=alone,
            markersize=7,
            markeredgecolor=theme.PAPER,
            markeredgewidth=0.6,
            transform=axes.get_xaxis_transform(),
            linestyle="none",
        )


def _legend(figure: Figure, layout: Layout) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            marker=look.marker,
            linestyle=look.dashes,
            label=theme.clip(series, 60) or "all cases",
        )
        for series, look in layout.looks.items()
    ]
    if any(layout.frame["drawn"] & (layout.frame["status"] == Status.OOM)):
        handles.append(Line2D([], [], color=theme.MUTED, marker="X", linestyle="none", label="out of memory"))
    legend(figure, handles)


def legend(figure: Figure, handles: list[Line2D]) -> None:
    """One legend below all panels; none for a single nameless line."""
    if len(handles) > 1 or (handles and handles[0].get_label() != "all cases"):
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), 6, 110 // (longest + 6)))
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, handlelength=2.6, labelcolor=theme.INK)


def short_rate(value: float) -> str:
    """A rate as a tick: `250`, `1.5k`, `2M`."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def _alt(summary: pd.DataFrame) -> str:
    labels = CaseLabels(summary)
    parts = [
        f"{labels.unit(row)} peaks at {format_rate(row['samples_per_s'], 'samples')} at {labels.setting(row)}"
        for row in best_cases(summary).head(6).to_dict("records")
    ]
    return f"Lines of throughput over batch size. {'; '.join(parts)}."


FIGURE = FigureKind(order=10, draw=draw)
