"""Throughput against memory: which cases no other case beats in both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.analysis.labels import SERIES_AXES
from bench.report import theme
from bench.report.contents import Contents
from bench.report.drawing import Drawing
from bench.report.figures.memory import tick_bytes
from bench.report.figures.throughput import legend, short_rate
from bench.report.kinds import FigureKind
from bench.report.machines import Board, extreme, lay_out_machines, machine_handles
from bench.units import format_bytes, format_rate

_RATE = ["samples_per_s", "samples_per_s_low", "samples_per_s_high"]
_COLUMNS = [
    "panel",
    "drawn",
    "machine",
    "batch_size",
    "optimizer",
    "precision",
    "memory_format",
    "input",
    "image_size",
    "peak_allocated_bytes",
    *_RATE,
    "on_front_of_machine",
    "on_front",
]


_ONE_WAY = dict.fromkeys(axis for axis in SERIES_AXES if axis != "machine")
"""The axes taken out of the rows, so that every way to train a model shares its panel."""


def draw(contents: Contents) -> Drawing | None:
    """A panel a model and data set with every way to train it; nothing for a single machine."""
    summary = contents.summary
    rows = summary[summary["samples_per_s"].notna() & summary["peak_allocated_bytes"].notna()]
    if len(contents.machines) < 2 or rows.empty:
        return None
    board = lay_out_machines(rows.assign(**_ONE_WAY), contents.machines, rows["samples_per_s"].notna())
    board.frame[_COLUMNS[2:9]] = rows[_COLUMNS[2:9]]
    board.frame["on_front_of_machine"] = _fronts(board.frame, ["panel", "machine"])
    board.frame["on_front"] = _fronts(board.frame, ["panel"])
    figure, panels = theme.panels(
        len(board.pairs),
        "Throughput against memory",
        "up and to the left is better · steps: the front of each machine · ring: beaten by no case of any machine",
    )
    for axes, pair in zip(panels, board.pairs, strict=True):
        _draw_panel(axes, board, pair)
    ring = Line2D(
        [],
        [],
        color=theme.MUTED,
        marker="o",
        markersize=10,
        markerfacecolor="none",
        linestyle="none",
        label="on the front of all machines",
    )
    legend(figure, [*machine_handles(board), ring])
    return Drawing(
        name="pareto",
        title="Throughput against memory",
        caption=(
            "Both axes are logarithmic; a point is a case with its 95 % interval over processes. The stepped line is "
            "the Pareto front of a machine: of its cases, none is at least as fast with less memory, or faster with as "
            "little. Rings mark the front over all machines; it goes by the middles, so that neighbours whose "
            f"intervals overlap may change places. {board.left_out}"
        ).strip(),
        alt=_alt(board.frame),
        figure=figure,
        numbers=board.frame[_COLUMNS].reset_index(drop=True),
    )


def _fronts(frame: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Whether each row is beaten by none that shares its `keys`, in throughput and memory at once."""
    found = pd.Series(False, index=frame.index)
    for _, rows in frame.groupby(keys, sort=False):
        ordered = rows.sort_values(["peak_allocated_bytes", "samples_per_s"], ascending=[True, False], kind="stable")
        before = ordered["samples_per_s"].cummax().shift(fill_value=-np.inf)
        found[ordered.index[ordered["samples_per_s"] > before]] = True
    return found


def _draw_panel(axes: Axes, board: Board, pair: tuple[str, str]) -> None:
    rows = board.rows(pair)
    memory = rows["peak_allocated_bytes"].to_numpy(dtype=float)
    theme.log_axis(axes, "x", memory.min(), memory.max(), base=2, words=tick_bytes)
    ends = rows[_RATE].to_numpy(dtype=float)
    theme.log_axis(axes, "y", np.nanmin(ends), np.nanmax(ends), base=10, words=short_rate)
    axes.tick_params(axis="x", labelrotation=30)
    for machine, look in board.looks.items():
        line = board.rows(pair, machine).sort_values(["peak_allocated_bytes", "samples_per_s"], kind="stable")
        x, (y, low, high) = line["peak_allocated_bytes"].to_numpy(dtype=float), line[_RATE].to_numpy(dtype=float).T
        axes.errorbar(
            x,
            y,
            yerr=np.nan_to_num(np.vstack([y - low, high - y])),
            color=look.colour,
            marker=look.marker,
            linestyle="none",
            elinewidth=0.8,
            markersize=4.5,
            markeredgecolor=theme.PAPER,
            markeredgewidth=0.5,
        )
        front = line["on_front_of_machine"].to_numpy()
        axes.step(x[front], y[front], where="post", color=look.colour, linestyle=look.dashes, linewidth=1.0)
        best = line["on_front"].to_numpy()
        axes.plot(
            x[best],
            y[best],
            marker="o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=look.colour,
            markeredgewidth=1.1,
            linestyle="none",
            zorder=4,
        )
    theme.finish(axes, pair[0], "peak allocated", "samples / s")


def _alt(frame: pd.DataFrame) -> str:
    parts = []
    for panel, rows in frame.groupby("panel", sort=False):
        front = rows[rows["on_front"]]
        fastest = extreme(front, "samples_per_s")
        parts.append(
            f"{panel}: {len(front)} of {len(rows)} cases are on the front of all machines, the fastest on "
            f"{fastest['machine']} with {format_rate(fastest['samples_per_s'], 'samples')} in "
            f"{format_bytes(int(fastest['peak_allocated_bytes']))}"
        )
    return f"Points of throughput over peak memory with Pareto fronts. {'; '.join(parts[:6])}."


FIGURE = FigureKind(order=7, draw=draw)
