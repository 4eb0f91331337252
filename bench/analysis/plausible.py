"""Numbers that cannot be true: clocks that disagree, units off by a thousand, batches that were not what they say.

Each check compares two numbers of one run that were read independently of each other, or a number with what physics or
the record's own keys allow. None of them knows how the lie came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.cases import GROUP
from bench.analysis.findings import Finding, counted, finding_of
from bench.records import AXES, MEASURED, Group, run_key, stable_hash

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

SYNCHRONISED_FRAC = 0.5
"""Of the wall clock, below which the steps' own times cannot have waited for the device."""

SPEED_FACTOR = 10.0
"""Times the roofline's speed, above which a rate is not believed: the roofline is a first estimate, not a bound."""

SHORT_WINDOW_FRAC = 0.02
"""Of the window asked for, below which its length is not in seconds: steps are counted so as to fill it."""

_WARMUPS_COMPARED = 3
"""Steps of warm-up from which their times are held against the measured ones: on a busy host the first is cold and
another may be stalled, so that two may both say nothing."""

_RANGES: Mapping[str, tuple[float, float]] = {
    "wall_window_s": (1e-6, 1e6),
    "duration_s": (1e-4, 1e6),
    "ram_bytes": (128 * MIB, 256 * TIB),
    "gpu_total_bytes": (256 * MIB, 4 * TIB),
    "power_limit_w": (5, 5000),
    "power_limit_default_w": (5, 5000),
    "power_end_w": (0.5, 5000),
    "temperature_start_c": (-40, 130),
    "temperature_end_c": (-40, 130),
    "sm_clock_start_hz": (5e7, 1e10),
    "sm_clock_end_hz": (5e7, 1e10),
    "max_sm_clock_hz": (1e8, 1e10),
    "memory_clock_start_hz": (5e7, 5e10),
    "memory_clock_end_hz": (5e7, 5e10),
}
"""What each column can hold in the unit of its name, with room: a factor of 1000 falls out of every one of them."""

_MEMORY_ORDER = (
    ("peak_requested_bytes", "peak_allocated_bytes"),
    ("peak_allocated_bytes", "peak_reserved_bytes"),
    ("peak_reserved_bytes", "device_total_bytes"),
    ("device_used_bytes", "device_total_bytes"),
    ("peak_allocated_bytes", "gpu_total_bytes"),
)
"""The left is a part of the right, by what torch's allocator and the driver count."""


def implausible(frame: pd.DataFrame, runs: pd.DataFrame) -> list[Finding]:
    """Everything among the measured runs that cannot be true.

    Args:
        frame: The planned runs.
        runs: The last attempts among them.
    """
    measured = runs[runs["status"].isin(MEASURED)]
    found = [
        _unsynchronised(measured),
        _too_fast(measured),
        _units(measured),
        _memory(measured),
        _batches(measured),
        _keys(runs),
    ]
    return [finding for finding in found if finding is not None]


def _unsynchronised(runs: pd.DataFrame) -> Finding | None:
    """Steps that take far less than the wall clock: together, or on a device most of them, where few wait for all."""
    sums = np.array([_total(value) for value in runs["step_times_s"]])
    filled = np.array([_median(value) * _count(value) for value in runs["step_times_s"]])
    wall = _numbers(runs, "wall_window_s")
    late = (filled < SYNCHRONISED_FRAC * wall) & (runs["device"] != "cpu").to_numpy(dtype=bool)
    bad = runs[(sums < SYNCHRONISED_FRAC * wall) | late]
    if bad.empty:
        return None
    return finding_of(
        "unsynchronised",
        True,
        f"In {counted(len(bad), len(runs), 'run')} the steps (their sum, or on a GPU their median times their number) "
        f"fill less than {SYNCHRONISED_FRAC * 100:.0f} % of the wall clock: a clock was read without waiting for the "
        "device.",
        bad,
    )


def _too_fast(runs: pd.DataFrame) -> Finding | None:
    ratio = _numbers(runs, "samples_per_s") / _numbers(runs, "estimated_samples_per_s")
    bad = runs[ratio > SPEED_FACTOR]
    if bad.empty:
        return None
    return finding_of(
        "too_fast",
        True,
        f"{counted(len(bad), len(runs), 'run')} went more than {SPEED_FACTOR:g} times as fast as the device's peak "
        "rates allow by the roofline: the window did not wait for the device, or its unit is wrong.",
        bad,
    )


def _units(runs: pd.DataFrame) -> Finding | None:
    """Columns whose numbers do not fit their own unit."""
    wall, duration = _numbers(runs, "wall_window_s"), _numbers(runs, "duration_s")
    warm = np.array([_median(value) for value in runs["warmup_times_s"]])
    quickest = np.array(
        [min(value) if _count(value) else np.nan for value in runs["warmup_times_s"]]
    )  # others are cold
    warmups = np.array([_count(value) for value in runs["warmup_times_s"]])
    step = np.array([_median(value) for value in runs["step_times_s"]])
    steps = np.array([_count(value) for value in runs["step_times_s"]])
    watts = _numbers(runs, "energy_window_j") / wall
    limit = _numbers(runs, "power_limit_default_w")
    suspects = {
        "wall_window_s is longer than the whole run": wall > 1.05 * duration,
        "wall_window_s is far below the window asked for": (wall < SHORT_WINDOW_FRAC * _numbers(runs, "min_window_s"))
        & (steps < 10_000),
        "step_times_s and warmup_times_s are of different magnitude, or a stalled warm-up": (
            warmups >= _WARMUPS_COMPARED
        )
        & ((quickest > 300 * step) | (warm < step / 300)),
        "energy_window_j is not the power of this device": (watts > 5 * limit) | (watts < 0.001 * limit),
    }
    suspects |= {
        f"{name} is outside {low:g} to {high:g}": (values < low) | (values > high)
        for name, (low, high) in _RANGES.items()
        if name in runs
        for values in [_numbers(runs, name)]
    }
    return _suspected(
        runs, suspects, "wrong_unit", "Numbers that cannot be in the unit their column says (a factor of 1000?)"
    )


def _memory(runs: pd.DataFrame) -> Finding | None:
    """Peaks that are less than what they hold, or more than what holds them."""
    peak, formula = _numbers(runs, "peak_allocated_bytes"), _numbers(runs, "formula_bytes")
    least = _numbers(runs, "formula_parameters_bytes") + _numbers(runs, "formula_batch_bytes")
    suspects = {
        "peak_allocated_bytes is less than parameters and batch": peak < least,
        "peak_allocated_bytes is hundreds of times the formula": peak > 200 * formula + 256 * MIB,
        "peak_allocated_bytes is more than the RAM": (peak > _numbers(runs, "ram_bytes"))
        & (runs["device"] == "cpu").to_numpy(),
    }
    suspects |= {
        f"{part} is more than {whole}": _numbers(runs, part) > _numbers(runs, whole) for part, whole in _MEMORY_ORDER
    }
    return _suspected(runs, suspects, "impossible_memory", "Memory that cannot be (a unit, or another batch)")


def _suspected(runs: pd.DataFrame, suspects: Mapping[str, np.ndarray], code: str, words: str) -> Finding | None:
    hit = {text: mask for text, mask in suspects.items() if mask.any()}
    if not hit:
        return None
    parts = "; ".join(f"{text} in {counted(int(mask.sum()), len(runs), 'run')}" for text, mask in hit.items())
    return finding_of(code, True, f"{words}: {parts}.", runs[np.logical_or.reduce(list(hit.values()))])


def _batches(runs: pd.DataFrame) -> Finding | None:
    """Cases that differ in their batch size alone and peak at the same byte: the larger batch never was on the device.

    The batch itself is allocated while the step runs, in blocks of 512 B, so that honest peaks differ.
    """
    known = runs[runs["peak_allocated_bytes"].notna() & runs["batch_size"].notna()]
    rest = [name for name in (*GROUP, *AXES) if name not in ("case_key", "batch_size", "code_key")]
    grouped = known.groupby([*rest, "peak_allocated_bytes"], dropna=False)["batch_size"]
    bad = known[grouped.transform("nunique") > 1]
    if bad.empty:
        return None
    sizes = ", ".join(str(size) for size in sorted(set(bad["batch_size"]))[:6])
    return finding_of(
        "batch_unseen",
        True,
        f"Batch sizes that peak at the same byte ({sizes}): {counted(len(bad), len(runs), 'run')} cannot have held the "
        "batch that the row says.",
        bad,
    )


def _keys(runs: pd.DataFrame) -> Finding | None:
    """Rows whose axes are not those that their own keys were made from."""
    wrong = np.array([not _own_keys(row) for row in runs[_KEYS].to_dict("records")], dtype=bool)
    bad = runs[wrong]
    if bad.empty:
        return None
    return finding_of(
        "keys_differ",
        True,
        f"In {counted(len(bad), len(runs), 'run')} the batch size or another axis is not the one that the row's own "
        "key was made from: it was changed after planning.",
        bad,
    )


_KEYS = [*AXES, *GROUP, "run_key", "repeat", "attempt"]


def _own_keys(row: Mapping[Any, Any]) -> bool:
    axes = {name: _plain(row[name]) for name in AXES}
    if stable_hash(axes) != row["case_key"]:
        return False
    if pd.isna(row["run_key"]):
        return True
    group = Group(row["code_key"], row["protocol_key"], row["environment_key"])
    return bool(run_key(row["case_key"], group, int(row["repeat"]), int(row["attempt"])) == row["run_key"])


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, int | np.integer) else value


def _numbers(runs: pd.DataFrame, column: str) -> np.ndarray:
    return runs[column].to_numpy(dtype=float, na_value=np.nan)


def _count(values: Iterable[float] | None) -> int:
    return len(values) if isinstance(values, np.ndarray | list | tuple) else 0


def _total(values: Any) -> float:
    return float(np.sum(values)) if _count(values) else np.nan


def _median(values: Any) -> float:
    return float(np.median(values)) if _count(values) else np.nan
