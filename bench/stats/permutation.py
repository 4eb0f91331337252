"""The permutation test of two sides' means (R. A. Fisher, The Design of Experiments, 1935)."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

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
        sums = values[_all_dealings(n)].sum(axis=1)
        return float((np.abs(sums) >= found).mean())
    random = np.random.default_rng(0)
    sums = random.permuted(np.tile(values, (MAX_DEALINGS, 1)), axis=1)[:, :n].sum(axis=1)
    return float(((np.abs(sums) >= found).sum() + 1) / (MAX_DEALINGS + 1))


@functools.lru_cache(maxsize=4)
def _all_dealings(n: int) -> np.ndarray:
    """The positions of one side in every dealing of `2 n` values, `(C(2n, n), n)`."""
    return np.array(list(itertools.combinations(range(2 * n), n)), dtype=np.int8)
