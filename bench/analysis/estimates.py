"""Each estimator beside the measurement that it is an estimate of: how far off, and whether it foresaw what ran out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.analysis.labels import machine_labels
from bench.records import MEASURED, Status
from bench.stats import summarise_errors


@dataclass(frozen=True, slots=True)
class EstimatePair:
    """An estimate and what it is compared with.

    Attributes:
        name: Of the estimator; the summary's column is `<name>_relative_error`.
        estimate: The estimate's column.
        measured: The measurement's column, in the same unit.
        title: The estimator for people.
        against: The measurement for people.
    """

    name: str
    estimate: str
    measured: str
    title: str
    against: str

    @property
    def column(self) -> str:
        """The summary's column of signed relative errors."""
        return f"{self.name}_relative_error"


COMPARISONS = (
    EstimatePair("formula", "formula_bytes", "peak_allocated_bytes", "formula", "peak allocated"),
    EstimatePair("trace", "trace_peak_allocated_bytes", "peak_allocated_bytes", "trace, allocated", "peak allocated"),
    EstimatePair(
        "trace_reserved", "trace_peak_reserved_bytes", "peak_reserved_bytes", "trace, reserved", "peak reserved"
    ),
    EstimatePair("device", "estimated_device_bytes", "device_used_bytes", "device", "device memory used"),
    EstimatePair("speed", "estimated_samples_per_s", "samples_per_s", "speed (roofline)", "samples per second"),
)


def relative_errors(frame: pd.DataFrame, comparison: EstimatePair) -> np.ndarray:
    """`(estimate - measured) / measured` for each row, signed, shape `(rows,)`; NaN where either is unknown or 0."""
    estimate = frame[comparison.estimate].to_numpy(dtype=float, na_value=np.nan)
    measured = frame[comparison.measured].to_numpy(dtype=float, na_value=np.nan)
    known = ~(np.isnan(estimate) | np.isnan(measured)) & (measured > 0)
    return np.where(known, (estimate - measured) / np.where(known, measured, 1.0), np.nan)


def estimator_errors(summary: pd.DataFrame) -> pd.DataFrame:
    """How far each estimator is off over all cases that have both numbers; an estimator without any has no row.

    Args:
        summary: From `summarise_cases`.

    Returns:
        One row an estimator, in the order of `COMPARISONS`: `name`, `title`, `against`, and the fields of
        `bench.stats.ErrorSummary` as fractions, with `exact`, the number of cases without any error.
    """
    rows = []
    for comparison in COMPARISONS:
        errors = summary[comparison.column].to_numpy(dtype=float)
        found = summarise_errors(errors[~np.isnan(errors)])
        if found is not None:
            rows.append(
                {
                    "name": comparison.name,
                    "title": comparison.title,
                    "against": comparison.against,
                    "n": found.n,
                    "median_abs": found.median_abs,
                    "p90_abs": found.p90_abs,
                    "worst": found.worst,
                    "bias": found.bias,
                    "share_exact": found.share_exact,
                    "exact": round(found.share_exact * found.n),
                }
            )
    names = ["name", "title", "against", "n", "median_abs", "p90_abs", "worst", "bias", "share_exact", "exact"]
    return pd.DataFrame(rows, columns=names)


@dataclass(frozen=True, slots=True)
class _Forecaster:
    """An estimate that is held against the device's memory: above it, the case is foretold to run out."""

    name: str
    estimate: str
    title: str
    verdict: str | None = None  # column of the estimator's own word on it, which goes first


_FORECASTERS = (
    _Forecaster("formula", "formula_bytes", "formula"),
    _Forecaster("trace", "estimated_device_bytes", "trace, with the context", "estimated_fit"),
)


def gpu_memory_bytes(summary: pd.DataFrame) -> pd.Series:
    """The memory that each row's GPU had for the run, in bytes; NaN where there is no GPU.

    Its own, what the control group leaves of that, the smaller card's that it played, or what the run might take of the
    host's where the GPU takes that.
    """

    def least(*names: str) -> pd.Series:
        known = [name for name in names if name in summary]
        return summary[known].astype("Float64").astype(float).min(axis=1)

    own = least("gpu_total_bytes", "gpu_memory_limit_bytes", "device_memory_bytes")
    if "device_memory_kind" not in summary:
        return own
    return own.where(summary["device_memory_kind"] != "unified", least("ram_bytes", "host_memory_limit_bytes"))


def oom_predictions(summary: pd.DataFrame) -> pd.DataFrame:
    """How well each estimator foresaw which cases run out of a GPU's memory.

    Foretold is an estimate above the memory of the device: the formula's total as it stands, and for the trace `does
    not fit` (in results of older versions: reserved bytes with context and modules). What happened is the case's
    status; cases that ended neither well nor out of memory, and those of a CPU, do not count.

    Args:
        summary: From `summarise_cases`.

    Returns:
        One row an estimator that has any such case: `name`, `title`, `n`, counts `true_positive` (ran out, as
        foretold), `false_positive` (ran, though foretold to run out), `false_negative` (ran out unforeseen),
        `true_negative`; `precision` (of those foretold, the share that ran out) and `recall` (of those that ran out,
        the share foretold), null where there is none to divide by.
    """
    memory = gpu_memory_bytes(summary).to_numpy()
    ran_out = (summary["status"] == Status.OOM).to_numpy(dtype=bool)
    ended = ran_out | summary["status"].isin(MEASURED).to_numpy(dtype=bool)
    on_gpu = (summary["device"] == "cuda").to_numpy(dtype=bool, na_value=False)
    rows = []
    for forecaster in _FORECASTERS:
        estimate = summary[forecaster.estimate].to_numpy(dtype=float, na_value=np.nan)
        counts = ended & on_gpu & ~np.isnan(estimate) & ~np.isnan(memory)
        foretold = np.greater(estimate, memory, where=counts, out=np.zeros(len(counts), dtype=bool))
        if forecaster.verdict in summary:
            said = summary[forecaster.verdict].notna().to_numpy(dtype=bool)
            foretold = np.where(said, (summary[forecaster.verdict] == "does not fit").to_numpy(dtype=bool), foretold)
        if counts.any():
            rows.append(_confusion(forecaster, foretold[counts], ran_out[counts]))
    names = [
        "name",
        "title",
        "n",
        "true_positive",
        "false_positive",
        "false_negative",
        "true_negative",
        "precision",
        "recall",
    ]
    return pd.DataFrame(rows, columns=names)


def _confusion(forecaster: _Forecaster, foretold: np.ndarray, ran_out: np.ndarray) -> dict[str, object]:
    """Counts and ratios of one estimator over its cases."""
    hit, false_alarm = int((foretold & ran_out).sum()), int((foretold & ~ran_out).sum())
    missed = int((~foretold & ran_out).sum())
    return {
        "name": forecaster.name,
        "title": forecaster.title,
        "n": len(ran_out),
        "true_positive": hit,
        "false_positive": false_alarm,
        "false_negative": missed,
        "true_negative": int((~foretold & ~ran_out).sum()),
        "precision": hit / (hit + false_alarm) if hit + false_alarm else np.nan,
        "recall": hit / (hit + missed) if hit + missed else np.nan,
    }


@dataclass(frozen=True, slots=True)
class MeasuredContext:
    """What a machine's runs took of the device beside torch's reserved bytes: the context and loaded modules.

    Attributes:
        machine: In words.
        median_bytes: Over the runs.
        low_bytes: The least of them.
        high_bytes: The most.
        n: How many runs say so.
    """

    machine: str
    median_bytes: int
    low_bytes: int
    high_bytes: int
    n: int


def measured_contexts(frame: pd.DataFrame) -> list[MeasuredContext]:
    """Median and range of the context over the runs that measured, one entry a machine that has any.

    A run's context is what NVML lists of its process less the reserved peak, and the worker's own reading (what the
    device has in use less what torch reserves) where NVML lists no process. Runs whose allocator had to give memory
    back are left out: their reserved bytes at the end are not those of the peak.

    Args:
        frame: From `bench.load`.
    """
    frame = frame.reset_index(drop=True)
    machines = frame["environment_key"].map(machine_labels(frame))
    runs = frame[frame["status"].isin(MEASURED) & ~(frame["alloc_retries"].fillna(0) > 0)]
    listed = (runs["device_used_bytes"] - runs["peak_reserved_bytes"]).fillna(runs["context_bytes"])
    known = listed[(listed > 0).fillna(False)].astype("int64")
    return [
        MeasuredContext(str(machine), round(float(found.median())), int(found.min()), int(found.max()), len(found))
        for machine, found in known.groupby(machines[known.index], sort=False)
    ]
