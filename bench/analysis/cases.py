"""One row a case from one row a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.energy import counted_energy_j
from bench.analysis.estimates import COMPARISONS, relative_errors
from bench.analysis.labels import machine_labels, protocol_labels, sort_cases
from bench.records import AXES, MEASURED, Estimate, Group, Status, columns, in_order
from bench.stats import Interval, geometric_interval, host_means, percentiles

GROUP = ("case_key", *columns(Group))
"""What runs that are repeats of each other share."""

PEAKS = in_order(lambda field: field.peak)
_CONSTANT = (*GROUP, *AXES, *in_order(lambda field: field.summary))
_ESTIMATES = tuple(name for name in columns(Estimate) if name not in ("case_key", "estimate_device"))
_SHARES = ("mfu_frac", "roofline_frac")
"""Of what the device's rated peaks allow."""

_INEXACT = 2.0**53
"""From here on a float holds no longer every whole number."""

_EXACT = (*PEAKS, "parameter_count", "oom_requested_bytes", "host_memory_limit_bytes", "device_memory_allowed_bytes")


def last_attempts(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that count: of each repeat of a case the last attempt; a throttled run that was repeated drops out."""
    turns = frame[[*GROUP, "repeat", "attempt"]].reset_index(drop=True)  # few columns: sorting copies them
    last = turns.sort_values("attempt", kind="stable").drop_duplicates([*GROUP, "repeat"], keep="last")
    return frame.iloc[np.sort(last.index.to_numpy())]


def in_reading_order(runs: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Runs in the order of their cases in a summary, not in that of their execution."""
    order = {key: place for place, key in enumerate(summary[list(GROUP)].itertuples(index=False, name=None))}
    places = pd.Series([order[key] for key in runs[list(GROUP)].itertuples(index=False, name=None)], dtype="int64")
    return runs.iloc[places.argsort(kind="stable").to_numpy()]


def spread_hosts(frame: pd.DataFrame) -> np.ndarray:
    """The host that each run counts for, where repeats were spread over hosts on purpose; "" elsewhere."""
    return _spread_over(frame, "hosts", "host_hash")


def spread_cards(frame: pd.DataFrame) -> np.ndarray:
    """The device that each run was on, where repeats were spread over those of one host on purpose; "" elsewhere."""
    cards, slots = (_spread_over(frame, "gpus", name) for name in ("gpu_uuid_hash", "cpu_slot"))
    return np.where(cards == "", slots, cards)


def _spread_over(frame: pd.DataFrame, spread: str, name: str) -> np.ndarray:
    if "spread" not in frame or name not in frame:
        return np.full(len(frame), "", dtype=object)
    chosen = (frame["spread"] == spread).fillna(False).to_numpy(dtype=bool)
    return np.where(chosen, frame[name].astype(object).fillna(""), "")


def summarise_cases(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a case, environment, protocol and code, in a reader's order.

    Speed comes from the runs that ended `ok` (from `throttled` ones where there is no other), one number a process;
    memory from every run that measured. Cases that never ran have their row with nulls.

    Args:
        frame: From `bench.load`.

    Returns:
        The axes, `machine`, `protocol` and `code` in words; `runs_planned`, `runs_ok`, `status` (`ok` where every
        planned run was, else the gravest), `status_counts` (`ok 2, oom 1`), `reason` and `phase` of the first run that
        did not end well; `processes` behind the speed, `samples_per_s` and `median_step_time_s` (geometric means of one
        number a process, or a host where repeats were spread over several) with `_low` and `_high` (95 %, null for
        one); `step_p10_s` and p50, p90, p99 over all raw steps; `mfu_frac` and `roofline_frac` (geometric means over
        the processes); `data_wait_frac`; `consistency` (throughput x median step / batch);
        peaks as the maximum over the
        processes, `peaks_agree`; `flags`, `data_source`; the estimates and `<estimator>_relative_error`, signed.
    """
    frame = frame.reset_index(drop=True)
    last = last_attempts(frame)
    everything = _positions(frame)
    groups = _positions(last)
    firsts = [indices[0] for indices in groups.values()]
    constant = [name for name in (*_CONSTANT, *_ESTIMATES) if name in last]
    summary = last.iloc[firsts][constant].reset_index(drop=True)
    raw, raw_all = _Columns(last), _Columns(frame)
    rows = []
    for key, indices in groups.items():
        row = raw.summarise(indices)
        own = () if row.pop("converged") else ("not_converged",)  # as the finding is called
        rows.append({**row, **raw_all.remarks(everything[key], own)})
    summary = pd.concat([summary, pd.DataFrame(rows, index=summary.index)], axis=1)
    for name in _EXACT:
        summary[name] = summary[name].astype("Int64")
    summary["peaks_agree"] = summary["peaks_agree"].astype("boolean")
    for comparison in COMPARISONS:
        summary[comparison.column] = relative_errors(summary, comparison)
    return sort_cases(_with_names(summary, frame))


def _positions(frame: pd.DataFrame) -> dict[Any, np.ndarray]:
    """The positions of the rows of each case, in order of appearance."""
    groups = frame.reset_index(drop=True).groupby(list(GROUP), sort=False, dropna=False).indices
    return {key: np.asarray(rows) for key, rows in groups.items()}


def _with_names(summary: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Add what a reader calls the environments, protocols and versions of the code."""
    codes = {key: f"code {number}" for number, key in enumerate(dict.fromkeys(frame["code_key"]), 1)}
    many = frame.groupby("case_key")["code_key"].nunique().max() > 1 if len(frame) else False
    named = {
        "machine": summary["environment_key"].map(machine_labels(frame)),
        "protocol": summary["protocol_key"].map(protocol_labels(frame)),
        "code": summary["code_key"].map(codes) if many else "",
    }
    return summary.assign(**named)


class _Columns:
    """The columns of a frame as arrays and lists: rows are read by the thousand, and pandas reads them slowly."""

    def __init__(self, frame: pd.DataFrame) -> None:
        """Take what the summaries need out of `frame`."""
        self.text = {name: _objects(frame[name]) for name in ("status", "reason", "phase", "data_source")}
        speed = ("samples_per_s", "median_step_time_s", "batch_size", "target_interval")
        self.number = {
            name: _believable(frame[name].to_numpy(dtype=float, na_value=np.nan))
            if name in frame
            else np.full(len(frame), np.nan)
            for name in dict.fromkeys((*_EXACT, *_SHARES, *speed))
        }
        self.number["counted_energy_j"] = _believable(counted_energy_j(frame))
        self.hosts = spread_hosts(frame)
        lists = ("step_times_s", "data_wait_times_s", "flags")
        self.list = {name: [_listed(value) for value in frame[name]] for name in lists}

    def summarise(self, rows: np.ndarray) -> dict[str, Any]:
        """The runs at `rows`, the last attempts of one case."""
        statuses = [self.text["status"][row] for row in rows]
        measured = [row for row, status in zip(rows, statuses, strict=True) if status in MEASURED]
        timed = [row for row in measured if self.text["status"][row] == Status.OK]
        timed = timed or [row for row in measured if self.text["status"][row] == Status.THROTTLED]
        peaks = {name: self._largest(name, measured) for name in PEAKS}
        bad = next((row for row, status in zip(rows, statuses, strict=True) if status != Status.OK), None)
        counts = {status: statuses.count(status) for status in Status if status in statuses}
        return {
            "runs_planned": len(rows),
            "runs_ok": counts.get(Status.OK, 0),
            "status": _commonest_trouble(counts),
            "status_counts": ", ".join(f"{status} {count}" for status, count in counts.items()),
            "reason": None if bad is None else self.text["reason"][bad],
            "phase": None if bad is None else self.text["phase"][bad],
            **self._speed(timed),
            **peaks,
            "peaks_agree": self._agree(measured),
            **{name: self._largest(name, rows) for name in _EXACT if name not in PEAKS},
        }

    def remarks(self, rows: np.ndarray, own: Sequence[str]) -> dict[str, str | int | None]:
        """What is said of any attempt at `rows`: flags with the case's own, by name, and where the images came from."""
        flags = sorted({*own, *(flag for row in rows for flag in self.list["flags"][row])})
        sources = sorted({source for row in rows if (source := self.text["data_source"][row]) is not None})
        return {"attempts": len(rows), "flags": ", ".join(flags), "data_source": " and ".join(sources) or None}

    def _speed(self, rows: Sequence[int]) -> dict[str, float | int]:
        """Of the runs that the speed comes from; `converged`: whether it is as well known as the sweep asked."""
        rates = self._known("samples_per_s", rows)
        batches = [size for row in rows if not np.isnan(size := self.number["batch_size"][row])]
        steps, waits = (self._joined(name, rows) for name in ("step_times_s", "data_wait_times_s"))
        energy = self._known("counted_energy_j", rows)
        samples = sum(self.number["batch_size"][row] * len(self.list["step_times_s"][row]) for row in rows)
        p = percentiles(steps) if len(steps) else None
        rate, median = (self._interval(name, rows) for name in ("samples_per_s", "median_step_time_s"))
        width = rate.half_width_frac if rate else 0.0
        target = next(iter(self._known("target_interval", rows)), math.inf)
        return {
            "converged": (math.inf if width is None else width) <= target,
            "processes": len(rates),
            **_spread("samples_per_s", rate),
            **_spread("median_step_time_s", median),
            "step_p10_s": p.p10 if p else np.nan,
            "step_p50_s": p.median if p else np.nan,
            "step_p90_s": p.p90 if p else np.nan,
            "step_p99_s": p.p99 if p else np.nan,
            **{name: mean.middle if (mean := self._interval(name, rows)) else np.nan for name in _SHARES},
            "data_wait_frac": float(waits.sum() / steps.sum()) if len(waits) and steps.sum() > 0 else np.nan,
            "consistency": rate.middle * median.middle / batches[0] if rate and median and batches else np.nan,
            # fsum, because sum() rounds otherwise from Python 3.12 on, and a report is the same to the byte everywhere
            "joules_per_sample": math.fsum(energy) / samples if energy and len(energy) == len(rows) else np.nan,
        }

    def _joined(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """The lists of some rows as one, without what is no number."""
        if not rows:
            return np.array([])
        values = _believable(np.concatenate([np.asarray(self.list[name][row], dtype=float) for row in rows]))
        known: np.ndarray = values[~np.isnan(values)]
        return known

    def _interval(self, name: str, rows: Sequence[int]) -> Interval | None:
        """Over one number a process, or a host where they were spread over several."""
        positive = [row for row in rows if self.number[name][row] > 0]
        if not positive:
            return None
        return geometric_interval(host_means(self.number[name][positive].tolist(), self.hosts[positive].tolist()))

    def _known(self, name: str, rows: Sequence[int]) -> list[float]:
        return [float(value) for row in rows if not np.isnan(value := self.number[name][row])]

    def _largest(self, name: str, rows: Sequence[int] | np.ndarray) -> float:
        return max(self._known(name, list(rows)), default=np.nan)

    def _agree(self, rows: Sequence[int]) -> bool | None:
        """Whether all processes had the same allocated peak; unknown for fewer than two."""
        values = self._known("peak_allocated_bytes", rows)
        return len(set(values)) == 1 if len(values) > 1 else None


def _commonest_trouble(counts: dict[Status, int]) -> str:
    """`ok` where nothing else happened, else the commonest other status (the first of the closed set among equals)."""
    others = {status: count for status, count in counts.items() if status != Status.OK}
    return str(max(others, key=lambda status: others[status])) if others else str(Status.OK)


def _believable(values: np.ndarray) -> np.ndarray:
    """The values; those that are infinite, or too large to be exact, are unknown: parts of others may hold anything."""
    with np.errstate(invalid="ignore"):
        found: np.ndarray = np.where(np.abs(values) < _INEXACT, values, np.nan)
    return found


def _spread(name: str, interval: Interval | None) -> dict[str, float]:
    middle, low, high = astuple(interval)[:3] if interval else (None, None, None)
    ends = {name: middle, f"{name}_low": low, f"{name}_high": high}
    return {key: np.nan if value is None else value for key, value in ends.items()}


def _objects(series: pd.Series) -> list[str | None]:
    return [None if value is None or value is pd.NA or value != value else str(value) for value in series.tolist()]


def _listed(value: Any) -> Any:
    """A list column's value; unknown is empty."""
    return value if isinstance(value, np.ndarray | list | tuple) else ()
