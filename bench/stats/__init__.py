"""Statistics of runs: intervals over processes, percentiles of steps, errors of estimates, and comparisons.

The process is the unit of replication: steps inside one process share its memory layout, clocks and neighbours, and are
not independent. Every interval here is therefore taken over one number per process, never over steps, and over one per
host where processes were spread over hosts;
percentiles describe raw steps and claim nothing about other processes. docs/statistics.md explains each number.
"""

from bench.stats.changes import LEAST_RESULTS, LevelChange, find_changes
from bench.stats.comparison import MARGIN, Judgement, Verdict, holm, judge_ratios
from bench.stats.errors import ErrorSummary, relative_error, summarise_errors
from bench.stats.intervals import (
    CONFIDENCE,
    PUBLISHED_PROCESSES,
    Interval,
    Percentiles,
    geometric_interval,
    host_means,
    mean_interval,
    median_interval,
    percentiles,
)
from bench.stats.noise import NoiseFloor, noise_floor, processes_for

__all__ = [
    "CONFIDENCE",
    "LEAST_RESULTS",
    "MARGIN",
    "PUBLISHED_PROCESSES",
    "ErrorSummary",
    "Interval",
    "Judgement",
    "LevelChange",
    "NoiseFloor",
    "Percentiles",
    "Verdict",
    "find_changes",
    "geometric_interval",
    "holm",
    "host_means",
    "judge_ratios",
    "mean_interval",
    "median_interval",
    "noise_floor",
    "percentiles",
    "processes_for",
    "relative_error",
    "summarise_errors",
]
