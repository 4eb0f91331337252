"""Whether clocks can explain a difference in seconds: the same runs in cycles of the multiprocessors' clock.

Seconds times the clock are cycles. Work that the multiprocessors limit takes the same cycles at any clock; work that
memory or the host limits takes the same seconds. All other work lies between the two, and so does what two sides would
have shown at one clock: it is between their ratio in seconds and their ratio in cycles. Where both ratios are called
different in the same direction, clocks cannot explain it; where both are the same, there is nothing to explain; else
the clocks decide, and only the work says how much. So the verdict stays that in seconds.

A run's clock is the mean of the readings at both ends of its measured window, where nothing says that it moved in
between.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from bench.stats import Judgement, Verdict
from bench.units import counted, format_frac

STEADY_FRAC = 0.01
"""The most that a clock may differ between its two readings, and the most of a window that it may be held back, for the
readings to count as the window's clock. NVIDIA's clocks move in steps of 15 MHz: 0.8 % of 1,980."""

MEMORY_FRAC = 0.01
"""The most that the memory's clocks of two sides may differ for cycles of the multiprocessors to be compared."""


class ClockRole(StrEnum):
    """What clocks have to do with a difference in seconds; the set is closed."""

    CAN_EXPLAIN = "can_explain"  # different in seconds, the same in cycles
    CANNOT_EXPLAIN = "cannot_explain"  # different in both, in the same direction
    HIDES = "hides"  # the same in seconds, different in cycles
    OPPOSITE = "opposite"  # different in both, in opposite directions
    NO_DIFFERENCE = "no_difference"  # the same in both
    UNCLEAR = "unclear"  # either verdict is


CLOCK_COLUMNS = (
    "clock_ratio",
    "cycles_ratio",
    "cycles_low",
    "cycles_high",
    "cycles_verdict",
    "clocks",
    "clocks_reason",
)
"""The columns of `Comparison.cases` that this module gives; NaN, or None where they are texts, for other metrics."""

UNKNOWN_CLOCKS: Mapping[str, Any] = dict.fromkeys(CLOCK_COLUMNS[:4], math.nan) | dict.fromkeys(CLOCK_COLUMNS[4:])

NO_CLOCK = "no clock was read"
"""Why there are no cycles on a CPU, or on a GPU that did not say its clock."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The clocks of some runs, one entry each.

    Attributes:
        hz: Of the multiprocessors over the measured window; NaN where unknown.
        why: Why it is unknown; "" where it is known.
        memory_hz: Of the memory, by its readings at both ends; NaN where unknown.
        gpus: The model of the GPU; "" where unknown.
    """

    hz: np.ndarray
    why: list[str]
    memory_hz: np.ndarray
    gpus: list[str]


def read_clocks(runs: pd.DataFrame) -> Clocks:
    """The clocks of runs over their measured windows.

    Args:
        runs: Rows of results.
    """
    start, end = (_numbers(runs, f"sm_clock_{name}_hz") for name in ("start", "end"))
    memory = np.stack([_numbers(runs, f"memory_clock_{name}_hz") for name in ("start", "end")])
    window, power, heat = (
        _numbers(runs, name) for name in ("wall_window_s", "power_slowdown_window_s", "thermal_slowdown_window_s")
    )
    capped = _limited(runs)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.abs(np.log(end / start)) > math.log1p(STEADY_FRAC)
        held = np.fmax(power, heat) > STEADY_FRAC * window
    said = (
        (np.isnan(start) & np.isnan(end), NO_CLOCK),
        (np.isnan(start) | np.isnan(end), "the clock was read at one end of the window alone"),
        (moved, f"the clock at the end of the window was not that at its start within {STEADY_FRAC * 100:g} %"),
        (held, "the driver held the clock back for part of the window, for power or heat"),
        (np.isnan(power) & capped, "the power limit held the clock back, for an unknown part of the window"),
    )
    why = [next((text for mask, text in said if mask[row]), "") for row in range(len(runs))]
    hz = np.where([not text for text in why], (start + end) / 2, np.nan)
    known = ~np.isnan(memory).any(axis=0)
    gpus = runs["gpu_name"].astype(object).where(runs["gpu_name"].notna(), "").map(str).tolist()
    return Clocks(hz, why, np.where(known, memory.mean(axis=0), np.nan), gpus)


def _numbers(runs: pd.DataFrame, name: str) -> np.ndarray:
    if name not in runs:
        return np.full(len(runs), np.nan)
    return runs[name].to_numpy(dtype=float, na_value=np.nan)


def _limited(runs: pd.DataFrame) -> np.ndarray:
    """Whether a reading at either end named the power limit."""
    found = np.zeros(len(runs), dtype=bool)
    for name in ("throttle_reasons_start", "throttle_reasons_end"):
        if name in runs:
            found |= np.array([_lists(reasons, "sw_power_cap") for reasons in runs[name]], dtype=bool)
    return found


def _lists(reasons: Any, name: str) -> bool:
    return isinstance(reasons, Iterable) and name in reasons


def why_no_cycles(sides: Iterable[tuple[Clocks, Iterable[int]]]) -> str | None:
    """Why one case cannot be compared in cycles; None where it can.

    A case is compared in cycles only where every run that counts in seconds has a clock: those whose clock moved would
    otherwise be left out, which is no random choice.

    Args:
        sides: Of both sides the clocks, and the positions of the case's runs that count.
    """
    chosen = [(clocks, list(rows)) for clocks, rows in sides]
    reasons = [clocks.why[row] for clocks, rows in chosen for row in rows]
    for text, count in Counter(text for text in reasons if text).most_common(1):
        return text if count == len(reasons) else f"{text}, in {count} of {counted(len(reasons), 'run')}"
    gpus = {clocks.gpus[row] for clocks, rows in chosen for row in rows}
    if len(gpus) > 1:
        return f"the GPUs are different models ({', '.join(sorted(gpus))}), whose cycles are not alike"
    memory = [
        float(np.nanmean(found)) for clocks, rows in chosen if not np.isnan(found := clocks.memory_hz[rows]).all()
    ]
    if len(memory) == 2 and abs(math.log(memory[1] / memory[0])) > math.log1p(MEMORY_FRAC):
        one, two = (f"{hz / 1e6:,.0f}" for hz in memory)
        return f"the memory's clock differs too: {one} MHz in the baseline, {two} MHz in the candidate"
    return None


def explain(seconds: Judgement, cycles: Judgement, *, higher_is_better: bool) -> dict[str, Any]:
    """What clocks have to do with the verdict on one case: `CLOCK_COLUMNS`.

    Args:
        seconds: On a rate, or on a time.
        cycles: On the cycles of the same runs, fewer being `faster`.
        higher_is_better: Whether `seconds` is on a rate.
    """
    if seconds.ratio is None or cycles.ratio is None:
        return {**UNKNOWN_CLOCKS, "clocks_reason": cycles.reason}
    clock = cycles.ratio * seconds.ratio if higher_is_better else cycles.ratio / seconds.ratio
    role = _role(seconds.verdict, cycles.verdict)
    return {
        "clock_ratio": clock,
        "cycles_ratio": cycles.ratio,
        "cycles_low": math.nan if cycles.low is None else cycles.low,
        "cycles_high": math.nan if cycles.high is None else cycles.high,
        "cycles_verdict": str(cycles.verdict),
        "clocks": str(role),
        "clocks_reason": _words(role, seconds, cycles, clock),
    }


def _role(seconds: Verdict, cycles: Verdict) -> ClockRole:
    if Verdict.UNCLEAR in (seconds, cycles):
        return ClockRole.UNCLEAR
    if seconds is Verdict.SAME:
        return ClockRole.NO_DIFFERENCE if cycles is Verdict.SAME else ClockRole.HIDES
    if cycles is Verdict.SAME:
        return ClockRole.CAN_EXPLAIN
    return ClockRole.CANNOT_EXPLAIN if cycles is seconds else ClockRole.OPPOSITE


def _words(role: ClockRole, seconds: Judgement, cycles: Judgement, clock: float) -> str:
    """The outcome of one case, with both changes and the interval of cycles."""
    span = "" if cycles.low is None or cycles.high is None else f" ({_span(cycles.low, cycles.high)})"
    changed = f"{_share(cycles.ratio)} {'more' if (cycles.ratio or 1) > 1 else 'fewer'} cycles{span}"
    called = seconds.verdict in (Verdict.FASTER, Verdict.SLOWER)
    said = f"{seconds.verdict} by {_share(seconds.ratio)}" if called else f"{seconds.verdict} in seconds"
    said = "the same in seconds" if seconds.verdict is Verdict.SAME else said
    at = f"at clocks {_share(clock)} {'higher' if clock > 1 else 'lower'}"
    match role:
        case ClockRole.CAN_EXPLAIN:
            return f"{said} {at}: no difference in cycles{span}, so clocks can explain it"
        case ClockRole.CANNOT_EXPLAIN:
            return f"{said}, and {changed} {at}: clocks cannot explain it"
        case ClockRole.HIDES | ClockRole.OPPOSITE:
            return f"{said}, but {changed} {at}"
        case ClockRole.NO_DIFFERENCE:
            return f"no difference in seconds, and none in cycles{span}"
    if cycles.verdict is Verdict.UNCLEAR:
        return f"{said} {at}; unclear in cycles{span}: {cycles.reason}"
    return f"{said}; {'no difference in cycles' + span if cycles.verdict is Verdict.SAME else changed} {at}"


def _share(ratio: float | None) -> str:
    return format_frac(abs((ratio or 1.0) - 1)).lstrip("+")


def _span(low: float, high: float) -> str:
    return f"{format_frac(low - 1)} to {format_frac(high - 1)}"


def say_clocks(cases: pd.DataFrame, margin: float) -> str | None:
    """The note that a reader of cycles needs, where the clocks of any case differ by more than the margin."""
    ratios = cases["clock_ratio"].dropna().astype(float)
    if ratios.empty or float(np.abs(np.log(ratios)).max()) < math.log1p(margin):
        return None
    return (
        "The clocks of the two sides differ. Cycles are of the multiprocessors' clock: work that memory or the host "
        "limits does not follow it, and takes other cycles at another clock without any change of the code. The "
        "verdict is the one in seconds."
    )
