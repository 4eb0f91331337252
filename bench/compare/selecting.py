"""Choosing runs by patterns on their axes and fields."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import pandas as pd

from bench.compare.differences import FIELDS, words
from bench.errors import BenchError, UnknownNameError
from bench.records import AXES


def select_runs(frame: pd.DataFrame, patterns: Sequence[str]) -> pd.DataFrame:
    """The runs that match patterns such as `model=resnet*`.

    Args:
        frame: From `bench.load`.
        patterns: `FIELD=PATTERN`, with the wildcards of file names. Of several for one field any may match; those of
            different fields must all match.

    Raises:
        BenchError: A pattern without a field, a field that is not known, or no run that matches.
    """
    wanted: dict[str, list[str]] = {}
    for pattern in patterns:
        field, equals, value = pattern.partition("=")
        if not equals:
            raise BenchError(f'"{pattern}": write FIELD=PATTERN, as in model=resnet*')
        if field not in (*AXES, *FIELDS):
            raise UnknownNameError("field", field, (*AXES, *FIELDS), list_command="compare --help")
        wanted.setdefault(field, []).append(value)
    chosen = frame
    for field, values in wanted.items():
        texts = {value: words(None if pd.isna(value) else value) for value in chosen[field].drop_duplicates()}
        kept = [value for value, text in texts.items() if any(fnmatch.fnmatchcase(text, item) for item in values)]
        if not kept:
            there = ", ".join(list(texts.values())[:6])
            raise BenchError(f"no run has {field} like {' or '.join(values)}; there are: {there}")
        chosen = chosen[chosen[field].isin(kept)]
    return chosen.reset_index(drop=True)
