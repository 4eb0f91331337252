"""The frozen types that packages share, and with them the columns of every result file.

A row of a result file is a `Planned` run, its `Case`, its `Protocol`, its `Measurement` and its `Environment`, flat,
with the `Estimate` of its case beside it. The fields below are the columns: their names carry the unit (`_bytes`, `_s`,
`_hz`, `_w`, `_j`, `_frac`), `None` is unknown and never 0, and raw values are kept as tuples.
"""

from dataclasses import fields

from bench.records.case import (
    AXES,
    USUAL,
    Case,
    Choice,
    DataFacts,
    Group,
    ImageSpec,
    InputPath,
    MemoryFormat,
    Planned,
    Precision,
    Protocol,
    SettingValue,
    axis_words,
    name_cases,
    run_key,
    stable_hash,
    varying_axes,
)
from bench.records.environment import Environment, absent_word
from bench.records.estimate import FORMULA_PARTS, TRACE_PARTS, UNMODELLED, Estimate, join_notes, left_out
from bench.records.measurement import MEASURED, Measurement, Status

__all__ = [
    "AXES",
    "FORMULA_PARTS",
    "MEASURED",
    "TRACE_PARTS",
    "UNMODELLED",
    "USUAL",
    "Case",
    "Choice",
    "DataFacts",
    "Environment",
    "Estimate",
    "Group",
    "ImageSpec",
    "InputPath",
    "Measurement",
    "MemoryFormat",
    "Planned",
    "Precision",
    "Protocol",
    "SettingValue",
    "Status",
    "absent_word",
    "axis_words",
    "columns",
    "join_notes",
    "left_out",
    "name_cases",
    "run_key",
    "stable_hash",
    "varying_axes",
]


def columns(record: type) -> tuple[str, ...]:
    """The column names of a record type, in order."""
    return tuple(field.name for field in fields(record))
