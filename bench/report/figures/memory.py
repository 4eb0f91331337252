"""Peak memory against batch size, measured beside each estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.analysis import estimator_errors, gpu_memory_bytes
from bench.records import Status
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.layout import among, draw_legend, lay_out, spread_panels, tick_bytes
from bench.units import format_bytes


@dataclass(frozen=True, slots=True)
class _Kind:
    """One line of a panel: hues stand for the level that is looked at, hollow dashed lines for estimates."""

    column: str
    label: str
    hue: int
    measured: bool


_KINDS = (
    _Kind("peak_allocated_bytes", "measured, allocated", 0, True),
    _Kind("formula_bytes", "formula", 1, False),
    _Kind("trace_peak_allocated_bytes", "trace, allocated", 0, False),
    _Kind("peak_reserved_bytes", "measured, reserved", 2, True),
    _Kind("trace_peak_reserved_bytes", "trace, reserved", 2, False),
    _Kind("device_used_bytes", "measured, device (NVML)", 3, True),
    _Kind("estimated_device_bytes", "estimated, device", 3, False),
)
_CAPACITY_WITHIN = 8
"""The device's memory is drawn where it is less than so many times the largest value; it would flatten the lines."""


def draw(contents: Contents) -> Drawing | None:
    """A panel a model, data set and combination of the other axes; a line a kind of number."""
    columns = ["machine", "batch_size", "status", *(kind.column for kind in _KINDS)]
    numbers = _numbers(lay_out(contents.summary, columns, max_panels=10**6).frame)
    if numbers.empty:
        return None
    pairs = spread_panels(numbers, theme.MAX_PANELS, "series")
    numbers["drawn"] = among(numbers, pairs, "series")
    shown = numbers[numbers["drawn"]]
    figure, panels = theme.panels(
        len(pairs),
        "Peak memory against batch size",
        f"{' / '.join(contents.machines)} · solid: measured · dashed, hollow: estimated without running",
    )
    capacity = _capacity(contents.summary)
    for axes, (panel, series) in zip(panels, pairs, strict=True):
        rows = shown[(shown["panel"] == panel) & (shown["series"] == series)]
        _draw_panel(axes, rows, capacity)
        theme.finish(axes, panel, "batch size", "peak memory", detail=series)
    kinds = set(shown["kind"])
    draw_legend(figure, [_handle(kind) for kind in _KINDS if kind.label in kinds])
    left = len(numbers[["panel", "series"]].drop_duplicates()) - len(pairs)
    return Drawing(
        name="memory",
        title="How much memory does each batch size take?",
        caption=(
            "Both axes are logarithmic. Measured peaks are the largest of the processes; estimates are drawn for cases "
            "that ran out of memory as well (shaded)."
            + (f" {left} more panels did not fit and are in the CSV (drawn is false)." if left else "")
        ),
        alt=_alt(contents.summary),
        figure=figure,
        numbers=numbers.reset_index(drop=True),
    )


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a case and kind of number that is known."""
    shared = ["panel", "series", "machine", "batch_size", "status"]
    parts = [
        frame[shared].assign(kind=kind.label, measured=kind.measured, bytes=frame[kind.column])
        for kind in _KINDS
        if kind.column in frame
    ]
    numbers = pd.concat(parts)
    numbers = numbers[numbers["bytes"].notna() & (numbers["bytes"] > 0)]
    return numbers.sort_index(kind="stable")


def _draw_panel(axes: Axes, rows: pd.DataFrame, capacity: int | None) -> None:
    for kind in _KINDS:
        line = rows[rows["kind"] == kind.label]
        if not line.empty:
            handle = _handle(kind)
            axes.plot(
                line["batch_size"].to_numpy(dtype=float),
                line["bytes"].to_numpy(dtype=float),
                color=handle.get_color(),
                linestyle=handle.get_linestyle() if kind.measured else theme.DASHES[1],
                marker=handle.get_marker(),
                markerfacecolor=handle.get_markerfacecolor(),
                markeredgecolor=handle.get_markeredgecolor(),
                zorder=3 if kind.measured else 2.5,
                markersize=handle.get_markersize(),
                linewidth=handle.get_linewidth(),
            )
    theme.batch_axis(axes, [int(size) for size in rows["batch_size"]])
    largest = float(rows["bytes"].max())
    if capacity and largest < capacity < largest * _CAPACITY_WITHIN:
        largest = float(capacity) * 1.1
    theme.log_axis(axes, "y", float(rows["bytes"].min()), largest, base=2, words=tick_bytes)
    if capacity and capacity <= largest:
        axes.axhline(capacity, color=theme.MUTED, linewidth=1.0, linestyle=(0, (2, 2)))
        axes.text(
            0.01,
            capacity,
            f"device memory: {format_bytes(capacity)}",
            transform=axes.get_yaxis_transform(),
            fontsize=7.5,
            va="top",
            color=theme.MUTED,
        )
    out = rows.loc[rows["status"] == Status.OOM, "batch_size"]
    if len(out):
        ran = rows.loc[rows["batch_size"] < out.min(), "batch_size"]
        edge = float(np.sqrt(float(out.min()) * float(ran.max()))) if len(ran) else float(out.min()) / 1.41
        right = float(rows["batch_size"].max()) * 1.4
        axes.set_xlim(axes.get_xlim()[0], right)
        axes.axvspan(edge, right, color=theme.FILL, zorder=0, linewidth=0)


def _handle(kind: _Kind) -> Line2D:
    colour = theme.HUES[kind.hue]
    marker = theme.MARKERS[kind.hue]
    return Line2D(
        [],
        [],
        color=colour,
        marker=marker,
        label=kind.label,
        linestyle="-" if kind.measured else "--",
        markerfacecolor=colour if kind.measured else theme.PAPER,
        linewidth=1.6 if kind.measured else 1.2,
        markeredgecolor=theme.PAPER if kind.measured else colour,
        markersize=5.0 if kind.measured else 5.5,
    )


def _capacity(summary: pd.DataFrame) -> int | None:
    """The memory of the one kind of GPU there is, in bytes; unknown for CPUs and for several."""
    sizes = gpu_memory_bytes(summary).dropna().unique()
    return int(sizes[0]) if len(sizes) == 1 else None


def _alt(summary: pd.DataFrame) -> str:
    known = summary[summary["peak_allocated_bytes"].notna()]
    words = "Lines of peak memory over batch size, measured and estimated."
    if not known.empty:
        low, high = (format_bytes(int(known["peak_allocated_bytes"].agg(end))) for end in ("min", "max"))
        words += f" Measured allocated peaks reach from {low} to {high}."
    errors = [
        f"{row['title']} has a median error of {row['median_abs'] * 100:.3g} %"
        for row in estimator_errors(summary).to_dict("records")
        if row["name"] != "speed"
    ]
    return f"{words} {'; '.join(errors)}." if errors else words


FIGURE = FigureKind(order=30, draw=draw)
