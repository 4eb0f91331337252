"""What loading costs: cases that differ in their input path alone, side by side.

A step of a `synthetic` case takes in nothing, one of a `cached` case copies a batch that is ready, one of a `loader`
case waits for a batch that workers read, decode, transform and collate. What `cached` takes beyond `synthetic` is
therefore copying, and what `loader` takes beyond `cached` is making batches and handing them over.

How many workers would do follows from a simple model. One worker makes a batch in `m` seconds; a step that has its
batch takes `t`. Then `w` workers deliver a batch every `m / w` seconds, and a step takes `max(t, m / w)`; without
workers the process makes each batch itself, and a step takes `t + m`. So `m / t` workers, rounded up, do. The model
leaves out what handing over costs, and takes it that each worker has a processor to itself: where they share, `m`
grows with their number. Whether it holds is said for each case, by what it predicts of the case itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.cases import GROUP, last_attempts, spread_hosts
from bench.records import AXES, Status
from bench.stats import Interval, Judgement, Verdict, geometric_interval, host_means, judge_ratios, mean_interval

_ALIKE = ("environment_key", "protocol_key", *(axis for axis in AXES if axis != "input"))
"""What cases side by side share. Their `code_key` differs: it has the files of those that read some."""

_SLACK_FRAC = 0.1
"""What the model of the workers may be off by beyond the interval; it knows nothing of what handing over costs."""


@dataclass(frozen=True, slots=True)
class Loading:
    """A `loader` case, and what stands beside it.

    Attributes:
        row: The case's row of the summary.
        waiting: The share of a step spent waiting for its batch, over processes; without ends for one process.
        step_s: Seconds per step by input path, one number a process: the measured window over its steps.
        made_s: Seconds that one worker took to make a batch, one number a process; none where it was not recorded.
        workers: Of the loader; 0: the process itself made the batches.
        usable_cores: Of the machine; None if unknown.
        on_cpu: Whether the step takes the processors that workers want.
        cost: `loader` over the path without a data path, `synthetic`; None where that did not run.
        copying: `cached` over `synthetic`; None where one of them did not run.
        decoding: `loader` over `cached`; None where that did not run.
        needed: Workers that would do, as a real number: `made_s` over the step's time with its batch at hand; None if
            one of the two is unknown.
    """

    row: dict[Any, Any]
    waiting: Interval
    step_s: dict[str, list[float]]
    made_s: list[float]
    workers: int
    usable_cores: int | None
    on_cpu: bool
    cost: Judgement | None = None
    copying: Judgement | None = None
    decoding: Judgement | None = None
    needed: Judgement | None = None

    def typical_step_s(self, path: str) -> float | None:
        """Seconds per step on an input path, the geometric mean of its processes; None if it is unknown."""
        known = self.step_s.get(path)
        return _mean(known) if known else None

    @property
    def typical_made_s(self) -> float | None:
        """Seconds that one worker took to make a batch, likewise."""
        return _mean(self.made_s) if self.made_s else None

    @property
    def ready_s(self) -> float | None:
        """A step's seconds with its batch at hand: of the `cached` case, else of the `synthetic` one."""
        return self.typical_step_s("cached") or self.typical_step_s("synthetic")

    @property
    def enough(self) -> tuple[int, int, int] | None:
        """Workers that would do, with the ends of the interval; None where either side ran in fewer than two processes.

        At least 1: without any, a step makes its batch itself.
        """
        found = self.needed
        if found is None or found.ratio is None or found.low is None or found.high is None:
            return None
        middle, low, high = (max(1, math.ceil(value)) for value in (found.ratio, found.low, found.high))
        return middle, low, high

    @property
    def predicted_step_s(self) -> float | None:
        """The case's own seconds per step as the model has them; None where the model lacks one of its two times."""
        made = self.typical_made_s
        if self.ready_s is None or made is None:
            return None
        return max(self.ready_s, made / self.workers) if self.workers else self.ready_s + made

    @property
    def holds(self) -> bool | None:
        """Whether the model gives the case's own step, within its interval and `_SLACK_FRAC`; None if unknown."""
        predicted, loader = self.predicted_step_s, geometric_interval(self.step_s["loader"])
        if predicted is None or loader.low is None or loader.high is None:
            return None
        return loader.low / (1 + _SLACK_FRAC) <= predicted <= loader.high * (1 + _SLACK_FRAC)

    @property
    def limit(self) -> str:
        """What limits the case: `decoding`, `copying`, `both`, `neither`, or `unclear` where it cannot be told."""
        if self.copying is None or self.decoding is None:
            return "unclear"
        copies, decodes = (each.verdict for each in (self.copying, self.decoding))
        told = {(Verdict.SLOWER, Verdict.SLOWER): "both", (Verdict.SAME, Verdict.SAME): "neither"}
        if (copies, decodes) in told:
            return told[copies, decodes]
        if decodes is Verdict.SLOWER:
            return "decoding"
        return "copying" if copies is Verdict.SLOWER and decodes is not Verdict.UNCLEAR else "unclear"


def loading_costs(frame: pd.DataFrame, summary: pd.DataFrame) -> list[Loading]:
    """Every `loader` case that recorded its waiting, in the order of `summary`, with the cases beside it.

    Cases that several versions of the code ran stand alone: which of them belong together is not known.

    Args:
        frame: One row a run, from `bench.load`.
        summary: One row a case, from `bench.analysis.summarise_cases`.
    """
    if not (summary["input"] == "loader").any():
        return []
    runs = _runs_by_case(frame)
    beside: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
    for row in summary.to_dict("records"):
        beside.setdefault(_alike(row), []).append(row)
    found = []
    for row in summary[summary["input"] == "loader"].to_dict("records"):
        own = runs.get(_key(row))
        if own is None or not (shares := _shares(own)):
            continue
        inputs = [each["input"] for each in beside[_alike(row)]]
        others = beside[_alike(row)] if len(set(inputs)) == len(inputs) else [row]
        times = {each["input"]: _means(runs[_key(each)], _step_s) for each in others if _key(each) in runs}
        if not times["loader"]:
            continue
        first = own.iloc[0]
        found.append(
            Loading(
                row=row,
                waiting=mean_interval(shares),
                step_s=times,
                made_s=_means(own, _made_s),
                workers=int(first["loader_workers"]),
                usable_cores=None if pd.isna(first["cpu_cores_usable"]) else int(first["cpu_cores_usable"]),
                on_cpu=first["device"] == "cpu",
            )
        )
    return _judged(found)


def _judged(found: Sequence[Loading]) -> list[Loading]:
    """With the ratios of all cases, each kind judged as one family."""
    synthetic, cached, loader = (
        [each.step_s.get(name, []) for each in found] for name in ("synthetic", "cached", "loader")
    )
    ready = [each.step_s.get("cached") or each.step_s.get("synthetic") or [] for each in found]
    pairs = {
        "cost": (synthetic, loader),
        "copying": (synthetic, cached),
        "decoding": (cached, loader),
        "needed": (ready, [each.made_s for each in found]),
    }
    judged: list[dict[str, Any]] = [{} for _ in found]
    for name, (one, two) in pairs.items():
        for place, judgement in enumerate(judge_ratios(one, two, higher_is_better=False)):
            judged[place][name] = judgement if judgement.ratio is not None else None
    return [replace(each, **more) for each, more in zip(found, judged, strict=True)]


def _runs_by_case(frame: pd.DataFrame) -> dict[tuple[Any, ...], pd.DataFrame]:
    """The runs of each case that ended well and say how long their steps took."""
    runs = last_attempts(frame.reset_index(drop=True))
    runs = runs[(runs["status"] == Status.OK) & (runs["wall_window_s"] > 0)]
    places: dict[Any, Any] = runs.groupby(list(GROUP), sort=False).indices
    return {key: runs.iloc[rows] for key, rows in places.items()}


def _key(row: dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in GROUP)


def _alike(row: dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _ALIKE)


def _shares(runs: pd.DataFrame) -> list[float]:
    """The share of its steps that each process spent waiting; none where one did not record it."""
    pairs = list(zip(runs["data_wait_times_s"], runs["step_times_s"], strict=True))
    if not all(len(_values(waits)) == len(_values(steps)) > 0 for waits, steps in pairs):
        return []
    return [float(np.sum(waits) / np.sum(steps)) for waits, steps in pairs]


def _means(runs: pd.DataFrame, of: Any) -> list[float]:
    """One number a process, or a host where they were spread over several; none where one process has none."""
    values = [of(run) for run in runs.to_dict("records")]
    known = [value for value in values if value is not None and value > 0]
    return host_means(known, spread_hosts(runs).tolist()) if len(known) == len(values) else []


def _step_s(run: dict[Any, Any]) -> float | None:
    steps = len(_values(run["step_times_s"]))
    return float(run["wall_window_s"]) / steps if steps else None


def _made_s(run: dict[Any, Any]) -> float | None:
    """Without workers, and in results from before it was recorded, a step waits as long as its batch is being made."""
    made = _values(run.get("batch_made_times_s"))
    if not len(made) and run["loader_workers"] == 0:
        made = _values(run["data_wait_times_s"])
    return float(np.mean(made)) if len(made) else None


def _values(cell: Any) -> Any:
    """A list column's value; unknown is empty."""
    return cell if isinstance(cell, np.ndarray | list | tuple) else ()


def _mean(values: Sequence[float]) -> float:
    """The geometric mean, as ratios of times have it."""
    return math.exp(float(np.log(values).mean()))
