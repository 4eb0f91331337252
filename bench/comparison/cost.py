"""The cost of samples: energy from the rows, and money if a price per hour is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.comparison.metrics import METRICS
from bench.comparison.pairing import halve, in_order, label_pairs
from bench.stats import geometric_interval

SAMPLES = 1_000_000
"""Prices are for this many samples: the price of one has too many zeros to read."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one case on one machine.

    Attributes:
        case_key: Which case.
        label: The case as text.
        name: Of the results.
        joules_per_sample: Energy of the measured window over its samples, geometric mean over processes; `None` where
            the machine has no counter.
        price_per_million_samples: In the currency of the price per hour; `None` if no price is given.
    """

    case_key: str
    label: str
    name: str
    joules_per_sample: float | None
    price_per_million_samples: float | None


def find_costs(
    sides: Mapping[str, pd.DataFrame], prices: Mapping[str, float], across: Sequence[str] = ()
) -> list[Cost]:
    """The cost of each case on each side, sorted by the axes; only if energy or price is known.

    Args:
        sides: Frames of `bench.load` by name.
        prices: An hour's price by the name of a side.
        across: The fields that the sides are compared across; they are omitted from the labels.
    """
    found = []
    halves = {name: halve(frame, "baseline", across) for name, frame in sides.items()}
    labels = label_pairs(list(halves.values()), across)
    for name, half in halves.items():
        energy, speed = (METRICS[metric].values(half.runs) for metric in ("joules_per_sample", "samples_per_s"))
        for pair in in_order(half, half.rows):
            rows = half.rows[pair]
            joules, rate = (_middle(values[rows].tolist()) for values in (energy, speed))
            price = prices[name] / 3600 / rate * SAMPLES if name in prices and rate else None
            if joules is not None or price is not None:
                found.append(Cost(str(half.firsts[pair]["case_key"]), labels[pair], name, joules, price))
    return found


def _middle(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return geometric_interval(known).middle if known else None
