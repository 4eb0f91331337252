"""Two sides compared: ratios with intervals, a correction for many cases, and one of four verdicts.

One number per process, positive, on each side of each case. Everything is computed on logarithms, where a ratio is a
difference, and a rate and its inverse give the same answer.

The interval of a ratio is Welch's (B. L. Welch, Biometrika 34, 1947); the test of two means is by permutation (R. A.
Fisher, The Design of Experiments, 1935); the correction is Holm's (S. Holm, Scandinavian Journal of Statistics 6,
1979); `same` is two one-sided tests (D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987).
Numbers that are pairs, of one host or card each, are compared by Student's t on their differences, and by random signs
instead of dealings (Fisher again). scipy's t distribution is taken from `scipy.special`: `scipy.stats` takes seconds to
import.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from scipy import special

from bench.stats.intervals import CONFIDENCE, finite
from bench.units import counted

MAX_DEALINGS = 200_000
"""All dealings are counted up to 10 processes per side (184,756); of more, as many as this are drawn at random."""


def permutation_p(one: np.ndarray, two: np.ndarray) -> float:
    """How often dealing all values into two sides again gives means at least as far apart as those found.

    It holds for noise of any shape, as long as nothing but luck decides which side a process belongs to.

    Args:
        one: `(n,)`, at least one value.
        two: `(n,)`, as many.

    Returns:
        A share of all dealings, the one found included: at least 2 / C(2n, n). Of random dealings where there are more
        than `MAX_DEALINGS`, always the same ones.
    """
    n = len(one)
    dealings = math.comb(2 * n, n)
    if one.max() < two.min() or two.max() < one.min():
        return 2 / dealings
    values = np.concatenate([one, two])
    values = values - values.mean()  # dealt into two sides, their sums are now opposite
    found = abs(values[:n].sum()) * (1 - 1e-9)  # a dealing that is the one found in another order counts
    if dealings <= MAX_DEALINGS:
        return float((np.abs(_all_dealings(n) @ values) >= found).mean())
    random = np.random.default_rng(0)
    sums = random.permuted(np.tile(values, (MAX_DEALINGS, 1)), axis=1)[:, :n].sum(axis=1)
    return float(((np.abs(sums) >= found).sum() + 1) / (MAX_DEALINGS + 1))


def sign_flip_p(differences: np.ndarray) -> float:
    """How often random signs give a mean of paired differences at least as far from 0 as the one found.

    It holds for noise of any shape, as long as nothing but luck decides which of a pair is the larger.

    Args:
        differences: `(n,)`, one for each pair, at least one.

    Returns:
        A share of all ways to give signs, the one found included: at least 2 / 2**n. Of random signs where there are
        more ways than `MAX_DEALINGS`, always the same ones.
    """
    n = len(differences)
    found = abs(differences.sum()) * (1 - 1e-9)
    if 2**n <= MAX_DEALINGS:
        return float((np.abs(_all_signs(n) @ differences) >= found).mean())
    signs = np.random.default_rng(0).choice((-1, 1), size=(MAX_DEALINGS, n))
    return float(((np.abs(signs @ differences) >= found).sum() + 1) / (MAX_DEALINGS + 1))


@functools.lru_cache(maxsize=4)
def _all_signs(n: int) -> np.ndarray:
    """Every way to give signs to `n` values, `(2**n, n)`."""
    return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)


@functools.lru_cache(maxsize=4)
def _all_dealings(n: int) -> np.ndarray:
    """Which of `2 n` values the side with the first one has, in every dealing: ones and zeros, `(C(2n, n) / 2, 2n)`.

    The other half of the dealings are these with the sides swapped, whose means are as far apart.
    """
    others = np.array(list(itertools.combinations(range(1, 2 * n), n - 1)), dtype=np.intp).reshape(-1, n - 1)
    dealings = np.zeros((len(others), 2 * n))
    dealings[:, 0] = 1.0
    np.put_along_axis(dealings, others, 1.0, axis=1)
    return dealings


def holm(p_values: Sequence[float] | np.ndarray, last: Sequence[bool] | np.ndarray | None = None) -> np.ndarray:
    """P-values corrected so that calling those below a level is wrong anywhere with at most that probability.

    Args:
        p_values: One per case.
        last: Cases that will not be called whatever their p-value. They count, and take the last ranks: none of them
            makes the correction of the others milder.

    Returns:
        As many values as given, in the same order, at most 1. The smallest is multiplied by their number, the next by
        one less, and so on; none ends below one ranked before it.
    """
    numbers = np.asarray(p_values, dtype=float)
    order = np.lexsort((numbers, np.zeros(len(numbers), dtype=bool) if last is None else np.asarray(last)))
    stepped = np.maximum.accumulate(numbers[order] * np.arange(len(numbers), 0, -1))
    adjusted = np.empty_like(numbers)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


MARGIN = 0.01
"""The smallest change that counts, as a fraction, unless a comparison says otherwise."""

FLOOR_QUANTILE = 0.90
"""Where processes are too few for a permutation test, no case's spread counts as less than this quantile of all."""


class Verdict(StrEnum):
    """What a comparison says of a case; the set is closed. Of memory and energy, `faster` is less and `slower` more."""

    FASTER = "faster"  # better by more than the margin, and not by chance
    SLOWER = "slower"  # worse by more than the margin, and not by chance
    SAME = "same"  # within the margin, and not by chance
    UNCLEAR = "unclear"  # neither can be said


@dataclass(frozen=True, slots=True)
class Judgement:
    """One case compared.

    Attributes:
        baseline: Geometric mean of the baseline's processes, in the unit of the values; `None` if there are none.
        candidate: The same of the candidate.
        ratio: Candidate over baseline; `None` if one side has no values.
        low: Lower end of the ratio's interval for this case alone; `None` if a side has fewer than two processes.
        high: Upper end.
        n_baseline: Processes of the baseline.
        n_candidate: Processes of the candidate.
        p_value: Of a ratio at least this far from 1 where nothing differs; `None` if there is no verdict to have.
        p_adjusted: The same after Holm's correction over the cases compared.
        p_same: Of looking this alike where the sides differ by the margin.
        verdict: `unclear` wherever the sides have one process or unequal numbers.
        reason: Why, in a sentence without a full stop.
    """

    baseline: float | None
    candidate: float | None
    ratio: float | None
    low: float | None
    high: float | None
    n_baseline: int
    n_candidate: int
    p_value: float | None
    p_adjusted: float | None
    p_same: float | None
    verdict: Verdict
    reason: str


def judge_ratios(
    baseline: Sequence[Sequence[float]],
    candidate: Sequence[Sequence[float]],
    *,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    higher_is_better: bool = True,
    processes: int | None = None,
    unit: str = "process",
    paired: Sequence[bool] | None = None,
) -> list[Judgement]:
    """Judge the ratio candidate / baseline of each case, as one family.

    A difference is called where Holm's correction over the cases leaves it significant and the ratio itself passes the
    margin; `same` where the equivalence test puts the ratio inside the margin, or all values of both sides are equal.

    Args:
        baseline: For each case one positive number per process; none where the case was not measured.
        candidate: The same cases in the same order.
        margin: The smallest change that counts, as a fraction: a ratio of `1 + margin` or `1 / (1 + margin)`.
        confidence: Of the intervals, and of there being no false `faster` or `slower` among all the cases.
        higher_is_better: True for rates, false for memory, times and energy.
        processes: How many each case was to have on each side: one with fewer is `unclear`, equal numbers or not.
        unit: What each number stands for, in the reasons: a process, or a host with the mean of its processes.
        paired: For each case, whether the numbers of both sides are pairs, in order: of one host or card each. What
            hosts differ by is then in both numbers of a pair, and cancels. None: no case is.

    Returns:
        One judgement per case, in order.

    Raises:
        ValueError: A value is not finite and positive, or the sides (or those of a paired case) differ in length.
    """
    one, two = _Moments(baseline), _Moments(candidate)
    if len(one.n) != len(two.n):
        raise ValueError("both sides need the same cases")
    pairs = np.zeros(len(one.n), dtype=bool) if paired is None else np.array(paired, dtype=bool)
    if (one.n != two.n)[pairs].any():
        raise ValueError("a paired case needs as many numbers on both sides")
    test = _Test(one, two, margin, 1 - confidence, processes, unit, pairs)
    return [_judgement(test, number, higher_is_better) for number in range(len(one.n))]


class _Moments:
    """Logarithms of each case's processes, and their number, mean and variance as arrays over the cases."""

    def __init__(self, cases: Sequence[Sequence[float]]) -> None:
        self.logs = [np.log(positive(values)) if len(values) else np.array([]) for values in cases]
        self.n = np.array([len(values) for values in cases], dtype=int)
        self.mean = np.full(len(cases), np.nan)
        self.variance = np.full(len(cases), np.nan)
        for number, logs in enumerate(self.logs):
            if len(logs):
                self.mean[number], self.variance[number] = _moments(logs)


def _moments(logs: np.ndarray) -> tuple[float, float]:
    """Mean and variance; the variance of one value is NaN."""
    equal = bool((logs == logs[0]).all())  # the mean of equal logarithms may be off by a rounding
    mean = float(logs[0] if equal else logs.mean())
    return mean, math.nan if len(logs) < 2 else 0.0 if equal else float(logs.var(ddof=1))


class _Test:
    """The tests of all cases at once; every array is over the cases."""

    def __init__(
        self,
        one: _Moments,
        two: _Moments,
        margin: float,
        alpha: float,
        processes: int | None,
        unit: str,
        paired: np.ndarray,
    ) -> None:
        self.one, self.two, self.margin, self.alpha = one, two, margin, alpha
        self.processes, self.unit, self.paired = processes, unit, paired
        self.reach = math.log1p(margin)
        self.difference = two.mean - one.mean
        self.passes = np.abs(self.difference) >= self.reach
        self.testable = (one.n == two.n) & (one.n > 1) & ((one.n == processes) if processes else True)
        self.size = int(self.testable.sum())
        self.few = self.testable & (_least_p(one.n, paired) * self.size > alpha / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._spread()
            self.low = self.difference - self.half
            self.high = self.difference + self.half
            self.p_alone = self._p_different(self.error, self.degrees)
            self.p_same = self._p_same()
            self.p_value = self._p_guarded()
        self.p_welch = self._corrected(self.p_alone)
        self.p_adjusted = self._corrected(self.p_value)

    def _spread(self) -> None:
        """Standard errors and degrees of freedom of the differences, and the half width of their intervals."""
        share_one, share_two = self.one.variance / self.one.n, self.two.variance / self.two.n
        self.error = np.sqrt(share_one + share_two)
        weighted = share_one**2 / (self.one.n - 1) + share_two**2 / (self.two.n - 1)
        degrees = (share_one + share_two) ** 2 / weighted
        self.degrees = np.where(self.error == 0, self.one.n + self.two.n - 2, degrees)
        for number in np.flatnonzero(self.paired):
            n, (_, variance) = self.one.n[number], _moments(self._differences(number))
            self.error[number], self.degrees[number] = math.sqrt(variance / n), n - 1
        self.half = special.stdtrit(self.degrees, 1 - self.alpha / 2) * self.error

    def _differences(self, number: np.integer[Any]) -> np.ndarray:
        """Of each pair of a case; rounded, so that equal ratios stay equal."""
        found: np.ndarray = np.round(self.two.logs[number] - self.one.logs[number], 14)
        return found

    def _p_different(self, error: np.ndarray, degrees: np.ndarray | int) -> np.ndarray:
        p: np.ndarray = 2 * special.stdtr(degrees, -np.abs(self.difference) / error)
        return np.where(self.difference == 0, 1.0, p)

    def _p_same(self) -> np.ndarray:
        """Two one-sided tests against a ratio at either end of the margin; the worse of both counts."""
        inside = self.reach - np.abs(self.difference)
        p: np.ndarray = special.stdtr(self.degrees, -inside / self.error)
        return np.where((self.error == 0) & (inside == 0), 1.0, p)

    def _p_guarded(self) -> np.ndarray:
        """Welch's p-value, made larger where the processes of a case agree by luck.

        Noise with two modes (clocks, memory layout) can put all processes of one side in one mode and all of the other
        in the other; Welch's test, which sees no spread, is then certain of a difference that is not there. Where there
        are enough processes, the permutation test says how likely that is, whatever the noise. Where
        there are too few for it to reach the level of the correction, the spread of the noisier cases stands in.
        """
        guarded = np.where(self.few, np.maximum(self.p_alone, self._p_by_noisier_cases()), self.p_alone)
        asked = self.testable & ~self.few & (guarded < self.alpha) & self.passes
        for number in np.flatnonzero(asked):
            if self.paired[number]:
                p = sign_flip_p(self._differences(number))
            else:
                p = permutation_p(self.one.logs[number], self.two.logs[number])
            guarded[number] = max(guarded[number], p)
        return guarded

    def _corrected(self, p_values: np.ndarray) -> np.ndarray:
        """Holm's correction; p-values of ratios within the margin, which nothing guards, come last."""
        adjusted = np.full(len(p_values), np.nan)
        adjusted[self.testable] = holm(p_values[self.testable], last=~self.passes[self.testable])
        return adjusted

    def _p_by_noisier_cases(self) -> np.ndarray:
        """P-values by the spread of the noisier cases, with the degrees of freedom of all of them together."""
        if not self.size:
            return np.zeros(len(self.one.n))
        squares = (self.error**2 * self.one.n)[self.testable]  # variance of one process's difference
        error = np.sqrt(float(np.quantile(squares, FLOOR_QUANTILE)) / self.one.n)
        degrees = (self.one.n - 1) * np.where(self.paired, 1, 2)
        return self._p_different(error, int(degrees[self.testable].sum()))

    def verdict(self, number: int, higher_is_better: bool) -> Verdict:
        """The verdict on one case."""
        if not self.testable[number]:
            return Verdict.UNCLEAR
        if self.p_adjusted[number] < self.alpha and self.passes[number]:
            return Verdict.FASTER if (self.difference[number] > 0) == higher_is_better else Verdict.SLOWER
        return Verdict.SAME if self.p_same[number] < self.alpha else Verdict.UNCLEAR


def _least_p(n: np.ndarray, paired: np.ndarray | bool = False) -> np.ndarray:
    """The smallest p-value that a permutation test of `n` processes per side, or `n` pairs, can give: both tails."""
    p: np.ndarray = 2.0 / np.where(paired, 2.0**n, special.comb(2 * n, n))
    return p


def positive(values: Sequence[float]) -> np.ndarray:
    """The values as one row of floats. Raises ValueError where one is not finite and positive, or there is none."""
    numbers = finite(values)
    if (numbers <= 0).any():
        raise ValueError("a ratio takes positive values")
    return numbers


def _judgement(test: _Test, number: int, higher_is_better: bool) -> Judgement:
    verdict = test.verdict(number, higher_is_better)
    testable = bool(test.testable[number])
    p_value, p_adjusted, p_same = (
        float(values[number]) if testable else None for values in (test.p_value, test.p_adjusted, test.p_same)
    )
    return Judgement(
        baseline=_exp(test.one.mean[number]),
        candidate=_exp(test.two.mean[number]),
        ratio=_exp(test.difference[number]),
        low=_exp(test.low[number]),
        high=_exp(test.high[number]),
        n_baseline=int(test.one.n[number]),
        n_candidate=int(test.two.n[number]),
        p_value=p_value,
        p_adjusted=p_adjusted,
        p_same=p_same,
        verdict=verdict,
        reason=_reason(test, number, verdict),
    )


def _reason(test: _Test, number: int, verdict: Verdict) -> str:
    """Why the verdict is what it is."""
    n, margin = int(test.one.n[number]), f"the margin of {test.margin * 100:g} %"
    if not test.testable[number]:
        return _why_untestable(n, int(test.two.n[number]), test.processes, test.unit)
    if verdict is Verdict.SAME:
        equal = test.error[number] == 0 and test.difference[number] == 0
        return f"equal in every {test.unit}" if equal else f"within {margin}, by an equivalence test"
    if verdict is not Verdict.UNCLEAR:
        corrected = f" after correction for {counted(test.size, 'case')}" if test.size > 1 else ""
        return f"the interval excludes 1{corrected}, and the ratio passes {margin}"
    if test.p_alone[number] >= test.alpha:
        return f"the interval includes 1 and is too wide to show that the ratio is within {margin}"
    if not test.passes[number]:
        return f"smaller than {margin}, but not certain to be within it"
    if test.p_welch[number] < test.alpha and test.few[number]:
        few = f"{counted(n, test.unit)} per side are too few to exclude chance among {counted(test.size, 'case')}"
        return f"{few}: {_enough(test, number)} would suffice"
    if test.p_welch[number] < test.alpha:
        again = "a permutation test does not exclude chance"
        return f"the interval excludes 1, but {again} among {counted(test.size, 'case')}"
    return f"the interval excludes 1 for this case alone, not after correction for {counted(test.size, 'case')}"


def _enough(test: _Test, number: int) -> int:
    """The fewest processes per side with which a permutation test can tell such a case among so many."""
    paired = bool(test.paired[number])
    return next(n for n in itertools.count(2) if _least_p(np.array(n), paired) * test.size <= test.alpha / 2)


def _why_untestable(n_baseline: int, n_candidate: int, processes: int | None, unit: str) -> str:
    absent = [side for side, n in (("baseline", n_baseline), ("candidate", n_candidate)) if not n]
    if absent:
        return f"not measured in the {' and the '.join(absent)}"
    if processes:
        return (
            f"of the first {processes} processes, {n_baseline} against {n_candidate} measured; later ones do not count"
        )
    if n_baseline == n_candidate:
        return f"one {unit} per side shows nothing about variation between {counted(2, unit).partition(' ')[2]}"
    unequal = f"{counted(n_baseline, unit)} against {n_candidate}: unequal numbers give no verdict"
    if unit != "process":
        return unequal
    return f"{unequal}; after adaptive stopping, bench compare --processes N uses the first N of each case"


def _exp(logarithm: float) -> float | None:
    return None if math.isnan(logarithm) else math.exp(logarithm)
