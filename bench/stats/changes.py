"""Changes of level in short series of results, each of a few processes: where, how large, and whether by chance.

Changes of the mean at unknown places, found one or two at a time: given those found so far, every further cut of a
segment, and every pair of cuts, is tested by an F test over results, and the clearest is taken (J. Bai, P. Perron,
Econometrica 66, 1998; pairs show what returns, as in A. B. Olshen et al., Biostatistics 5, 2004). Then each cut must
stand by itself. P-values are multiplied by the number of places that were tried (Bonferroni; K. J. Worsley, Journal of
the American Statistical Association 74, 1979). The newest result is asked about each time, so half of the chance of a
false change is kept for it. Such tests can call the newest of ten results; a permutation test, as in E-divisive (D. S.
Matteson, N. A. James, Journal of the American Statistical Association 109, 2014), needs forty. Everything is computed
on logarithms.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from bench.stats.comparison import MARGIN, Verdict, judge_ratios, positive
from bench.stats.intervals import CONFIDENCE

LEAST_RESULTS = 5
"""Fewer do not show how much results differ that nothing sets apart."""
_LEAST_INSIDE = 2
"""Results that stand apart between others before that is a change: one alone is an outlier."""


@dataclass(frozen=True, slots=True)
class LevelChange:
    """A change of level.

    Attributes:
        place: Of the first result after it, counted from 0.
        before: Level before it, back to the change before: geometric mean of the results, in the unit of the values.
        after: Level from it to the next change.
        ratio: After over before.
        low: Lower end of its interval.
        high: Upper end.
        p_adjusted: How often chance does this where nothing changes, corrected for all places and cases.
    """

    place: int
    before: float
    after: float
    ratio: float
    low: float
    high: float
    p_adjusted: float


def find_changes(
    series: Sequence[Sequence[Sequence[float]]],
    *,
    interleaved: Sequence[bool] | None = None,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
) -> list[list[LevelChange]]:
    """Find the changes of level of each case, as one family.

    Results of different days differ by more than processes of one result do. How much, a series of `LEAST_RESULTS`
    says itself: its noise is that between results, or between processes where that is larger. A shorter one does not,
    and has no changes. Only where results were interleaved (one process of each in turn) are neighbours compared by
    their processes, as `judge_ratios` does.

    Args:
        series: For each case its results in order of time, each with one positive number per process, two or more.
        interleaved: For each case, whether its results were; none unless given.
        margin: The smallest change that counts, as a fraction: a ratio of `1 + margin` or `1 / (1 + margin)`.
        confidence: Of the intervals, and of there being no false change among all the cases.

    Returns:
        For each case its changes in order of time.

    Raises:
        ValueError: A value is not finite and positive, or a result has fewer than two.
    """
    if any(len(values) < 2 for results in series for values in results):
        raise ValueError("a result takes two processes or more")
    interleaved = interleaved or [False] * len(series)
    found: list[list[LevelChange]] = [[] for _ in series]
    cases = [
        case
        for case, (results, mixed) in enumerate(zip(series, interleaved, strict=True))
        if len(results) >= (2 if mixed else LEAST_RESULTS)
    ]
    level = (1 - confidence) / max(len(cases), 1)  # what each case may contribute to a false change
    for case in cases:
        if not interleaved[case]:
            found[case] = _search(series[case], margin, level, confidence, len(cases))
    pairs = [(case, place) for case in cases if interleaved[case] for place in range(1, len(series[case]))]
    share = level * len({case for case, _ in pairs})
    sides = [[series[case][place - back] for case, place in pairs] for back in (1, 0)]
    judged = judge_ratios(*sides, margin=margin, confidence=1 - share) if pairs else []
    for (case, place), item in zip(pairs, judged, strict=True):
        if item.verdict in (Verdict.FASTER, Verdict.SLOWER):
            known = (item.baseline, item.candidate, item.ratio, item.low, item.high)
            before, after, ratio, low, high = (math.nan if value is None else value for value in known)
            p_adjusted = (item.p_adjusted or 0.0) * (1 - confidence) / share
            found[case].append(LevelChange(place, before, after, ratio, low, high, min(1.0, p_adjusted)))
    return found


def _search(
    results: Sequence[Sequence[float]], margin: float, alpha: float, confidence: float, cases: int
) -> list[LevelChange]:
    """The changes of one case, by the differences between its results."""
    logs = [np.log(positive(values)) for values in results]
    means = np.array([values.mean() for values in logs])
    means -= means[0]  # equal results stay exactly equal
    processes = sum(len(values) - 1 for values in logs)
    within = sum(float(((values - values.mean()) ** 2).sum()) for values in logs) / processes
    floor = within * float(np.mean([1 / len(values) for values in logs]))
    edges = [0, len(means)]
    while cuts := _clearest(means, edges, floor, margin, alpha):
        edges = sorted({*edges, *cuts})
    p_values = _alone(means, edges, floor, margin)
    while p_values and max(p_values.values()) >= alpha:
        edges.remove(max(p_values, key=lambda place: p_values[place]))
        p_values = _alone(means, edges, floor, margin)
    segments = _split(means, edges)
    degrees = len(means) - len(segments)
    noise = max(sum(map(_scatter, segments)) / degrees, floor)
    reach = float(special.stdtrit(degrees, 0.5 + confidence / 2))
    first = float(logs[0].mean())
    found = []
    for place, before, after in zip(edges[1:-1], segments, segments[1:], strict=False):
        step = float(after.mean() - before.mean())
        half = reach * math.sqrt(noise * (1 / len(before) + 1 / len(after)))
        old, new = (_exp(first + float(part.mean())) for part in (before, after))
        low, high, p_adjusted = _exp(step - half), _exp(step + half), min(1.0, p_values[place] * cases)
        found.append(LevelChange(place, old, new, _exp(step), low, high, p_adjusted))
    return found


def _clearest(means: np.ndarray, edges: list[int], floor: float, margin: float, alpha: float) -> list[int]:
    """The one or two further cuts of a segment that leave the least to chance; none where chance explains them all.

    Args:
        means: Of the logarithms of each result's processes.
        edges: Of the segments so far, both ends included.
        floor: The least variance of a result, from its processes.
        margin: Cuts at which the level changes by less do not count.
        alpha: What chance may explain.
    """
    segments = _split(means, edges)
    scatter = [_scatter(part) for part in segments]
    tried = sum(len(_places(len(part))[0]) for part in segments)
    best, cuts = alpha, list[int]()
    for start, part, own in zip(edges, segments, scatter, strict=False):
        first, second = _places(len(part))
        if not len(first):
            continue
        sums = np.concatenate([[0.0], np.cumsum(part - part.mean())])
        sizes = np.stack([first, second - first, len(part) - second])
        totals = np.stack([sums[first], sums[second] - sums[first], sums[-1] - sums[second]])
        single = second == len(part)
        levels = totals / np.where(sizes, sizes, 1)
        gained = np.minimum((totals * levels).sum(axis=0), own)
        more = np.where(single, 1, 2)
        degrees = len(means) - len(segments) - more
        noise = np.maximum((sum(scatter) - gained) / np.maximum(degrees, 1), floor)
        smallest = np.where(single, sizes[:2].min(axis=0), sizes.min(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            chance = special.fdtrc(more, _trusted(degrees, smallest), gained / more / noise) * tried * 2
        if start + len(part) == len(means):  # the newest result alone
            chance = np.where(single & (first == len(part) - 1), chance / tried, chance)
        steps = np.abs(np.diff(levels, axis=0))
        passes = (steps[0] >= math.log1p(margin)) & (single | (steps[1] >= math.log1p(margin)))
        chance = np.where(passes & (degrees >= 1), chance, 1.0)
        place = int(chance.argmin())
        if chance[place] < best:
            best, cuts = float(chance[place]), [start + int(first[place]), start + int(second[place])]
    return [cut for cut in cuts if cut not in edges]


def _alone(means: np.ndarray, edges: list[int], floor: float, margin: float) -> dict[int, float]:
    """The p-value of each cut beside the others: of its two sides, corrected for the places that it could have had.

    It is 1 for a cut at which the level changes by less than the margin.
    """
    segments = _split(means, edges)
    degrees = len(means) - len(segments)
    noise = max(sum(map(_scatter, segments)) / degrees, floor)
    found = {}
    for place, before, after in zip(edges[1:-1], segments, segments[1:], strict=False):
        error = math.sqrt(noise * (1 / len(before) + 1 / len(after)))
        places = 1 if place == len(means) - 1 else len(means) - 1
        step = abs(float(after.mean() - before.mean()))
        trusted = float(_trusted(degrees, min(len(before), len(after))))
        chance = 4 * places * float(special.stdtr(trusted, -step / error)) if error else 0.0
        found[place] = min(1.0, chance) if step >= math.log1p(margin) else 1.0
    return found


def _trusted(degrees: np.ndarray | int, smallest: np.ndarray | int) -> np.ndarray:
    """Degrees of freedom for a test whose smallest side has so many results.

    However long the series, a side of one result is as extreme as the tails of the noise make it, and those are heavier
    than normal ones: delays, other tenants. Few degrees allow for that; docs/history.md has what they achieve.
    """
    fewer: np.ndarray = np.minimum(degrees, 3 * np.asarray(smallest) + 2)
    return fewer


def _exp(logarithm: float) -> float:
    """The number; the largest float where results are absurd."""
    return math.exp(min(logarithm, math.log(sys.float_info.max)))


def _split(means: np.ndarray, edges: list[int]) -> list[np.ndarray]:
    return [means[start:end] for start, end in itertools.pairwise(edges)]


def _scatter(part: np.ndarray) -> float:
    return float(((part - part.mean()) ** 2).sum())


@functools.lru_cache(maxsize=256)
def _places(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a segment of so many results may be cut once (the second place is then its end) or twice, each `(N,)`."""
    once = [(place, size) for place in range(1, size)]
    twice = [(first, second) for first in range(1, size) for second in range(first + _LEAST_INSIDE, size)]
    first, second = np.array(once + twice, dtype=int).reshape(-1, 2).T
    return first, second
