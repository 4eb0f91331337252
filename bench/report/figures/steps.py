"""Step times in the order of the steps, warm-up included: is the machine steady, and do processes agree?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bench.analysis import GROUP, CaseLabels, last_attempts
from bench.records import MEASURED
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.layout import draw_legend, tick_seconds
from bench.units import format_seconds

_MAX_STEPS = 300
_MAX_PANELS = 6
_LINEAR_WITHIN = 4.0
"""Panels whose counted steps span less than this factor have a linear axis."""


def draw(contents: Contents) -> Drawing | None:
    """A panel for the fastest case of each model and data set, then for the cases whose processes agree least."""
    chosen = _chosen_cases(contents.summary)
    if chosen.empty:
        return None
    numbers = _numbers(contents.frame, chosen)
    figure, panels = theme.panels(
        len(chosen),
        "Step times in the order of the steps",
        f"{' / '.join(contents.machines)} · one line a process · shaded: warm-up, not counted",
    )
    parts = [str(panel).partition(", batch ") for panel in chosen["panel"]]
    titles = theme.clip_apart((unit for unit, _, _ in parts), theme.TITLE_CHARACTERS)
    details = theme.clip_apart((f"batch {rest}" for _, _, rest in parts), theme.DETAIL_CHARACTERS)
    for axes, panel, (unit, _, rest) in zip(panels, chosen["panel"], parts, strict=True):
        _draw_panel(axes, numbers[numbers["panel"] == panel])
        theme.finish(axes, titles[unit], "step (0: first that counts)", "step time", detail=details[f"batch {rest}"])
    _legend(figure, numbers)
    cut = " Only the first 300 steps of each process are drawn." if _is_cut(contents.frame, chosen) else ""
    return Drawing(
        name="steps",
        title="How steady are the steps?",
        caption=(
            "The fastest case of each model and data set, then those whose processes agree least. Warm-up steps stand "
            "at negative numbers in the shaded part; they are kept and not counted; arrows mark those beyond the "
            f"panel.{cut} The raw times of every run are in the Parquet files."
        ),
        alt=_alt(chosen),
        figure=figure,
        numbers=numbers.drop(columns="case").reset_index(drop=True),
    )


def _chosen_cases(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary's rows that are drawn, with `panel`."""
    timed = summary[summary["samples_per_s"].notna()]
    if timed.empty:
        return timed.assign(panel="")
    best = timed.loc[timed.groupby(["dataset", "model"], sort=False)["samples_per_s"].idxmax()]
    room = max(_MAX_PANELS, min(len(best), theme.MAX_PANELS))
    width = (timed["samples_per_s_high"] - timed["samples_per_s_low"]) / timed["samples_per_s"]
    noisiest = timed.assign(width=width).drop(best.index).sort_values("width", ascending=False, kind="stable")
    chosen = pd.concat([best.head(room), noisiest.head(max(room - len(best), 0))]).drop(
        columns="width", errors="ignore"
    )
    labels = CaseLabels(summary)
    return chosen.assign(panel=[labels.case(row) for row in chosen.to_dict("records")])


def _numbers(frame: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """One row a step of the cases drawn; warm-up steps have negative numbers."""
    runs = last_attempts(frame)
    runs = runs[runs["status"].isin(MEASURED)]
    panels = {tuple(key): panel for *key, panel in chosen[[*GROUP, "panel"]].to_numpy()}
    parts = []
    for row in runs[[*GROUP, "repeat", "warmup_times_s", "step_times_s"]].to_dict("records"):
        key = tuple(row[name] for name in GROUP)
        if key not in panels:
            continue
        warmup, steps = _listed(row["warmup_times_s"]), _listed(row["step_times_s"])[:_MAX_STEPS]
        parts.append(
            pd.DataFrame(
                {
                    "panel": panels[key],
                    "case": row["case_key"],
                    "process": int(row["repeat"]),
                    "step": np.arange(-len(warmup), len(steps)),
                    "warm_up": np.arange(-len(warmup), len(steps)) < 0,
                    "step_time_s": np.concatenate([warmup, steps]),
                }
            )
        )
    numbers = pd.concat(parts)
    order = {panel: number for number, panel in enumerate(chosen["panel"])}
    return (
        numbers.assign(place=numbers["panel"].map(order))
        .sort_values(["place", "process", "step"], kind="stable")
        .drop(columns="place")
    )


def _draw_panel(axes: Axes, rows: pd.DataFrame) -> None:
    for process, line in rows.groupby("process", sort=True):
        colour, marker, dashes = _look(int(str(process)))
        points = len(line) <= 40
        axes.plot(
            line["step"].to_numpy(),
            line["step_time_s"].to_numpy(),
            color=colour,
            linestyle=dashes,
            linewidth=1.1,
            marker=marker if points else "",
            markersize=3.2,
            markeredgewidth=0,
            alpha=0.9,
        )
    counted = rows.loc[~rows["warm_up"], "step_time_s"]
    low, high = float(counted.min()), float(counted.max())
    first, last = float(rows["step"].min()), float(rows["step"].max())
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if high > low * _LINEAR_WITHIN and low > 0:
        theme.log_axis(axes, "y", low, high, base=10, words=tick_seconds)
    else:
        axes.set_ylim(low - 0.06 * high, high * 1.12)
        axes.yaxis.set_major_formatter(lambda value, _: tick_seconds(value))
    if first < 0:
        axes.axvspan(first - 0.5, -0.5, color=theme.FILL, zorder=0, linewidth=0)
        axes.axvline(-0.5, color=theme.MUTED, linewidth=1.0, linestyle=(0, (2, 2)))
        _mark_beyond(axes, rows[rows["warm_up"]])


def _mark_beyond(axes: Axes, warmup: pd.DataFrame) -> None:
    """An arrow at the top for each warm-up step beyond the panel, and the longest in words."""
    beyond = warmup[warmup["step_time_s"] > axes.get_ylim()[1]]
    for process, rows in beyond.groupby("process", sort=True):
        axes.plot(
            rows["step"].to_numpy(),
            np.full(len(rows), 0.97),
            transform=axes.get_xaxis_transform(),
            marker="^",
            color=_look(int(str(process)))[0],
            markersize=5,
            markeredgewidth=0,
            linestyle="none",
        )
    if not beyond.empty:
        axes.annotate(
            f"▲ warm-up, up to {format_seconds(float(beyond['step_time_s'].max()))}",
            (-0.5, 0.97),
            (5, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
            color=theme.MUTED,
        )


def _look(process: int) -> tuple[str, str, Any]:
    hue = process % len(theme.HUES)
    return theme.HUES[hue], theme.MARKERS[hue], theme.DASHES[(process // len(theme.HUES)) % len(theme.DASHES)]


def _legend(figure: Figure, numbers: pd.DataFrame) -> None:
    processes = sorted({int(str(process)) for process in numbers["process"]})
    looks = [(process, _look(process)) for process in processes[:12]]
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=dashes, label=f"process {process + 1}")
        for process, (colour, marker, dashes) in looks
    ]
    draw_legend(figure, handles)


def _is_cut(frame: pd.DataFrame, chosen: pd.DataFrame) -> bool:
    rows = frame[frame["case_key"].isin(chosen["case_key"])]
    return any(len(_listed(value)) > _MAX_STEPS for value in rows["step_times_s"])


def _listed(value: object) -> np.ndarray:
    return np.asarray(value, dtype=float) if isinstance(value, np.ndarray | list | tuple) else np.array([])


def _alt(chosen: pd.DataFrame) -> str:
    parts = [
        f"{row['panel']}: median {format_seconds(row['step_p50_s'])}, p99 {format_seconds(row['step_p99_s'])}"
        for row in chosen.head(6).to_dict("records")
        if not math.isnan(row["step_p50_s"])
    ]
    return f"Lines of step time over step number, one a process. {'; '.join(parts)}."


FIGURE = FigureKind(order=60, draw=draw)
