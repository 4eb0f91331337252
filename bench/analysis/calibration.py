"""What a calibration's runs say beside its fit: errors of memory, and the settings that a sweep should use here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.cases import last_attempts
from bench.analysis.estimates import COMPARISONS, relative_errors
from bench.records import Status
from bench.stats import NoiseFloor, median_interval, processes_for, summarise_errors

SETTLED_FRAC = 0.05
"""A warm-up step counts as settled within so much of the median of the measured ones."""
STEPS = (10, 200)
"""Measured steps that are recommended at the least and at the most."""
GAIN = 1.1
"""A precision is worth a sweep where its products are so much faster than those of float32."""


@dataclass(frozen=True, slots=True)
class ContextSpread:
    """The CUDA context and loaded modules over the runs of a calibration, in bytes.

    Attributes:
        median_bytes: Over cases.
        low_bytes: The least.
        high_bytes: The most.
        cases: How many.
    """

    median_bytes: int
    low_bytes: int
    high_bytes: int
    cases: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What a sweep on this machine should use.

    Attributes:
        repeats: Processes per case for an interval of `target_frac`; None if 100 are too few.
        target_frac: Half the width of the interval of a case's throughput.
        warmup_steps: After which nine runs in ten were settled; None if none of the runs had enough steps.
        measured_steps: So that the spread of steps adds little to that between processes.
        precisions: Those that the device computes in and that pay: the first is float32.
        runs: How many runs this rests on.
    """

    repeats: int | None
    target_frac: float
    warmup_steps: int | None
    measured_steps: int | None
    precisions: tuple[str, ...]
    runs: int


def measured_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that count, in the order of the repeats: those that ended `ok`, of cases without any the throttled."""
    last = last_attempts(frame).sort_values("repeat", kind="stable")
    fine = last["case_key"].isin(last.loc[last["status"] == Status.OK, "case_key"])
    return last[last["status"] == np.where(fine, Status.OK, Status.THROTTLED)]


def rates_of_cases(runs: pd.DataFrame) -> dict[str, list[float]]:
    """Samples per second of each case, one number per process, by case key in order of appearance."""
    return {str(key): group["samples_per_s"].tolist() for key, group in runs.groupby("case_key", sort=False)}


def context_of_runs(runs: pd.DataFrame) -> ContextSpread | None:
    """The context over the cases; None on a CPU, or where it could not be read."""
    known = _context_by_case(runs)
    if not known:
        return None
    values = list(known.values())
    return ContextSpread(round(statistics.median(values)), round(min(values)), round(max(values)), len(values))


def _context_by_case(runs: pd.DataFrame) -> dict[str, float]:
    found = runs.dropna(subset=["context_bytes"])
    return {str(key): float(group.median()) for key, group in found.groupby("case_key", sort=False)["context_bytes"]}


def memory_errors(summary: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The errors of each estimate of memory, before and after a calibration.

    Args:
        summary: From `summarise_cases`, with the estimates made before the calibration.
        runs: From `measured_runs`.

    Returns:
        `estimate`, `against`, `before` and `after` (as `describe_errors`). Formula and trace take nothing from a
        calibration, so that both are the same; the device's estimate takes the context, after from the other cases.
    """
    rows = []
    for comparison in COMPARISONS:
        if comparison.name == "speed":
            continue
        before = describe_errors(_known(relative_errors(summary, comparison)))
        if comparison.name == "device":
            after = describe_errors(_with_others_context(summary, _context_by_case(runs)))
        else:
            after = before
        if before or after:
            rows.append({"estimate": comparison.title, "against": comparison.against, "before": before, "after": after})
    return rows


def _with_others_context(summary: pd.DataFrame, contexts: Mapping[str, float]) -> list[float]:
    """Errors of reserved bytes and the context of the other cases against what the device showed."""
    errors = []
    for row in summary.to_dict("records"):
        others = [value for key, value in contexts.items() if key != row["case_key"]]
        reserved, used = row["trace_peak_reserved_bytes"], row["device_used_bytes"]
        if others and not pd.isna(reserved) and not pd.isna(used) and used > 0:
            errors.append((float(reserved) + statistics.median(others)) / float(used) - 1.0)
    return errors


def _known(errors: np.ndarray) -> list[float]:
    return [float(value) for value in errors if not math.isnan(value)]


def describe_errors(errors: Sequence[float]) -> dict[str, Any] | None:
    """A summary of signed relative errors with the median's interval; None if there are none."""
    found = summarise_errors(errors)
    if found is None:
        return None
    middle = median_interval([abs(error) for error in errors])
    return {**asdict(found), "median_low": middle.low, "median_high": middle.high}


def recommend(
    runs: pd.DataFrame, noise: NoiseFloor | None, target_frac: float, rates: Mapping[str, float], least: int = 3
) -> Settings:
    """The settings that a sweep should use.

    Args:
        runs: From `measured_runs`.
        noise: The spread between processes.
        target_frac: Half the width of the interval of a case's throughput.
        rates: FLOP/s of products that were reached, by precision.
        least: Processes per case.
    """
    settled = [steps for row in runs.to_dict("records") if (steps := _settled_after(row)) is not None]
    base = rates.get("float32", math.inf)
    pays = tuple(name for name, rate in rates.items() if name == "float32" or rate >= GAIN * base)
    return Settings(
        repeats=processes_for(noise.spread_frac, target_frac, least) if noise else None,
        target_frac=target_frac,
        warmup_steps=max(1, math.ceil(float(np.quantile(settled, 0.9)))) if settled else None,
        measured_steps=_steps(runs, noise),
        precisions=pays,
        runs=len(runs),
    )


def _settled_after(row: Mapping[Any, Any]) -> int | None:
    """Steps of the warm-up up to the last one that was further off than `SETTLED_FRAC` from the measured ones."""
    warm, steps = list(row["warmup_times_s"]), list(row["step_times_s"])
    if not warm or not steps:
        return None
    steady = statistics.median(steps)
    noisy = abs(np.quantile(steps, 0.9) / steady - 1.0)  # a step within the noise of the others is settled
    return max(
        (place for place, taken in enumerate(warm, 1) if taken / steady - 1 > max(SETTLED_FRAC, noisy)), default=0
    )


def _steps(runs: pd.DataFrame, noise: NoiseFloor | None) -> int | None:
    """Steps whose mean varies by at most half of the spread between processes, in the median run."""
    spreads = [float(np.std(np.log(steps), ddof=1)) for steps in map(list, runs["step_times_s"]) if len(steps) > 2]
    if noise is None or not spreads or not noise.spread_frac:
        return None
    wanted = (statistics.median(spreads) / (noise.spread_frac / 2)) ** 2
    return min(max(math.ceil(wanted), STEPS[0]), STEPS[1])


__all__ = [
    "ContextSpread",
    "Settings",
    "context_of_runs",
    "describe_errors",
    "measured_runs",
    "memory_errors",
    "rates_of_cases",
    "recommend",
]
