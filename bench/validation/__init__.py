"""The estimators against measurements from elsewhere: CSV files in, an error table out.

A file's columns decide its layout; each layout is one module of this folder that defines `LAYOUT`, found by walking
it. Nothing here imports torch at its head: files are read in the parent, rows are estimated in a child.
"""

from bench.validation.rows import Layout, Loop, Measured
from bench.validation.scoring import GroupScore, Score, list_layouts, read_measurements, score, score_others

__all__ = [
    "GroupScore",
    "Layout",
    "Loop",
    "Measured",
    "Score",
    "list_layouts",
    "read_measurements",
    "score",
    "score_others",
]
