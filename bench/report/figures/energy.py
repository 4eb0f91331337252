"""Energy per sample over batch size, one line a machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.analysis import GROUP, counted_energy_j, last_attempts, spread_hosts
from bench.records import Status
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.hardware import extreme
from bench.report.layout import Layout, draw_legend, draw_lines, lay_out_machines, line_handles
from bench.stats import geometric_interval, host_means
from bench.units import format_rate

_VALUES = ["joules_per_sample", "joules_per_sample_low", "joules_per_sample_high"]
_KNOWN = ["machine", "batch_size", "energy_processes", *_VALUES]


def draw(contents: Contents) -> Drawing | None:
    """A panel a model, data set and combination of the other axes; nothing where no run knows its energy."""
    rows = _with_energy(contents.summary, contents.frame)
    known = rows["joules_per_sample"].notna()
    if not known.any():
        return None
    layout = lay_out_machines(rows, _KNOWN, contents.machines, known)
    figure, panels = theme.panels(
        len(layout.pairs),
        "Energy per sample",
        "lower is better · the GPU's own counter over the measured window · bars: 95 % interval over processes",
    )
    for axes, pair in zip(panels, layout.pairs, strict=True):
        _draw_panel(axes, layout, pair)
    draw_legend(figure, line_handles(layout))
    silent = [name for name in contents.machines if name not in set(rows.loc[known, "machine"])]
    return Drawing(
        name="energy",
        title="How much energy does a sample take?",
        caption=(
            "Both axes are logarithmic. Joules of the GPU alone (its own counter, NVML) over the measured steps, "
            "divided by their samples; the host is not in it. Points are geometric means of one number a process; bars "
            f"are 95 % intervals (none where a case ran in one). {_silence(silent)}{layout.left_out}"
        ).strip(),
        alt=_alt(rows[known]),
        figure=figure,
        numbers=layout.frame[["panel", "detail", "drawn", *_KNOWN]].reset_index(drop=True),
    )


def _with_energy(summary: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The cases with their energy and its interval over the processes that ended well; unknown is NaN."""
    runs = last_attempts(frame.reset_index(drop=True))
    energy = counted_energy_j(runs)
    counts = (runs["status"] == Status.OK).to_numpy() & (energy > 0)
    runs, energy = runs[counts], energy[counts]
    steps = np.array([len(times) for times in runs["step_times_s"]], dtype=float)
    each = energy / (steps * runs["batch_size"].to_numpy(dtype=float))
    found: dict[Any, list[tuple[float, str]]] = {}
    for *key, host, value in zip(*(runs[name] for name in GROUP), spread_hosts(runs), each, strict=True):
        found.setdefault(tuple(key), []).append((float(value), host))
    keys = zip(*(summary[name] for name in GROUP), strict=True)
    ends = [_ends(found[key]) if key in found else (np.nan, np.nan, np.nan, 0) for key in keys]
    columns = [*_VALUES, "energy_processes"]
    return summary.assign(**{name: [end[place] for end in ends] for place, name in enumerate(columns)})


def _ends(runs: list[tuple[float, str]]) -> tuple[float, float, float, int]:
    """Middle, low and high end over processes or hosts, and the number of processes."""
    one = geometric_interval(host_means(*zip(*runs, strict=True)))
    low, high = (np.nan if end is None else end for end in (one.low, one.high))
    return one.middle, low, high, len(runs)


def _draw_panel(axes: Axes, layout: Layout, pair: tuple[str, str]) -> None:
    rows = layout.rows(pair)
    theme.batch_axis(axes, [int(size) for size in rows["batch_size"]])
    ends = rows[_VALUES].to_numpy(dtype=float)
    theme.log_axis(axes, "y", np.nanmin(ends), np.nanmax(ends), base=10, words=lambda value: f"{value:g}")
    draw_lines(axes, rows, layout, "joules_per_sample")
    theme.finish(axes, pair[0], "batch size", "J / sample", detail=pair[1])


def _silence(machines: list[str]) -> str:
    return f"Unknown, and not zero, on {' and '.join(machines)}. " if machines else ""


def _alt(rows: pd.DataFrame) -> str:
    """The most frugal case of each machine."""
    best = [extreme(group, _VALUES[0], smallest=True) for _, group in rows.groupby("machine", sort=False)]
    parts = [
        f"{row['machine']} takes least with {format_rate(row['joules_per_sample'])} J for {row['model']} at batch "
        f"{row['batch_size']}"
        for row in best
    ]
    return f"Lines of joules per sample over batch size, one a machine. {'; '.join(parts)}."


FIGURE = FigureKind(order=50, draw=draw)
