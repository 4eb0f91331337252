"""Which runs count, and which cases of the two sides belong together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd

from bench.analysis import last_attempts
from bench.comparison.differences import FLAGS, field_words, refuse_mixed, unknown_field
from bench.comparison.result import Side
from bench.errors import BenchError
from bench.records import AXES, USUAL, InputPath, MemoryFormat, Precision, Status, axis_words, varying_axes

Row = dict[Hashable, Any]


@dataclass(frozen=True, slots=True)
class Half:
    """One side of a comparison.

    Extracting single rows of large frames is slow, so what each case needs is read once.

    Attributes:
        side: Its name.
        runs: The runs that count, with `pair`: the case's axes except those compared across.
        rows: By pair, the positions of its runs in `runs`.
        firsts: By pair, `case_key` and the axes of its first run.
        ends: By pair, its status: `ok` if any run has it, else the most common one, and the first reason for it.
    """

    side: Side
    runs: pd.DataFrame
    rows: dict[Hashable, list[int]]
    firsts: dict[Hashable, Row]
    ends: dict[Hashable, tuple[str, str | None]]

    def end(self, pair: Hashable) -> tuple[str, str | None]:
        """The status of a case; `not planned` if the side does not have it."""
        return self.ends.get(pair, ("not planned", None))


def check_across(across: Sequence[str]) -> tuple[str, ...]:
    """The fields that may differ, each once.

    Raises:
        BenchError: A field that is neither an axis nor a flag.
    """
    for field in across:
        if field not in (*AXES, *FLAGS):
            raise unknown_field("field to compare across", field, (*AXES, *FLAGS))
    return tuple(dict.fromkeys(across))


def halve(frame: pd.DataFrame, side: Side, across: Sequence[str]) -> Half:
    """The runs of a side that count: still planned, the last attempt of each, grouped by case.

    Raises:
        BenchError: The runs of a case differ in more than their repeat, or several cases fall into one.
    """
    planned = frame[frame["planned"].astype(bool)] if "planned" in frame else frame
    runs = last_attempts(planned.reset_index(drop=True)).reset_index(drop=True)
    refuse_mixed(runs, side)
    joined = [axis for axis in AXES if axis not in across]
    runs["pair"] = list(runs[joined].astype(object).itertuples(index=False, name=None))
    _refuse_ambiguous(runs, side, across)
    rows: dict[Hashable, list[int]] = {}
    for position, pair in enumerate(runs["pair"]):
        rows.setdefault(pair, []).append(position)
    heads = runs.iloc[[found[0] for found in rows.values()]][["case_key", *AXES]].to_dict("records")
    statuses, reasons = runs["status"].astype(str).tolist(), runs["reason"].tolist()
    ends = {
        pair: _end([statuses[row] for row in found], [reasons[row] for row in found]) for pair, found in rows.items()
    }
    return Half(side, runs, rows, dict(zip(rows, heads, strict=True)), ends)


def common_pairs(baseline: Half, candidate: Half, across: Sequence[str]) -> list[Hashable]:
    """The cases that both sides planned, in a sorted order.

    Raises:
        BenchError: There are none; the message names the axes that differ.
    """
    common = [pair for pair in baseline.rows if pair in candidate.rows]
    if common:
        return in_order(baseline, common)
    if baseline.runs.empty or candidate.runs.empty:
        empty = baseline if baseline.runs.empty else candidate
        raise BenchError(f"the {empty.side} has no runs to compare; check --only, or run bench sweep first")
    lines = [
        f"{axis} differs: {_listed(baseline, axis)} in the baseline, {_listed(candidate, axis)} in the candidate"
        for axis in AXES
        if axis not in across and set(baseline.runs[axis]) != set(candidate.runs[axis])
    ]
    disjoint = [axis for axis in AXES if not set(baseline.runs[axis]) & set(candidate.runs[axis])]
    advice = "choose sides with common cases (bench plan lists cases)"
    if disjoint and len(disjoint) <= 2:
        advice += f", or compare across: {' '.join(f'--across {axis}' for axis in disjoint)}"
    raise BenchError("\n".join(["the sides have no case in common", *lines, advice]))


def in_order(half: Half, pairs: Iterable[Hashable]) -> list[Hashable]:
    """Cases of a side in a sorted order."""
    return sorted(pairs, key=lambda pair: _reading_order(half.firsts[pair]))


def all_pairs(one: Half, two: Half) -> list[Hashable]:
    """The cases that either side planned, sorted; runs are in the shuffled order of their execution."""
    firsts = {**two.firsts, **one.firsts}
    return sorted(firsts, key=lambda pair: _reading_order(firsts[pair]))


def label_pairs(halves: Sequence[Half], across: Sequence[str] = ()) -> dict[Hashable, str]:
    """Every case of some sides as unique texts, without the axes compared across if possible.

    Args:
        halves: The sides whose cases are listed together.
        across: Fields that may differ between the sides.
    """
    firsts = {pair: row for half in reversed(halves) for pair, row in half.firsts.items()}
    columns = {axis: [row[axis] for row in firsts.values()] for axis in AXES}
    told = varying_axes(columns, [axis for axis, usual in USUAL.items() if usual is None])
    labels = {}
    for pair, row in firsts.items():
        shown = [
            "optimizer",
            *(axis for axis, usual in USUAL.items() if axis in told or row[axis] != (usual or row[axis])),
        ]
        words = (axis_words(axis, row[axis]) for axis in shown if axis not in across)
        labels[pair] = ", ".join([f"{row['model']} on {row['dataset']}", f"batch {row['batch_size']}", *words])
    return labels


def _end(statuses: list[str], reasons: list[Any]) -> tuple[str, str | None]:
    if Status.OK in statuses:
        return str(Status.OK), None
    commonest = max(dict.fromkeys(statuses), key=statuses.count)
    told = (reason for reason, status in zip(reasons, statuses, strict=True) if status == commonest)
    return commonest, next((str(reason) for reason in told if reason is not None and not pd.isna(reason)), None)


def _reading_order(row: Row) -> tuple[Any, ...]:
    """Data set, model and optimizer by name, the other axes in their natural order, batch sizes last."""
    closed = {"precision": Precision, "memory_format": MemoryFormat, "input": InputPath}
    ranks = (get_args(kind).index(row[axis]) if row[axis] in get_args(kind) else 9 for axis, kind in closed.items())
    names = (str(row[axis]) for axis in ("dataset", "model", "optimizer"))
    return (*names, *ranks, row["image_size"], row["batch_size"])


def _refuse_ambiguous(runs: pd.DataFrame, side: Side, across: Sequence[str]) -> None:
    """Refuse an axis compared across that has several values for one case on a side."""
    for axis in (axis for axis in across if axis in AXES):
        counts = runs.groupby("pair", sort=False)[axis].nunique()
        if len(counts) and counts.max() > 1:
            values = ", ".join(field_words(axis, value) for value in dict.fromkeys(runs[axis]))
            raise BenchError(
                f"across {axis}: the {side} has several values for one case ({values}). Choose one per side: "
                f"--across {axis}=BASELINE,CANDIDATE"
            )


def _listed(half: Half, axis: str, most: int = 4) -> str:
    values = [field_words(axis, value) for value in dict.fromkeys(half.runs[axis])]
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f"{', '.join(values[:most])}{more}"
