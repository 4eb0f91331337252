"""Where memory goes: the estimates' categories as shares of the measured peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.layout import lay_out, spread_panels
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
    columns = [f"{estimator}_{category.name}_bytes" for estimator, _ in _ESTIMATORS for category in _CATEGORIES]
    columns = ["machine", "batch_size", "peak_allocated_bytes", *columns]
    numbers = _numbers(lay_out(contents.summary, columns, max_panels=10**6).frame)
    if numbers.empty:
        return None
    pairs = spread_panels(numbers, _MAX_PANELS, "series")
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
        title="Where does the memory go?",
        caption=(
            "Each bar stacks an estimate's categories as shares of the measured peak. The gap below the dashed line is "
            "memory that the estimate misses; anything above the line was not live at the peak. Cases without a "
            "measured peak have no bar. Panels and batch sizes that did not fit are in the CSV (drawn is false)."
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
    keys = zip(*(numbers[name].to_numpy() for name in ("panel", "series", "batch_size")), strict=True)
    return [key in kept for key in keys]


def _draw_panel(axes: Axes, rows: pd.DataFrame, estimators: list[str]) -> None:
    sizes = sorted(set(rows["batch_size"]))
    width = 0.62 if len(estimators) == 1 else 0.38
    places = np.arange(len(sizes)) - (len(estimators) - 1) / 2 * (width + 0.03)
    x = np.concatenate([places + number * (width + 0.03) for number in range(len(estimators))])
    shares = rows.pivot_table("share_of_measured", ["estimator", "batch_size"], "category", aggfunc="first")
    shares = shares.reindex(pd.MultiIndex.from_product([estimators, sizes])).fillna(0.0) * 100
    bottom = np.zeros(len(x))
    for category in _CATEGORIES:
        if category.label in shares:
            top = bottom + shares[category.label].to_numpy(dtype=float)
            _draw_bars(axes, x, width, bottom, top, category)
            bottom = top
    head = max(100.0, float(bottom.max()))
    axes.set_ylim(0, head * 1.14)
    axes.axhline(100, color=theme.INK, linewidth=1.0, linestyle=(0, (4, 2)))
    peaks = rows.groupby("batch_size")["peak_allocated_bytes"].first()
    for place, size in enumerate(sizes):
        words = format_bytes(int(peaks[size]))
        axes.text(place, head * 1.03, words, ha="center", va="bottom", fontsize=6.8, color=theme.MUTED)
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.grid(visible=False, axis="x")


def _draw_bars(
    axes: Axes, x: np.ndarray, width: float, bottom: np.ndarray, top: np.ndarray, category: _Category
) -> None:
    """One category of all bars of a panel, as one artist: hundreds of single bars take seconds."""
    left, right = x - width / 2, x + width / 2
    corners = np.stack([left, bottom, left, top, right, top, right, bottom], axis=1).reshape(-1, 4, 2)
    look: dict[str, Any] = {"facecolors": category.colour, "edgecolors": theme.PAPER, "hatch": category.hatch or None}
    axes.add_collection(PolyCollection(list(corners[top > bottom]), linewidths=0.5, **look))


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


FIGURE = FigureKind(order=40, draw=draw)
