"""The noise floor of a machine: how much processes of one case differ, and which difference that leaves visible."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from bench.stats.comparison import MARGIN, Verdict, judge_ratios
from bench.stats.intervals import CONFIDENCE, finite

POWER = 0.8
"""The share of comparisons in which a difference that counts as visible is found."""
SIDES = (3, 5, 10)
"""Processes per side of a comparison for which the visible difference is given."""
MOST_PROCESSES = 100
DRAWS = 300
"""Comparisons that are simulated for a visible difference: the power then has a standard error of 2.3 %."""


@dataclass(frozen=True, slots=True)
class Visible:
    """The smallest difference that a comparison of one case finds in four of five tries, as a fraction of the rate.

    Attributes:
        processes: On each side.
        frac: With the spread as estimated.
        low: With the low end of its interval.
        high: With the high end.
    """

    processes: int
    frac: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The spread of rates between processes of the same case.

    Attributes:
        spread_frac: Standard deviation of the logarithms, pooled over the cases.
        low: Low end of its 95 % interval, by the chi-squared distribution.
        high: High end.
        degrees: Degrees of freedom behind it: processes less cases.
        cases: With at least two processes.
        quietest_frac: The spread of the case with the least.
        noisiest_frac: Of the one with the most; from few processes each, both say little.
        visible: For each number of processes per side.
        halves: Verdicts, by name, of comparing the first half of each case's processes with the second (A/A): nothing
            differs, so that `faster` and `slower` are false; empty with fewer than four processes per case.
    """

    spread_frac: float
    low: float
    high: float
    degrees: int
    cases: int
    quietest_frac: float
    noisiest_frac: float
    visible: tuple[Visible, ...]
    halves: dict[str, int]


def noise_floor(rates: Sequence[Sequence[float]], sides: Sequence[int] = SIDES) -> NoiseFloor | None:
    """The noise floor; None without two processes of any case.

    Args:
        rates: For each case one positive number per process, in the order of the repeats.
        sides: Processes per side for which the visible difference is simulated, a second or so for the usual three.

    Raises:
        ValueError: A value is not finite and positive.
    """
    known = [np.log(finite(values)) for values in rates if len(values) >= 2]
    if not known:
        return None
    degrees = sum(len(logs) - 1 for logs in known)
    total = float(sum(((logs - logs.mean()) ** 2).sum() for logs in known))
    spread = math.sqrt(total / degrees)
    tail = (1 - CONFIDENCE) / 2
    low, high = (math.sqrt(total / float(special.chdtri(degrees, share))) for share in (tail, 1 - tail))
    each = [float(logs.std(ddof=1)) for logs in known]
    shape = noise_shape(known)
    visible = tuple(Visible(n, *(visible_frac(size, n, shape) for size in (spread, low, high))) for n in sides)
    return NoiseFloor(spread, low, high, degrees, len(known), min(each), max(each), visible, _halves(rates))


def noise_shape(logs: Sequence[np.ndarray]) -> tuple[float, ...]:
    """How processes lie about the mean of their case: deviations with mean 0 and variance 1; empty if none differ.

    Args:
        logs: Logarithms of the rates of each case, at least two of each.
    """
    # a mean takes a share of each deviation with it: more of it where a case has few processes
    parts = [(each - each.mean()) * math.sqrt(len(each) / (len(each) - 1)) for each in logs]
    deviations = np.concatenate(parts)
    size = math.sqrt(float((deviations**2).mean()))
    return tuple((deviations / size).tolist()) if size > _ROUNDING else ()


_ROUNDING = 1e-12
"""Equal values may have logarithms that are off their mean by less than this."""


def visible_frac(spread: float, processes: int, shape: tuple[float, ...] = ()) -> float:
    """The least difference that `bench compare` finds with `POWER`, of one case with so many processes per side.

    Found by simulating that comparison: `DRAWS` times both sides are drawn from the noise, and the least change is
    looked for with which `judge_ratios` calls the candidate faster by more than the margin. Several cases compared at
    once need more, for the correction over them.

    Args:
        spread: Standard deviation of the logarithms of the rates.
        processes: Per side.
        shape: As `noise_shape` gives it; normal where empty.
    """
    least, luck = _least_changes(processes, shape)
    called = np.maximum(spread * least, math.log1p(MARGIN) - spread * luck)
    return max(MARGIN, math.expm1(min(float(np.quantile(called, POWER)), _MOST_LOG)))


_MOST_LOG = 50.0
"""A difference that no comparison needs to see; its exponential is still a number."""
_UNIT = 1e-3
"""The spread that comparisons are simulated with: what they find does not depend on it, but for the margin."""


@functools.lru_cache(maxsize=32)
def _least_changes(processes: int, shape: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each simulated comparison the change that it takes to be called, and what luck adds to it; `(DRAWS,)` each.

    Both are logarithms in units of the spread. Any margin comes on top: the change and the luck must pass it together.
    """
    random = np.random.default_rng(processes)
    sides = _UNIT * _draw(random, (DRAWS, 2, processes), shape)
    least = np.array([_least_change(one, two) for one, two in sides])
    return least / _UNIT, (sides[:, 1].mean(axis=1) - sides[:, 0].mean(axis=1)) / _UNIT


def _draw(random: np.random.Generator, size: tuple[int, ...], shape: tuple[float, ...]) -> np.ndarray:
    """Noise of variance 1: drawn again from `shape`, smoothed so that few values do not come as ties.

    A smoothed bootstrap with the variance kept (B. W. Silverman and G. A. Young, Biometrika 74, 1987), and Silverman's
    width for normal noise: with few values it is close to normal.
    """
    normal = random.normal(size=size)
    if not shape:
        return normal
    width = (4 / (3 * len(shape))) ** 0.2
    found: np.ndarray = (random.choice(np.array(shape), size=size) + width * normal) / math.sqrt(1 + width**2)
    return found


def _least_change(one: np.ndarray, two: np.ndarray) -> float:
    """The least change of `two`, as a logarithm, with which it is called faster than `one`.

    A change moves the interval and leaves its width, so that below the change that lifts it off 1 nothing is called;
    what guards the verdict beyond that may ask for more.
    """
    low = judge_ratios([np.exp(one).tolist()], [np.exp(two).tolist()], margin=_NO_MARGIN)[0].low
    change = -math.log(low or 1.0) + 1e-9 * _UNIT
    if _is_called(one, two, change):
        return change
    step = _UNIT
    while not _is_called(one, two, change + step):
        step *= 2
    below, above = change + step / 2 if step > _UNIT else change, change + step
    while above - below > 0.02 * _UNIT:
        middle = (below + above) / 2
        below, above = (below, middle) if _is_called(one, two, middle) else (middle, above)
    return above


_NO_MARGIN = 1e-12


def _is_called(one: np.ndarray, two: np.ndarray, change: float) -> bool:
    (found,) = judge_ratios([np.exp(one).tolist()], [np.exp(two + change).tolist()], margin=_NO_MARGIN)
    return found.verdict is Verdict.FASTER


def processes_for(spread: float, half_width_frac: float, least: int = 3) -> int | None:
    """Processes per case whose 95 % interval is that narrow; None if `MOST_PROCESSES` are too few."""
    for n in range(least, MOST_PROCESSES + 1):
        reach = float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
        if math.sinh(reach * spread / math.sqrt(n)) <= half_width_frac:
            return n
    return None


def _halves(rates: Sequence[Sequence[float]]) -> dict[str, int]:
    paired = [values for values in rates if len(values) >= 4]
    if not paired:
        return {}
    halves = [len(values) // 2 for values in paired]
    firsts = [values[:half] for values, half in zip(paired, halves, strict=True)]
    seconds = [values[half : 2 * half] for values, half in zip(paired, halves, strict=True)]
    return dict(sorted(Counter(str(found.verdict) for found in judge_ratios(firsts, seconds)).items()))
