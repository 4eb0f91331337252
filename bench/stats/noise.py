"""The noise floor of a machine: how much processes of one case differ, and which difference that leaves visible."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from bench.stats.comparison import MARGIN, judge_ratios
from bench.stats.intervals import CONFIDENCE, finite

POWER = 0.8
"""The share of comparisons in which a difference that counts as visible is found."""
SIDES = (3, 5, 10)
"""Processes per side of a comparison for which the visible difference is given."""
MOST_PROCESSES = 100


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
        visible: For each number of `SIDES`.
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


def noise_floor(rates: Sequence[Sequence[float]]) -> NoiseFloor | None:
    """The noise floor; None without two processes of any case.

    Args:
        rates: For each case one positive number per process, in the order of the repeats.

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
    visible = tuple(Visible(n, *(visible_frac(s, n) for s in (spread, low, high))) for n in SIDES)
    return NoiseFloor(spread, low, high, degrees, len(known), min(each), max(each), visible, _halves(rates))


def visible_frac(spread: float, processes: int) -> float:
    """The least difference that a comparison with so many processes per side finds with `POWER`.

    Of two means whose spread is estimated from both sides: `(t(1 - alpha/2) + t(power)) x spread x sqrt(2 / n)` on the
    logarithms, and at least the margin that a difference must pass. The correction over several cases, and the guard
    over few processes, ask for more.
    """
    degrees = 2 * processes - 2
    reach = float(special.stdtrit(degrees, 0.5 + CONFIDENCE / 2) + special.stdtrit(degrees, POWER))
    return max(MARGIN, math.expm1(reach * spread * math.sqrt(2 / processes)))


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
