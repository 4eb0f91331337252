"""Seconds per step by input path, with what of the loader's step is waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.analysis import CaseLabels
from bench.analysis.loading import Loading, loading_costs
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.layout import tick_seconds
from bench.stats import geometric_interval
from bench.units import counted

_PATHS = ("synthetic", "cached", "loader")
_HUES = dict(zip(_PATHS, theme.HUES, strict=False))
_WAITING = "/////"


def draw(contents: Contents) -> Drawing | None:
    """A panel for each case with a loader that has another input path beside it; nothing where there is none."""
    found = [each for each in loading_costs(contents.frame, contents.summary) if each.cost or each.decoding]
    if not found:
        return None
    found.sort(key=lambda each: -each.waiting.middle)
    labels, shown = CaseLabels(contents.summary), found[: theme.MAX_PANELS]
    figure, panels = theme.panels(
        len(shown),
        "What does loading cost?",
        f"{' / '.join(contents.machines)} · lower is better · bars: 95 % interval over processes",
        row_in=2.0,
    )
    for axes, each in zip(panels, shown, strict=True):
        _draw_panel(axes, each, labels)
    handles = [Patch(facecolor=theme.FILL, edgecolor=theme.MUTED, hatch=_WAITING, label="of it, waiting for the batch")]
    if any(each.predicted_step_s for each in shown):
        handles.append(_model_handle())
    figure.legend(handles=handles, loc="outside lower left", ncols=2, labelcolor=theme.INK)
    left = len(found) - len(shown)
    return Drawing(
        name="loading",
        title="What does loading cost?",
        caption=(
            "Seconds per step of the measured window, by where its batch comes from: made beforehand on the device "
            "(synthetic), copied there (cached), read and decoded as well (loader). Diamonds: the loader's step as "
            "the model of its workers has it. The cases that wait most."
            + (f" {counted(left, 'case')} more did not fit and are in the CSV (drawn is false)." if left else "")
        ),
        alt=_alt(shown, labels),
        figure=figure,
        numbers=pd.DataFrame([row for place, each in enumerate(found) for row in _rows(each, labels, place)]),
    )


def _draw_panel(axes: Axes, loading: Loading, labels: CaseLabels) -> None:
    present = [path for path in _PATHS if loading.step_s.get(path)]
    for place, path in enumerate(present):
        step = geometric_interval(loading.step_s[path])
        axes.barh(place, step.middle, height=0.62, color=_HUES[path], linewidth=0)
        if path == "loader":
            waiting = step.middle * loading.waiting.middle
            axes.barh(
                place,
                waiting,
                left=step.middle - waiting,
                height=0.62,
                color="none",
                edgecolor=theme.PAPER,
                hatch=_WAITING,
            )
        if step.low is not None and step.high is not None:
            axes.hlines(place, step.low, step.high, color=theme.INK, linewidth=1.2)
    if loading.predicted_step_s:
        axes.plot(loading.predicted_step_s, len(present) - 1, **_MODEL)
    axes.set_yticks(range(len(present)), present)
    axes.set_ylim(len(present) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, place: tick_seconds(value))
    axes.grid(visible=False, axis="y")
    detail = labels.detail(loading.row, without=("input",))
    workers = counted(loading.workers, "worker")
    told = ", ".join(filter(None, (f"batch {loading.row['batch_size']}", detail, workers)))
    theme.finish(axes, labels.unit(loading.row), "seconds per step", "", detail=told)


_MODEL: dict[str, Any] = {
    "marker": "D",
    "markersize": 6,
    "markerfacecolor": theme.PAPER,
    "markeredgecolor": theme.INK,
    "markeredgewidth": 1.2,
    "linestyle": "none",
    "zorder": 5,
}


def _model_handle() -> Any:
    return Line2D([], [], label="by the model of its workers", **_MODEL)


def _rows(loading: Loading, labels: CaseLabels, place: int) -> list[dict[str, Any]]:
    """A row of numbers for each input path."""
    rows = []
    for path in _PATHS:
        if not loading.step_s.get(path):
            continue
        step = geometric_interval(loading.step_s[path])
        own = _loader_numbers(loading) if path == "loader" else {}
        rows.append(
            {
                "case": labels.case(loading.row),
                "drawn": place < theme.MAX_PANELS,
                "batch_size": loading.row["batch_size"],
                "input": path,
                "processes": step.n,
                "step_s": step.middle,
                "step_s_low": step.low,
                "step_s_high": step.high,
                **own,
            }
        )
    return rows


def _loader_numbers(loading: Loading) -> dict[str, Any]:
    middle, low, high = (loading.holds and loading.enough) or (np.nan, np.nan, np.nan)
    return {
        "loader_workers": loading.workers,
        "waiting_frac": loading.waiting.middle,
        "waiting_frac_low": loading.waiting.low,
        "waiting_frac_high": loading.waiting.high,
        "batch_made_s": loading.typical_made_s,
        "modelled_step_s": loading.predicted_step_s,
        "model_holds": loading.holds,
        "limited_by": loading.limit,
        "workers_enough": middle,
        "workers_enough_low": low,
        "workers_enough_high": high,
    }


def _alt(shown: list[Loading], labels: CaseLabels) -> str:
    parts = [f"{labels.case(each.row)} waits {each.waiting.middle * 100:.0f} % of a step" for each in shown[:6]]
    return f"Bars of seconds per step by input path. {'; '.join(parts)}."


FIGURE = FigureKind(order=25, draw=draw)
