"""A memory gate: what a training step takes, kept beside the code and compared with what it takes now.

`outline` writes a traced step down, `baselines` keeps such outlines in files, `changes` compares two of them, and
`tracing` makes them. `bench guard` and the pytest plugin are built on it.
"""

from bench.guard.baselines import Guarded, read_baselines, update_baselines
from bench.guard.changes import Allowed, Change, Course, change_fields, change_lines, format_difference
from bench.guard.outline import Line, Outline, outline_case

__all__ = [
    "Allowed",
    "Change",
    "Course",
    "Guarded",
    "Line",
    "Outline",
    "change_fields",
    "change_lines",
    "format_difference",
    "outline_case",
    "read_baselines",
    "update_baselines",
]
