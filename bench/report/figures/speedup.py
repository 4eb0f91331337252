"""The speed-up of every machine over the baseline, case by case, as a heat map around 1."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from bench.comparison import Comparison
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.hardware import SPEED, Hardware
from bench.report.layout import with_details
from bench.report.words import listed, ratio_words, times

_MAX_ROWS, _MAX_COLUMNS = 36, 6
_ROW_IN = 0.215
_MEAN = "geometric mean"
_UNCLEAR = "unclear"
_MIDDLE_LUMINANCE = 0.22  # above it text is dark (by WCAG 2 from 0.18; hatching asks for a little more)
_DARK_TEXT, _LIGHT_TEXT = "#14171a", "#fbfbfa"  # on cells; no neutral of the theme, so that dark paper keeps them
_COLUMNS = [
    "panel",
    "detail",
    "batch_size",
    "drawn",
    "machine",
    "baseline",
    "ratio",
    "low",
    "high",
    "verdict",
    "reason",
    "clock_ratio",
    "cycles_ratio",
    "clocks",
    "clocks_reason",
    "outcome",
]
_STEPS = 33
_SCALE = LinearSegmentedColormap.from_list("around 1", theme.DIVERGING, N=_STEPS)


def draw(contents: Contents) -> Drawing | None:
    """A row a case, a column a machine; nothing where no two machines share a case."""
    hardware = contents.hardware
    if hardware is None or not hardware.cells["ratio"].notna().any():
        return None
    numbers = _numbers(contents.summary, hardware)
    shown = numbers[numbers["drawn"]]
    machines = list(dict.fromkeys(shown["machine"]))
    figure, axes = _sheet(hardware.baseline, len(shown) // len(machines))
    scale = _scale(shown["ratio"])
    _draw_cells(axes, shown, machines, scale)
    _draw_means(axes, hardware, machines, scale, len(shown) // len(machines))
    _finish(figure, axes, shown, machines, scale)
    left = len(numbers[~numbers["drawn"]])
    return Drawing(
        name="speedup",
        title=f"How much faster is each machine than {hardware.baseline}?",
        caption=(
            f"Throughput over that of {hardware.baseline}, with its 95 % interval (Welch, over processes); colour is "
            "logarithmic around 1. Hatched cells are unclear: the interval does not settle whether there is a "
            "difference, for the reason in the CSV. An empty cell has no ratio, which is not zero; it says what "
            "happened instead. The last row is the geometric mean over the cases that both machines measured, "
            "hatched where every one of them is unclear."
            + (f" {left} more cells did not fit and are in the CSV (drawn is false)." if left else "")
        ),
        alt=_alt(hardware),
        figure=figure,
        numbers=numbers[_COLUMNS].reset_index(drop=True),
    )


def _numbers(summary: pd.DataFrame, hardware: Hardware) -> pd.DataFrame:
    """One row a case and machine, in a reader's order, with whether it fits."""
    cases = with_details(summary).drop_duplicates("case_key")[["case_key", "panel", "detail", "batch_size"]]
    cases = cases.assign(_group=pd.factorize(pd.Index(zip(cases["panel"], cases["detail"], strict=True)))[0])
    cases = cases.sort_values(["_group", "batch_size"], kind="stable")
    compared = hardware.cells.groupby("case_key")["ratio"].any()
    cases["drawn"] = _fits(cases[cases["case_key"].map(compared)]).reindex(cases.index, fill_value=False)
    machines = list(hardware.comparisons)
    numbers = cases.merge(hardware.cells, on="case_key", how="left", validate="one_to_many")
    numbers["drawn"] &= numbers["machine"].isin(machines[:_MAX_COLUMNS])
    return numbers.assign(baseline=hardware.baseline)


def _fits(cases: pd.DataFrame) -> pd.Series:
    """Whether each case is among those that fit: batch sizes spread over as many groups as there is room for."""
    groups = cases["_group"].nunique()
    each = max(1, _MAX_ROWS // max(1, groups))
    places = cases.groupby("_group").cumcount()
    sizes = cases.groupby("_group")["_group"].transform("size")
    kept = [
        place in {round(at) for at in np.linspace(0, size - 1, min(size, each))}
        for place, size in zip(places, sizes, strict=True)
    ]
    found = pd.Series(kept, index=cases.index, dtype=bool)
    return found & (found.cumsum() <= _MAX_ROWS)


def _sheet(baseline: str, rows: int) -> tuple[Figure, Axes]:
    height = (rows + 6) * _ROW_IN + 0.7
    figure, (axes,) = theme.panels(
        1,
        f"Throughput against {theme.clip(baseline, 60)}",
        "above 1×: faster than the baseline · in brackets: 95 % interval · hatched: unclear · empty: no ratio",
        row_in=height / 1.35,
    )
    return figure, axes


def _scale(ratios: pd.Series) -> Normalize:
    """Logarithms of ratios, the same reach on both sides of 1: at least 1.25, at most 8."""
    reach = float(np.log(ratios[ratios > 0]).abs().max())
    reach = min(max(reach, math.log(1.25)), math.log(8.0))
    return Normalize(-reach, reach)


def _draw_cells(axes: Axes, shown: pd.DataFrame, machines: list[str], scale: Normalize) -> None:
    keys = list(dict.fromkeys(shown["case_key"]))
    for row in shown.to_dict("records"):
        x, y = machines.index(row["machine"]), keys.index(row["case_key"])
        if pd.isna(row["ratio"]):
            _draw_empty(axes, x, y, str(row["outcome"]))
        else:
            _draw_cell(
                axes,
                x,
                y,
                ratio_words(row["ratio"], row["low"], row["high"]),
                row["ratio"],
                scale,
                unclear=row["verdict"] == _UNCLEAR,
            )


def _draw_cell(
    axes: Axes, x: int, y: float, words: str, ratio: float, scale: Normalize, *, unclear: bool, bold: bool = False
) -> None:
    colour = _SCALE(float(scale(min(max(math.log(ratio), float(scale.vmin or 0)), float(scale.vmax or 0)))))
    ink, other = (_DARK_TEXT, _LIGHT_TEXT)[:: 1 if theme.luminance(colour) > _MIDDLE_LUMINANCE else -1]
    axes.add_patch(Rectangle((x - 0.49, y - 0.46), 0.98, 0.92, facecolor=colour, edgecolor="none", linewidth=0))
    if unclear:
        lines = ink if theme.luminance(colour) > 0.5 else other
        axes.add_patch(
            Rectangle(
                (x - 0.49, y - 0.46), 0.98, 0.92, facecolor="none", edgecolor=lines, linewidth=0, hatch="///", alpha=0.4
            )
        )
    behind = {"facecolor": colour, "edgecolor": "none", "pad": 0.8} if unclear else None
    axes.text(
        x,
        y,
        words,
        ha="center",
        va="center_baseline",
        fontsize=7.6,
        color=ink,
        bbox=behind,
        fontweight="bold" if bold else "normal",
    )


def _draw_empty(axes: Axes, x: int, y: float, outcome: str) -> None:
    axes.add_patch(
        Rectangle(
            (x - 0.49, y - 0.46),
            0.98,
            0.92,
            facecolor="none",
            edgecolor=theme.MUTED,
            linewidth=0.6,
            linestyle=(0, (2, 3)),
        )
    )
    axes.text(x, y, theme.clip(outcome, 28), ha="center", va="center_baseline", fontsize=7.2, color=theme.MUTED)


def _draw_means(axes: Axes, hardware: Hardware, machines: list[str], scale: Normalize, rows: int) -> None:
    for x, machine in enumerate(machines):
        mean = hardware.comparisons[machine].geomean[SPEED]
        if mean.ratio is None:
            _draw_empty(axes, x, rows + 0.35, "no common case")
            continue
        low, high = (math.nan if end is None else end for end in (mean.low, mean.high))
        verdicts = hardware.cells.loc[hardware.cells["machine"] == machine].dropna(subset=["ratio"])["verdict"]
        called = bool((verdicts != _UNCLEAR).any())
        words = f"{ratio_words(mean.ratio, low, high)} · {mean.n} of {mean.n_planned} cases"
        _draw_cell(axes, x, rows + 0.35, words, mean.ratio, scale, unclear=not called, bold=True)


def _finish(figure: Figure, axes: Axes, shown: pd.DataFrame, machines: list[str], scale: Normalize) -> None:
    rows = shown.drop_duplicates("case_key")
    first = ~rows["_group"].duplicated()
    groups = [", ".join(filter(None, pair)) for pair in zip(rows["panel"], rows["detail"], strict=True)]
    short = theme.clip_apart(groups, 48)
    labels = [
        f"{short[group]}    {row['batch_size']:,}" if start else f"{row['batch_size']:,}"
        for row, group, start in zip(rows.to_dict("records"), groups, first, strict=True)
    ]
    axes.set_yticks([*range(len(labels)), len(labels) + 0.35], [*labels, _MEAN])
    short = theme.clip_apart(machines, 60)
    names = [textwrap.fill(short[name], max(14, 66 // len(machines))) for name in machines]
    axes.set_xticks(range(len(machines)), names)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.5, max(len(machines), 2) - 0.5)
    axes.set_ylim(len(labels) + 0.9, -0.55)
    for place in np.flatnonzero(first.to_numpy())[1:]:
        axes.axhline(place - 0.5, color=theme.MUTED, linewidth=0.5)
    axes.grid(visible=False)
    theme.finish(axes, "")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(axis="x", labelsize=8.5, labelcolor=theme.INK)
    _key(figure, axes, scale)


def _key(figure: Figure, axes: Axes, scale: Normalize) -> None:
    """The scale of colours, and what hatching and emptiness mean."""
    bar = figure.colorbar(
        ScalarMappable(scale, _SCALE), ax=axes, location="bottom", shrink=0.42, aspect=38, anchor=(0, 0)
    )
    reach = math.exp(float(scale.vmax or 0))
    ticks = [tick for tick in (0.125, 0.25, 0.5, 0.8, 1, 1.25, 2, 4, 8) if 1 / reach * 0.999 <= tick <= reach * 1.001]
    ticks = ticks if reach < 1.9 else [tick for tick in ticks if tick not in (0.8, 1.25)]
    bar.set_ticks([math.log(tick) for tick in ticks], labels=[f"{tick:g}×" for tick in ticks])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    handles = [
        Patch(facecolor=theme.DIVERGING[1], edgecolor=_DARK_TEXT, hatch="///", linewidth=0, label="unclear"),
        Patch(facecolor="none", edgecolor=theme.MUTED, linestyle=(0, (2, 3)), linewidth=0.6, label="no ratio"),
    ]
    key = bar.ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.08, 0.2), ncols=2, labelcolor=theme.INK)
    key.set_in_layout(False)  # beside the scale, where there is room


def _alt(hardware: Hardware) -> str:
    """The mean of each machine, and how the cases fell."""
    parts = [_mean_words(machine, found) for machine, found in hardware.comparisons.items()]
    return f"A heat map of throughput over that of {hardware.baseline}, a row a case. {'; '.join(parts[:6])}."


def _mean_words(machine: str, found: Comparison) -> str:
    mean = found.geomean[SPEED]
    if mean.ratio is None:
        return f"{machine} shares no measured case"
    verdicts = found.cases.loc[found.cases["metric"] == SPEED, "verdict"].astype(str).value_counts()
    names = [name for name in ("faster", "slower", "same", _UNCLEAR) if name in verdicts]
    counts = listed((f"{verdicts[name]} {name}" for name in names), 4)
    return f"{machine} at {times(mean.ratio)} in the geometric mean of {mean.n} cases ({counts})"


FIGURE = FigureKind(order=3, draw=draw)
