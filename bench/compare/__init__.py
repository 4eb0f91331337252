"""Baseline against candidate: what differs, the ratio of each case with its interval and verdict, and a summary.

Frames come from `bench.load`. Cases are joined on their axes; fields that make the two sides do different work
(precision, flags, data path, model) must be equal unless the comparison is across them.
"""

from bench.compare.comparison import compare
from bench.compare.cost import Cost, find_costs
from bench.compare.differences import FLAGS, field_words, words
from bench.compare.metrics import DEFAULT_METRICS, METRICS, Metric, verdict_words
from bench.compare.result import Comparison, Difference, GeoMean, Missing
from bench.compare.selecting import first_processes, select_runs, split_values

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
