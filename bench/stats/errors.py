"""How far estimates lie from measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.stats.intervals import finite


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """How far estimates lie from measurements; `(estimate - measured) / measured`, signed, one number per case.

    Attributes:
        median_abs: The median size of the error: half of the cases are nearer.
        p90_abs: Nine in ten cases are nearer.
        worst: The error of the largest size, with its sign.
        bias: The mean of the signed errors: below 0, the estimates are too low on the whole.
        share_exact: The share of cases without any error, from 0 to 1.
        n: How many cases there are.
    """

    median_abs: float
    p90_abs: float
    worst: float
    bias: float
    share_exact: float
    n: int


def summarise_errors(errors: Sequence[float] | np.ndarray) -> ErrorSummary | None:
    """Summarise signed relative errors; `None` if there are none (missing is not zero).

    Raises:
        ValueError: One that is not finite.
    """
    if len(errors) == 0:
        return None
    numbers = finite(errors)
    sizes = np.abs(numbers)
    median_abs, p90_abs = (float(value) for value in np.quantile(sizes, (0.5, 0.9)))
    return ErrorSummary(
        median_abs=median_abs,
        p90_abs=p90_abs,
        worst=float(numbers[int(sizes.argmax())]),
        bias=float(numbers.mean()),
        share_exact=float((sizes == 0).mean()),
        n=len(numbers),
    )


def relative_error(estimate: float, measured: float) -> float:
    """`(estimate - measured) / measured`: -0.2 where the estimate is a fifth too low; NaN if either is unknown."""
    return (estimate - measured) / measured if measured else math.nan
