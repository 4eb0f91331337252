"""What the switches of one machine cost: throughput against peak memory, one panel for each model and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.analysis.labels import PLAIN, CaseLabels
from bench.records import SWITCHES
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.hardware import extreme
from bench.report.layout import EDGE, draw_intervals, draw_legend, pareto_fronts, spread_panels, tick_bytes, tick_rate
from bench.units import format_bytes, format_rate

_RATE = ["samples_per_s", "samples_per_s_low", "samples_per_s_high"]
_ESTIMATED = ["trace_peak_allocated_bytes", "estimated_samples_per_s"]
_COLUMNS = ["panel", "detail", "drawn", "switches", *SWITCHES, "status", "memory_of", "memory_bytes", *_RATE]
_HOLLOW = (
    " A hollow point is the estimate of the same case, joined to it: the peak of the trace and the roofline's speed."
)
_MOST_PANELS = 6
_LEAST_GAP = 0.075
"""Between the lines of labels, as a fraction of a panel's height."""
_COLOUR = theme.HUES[0]


def draw(contents: Contents) -> Drawing | None:
    """A panel for each model, data set, batch size and combination of axes that are no switches; for one machine."""
    rows = _with_panels(contents.summary)
    if len(contents.machines) != 1 or rows.empty:
        return None
    pairs = spread_panels(rows, _MOST_PANELS)
    chosen = set(pairs)
    rows["drawn"] = [pair in chosen for pair in zip(rows["panel"], rows["detail"], strict=True)]
    figure, panels = theme.panels(
        len(pairs),
        "Speed against memory, switch by switch",
        f"{contents.machines[0]} · up and to the left is better · line: nothing measured is faster with less memory",
        row_in=2.6,
        columns=1,
    )
    for axes, (panel, detail) in zip(panels, pairs, strict=True):
        _draw_panel(axes, rows[(rows["panel"] == panel) & (rows["detail"] == detail)])
        theme.finish(axes, panel, rows["memory_of"].iloc[0], "samples / s", detail=detail)
    measured, estimated = ({"color": _COLOUR, "linestyle": "none", "marker": "o"} for _ in range(2))
    handles = [Line2D([], [], label="measured", **measured)]  # type: ignore[arg-type]
    has_estimates = rows[_ESTIMATED].notna().all(axis=1).any()
    if has_estimates:
        handles.append(Line2D([], [], label="estimated without running", **estimated, markerfacecolor="none"))  # type: ignore[arg-type]
    draw_legend(figure, handles)
    left = len(rows[["panel", "detail"]].drop_duplicates()) - len(pairs)
    return Drawing(
        name="switches",
        title="Which switches save memory, and what do they cost in speed?",
        caption=(
            "A filled point is a case with its 95 % interval over processes; the stepped line is the Pareto front of "
            "the measured ones."
            + (_HOLLOW if has_estimates else "")
            + (f" {left} more panels did not fit and are in the CSV (drawn is false)." if left else "")
        ),
        alt=_alt(rows),
        figure=figure,
        numbers=rows[[*_COLUMNS, *_ESTIMATED, "on_front"]].reset_index(drop=True),
    )


def _with_panels(summary: pd.DataFrame) -> pd.DataFrame:
    """The cases of every panel in which at least two settings of the switches were measured."""
    on_gpu = summary["peak_allocated_bytes"].notna().any()
    memory = "peak_allocated_bytes" if on_gpu else "host_rss_peak_bytes"
    known = (summary["samples_per_s"].notna() & summary[memory].notna()) | summary[_ESTIMATED].notna().all(axis=1)
    rows = summary[known]
    labels = CaseLabels(rows)
    shown = [axis for axis in SWITCHES if axis in labels.axes]
    records = rows.to_dict("records")
    settings = [_switches(labels, row, shown) for row in records]
    details = [", ".join(filter(None, (f"batch {row['batch_size']}", _detail(labels, row)))) for row in records]
    rows = rows.assign(
        panel=[labels.unit(row) for row in records],
        detail=details,
        switches=settings,
        memory_bytes=rows[memory],
        memory_of="peak allocated" if on_gpu else "peak memory of the process",
    )
    for name, characters in (("panel", theme.TITLE_CHARACTERS), ("detail", theme.DETAIL_CHARACTERS)):
        rows[name] = rows[name].map(theme.clip_apart(rows[name], characters))
    measured = rows["switches"].where(rows["samples_per_s"].notna())
    several = measured.groupby([rows["panel"], rows["detail"]], sort=False).transform("nunique") > 1
    rows = rows[several].copy()
    rows["on_front"] = pareto_fronts(rows, ["panel", "detail"], "memory_bytes")
    return rows


def _switches(labels: CaseLabels, row: dict[Any, Any], shown: Sequence[str]) -> str:
    others = [axis for axis in labels.axes if axis not in shown]
    return labels.detail(row, without=others) or PLAIN


def _detail(labels: CaseLabels, row: dict[Any, Any]) -> str:
    return labels.detail(row, without=("machine", *SWITCHES))


def _draw_panel(axes: Axes, rows: pd.DataFrame) -> None:
    rows = rows.sort_values(["memory_bytes", "samples_per_s"], kind="stable")
    x, made_x = (rows[name].to_numpy(dtype=float, na_value=np.nan) for name in ("memory_bytes", _ESTIMATED[0]))
    y, low, high = (rows[name].to_numpy(dtype=float, na_value=np.nan) for name in _RATE)
    made_y = rows[_ESTIMATED[1]].to_numpy(dtype=float, na_value=np.nan)
    every = np.concatenate([x, made_x])
    theme.log_axis(axes, "x", np.nanmin(every), np.nanmax(every), base=2, words=tick_bytes)
    axes.tick_params(axis="x", labelrotation=30)
    for pair in zip(x, made_x, y, made_y, strict=True):
        axes.plot(pair[:2], pair[2:], color=theme.MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.8)
    front = rows["on_front"].to_numpy()
    axes.step(x[front], y[front], where="post", color=_COLOUR, linewidth=1.0)
    axes.plot(x, y, color=_COLOUR, marker="o", linestyle="none", **EDGE)
    axes.plot(made_x, made_y, color=_COLOUR, marker="o", linestyle="none", markerfacecolor="none")
    spans = np.column_stack([x, low, high])
    spans = spans[~np.isnan(spans).any(axis=1)]
    draw_intervals(axes, spans, [_COLOUR] * len(spans))
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(lambda value, place: tick_rate(value))
    ran = ~np.isnan(y)
    words = [f"{label}{'' if was else ', not measured'}" for label, was in zip(rows["switches"], ran, strict=True)]
    _label(axes, np.where(ran, x, made_x), np.where(ran, y, made_y), words)


_LEADER = {"arrowstyle": "-", "color": theme.MUTED, "linewidth": 0.5, "shrinkA": 2, "shrinkB": 4, "relpos": (0, 0.5)}
"""From the left end of a label to its point."""


def _label(axes: Axes, x: np.ndarray, y: np.ndarray, words: Sequence[str]) -> None:
    """Name points to the right of the panel, in the order of their heights, each with a line to its point."""
    bottom, top = axes.get_ylim()
    order = np.argsort(y, kind="stable")
    heights = _spread(((y - bottom) / (top - bottom))[order])
    for place, height in zip(order, heights, strict=True):
        axes.annotate(
            words[place],
            (x[place], y[place]),
            (1.03, height),
            textcoords="axes fraction",
            fontsize=8,
            color=theme.INK,
            va="center",
            annotation_clip=False,
            arrowprops=_LEADER,
        )


def _spread(heights: np.ndarray) -> np.ndarray:
    """Ascending heights moved apart to at least `_LEAST_GAP`, as little as that takes, around where they were."""
    raised = heights.copy()
    for place in range(1, len(raised)):
        raised[place] = max(raised[place], raised[place - 1] + _LEAST_GAP)
    over = max(0.0, min(float(raised[-1]) - 1.0, float((raised - heights).max())))
    return np.asarray(raised - over)


def _alt(rows: pd.DataFrame) -> str:
    parts = []
    measured = rows[rows["samples_per_s"].notna()]
    for (panel, detail), cases in measured.groupby(["panel", "detail"], sort=False):
        small, fast = extreme(cases, "memory_bytes", smallest=True), extreme(cases, "samples_per_s")
        parts.append(
            f"{panel}, {detail}: smallest with {small['switches']} ({format_bytes(int(small['memory_bytes']))}, "
            f"{format_rate(small['samples_per_s'], 'samples')}), fastest with {fast['switches']} "
            f"({format_bytes(int(fast['memory_bytes']))}, {format_rate(fast['samples_per_s'], 'samples')})"
        )
    return f"Points of throughput over peak memory, one for each setting of the switches. {'; '.join(parts[:6])}."


FIGURE = FigureKind(order=9, draw=draw)
