"""Machines beside each other: where a line bends, where it runs out of memory, how much of its memory a case takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from bench.records import Status
from bench.report.layout import LINE

KNEE_FRAC = 0.90
"""The knee is the smallest batch size that reaches this share of its line's best rate; beyond it memory buys little."""

SAFE_SHARE = 0.80
"""The share of a device's memory that a rule of thumb keeps to; drawn as a guide."""


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


def _floats(values: pd.Series) -> np.ndarray:
    return values.to_numpy(dtype=float, na_value=np.nan)
