"""Several machines: each compared with a baseline, where each line bends and runs out of memory, what a case takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis import gpu_memory_bytes
from bench.comparison import Comparison, compare
from bench.errors import BenchError, nearest, nearest_sentence
from bench.records import Status
from bench.report.escape import plain

SPEED, MEMORY, ENERGY = "samples_per_s", "peak_allocated_bytes", "joules_per_sample"

_WORDS = {
    Status.OOM: "out of memory",
    Status.TIMEOUT: "timed out",
    Status.NAN_LOSS: "loss not finite",
    Status.INTERRUPTED: "not run yet",
}
NOT_PLANNED = "not planned"


@dataclass(frozen=True)
class Hardware:
    """Machines beside each other.

    Attributes:
        baseline: The machine that the others are compared with.
        comparisons: By machine, in their order, without the baseline.
        refused: Why a machine could not be compared, by machine.
        cells: One row a case and machine beside the baseline: `case_key`, `machine`, `ratio` of throughput (machine
            over baseline) with `low`, `high`, `verdict` and `reason`, null where either side has no number; `outcome`
            then says why in a word or two. `clock_ratio`, `cycles_ratio`, `clocks` and `clocks_reason` are as in
            `bench.comparison.Comparison`.
    """

    baseline: str
    comparisons: Mapping[str, Comparison]
    refused: Mapping[str, str]
    cells: pd.DataFrame


def compare_machines(frame: pd.DataFrame, summary: pd.DataFrame, baseline: str) -> Hardware:
    """Compare every machine of a report with the baseline.

    Args:
        frame: One row a run, from `bench.load`.
        summary: One row a case, from `bench.analysis.summarise_cases`.
        baseline: One of the machines of `summary`.
    """
    machines = [str(name) for name in dict.fromkeys(summary["machine"]) if name != baseline]
    labels = frame["environment_key"].map(dict(zip(summary["environment_key"], summary["machine"], strict=True)))
    comparisons, refused = {}, {}
    one = frame[labels == baseline]
    for machine in machines:
        other = frame[labels == machine]
        try:
            comparisons[machine] = compare(one, other, metrics=_known_metrics(one, other))
        except BenchError as error:
            refused[machine] = str(error)
    return Hardware(baseline, comparisons, refused, _cells(summary, baseline, comparisons))


def _known_metrics(*sides: pd.DataFrame) -> list[str] | None:
    """What either side measured, of the numbers that the report compares; `None` where it is nothing."""
    columns = {SPEED: SPEED, MEMORY: MEMORY, ENERGY: "energy_window_j"}
    known = [name for name, column in columns.items() if any(side[column].notna().any() for side in sides)]
    return known or None


def find_baseline(wanted: str | None, machines: Sequence[str], folders: Mapping[str, Sequence[str]]) -> str:
    """The machine that is meant: by its name, by a part of it that only one has, or by its results folder.

    Args:
        wanted: As the user wrote it; the first machine where it is `None`.
        machines: Names of the machines, in order.
        folders: The machines of each results folder, by the folder's name.

    Raises:
        BenchError: No machine is meant, or more than one.
    """
    if wanted is None:
        return machines[0]
    asked = wanted.casefold()
    exact = [name for name in machines if name.casefold() == asked]
    found = exact or list(folders.get(wanted.rstrip("/").rsplit("/", 1)[-1], ()))
    found = found or [name for name in machines if asked in name.casefold()]
    if len(found) == 1:
        return found[0]
    said = "means more than one machine" if found else "is no machine of these results"
    near = nearest_sentence([plain(name) for name in nearest(wanted, machines)]) if not found else ""
    allowed = "; ".join(plain(name, 80) for name in found or machines)
    raise BenchError(f'--baseline: "{plain(wanted, 80)}" {said}. {near}Allowed, or a part that only one has: {allowed}')


_COMPARED = ("ratio", "low", "high", "verdict", "reason", "clock_ratio", "cycles_ratio", "clocks", "clocks_reason")


def _cells(summary: pd.DataFrame, baseline: str, comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    ends = {
        (str(row["machine"]), str(row["case_key"])): str(row["status"])
        for row in summary[["machine", "case_key", "status"]].to_dict("records")
    }
    ratios = {
        (machine, str(row["case_key"])): row
        for machine, found in comparisons.items()
        for row in found.cases[found.cases["metric"] == SPEED].to_dict("records")
    }
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys(map(str, summary["case_key"])):
        for machine in comparisons:
            row = ratios.get((machine, key), {})
            ratio = row.get("ratio")
            known = ratio is not None and not pd.isna(ratio)
            values = {name: row.get(name) if known else None for name in _COMPARED}
            outcome = "" if known else _outcome(ends.get((baseline, key)), ends.get((machine, key)))
            rows.append({"case_key": key, "machine": machine, **values, "outcome": outcome})
    cells = pd.DataFrame(rows, columns=["case_key", "machine", *_COMPARED, "outcome"])
    return cells.astype(dict.fromkeys(("ratio", "low", "high", "clock_ratio", "cycles_ratio"), float))


def _outcome(baseline: str | None, machine: str | None) -> str:
    """Why there is no ratio: how the case ended on the machine, or on the baseline where the machine has its number."""
    if machine != Status.OK and machine != Status.THROTTLED:
        return _said(machine)
    return f"baseline: {_said(baseline)}"


def _said(status: str | None) -> str:
    return NOT_PLANNED if status is None else _WORDS.get(Status(status), status)


KNEE_FRAC = 0.90
"""The knee is the smallest batch size that reaches this share of its line's best rate; beyond it memory buys little."""

SAFE_SHARE = 0.80
"""The share of a device's memory that a rule of thumb keeps to; drawn as a guide."""


def knees(frame: pd.DataFrame) -> pd.Series:
    """Whether each row of a `with_details` is the knee of its line (see `KNEE_FRAC`): booleans by the rows' index."""
    timed = frame[frame["samples_per_s"].notna()].assign(_row=lambda rows: rows.index)
    found = set()
    from bench.report.layout import LINE  # imports matplotlib, which a report whose figures are kept does without

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
        has: device memory as NVML reports it for the process, else what torch reserved, else what it allocated; the
        limit is the GPU's memory, or that of the smaller card that it played. On CPUs
        it is the process's resident peak against the RAM, or the control group's limit where that is lower.
    """
    measured = summary[summary["samples_per_s"].notna()]
    gpu = measured[measured["device"] != "cpu"]
    level = next((name for name in _LEVELS if len(gpu) and gpu[name].notna().all()), "peak_allocated_bytes")
    limit = measured[["ram_bytes", "host_memory_limit_bytes"]].astype(float).min(axis=1)
    on_cpu = (measured["device"] == "cpu").to_numpy()
    found = measured.assign(
        memory_bytes=np.where(on_cpu, _floats(measured["host_rss_peak_bytes"]), _floats(measured[level])),
        limit_bytes=np.where(on_cpu, limit, gpu_memory_bytes(measured)),
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
