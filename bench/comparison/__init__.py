"""Baseline against candidate: what differs, the ratio of each case with its interval and verdict, and a summary.

Frames come from `bench.load`. Cases are joined on their axes; fields that make the two sides do different work
(precision, flags, data path, model) must be equal unless the comparison is across them.
"""

from bench.comparison.differences import FLAGS, field_words, find_differences, words
from bench.comparison.joining import (
    Cost,
    check_across,
    check_numbers,
    compare,
    find_costs,
    first_processes,
    select_runs,
    split_values,
)
from bench.comparison.metrics import DEFAULT_METRICS, METRICS, Metric, verdict_words
from bench.comparison.result import Comparison, Difference, GeoMean, Missing

__all__ = [
    "DEFAULT_METRICS",
    "FLAGS",
    "METRICS",
    "Comparison",
    "Cost",
    "Difference",
    "GeoMean",
    "Metric",
    "Missing",
    "check_across",
    "check_numbers",
    "compare",
    "field_words",
    "find_costs",
    "find_differences",
    "first_processes",
    "select_runs",
    "split_values",
    "verdict_words",
    "words",
]
