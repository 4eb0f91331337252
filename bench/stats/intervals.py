"""Intervals over processes, and percentiles of raw steps."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95
PUBLISHED_PROCESSES = 5
"""How many fresh processes per case a published number takes."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The middle of one number per process, and the range that its true value lies in with `confidence`.

    Attributes:
        middle: The mean of the processes (geometric for positive quantities), in the unit of the values.
        low: Lower end, or `None` if there is only one process.
        high: Upper end, or `None` if there is only one process.
        n: How many processes there are.
        confidence: The share of such intervals that hold the true value.
    """

    middle: float
    low: float | None
    high: float | None
    n: int
    confidence: float = CONFIDENCE

    @property
    def label(self) -> str:
        """`screening` for a single process, which says nothing about the next one; empty otherwise."""
        return "screening" if self.n == 1 else ""

    @property
    def half_width_frac(self) -> float | None:
        """Half the interval's width as a fraction of the middle; `None` if there is no interval."""
        if self.low is None or self.high is None or not self.middle:
            return None
        return (self.high - self.low) / 2 / abs(self.middle)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The arithmetic mean of one number per process, with Student's t interval.

    Args:
        values: One finite number per process, in any unit.
        confidence: The share of such intervals that hold the true mean, if processes vary normally.

    Raises:
        ValueError: No values, or one that is not finite.
    """
    numbers = finite(values)
    n = len(numbers)
    middle = float(numbers.mean())
    if n == 1:
        return Interval(middle, None, None, 1, confidence)
    reach = _t_quantile(n - 1, confidence) * float(numbers.std(ddof=1)) / math.sqrt(n)
    return Interval(middle, middle - reach, middle + reach, n, confidence)


def geometric_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The geometric mean of one positive number per process, with Student's t interval on the logarithms.

    Throughputs and step times vary by factors rather than by amounts: on the logarithms the interval is the same for a
    rate and its inverse, and it never reaches below zero.

    Args:
        values: One positive number per process: samples per second, or seconds per step.
        confidence: The share of such intervals that hold the true value.

    Raises:
        ValueError: No values, or one that is not finite and positive.
    """
    numbers = finite(values)
    if (numbers <= 0).any():
        raise ValueError("a geometric mean takes positive values")
    on_logs = mean_interval(np.log(numbers).tolist(), confidence)
    if on_logs.low is None or on_logs.high is None:
        return Interval(float(numbers[0]), None, None, 1, confidence)
    middle, low, high = (
        math.exp(end) if end < _LARGEST else math.inf for end in (on_logs.middle, on_logs.low, on_logs.high)
    )
    return Interval(middle, low, high, on_logs.n, confidence)


_LARGEST = math.log(sys.float_info.max)


def median_interval(values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The median, with the interval that the ranks of the values give whatever their distribution.

    Returns:
        Without ends where there are too few values for such an interval: fewer than 6 for 95 %.

    Raises:
        ValueError: No values, or one that is not finite.
    """
    numbers = np.sort(finite(values))
    n, tail = len(numbers), (1 - confidence) / 2
    outside = [rank for rank in range(n // 2) if special.bdtr(rank, n, 0.5) <= tail]
    low, high = (float(numbers[outside[-1]]), float(numbers[n - 1 - outside[-1]])) if outside else (None, None)
    return Interval(float(np.median(numbers)), low, high, n, confidence)


def host_means(values: Sequence[float], hosts: Sequence[Hashable]) -> list[float]:
    """One number per host, where processes were spread over several on purpose: the geometric mean of its processes.

    Hosts differ by more than the processes of one, so that processes are no independent sample of hosts. Each host
    counts once, however many processes it had. One host says nothing of others: its values are returned as they are.

    Args:
        values: One positive number per process.
        hosts: Which host each process ran on.

    Returns:
        As many values as hosts, in order of first appearance; values that agree on a host stay exactly what they are.
    """
    found: dict[Hashable, list[float]] = {}
    for value, host in zip(values, hosts, strict=True):
        found.setdefault(host, []).append(value)
    if len(found) < 2:
        return list(values)
    return [each[0] if len(set(each)) == 1 else math.exp(float(np.log(each).mean())) for each in found.values()]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Where raw values lie, in their own unit; outliers are kept.

    Attributes:
        median: Half of the values are smaller.
        p10: One in ten is smaller.
        p90: One in ten is larger.
        p99: One in a hundred is larger; with fewer than 100 values, near the largest.
        n: How many values there are.
    """

    median: float
    p10: float
    p90: float
    p99: float
    n: int


def percentiles(values: Sequence[float] | np.ndarray) -> Percentiles:
    """Median, p10, p90 and p99 of raw values (linear between neighbours, as numpy's default).

    Raises:
        ValueError: No values, or one that is not finite.
    """
    numbers = finite(values)
    p10, median, p90, p99 = (float(value) for value in np.quantile(numbers, (0.10, 0.50, 0.90, 0.99)))
    return Percentiles(median, p10, p90, p99, len(numbers))


def finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The values as one row of floats.

    Raises:
        ValueError: No values, or one that is not finite.
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError("needs at least one value")
    if not np.isfinite(numbers).all():
        raise ValueError("takes finite values only; omit unknown ones")
    return numbers


@functools.lru_cache(maxsize=256)
def _t_quantile(degrees: int, confidence: float) -> float:
    """Student's t: the deviation, in standard errors, that `confidence` of the means stay within."""
    return float(special.stdtrit(degrees, 0.5 + confidence / 2))
