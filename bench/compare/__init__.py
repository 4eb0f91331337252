"""Baseline against candidate: what differs, the ratio of each case with its interval and verdict, and the whole.

Frames come from `bench.load`. Cases are joined on their axes; what would make the two sides do different work
(precision, flags, data path, model) is refused unless the comparison is across it.
"""

from bench.compare.comparison import Cost, compare, find_costs, first_processes, select_runs, split_values
from bench.compare.differences import FLAGS, field_words, words
from bench.compare.metrics import DEFAULT_METRICS, METRICS, Metric, verdict_words
from bench.compare.result import Comparison, Difference, GeoMean, Missing

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
    "compare",
    "field_words",
    "find_costs",
    "first_processes",
    "select_runs",
    "split_values",
    "verdict_words",
    "words",
]
