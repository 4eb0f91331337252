"""What figures share: which lines stand in which panels, how each looks, its intervals, the legend and the ticks.

A line looks the same in every panel and figure. Lines and intervals are drawn with matplotlib, not with seaborn's
`lineplot`: a line breaks where a planned case has no value, where seaborn would drop the case and join its neighbours;
and intervals are those of `bench.stats`, over processes. Points, distributions and heat maps are seaborn's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis.labels import SERIES_AXES, CaseLabels
from bench.report import theme
from bench.report.theme import DASHES, HUES, MARKERS

_MAX_DASHED = 3
_NAMED = ["model", "dataset", "batch_size", *SERIES_AXES]
"""The columns of a summary that labels are made from."""


@dataclass(frozen=True, slots=True)
class Look:
    """How one line looks."""

    colour: str
    marker: str
    dashes: Any


@dataclass(frozen=True, slots=True)
class Layout:
    """The panels and lines of a figure.

    Attributes:
        frame: The rows with `panel`, `detail` (a second line of the panel's title), `drawn`, and the column `by`.
        by: The column that tells the lines of a panel apart: `series` or `machine`.
        pairs: `(panel, detail)` of the panels that are drawn, in order.
        looks: The lines that are drawn, in order; the same line looks the same in every panel.
        left_out: What did not fit, in words; empty where all did.
    """

    frame: pd.DataFrame
    by: str
    pairs: Sequence[tuple[str, str]]
    looks: dict[str, Look]
    left_out: str

    def rows(self, pair: tuple[str, str], line: str | None = None) -> pd.DataFrame:
        """The drawn rows of a panel, of one line or of all, by batch size."""
        kept = self.frame["drawn"] & (self.frame["panel"] == pair[0]) & (self.frame["detail"] == pair[1])
        kept = kept if line is None else kept & (self.frame[self.by] == line)
        return self.frame[kept].sort_values("batch_size", kind="stable")


def lay_out(rows: pd.DataFrame, columns: Iterable[str], max_panels: int) -> Layout:
    """A panel for each model and data set, a line (`series`) for each combination of the other axes that differ.

    Six hues stand for combinations; where there are more, optimizers get dashes of their own. What does not fit is
    marked with `drawn` false and stays in the numbers.

    Args:
        rows: Of a summary.
        columns: Those that the figure needs.
        max_panels: How many panels are drawn.
    """
    labels, records = CaseLabels(rows), _named(rows)
    axes = labels.axes
    split = "optimizer" if "optimizer" in axes and _combinations(rows, axes) > len(HUES) else None
    frame = rows[[name for name in columns if name in rows]].assign(
        panel=[labels.unit(row) for row in records],
        detail="",
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
    order = list(dict.fromkeys(frame["series"]))
    looks = {}
    for row in frame.loc[frame["drawn"], ["series", "_hue", "_dash"]].drop_duplicates().to_dict("records"):
        number = hues.index(row["_hue"])
        dash = DASHES[dashes.index(row["_dash"])] if split else DASHES[number % len(DASHES)]
        looks[row["series"]] = Look(HUES[number], MARKERS[number], dash)
    shown = {series: looks[series] for series in order if series in looks}
    left_out = _left_out(panel=len(panels) - max_panels, line=len(order) - len(shown))
    frame = frame.drop(columns=["_hue", "_dash"])
    return Layout(frame, "series", [(panel, "") for panel in panels[:max_panels]], shown, left_out)


def lay_out_machines(rows: pd.DataFrame, columns: Iterable[str], machines: Sequence[str], has: pd.Series) -> Layout:
    """A panel for each model, data set and combination of the other axes; a line a machine.

    Args:
        rows: Of a summary.
        columns: Those that the figure needs.
        machines: All machines of the report in their order, so that each looks the same in every figure; the first six
            have hues.
        has: Whether each row has something to draw. A line that has anything keeps its other rows, so that it breaks
            where a case is missing; lines and panels that have nothing are left out.
    """
    frame = with_details(rows)
    frame = frame[[name for name in dict.fromkeys([*columns, "panel", "detail", "machine"]) if name in frame]]
    frame = frame.assign(_has=has)
    frame = frame[frame.groupby(LINE, sort=False)["_has"].transform("any")].drop(columns="_has")
    shown = list(machines[: len(HUES)])
    frame["drawn"] = frame["machine"].isin(shown)
    pairs = spread_panels(frame[frame["drawn"]], theme.MAX_PANELS)
    every = len(frame[["panel", "detail"]].drop_duplicates())
    frame["drawn"] = frame["drawn"].to_numpy(dtype=bool) & among(frame, pairs)
    looks = {name: Look(HUES[n], MARKERS[n], DASHES[n % len(DASHES)]) for n, name in enumerate(shown)}
    present = set(frame.loc[frame["drawn"], "machine"])
    left_out = _left_out(panel=every - len(pairs), machine=frame["machine"].nunique() - len(present))
    return Layout(frame, "machine", pairs, {name: look for name, look in looks.items() if name in present}, left_out)


LINE = ["panel", "detail", "machine"]
"""What the points of one line of `lay_out_machines` share."""


def with_details(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary with `panel` (model and data set) and `detail` (the other axes that differ, in words)."""
    labels, records = CaseLabels(rows), _named(rows)
    units = [labels.unit(row) for row in records]
    details = [labels.detail(row, without=("machine",)) for row in records]
    titles, lines = theme.clip_apart(units, theme.TITLE_CHARACTERS), theme.clip_apart(details, theme.DETAIL_CHARACTERS)
    return rows.assign(panel=[titles[unit] for unit in units], detail=[lines[detail] for detail in details])


def spread_panels(frame: pd.DataFrame, max_panels: int, detail: str = "detail") -> list[tuple[str, str]]:
    """`(panel, detail)` pairs that show as many models as fit: the first detail of every model, then the second, ..."""
    pairs = frame[["panel", detail]].drop_duplicates()
    turn = pairs.groupby("panel", sort=False).cumcount()
    chosen = pairs.assign(turn=turn).sort_values("turn", kind="stable").head(max_panels)
    return [(str(panel), str(text)) for panel, text in pairs.loc[sorted(chosen.index)].to_numpy()]


def among(frame: pd.DataFrame, pairs: Iterable[tuple[str, str]], detail: str = "detail") -> np.ndarray:
    """Whether each row stands in one of the panels."""
    chosen = set(pairs)
    every = zip(frame["panel"].to_numpy(), frame[detail].to_numpy(), strict=True)
    return np.array([pair in chosen for pair in every], dtype=bool)


def draw_lines(axes: Axes, rows: pd.DataFrame, layout: Layout, column: str) -> None:
    """A panel's lines over batch size, each with its intervals `<column>_low` to `<column>_high` where they are known.

    Args:
        axes: The panel.
        rows: Of the panel, from `layout.rows`.
        layout: Whose lines and looks these are.
        column: What is drawn; a line breaks where it is missing.
    """
    ends = [f"{column}_low", f"{column}_high"]
    spans: list[np.ndarray] = []
    colours: list[str] = []
    for name, look in layout.looks.items():
        line = rows[(rows[layout.by] == name).to_numpy()]
        if line.empty:
            continue
        x = line["batch_size"].to_numpy(dtype=float)
        axes.plot(x, _floats(line[column]), color=look.colour, marker=look.marker, linestyle=look.dashes, **EDGE)
        if set(ends) <= set(line):
            span = np.column_stack([x, *(_floats(line[end]) for end in ends)])
            spans.append(span[~np.isnan(span).any(axis=1)])
            colours += [look.colour] * len(spans[-1])
    draw_intervals(axes, np.concatenate(spans) if spans else np.empty((0, 3)), colours)


def draw_intervals(axes: Axes, spans: np.ndarray, colours: Sequence[str]) -> None:
    """Upright bars with caps, below the lines and their markers.

    Args:
        axes: The panel.
        spans: Place on the x axis, lower and upper end of each, `(N, 3)`.
        colours: One for each.
    """
    if len(spans):
        x, low, high = spans.T
        axes.vlines(x, low, high, colors=list(colours), linewidth=1.0, zorder=1.9)
        caps: dict[str, Any] = {"marker": "_", "s": 25.0, "linewidths": 1.0, "zorder": 1.9}
        axes.scatter(np.tile(x, 2), np.concatenate([low, high]), color=[*colours, *colours], **caps)


EDGE: Mapping[str, Any] = {"markeredgecolor": theme.PAPER, "markeredgewidth": 0.6}
"""A rim of paper that keeps markers apart where lines cross."""


def mark_first_out(axes: Axes, size: float, height: float, colour: str) -> None:
    """A cross at the first batch size that ran out of memory, at a height in axes coordinates."""
    upright = axes.get_xaxis_transform()
    axes.plot(size, height, marker="X", color=colour, markersize=7, linestyle="none", transform=upright, **EDGE)


def draw_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """One legend below all panels; none for a single nameless line."""
    if len(handles) > 1 or (handles and handles[0].get_label() != NAMELESS):
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), 6, 110 // (longest + 6)))
        figure.legend(
            handles=list(handles), loc="outside lower left", ncols=columns, handlelength=2.6, labelcolor=theme.INK
        )


NAMELESS = "all cases"
"""The label of a line that stands for everything."""


def line_handles(layout: Layout, *, out_of_memory: bool = False) -> list[Line2D]:
    """What the legend shows: each line, and the cross where memory ran out."""
    names = theme.clip_apart(layout.looks, 60)
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dashes, label=names[name] or NAMELESS)
        for name, look in layout.looks.items()
    ]
    if out_of_memory:
        handles.append(Line2D([], [], color=theme.MUTED, marker="X", linestyle="none", label="out of memory"))
    return handles


def pareto_fronts(frame: pd.DataFrame, keys: list[str], memory: str) -> pd.Series:
    """Whether each row is beaten by none that shares its `keys`, in throughput and in the column `memory` at once."""
    found = pd.Series(False, index=frame.index)
    known = frame[frame["samples_per_s"].notna() & frame[memory].notna()]
    for _, rows in known.groupby(keys, sort=False):
        ordered = rows.sort_values([memory, "samples_per_s"], ascending=[True, False], kind="stable")
        before = ordered["samples_per_s"].cummax().shift(fill_value=-np.inf)
        found[ordered.index[ordered["samples_per_s"] > before]] = True
    return found


def draw_rings(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Rings around points that stand out."""
    axes.plot(x, y, markeredgecolor=colour, markeredgewidth=1.2, zorder=4, **_RING)


def ring_handle(label: str) -> Line2D:
    """A ring in the legend."""
    return Line2D([], [], markeredgecolor=theme.MUTED, label=label, **_RING)


_RING: Mapping[str, Any] = {"marker": "o", "markersize": 10.5, "markerfacecolor": "none", "linestyle": "none"}


def tick_bytes(value: float) -> str:
    """Bytes as a tick: `64 KiB`, `1.5 MiB`."""
    for factor, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} B"


def tick_rate(value: float) -> str:
    """A rate as a tick: `250`, `1.5k`, `2M`."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def tick_seconds(value: float) -> str:
    """Seconds as a tick: `250 µs`, `1.5 ms`."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= factor * 0.9999:
            return f"{value / factor:.4g} {unit}"
    return "0" if value <= 0 else f"{value / 1e-9:.4g} ns"


def _named(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """What labels are made from, of each row."""
    known = {name: rows[name].to_numpy() for name in _NAMED if name in rows}
    return [dict(zip(known, values, strict=True)) for values in zip(*known.values(), strict=True)]


def _combinations(rows: pd.DataFrame, axes: Sequence[str]) -> int:
    return len(rows[list(axes)].drop_duplicates()) if axes else 1


def _commonest(values: pd.Series, count: int) -> list[str]:
    """The `count` commonest values, in order of appearance."""
    sizes = values.value_counts(sort=False)
    order = list(dict.fromkeys(values))
    kept = sorted(order, key=lambda value: -int(sizes[value]))[:count]
    return [value for value in order if value in kept]


def _left_out(**counts: int) -> str:
    """A sentence on how many more of each noun there are."""
    parts = [f"{count} more {noun}{'s' if count > 1 else ''}" for noun, count in counts.items() if count > 0]
    return f"{' and '.join(parts)} did not fit and are in the CSV (drawn is false)." if parts else ""


def _floats(values: pd.Series) -> np.ndarray:
    return values.to_numpy(dtype=float, na_value=np.nan)
