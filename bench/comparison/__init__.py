"""Baseline against candidate, and results over time: what differs, ratios with intervals, verdicts, changes of level.

Frames come from `bench.load`. Cases are joined on their axes; fields that make the two sides do different work
(precision, flags, data path, model) must be equal unless the comparison is across them.
"""

from bench.comparison.clocks import NO_CLOCK, ClockRole
from bench.comparison.differences import FLAGS, difference_words, field_words, find_differences, words
from bench.comparison.history import DatedResult, History, HistoryChange, NoLongerRuns, date_words, trace_history
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
    "NO_CLOCK",
    "ClockRole",
    "Comparison",
    "Cost",
    "DatedResult",
    "Difference",
    "GeoMean",
    "History",
    "HistoryChange",
    "Metric",
    "Missing",
    "NoLongerRuns",
    "check_across",
    "check_numbers",
    "compare",
    "date_words",
    "difference_words",
    "field_words",
    "find_costs",
    "find_differences",
    "first_processes",
    "select_runs",
    "split_values",
    "trace_history",
    "verdict_words",
    "words",
]
