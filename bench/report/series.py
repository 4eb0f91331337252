"""Which lines a figure has, in which panels, and how each looks: the same line looks the same in every panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.analysis.labels import CaseLabels
from bench.report import theme
from bench.report.theme import DASHES, HUES, MARKERS

_MAX_DASHED = 3


@dataclass(frozen=True, slots=True)
class Look:
    """How one line looks."""

    colour: str
    marker: str
    dashes: Any


@dataclass(frozen=True, slots=True)
class Layout:
    """Panels and lines of a figure.

    Attributes:
        frame: The rows with `panel`, `series` and `drawn`.
        panels: The panels that are drawn, in order.
        looks: The lines that are drawn, in order.
        left_out: What did not fit, in words; empty where all did.
    """

    frame: pd.DataFrame
    panels: Sequence[str]
    looks: dict[str, Look]
    left_out: str


def lay_out(summary: pd.DataFrame, max_panels: int) -> Layout:
    """A panel for each model and data set, a line for each combination of the other axes that differ.

    Six hues stand for combinations; where there are more, optimizers get dashes of their own. What does not fit is
    marked with `drawn` false and stays in the numbers.
    """
    labels = CaseLabels(summary)
    axes, records = labels.axes, summary.to_dict("records")
    split = "optimizer" if "optimizer" in axes and _combinations(summary, axes) > len(HUES) else None
    frame = summary.assign(
        panel=[labels.unit(row) for row in records],
        _hue=[labels.detail(row, without=[split] if split else []) for row in records],
        _dash=[labels.words(row, split) for row in records] if split else "",
    )
    hues = _commonest(frame["_hue"], len(HUES))
    dashes = _commonest(frame["_dash"], _MAX_DASHED)
    frame["series"] = [", ".join(filter(None, pair)) for pair in zip(frame["_dash"], frame["_hue"], strict=True)]
    frame["panel"] = frame["panel"].map(theme.clip_apart(frame["panel"], theme.TITLE_CHARACTERS))
    frame["series"] = frame["series"].map(theme.clip_apart(frame["series"], theme.DETAIL_CHARACTERS))
    frame["drawn"] = frame["_hue"].isin(hues) & frame["_dash"].isin(dashes)
    panels = list(dict.fromkeys(frame.loc[frame["drawn"], "panel"]))
    frame["drawn"] &= frame["panel"].isin(panels[:max_panels])
    looks = {}
    for row in frame[frame["drawn"]][["series", "_hue", "_dash"]].drop_duplicates().to_dict("records"):
        number = hues.index(row["_hue"])
        dash = DASHES[dashes.index(row["_dash"])] if split else DASHES[number % len(DASHES)]
        looks[row["series"]] = Look(HUES[number], MARKERS[number], dash)
    shown = dict(sorted(looks.items(), key=lambda item: list(frame["series"]).index(item[0])))
    all_series = set(frame["series"])
    words = _left_out(len(panels) - max_panels, len(all_series - set(shown)))
    return Layout(frame.drop(columns=["_hue", "_dash"]), panels[:max_panels], shown, words)


def spread_panels(frame: pd.DataFrame, max_panels: int) -> list[tuple[str, str]]:
    """`(panel, series)` pairs that show as many models as fit: the first series of every model, then the second, ..."""
    pairs = frame[["panel", "series"]].drop_duplicates()
    turn = pairs.groupby("panel", sort=False).cumcount()
    chosen = pairs.assign(turn=turn).sort_values("turn", kind="stable").head(max_panels)
    return [(str(panel), str(series)) for panel, series in pairs.loc[sorted(chosen.index)].to_numpy()]


def _combinations(summary: pd.DataFrame, axes: Sequence[str]) -> int:
    return len(summary[list(axes)].drop_duplicates()) if axes else 1


def _commonest(values: pd.Series, count: int) -> list[str]:
    """The `count` commonest values, in order of appearance."""
    sizes = values.value_counts(sort=False)
    order = list(dict.fromkeys(values))
    kept = sorted(order, key=lambda value: -int(sizes[value]))[:count]
    return [value for value in order if value in kept]


def _left_out(panels: int, series: int) -> str:
    parts = [f"{panels} more panel{'s' if panels > 1 else ''}"] if panels > 0 else []
    parts += [f"{series} more line{'s' if series > 1 else ''}"] if series > 0 else []
    return f"{' and '.join(parts)} did not fit and stand in the CSV (drawn is false)." if parts else ""
