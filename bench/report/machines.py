"""Machines beside each other: which lines figures have, where a line bends, and how much of its memory a case takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from bench.analysis.labels import CaseLabels
from bench.records import Status
from bench.report import theme
from bench.report.series import Look, spread_panels

KNEE_FRAC = 0.90
"""The knee is the smallest batch size that reaches this share of its line's best rate; beyond it memory buys little."""

SAFE_SHARE = 0.80
"""The share of a device's memory that a rule of thumb keeps to; drawn as a guide."""

LINE = ["panel", "detail", "machine"]
"""What the points of one line share: model and data set, the other axes in words, and the machine."""


@dataclass(frozen=True, slots=True)
class Board:
    """Panels and lines of a figure with one line a machine.

    Attributes:
        frame: The rows with `panel`, `detail` and `drawn`.
        pairs: `(panel, detail)` of the panels that are drawn, in order.
        looks: How each machine that is drawn looks, the same in every figure of the report.
        left_out: What did not fit, in words; empty where all did.
    """

    frame: pd.DataFrame
    pairs: Sequence[tuple[str, str]]
    looks: dict[str, Look]
    left_out: str

    def rows(self, pair: tuple[str, str], machine: str | None = None) -> pd.DataFrame:
        """The drawn rows of a panel, of one machine or of all, by batch size."""
        kept = self.frame["drawn"] & (self.frame["panel"] == pair[0]) & (self.frame["detail"] == pair[1])
        kept = kept if machine is None else kept & (self.frame["machine"] == machine)
        return self.frame[kept].sort_values("batch_size", kind="stable")


def lay_out_machines(rows: pd.DataFrame, machines: Sequence[str], has: pd.Series) -> Board:
    """A panel for each model, data set and combination of the other axes; a line a machine.

    Args:
        rows: Of a summary.
        machines: All machines of the report in their order, so that each looks the same in every figure; the first six
            have hues.
        has: Whether each row has something to draw. A line that has anything keeps its other rows, so that it breaks
            where a case is missing; lines and panels that have nothing are left out.
    """
    frame = with_details(rows).assign(_has=has)
    frame = frame[frame.groupby(LINE, sort=False)["_has"].transform("any")].drop(columns="_has")
    shown = list(machines[: len(theme.HUES)])
    frame["drawn"] = frame["machine"].isin(shown)
    pairs = spread_panels(
        frame.loc[frame["drawn"], ["panel", "detail"]].rename(columns={"detail": "series"}), theme.MAX_PANELS
    )
    every = len(frame[["panel", "detail"]].drop_duplicates())
    chosen = set(pairs)
    fits = np.array([pair in chosen for pair in zip(frame["panel"], frame["detail"], strict=True)], dtype=bool)
    frame["drawn"] = frame["drawn"].to_numpy(dtype=bool) & fits
    looks = {
        name: Look(theme.HUES[n], theme.MARKERS[n], theme.DASHES[n % len(theme.DASHES)]) for n, name in enumerate(shown)
    }
    present = set(frame.loc[frame["drawn"], "machine"])
    parts = [
        f"{count} more {noun}{'s' if count > 1 else ''}"
        for count, noun in ((every - len(pairs), "panel"), (len(set(frame["machine"])) - len(present), "machine"))
        if count > 0
    ]
    left_out = f"{' and '.join(parts)} did not fit and stand in the CSV (drawn is false)." if parts else ""
    return Board(frame, pairs, {name: look for name, look in looks.items() if name in present}, left_out)


def with_details(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary with `panel` (model and data set) and `detail` (the other axes that differ, in words)."""
    labels, records = CaseLabels(rows), rows.to_dict("records")
    units = [labels.unit(row) for row in records]
    details = [labels.detail(row, without=("machine",)) for row in records]
    titles, lines = theme.clip_apart(units, theme.TITLE_CHARACTERS), theme.clip_apart(details, theme.DETAIL_CHARACTERS)
    return rows.assign(panel=[titles[unit] for unit in units], detail=[lines[detail] for detail in details])


def knees(frame: pd.DataFrame) -> pd.Series:
    """Whether each row of a `with_details` is the knee of its line (see `KNEE_FRAC`): booleans by the rows' index."""
    timed = frame[frame["samples_per_s"].notna()].assign(_row=lambda rows: rows.index)
    found = set()
    for _, line in timed.groupby(LINE, sort=False):
        enough = line[line["samples_per_s"] >= KNEE_FRAC * line["samples_per_s"].max()]
        found.add(extreme(enough, "batch_size", smallest=True)["_row"])
    return pd.Series([row in found for row in frame.index], index=frame.index, dtype=bool)


def extreme(rows: pd.DataFrame, column: str, *, smallest: bool = False) -> pd.Series:
    """The first row with the largest (or smallest) known number in `column`; there must be one."""
    values = _floats(rows[column])
    return rows.iloc[int(np.nanargmin(values) if smallest else np.nanargmax(values))]


def boundary(rows: pd.DataFrame) -> tuple[int, float] | None:
    """The smallest batch size of a line that ran out of memory, and where to draw the edge before it; `None` if none.

    The edge lies halfway, on a logarithmic axis, to the largest smaller batch size that ran.
    """
    out = rows.loc[rows["status"] == Status.OOM, "batch_size"]
    if out.empty:
        return None
    first = int(out.min())
    ran = rows.loc[rows["peak_allocated_bytes"].notna() & (rows["batch_size"] < first), "batch_size"]
    return first, math.sqrt(first * float(ran.max())) if len(ran) else first / math.sqrt(2)


def with_memory_shares(summary: pd.DataFrame) -> pd.DataFrame:
    """The cases that measured memory on a machine whose size is known, with how much of it they took.

    Returns:
        Rows of `summary` with `memory_bytes`, `limit_bytes`, `memory_share` (0 to 1, above where a host swaps) and
        `memory_of`, what the bytes are. On GPUs that is the most complete level that every measured case of all GPUs
        has: device memory as NVML reports it for the process, else what torch reserved, else what it allocated. On CPUs
        it is the process's resident peak against the RAM, or the control group's limit where that is lower.
    """
    measured = summary[summary["samples_per_s"].notna()]
    gpu = measured[measured["device"] != "cpu"]
    level = next((name for name in _LEVELS if len(gpu) and gpu[name].notna().all()), "peak_allocated_bytes")
    limit = measured[["ram_bytes", "host_memory_limit_bytes"]].astype(float).min(axis=1)
    on_cpu = (measured["device"] == "cpu").to_numpy()
    found = measured.assign(
        memory_bytes=np.where(on_cpu, _floats(measured["host_rss_peak_bytes"]), _floats(measured[level])),
        limit_bytes=np.where(on_cpu, limit, _floats(measured["gpu_total_bytes"])),
        memory_of=np.where(on_cpu, _HOST, _LEVELS[level]),
    )
    found["memory_share"] = found["memory_bytes"] / found["limit_bytes"]
    return found[found["memory_share"].notna()]


_LEVELS = {
    "device_used_bytes": "device memory of the process (NVML)",
    "peak_reserved_bytes": "peak reserved by torch, without the context",
    "peak_allocated_bytes": "peak allocated by torch, without the context",
}
_HOST = "resident memory of the process, against the host's"


def edge_dashes(places: Mapping[str, float]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Dashes for the uprights of machines, by machine: those at the same place take turns along one line."""
    found: dict[str, tuple[float, tuple[float, float]]] = {}
    for machine, place in places.items():
        sharing = [other for other in places if places[other] == place]
        found[machine] = (-2.0 * sharing.index(machine), (2.0, 2.0 * max(1, len(sharing) - 1)))
    return found


def machine_handles(board: Board, *, out_of_memory: bool = False) -> list[Line2D]:
    """What the legend shows: a line a machine, and the cross where memory ran out."""
    names = theme.clip_apart(board.looks, 60)
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dashes, label=names[name])
        for name, look in board.looks.items()
    ]
    if out_of_memory:
        handles.append(Line2D([], [], color=theme.MUTED, marker="X", linestyle="none", label="out of memory"))
    return handles


def _floats(values: pd.Series) -> np.ndarray:
    return values.to_numpy(dtype=float, na_value=np.nan)
