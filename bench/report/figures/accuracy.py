"""Measured against estimated memory: every case with the identity line, and how the errors are spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis import COMPARISONS, CaseLabels, estimator_errors
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.layout import draw_legend, tick_bytes
from bench.stats import percentiles
from bench.units import format_frac

_MAX_ROWS = 12
_OTHERS = "others"
_MEMORY = tuple(comparison for comparison in COMPARISONS if comparison.name != "speed")
_LOOKS = {item.name: (theme.HUES[hue], theme.MARKERS[hue]) for item, hue in zip(_MEMORY, (1, 0, 2, 3), strict=True)}


def draw(contents: Contents) -> Drawing | None:
    """Left every case, estimate over measurement; right the relative errors by model and data set."""
    numbers = _numbers(contents.summary)
    if numbers.empty:
        return None
    figure, (left, right) = theme.panels(
        2,
        "Measured against estimated memory",
        f"{' / '.join(contents.machines)} · on the line: exact · left of zero: the estimate is too low",
        row_in=3.6,
    )
    _draw_scatter(left, numbers)
    _draw_errors(right, numbers)
    _legend(figure, numbers)
    return Drawing(
        name="accuracy",
        title="How far are the estimates from what was measured?",
        caption=(
            "Left: each point is a case; the line is where estimate and measurement are equal. Right: relative errors, "
            "(estimate - measured) / measured; the bar reaches from the 10th to the 90th percentile of the cases, the "
            "tick is the median."
        ),
        alt=_alt(contents.summary),
        figure=figure,
        numbers=numbers.reset_index(drop=True),
    )


def _numbers(summary: pd.DataFrame) -> pd.DataFrame:
    """One row a case and estimator that has both numbers."""
    labels = CaseLabels(summary)
    units = pd.Series(list(map(labels.unit, summary.to_dict("records"))), summary.index, dtype=str)
    kept = list(dict.fromkeys(units))
    if len(kept) > _MAX_ROWS:
        units = units.where(units.isin(kept[: _MAX_ROWS - 1]), _OTHERS)
    shared = summary[["machine", "dataset", "model", "optimizer", "batch_size", "precision"]].assign(row=units)
    parts = [
        shared.assign(
            estimator=item.name,
            estimated_bytes=summary[item.estimate],
            measured_bytes=summary[item.measured],
            relative_error=summary[item.column],
        )
        for item in _MEMORY
    ]
    numbers = pd.concat(parts)
    return numbers[numbers["relative_error"].notna()]


def _draw_scatter(axes: Axes, numbers: pd.DataFrame) -> None:
    ends = numbers[["estimated_bytes", "measured_bytes"]].to_numpy(dtype=float)
    low, high = float(ends[ends > 0].min()), float(ends.max())
    for which in ("x", "y"):
        theme.log_axis(axes, which, low, high, base=2, words=tick_bytes)
    axes.plot([low / 2, high * 2], [low / 2, high * 2], color=theme.MUTED, linewidth=1.0, zorder=1)
    _draw_points(axes, numbers, "measured_bytes", "estimated_bytes", size=30)
    axes.tick_params(axis="x", labelrotation=30)
    theme.finish(axes, "Each case", "measured", "estimated")


def _draw_points(axes: Axes, numbers: pd.DataFrame, x: str, y: str, size: float) -> None:
    """A point a row, in its estimator's colour and shape."""
    import seaborn as sns  # with scipy.stats, half of the time that importing a report takes

    names = list(_LOOKS)
    sns.scatterplot(
        numbers,
        x=x,
        y=y,
        hue="estimator",
        style="estimator",
        hue_order=names,
        style_order=names,
        palette={name: colour for name, (colour, _) in _LOOKS.items()},
        markers={name: marker for name, (_, marker) in _LOOKS.items()},
        s=size,
        alpha=0.8,
        linewidth=0.5,
        edgecolor=theme.PAPER,
        zorder=3,
        legend=False,
        ax=axes,
    )


def _draw_errors(axes: Axes, numbers: pd.DataFrame) -> None:
    rows = list(dict.fromkeys(numbers["row"]))
    rows = [row for row in rows if row != _OTHERS] + [_OTHERS] * (_OTHERS in rows)
    names = [name for name in _LOOKS if name in set(numbers["estimator"])]
    offsets = {name: (number - (len(names) - 1) / 2) * 0.74 / len(names) for number, name in enumerate(names)}
    places = numbers["row"].map({row: place for place, row in enumerate(rows)}) + numbers["estimator"].map(offsets)
    points = numbers.assign(place=places.astype(float), error=numbers["relative_error"].astype(float) * 100)
    _draw_points(axes, points, "error", "place", size=16)
    groups: dict[Any, pd.Series] = dict(iter(points.groupby(["estimator", "place"], sort=False)["error"]))
    for (name, place), found in groups.items():
        colour, spread = _LOOKS[name][0], percentiles(found.to_numpy())
        axes.hlines([place], spread.p10, spread.p90, color=colour, linewidth=3.2, alpha=0.45)
        axes.plot([spread.median], [place], color=colour, marker="|", markersize=11, markeredgewidth=2.2, zorder=4)
    axes.axvline(0, color=theme.MUTED, linewidth=1.0, zorder=1)
    sizes = np.abs(numbers["relative_error"].to_numpy(dtype=float)) * 100
    if sizes.max() > 300:
        axes.set_xscale("symlog", linthresh=100)
    else:
        ends = numbers["relative_error"].astype(float) * 100
        low, high = min(float(ends.min()), -0.5), max(float(ends.max()), 0.5)
        axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g} %" if value else "0")
    axes.set_yticks(range(len(rows)), list(theme.clip_apart(rows, 28).values()))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    theme.finish(axes, "Relative error by model", "(estimate - measured) / measured", "")


def _legend(figure: Figure, numbers: pd.DataFrame) -> None:
    titles = {item.name: f"{item.title} (of {item.against})" for item in _MEMORY}
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=titles[name])
        for name, (colour, marker) in _LOOKS.items()
        if name in set(numbers["estimator"])
    ]
    draw_legend(figure, handles)


def _alt(summary: pd.DataFrame) -> str:
    parts = [
        f"{row['title']}: median error {row['median_abs'] * 100:.3g} %, worst {format_frac(row['worst'])}, "
        f"{row['n']} cases"
        for row in estimator_errors(summary).to_dict("records")
        if row["name"] in _LOOKS
    ]
    return f"Estimated over measured memory with the identity line, and relative errors by model. {'; '.join(parts)}."


FIGURE = FigureKind(order=10, draw=draw)
