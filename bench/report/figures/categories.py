"""Where memory goes: the estimates' categories as shares of the measured peak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.report import theme
from bench.report.contents import Contents
from bench.report.drawing import Drawing
from bench.report.kinds import FigureKind
from bench.report.series import lay_out, spread_panels
from bench.units import format_bytes

_MAX_PANELS = 6
_MAX_BATCHES = 6


@dataclass(frozen=True, slots=True)
class _Category:
    name: str
    label: str
    colour: str
    hatch: str = ""


_CATEGORIES = (
    _Category("parameters", "parameters", theme.HUES[0]),
    _Category("gradients", "gradients", theme.HUES[4]),
    _Category("optimizer_state", "optimizer state", theme.HUES[2]),
    _Category("batch", "batch", theme.HUES[5]),
    _Category("activations", "activations", theme.HUES[1]),
    _Category("temporaries", "temporaries", theme.HUES[3]),
    _Category("workspaces", "workspaces", theme.HUES[3], "////"),
    _Category("rounding", "rounding", theme.MUTED, "...."),
)
_ESTIMATORS = (("formula", "F"), ("trace", "T"))


def draw(contents: Contents) -> Drawing | None:
    """A panel a model, data set and combination of the other axes; a bar a batch size and estimator."""
    layout = lay_out(contents.summary, max_panels=10**6)
    numbers = _numbers(layout.frame)
    if numbers.empty:
        return None
    pairs = spread_panels(numbers[["panel", "series"]], _MAX_PANELS)
    numbers["drawn"] = _drawn(numbers, pairs)
    estimators = [name for name, _ in _ESTIMATORS if name in set(numbers["estimator"])]
    which = "left bar: formula, right bar: trace" if len(estimators) > 1 else f"bars: {estimators[0]}"
    figure, panels = theme.panels(
        len(pairs),
        "Where memory goes, beside what was measured",
        f"{' / '.join(contents.machines)} · {which} · 100 % is the measured peak of allocations, written above",
    )
    shown = numbers[numbers["drawn"]]
    for axes, (panel, series) in zip(panels, pairs, strict=True):
        _draw_panel(axes, shown[(shown["panel"] == panel) & (shown["series"] == series)], estimators)
        theme.finish(axes, panel, "batch size", "% of measured peak", detail=series)
    _legend(figure, [category for category in _CATEGORIES if category.label in set(shown["category"])])
    return Drawing(
        name="categories",
        title="Where memory goes",
        caption=(
            "Each bar stacks an estimate's categories as shares of the peak that was measured. What is missing to the "
            "dashed line is memory that the estimate does not know of; what stands above it was never there at once. "
            "Cases without a measured peak have no bar. Panels and batch sizes that did not fit stand in the CSV "
            "(drawn is false)."
        ),
        alt=_alt(numbers),
        figure=figure,
        numbers=numbers.reset_index(drop=True),
    )


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a case, estimator and category, for cases with a measured peak."""
    known = frame[frame["peak_allocated_bytes"].notna()]
    parts = [
        known[["panel", "series", "machine", "batch_size", "peak_allocated_bytes"]].assign(
            estimator=estimator, category=category.label, bytes=known[f"{estimator}_{category.name}_bytes"]
        )
        for estimator, _ in _ESTIMATORS
        for category in _CATEGORIES
        if f"{estimator}_{category.name}_bytes" in known
    ]
    numbers = pd.concat(parts)
    numbers = numbers[numbers["bytes"].notna()].sort_index(kind="stable")
    share = numbers["bytes"].astype(float) / numbers["peak_allocated_bytes"].astype(float)
    return numbers.assign(share_of_measured=share)


def _drawn(numbers: pd.DataFrame, pairs: list[tuple[str, str]]) -> list[bool]:
    """Whether each row fits: its panel is shown, and its batch size is one of the few spread over the panel's."""
    kept = set()
    for panel, series in pairs:
        rows = numbers[(numbers["panel"] == panel) & (numbers["series"] == series)]
        sizes = sorted(set(rows["batch_size"]))
        few = (
            sizes
            if len(sizes) <= _MAX_BATCHES
            else [sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, _MAX_BATCHES)]
        )
        kept |= {(panel, series, size) for size in few}
    return [key in kept for key in zip(numbers["panel"], numbers["series"], numbers["batch_size"], strict=True)]


def _draw_panel(axes: Axes, rows: pd.DataFrame, estimators: list[str]) -> None:
    sizes = sorted(set(rows["batch_size"]))
    width = 0.62 if len(estimators) == 1 else 0.38
    for number, estimator in enumerate(estimators):
        places = np.arange(len(sizes)) + (number - (len(estimators) - 1) / 2) * (width + 0.03)
        bottom = np.zeros(len(sizes))
        for category in _CATEGORIES:
            part = rows[(rows["estimator"] == estimator) & (rows["category"] == category.label)]
            by_size = part.groupby("batch_size")["share_of_measured"].first()
            heights = by_size.reindex(sizes).fillna(0.0).to_numpy(dtype=float) * 100
            axes.bar(
                places,
                heights,
                width,
                bottom=bottom,
                color=category.colour,
                hatch=category.hatch,
                edgecolor=theme.PAPER,
                linewidth=0.5,
            )
            bottom += heights
    highest = float((rows.groupby(["batch_size", "estimator"])["share_of_measured"].sum() * 100).max())
    top = max(100.0, highest)
    axes.set_ylim(0, top * 1.14)
    axes.axhline(100, color=theme.INK, linewidth=1.0, linestyle=(0, (4, 2)))
    peaks = rows.groupby("batch_size")["peak_allocated_bytes"].first()
    for place, size in enumerate(sizes):
        axes.text(
            place, top * 1.03, format_bytes(int(peaks[size])), ha="center", va="bottom", fontsize=6.8, color=theme.MUTED
        )
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.grid(visible=False, axis="x")


def _legend(figure: Figure, categories: list[_Category]) -> None:
    handles = [
        Patch(facecolor=item.colour, hatch=item.hatch, edgecolor=theme.PAPER, label=item.label) for item in categories
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=8, labelcolor=theme.INK, columnspacing=1.4)


def _alt(numbers: pd.DataFrame) -> str:
    parts = []
    for estimator, _ in _ESTIMATORS:
        rows = numbers[numbers["estimator"] == estimator]
        if rows.empty:
            continue
        cases = rows.groupby(["panel", "series", "machine", "batch_size"])["share_of_measured"].sum()
        low, high = cases.min() * 100, cases.max() * 100
        shares = rows.groupby("category", sort=False)["bytes"].sum().astype(float)
        largest = str(shares.idxmax())
        parts.append(
            f"The {estimator} accounts for {low:.0f} to {high:.0f} % of the measured peak; over all cases its largest "
            f"part is {largest}"
        )
    return f"Stacked bars of memory by category. {'. '.join(parts)}."


FIGURE = FigureKind(order=30, draw=draw)
