"""The metrics that can be compared, and which direction is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from bench.analysis.cases import PEAKS
from bench.analysis.energy import counted_energy_j
from bench.records import FIELDS, MEASURED, Status
from bench.stats import Verdict
from bench.units import format_bytes, format_rate, format_seconds

Kind = Literal["speed", "memory", "energy"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number per run.

    Attributes:
        name: How it is asked for; a column of `bench.load` unless `read` says otherwise.
        label: Its title in tables.
        kind: Speed and energy count runs that ended `ok`; memory counts every run that measured.
        higher_is_better: True for rates only.
        show: Prints a value with its unit; NaN as a dash.
        read: From a frame of runs to one value per run, NaN if unknown.
    """

    name: str
    label: str
    kind: Kind
    higher_is_better: bool
    show: Callable[[float | None], str]
    read: Callable[[pd.DataFrame], np.ndarray] | None = None

    def values(self, runs: pd.DataFrame) -> np.ndarray:
        """One positive value per run; NaN if the run did not measure it (a zero is no measurement either)."""
        known = runs[self.name] if self.read is None and self.name in runs else None
        numbers = known.to_numpy(dtype=float, na_value=np.nan) if known is not None else np.full(len(runs), np.nan)
        numbers = self.read(runs) if self.read is not None else numbers
        counted = runs["status"].isin(MEASURED if self.kind == "memory" else (Status.OK,)).to_numpy()
        values: np.ndarray = np.where(counted & np.isfinite(numbers) & (numbers > 0), numbers, np.nan)
        return values


def _joules_per_sample(runs: pd.DataFrame) -> np.ndarray:
    """Energy of the measured window over its samples."""
    steps = np.array([0 if value is None else len(value) for value in runs["step_times_s"]], dtype=float)
    samples = runs["batch_size"].to_numpy(dtype=float) * steps
    per_sample: np.ndarray = np.divide(
        counted_energy_j(runs), samples, out=np.full(len(runs), np.nan), where=samples > 0
    )
    return per_sample


def _show_rate(value: float | None) -> str:
    return format_rate(value, "samples")


def _show_joules(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.3g} J"


_ALL = (
    Metric("samples_per_s", "throughput", "speed", True, _show_rate),
    Metric("median_step_time_s", "median step", "speed", False, format_seconds),
    *(Metric(name, FIELDS[name].title, "memory", False, format_bytes) for name in PEAKS),
    Metric("joules_per_sample", "energy per sample", "energy", False, _show_joules, _joules_per_sample),
)
METRICS = {metric.name: metric for metric in _ALL}
"""By name."""

DEFAULT_METRICS = ("samples_per_s", "peak_allocated_bytes")


def verdict_words(metric: str, verdict: str) -> str:
    """The word for a verdict on a metric: for memory and energy, `less` for `faster` and `more` for `slower`."""
    if METRICS[metric].kind == "speed":
        return str(verdict)
    return {Verdict.FASTER: "less", Verdict.SLOWER: "more"}.get(Verdict(verdict), str(verdict))
