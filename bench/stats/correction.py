"""The correction of p-values for many cases (S. Holm, Scandinavian Journal of Statistics 6, 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
