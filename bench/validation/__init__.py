"""Compares the estimators with measurements from other tools: CSV files in, an error table out.

A file's columns decide its layout; each layout is one module of this folder that defines `LAYOUT`, found by scanning
it. Nothing here imports torch at module level: files are read in the parent, rows are estimated in a child.
"""

from bench.validation.rows import Measured, TableLayout, TrainingLoop
from bench.validation.scoring import GroupScore, Score, list_layouts, read_measurements, score, score_others

__all__ = [
    "GroupScore",
    "Measured",
    "Score",
    "TableLayout",
    "TrainingLoop",
    "list_layouts",
    "read_measurements",
    "score",
    "score_others",
]
