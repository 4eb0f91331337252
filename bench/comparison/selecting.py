"""Choosing runs: by patterns on their axes and fields, or the first processes of each case."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

import pandas as pd

from bench.comparison.differences import FIELDS, field_words, unknown_field
from bench.errors import BenchError
from bench.records import AXES

LEAST_PROCESSES = 2
"""One process shows nothing about the variation between processes."""


def first_processes(frame: pd.DataFrame, processes: int | None) -> pd.DataFrame:
    """The runs of the first processes of each case, all of them where `processes` is `None`.

    A run among them that failed or is missing is not replaced by a later one: which runs count depends on their number
    alone, never on their measurements.

    Raises:
        BenchError: `processes` is below `LEAST_PROCESSES`.
    """
    if processes is None:
        return frame
    if processes < LEAST_PROCESSES:
        raise BenchError(f"processes {processes}: a verdict needs at least {LEAST_PROCESSES} per case")
    return frame[frame["repeat"] < processes].reset_index(drop=True)


def select_runs(frame: pd.DataFrame, patterns: Sequence[str]) -> pd.DataFrame:
    """The runs that match patterns such as `model=resnet*`.

    Args:
        frame: From `bench.load`.
        patterns: `FIELD=PATTERN`, with the wildcards of file names; a value that equals the pattern takes
            precedence (`mlp:hidden=[256,128]` is not a wildcard). Of several for one field any may match; those
            of different fields must all match.

    Raises:
        BenchError: A pattern without a field, a field that is not known, or no run that matches.
    """
    wanted: dict[str, list[str]] = {}
    for pattern in patterns:
        field, equals, value = pattern.partition("=")
        if not equals:
            raise BenchError(f'"{pattern}": write FIELD=PATTERN, as in model=resnet*')
        _known_field(field)
        wanted.setdefault(field, []).append(value)
    chosen = frame
    for field, values in wanted.items():
        texts = _texts(chosen, field)
        meant = {text for value in values for text in _matching(texts.values(), value)}
        kept = [value for value, text in texts.items() if text in meant]
        if not kept:
            there = ", ".join(list(texts.values())[:6])
            raise BenchError(f"no run matches {field} = {' or '.join(values)}. Available: {there}")
        chosen = chosen[chosen[field].isin(kept)]
    return chosen.reset_index(drop=True)


def split_values(frames: Iterable[pd.DataFrame], field: str, text: str) -> tuple[str, str] | None:
    """The two values of a field in `BASELINE,CANDIDATE`; `None` if no comma stands between two known ones.

    Values with settings hold commas themselves (`mlp:hidden=[256,128],mlp`), so a comma counts only between two values
    that runs have, or patterns that match some. A text with one comma is split there whatever its halves are.

    Raises:
        BenchError: The field is not known.
    """
    _known_field(field)
    known = {name for frame in frames for name in _texts(frame, field).values()}
    parts = text.split(",")
    splits = [(",".join(parts[:place]), ",".join(parts[place:])) for place in range(1, len(parts))]
    if len(splits) == 1:
        return splits[0]
    exact = [halves for halves in splits if known.issuperset(halves)]
    matching = [halves for halves in splits if all(_matching(known, half) for half in halves)]
    return next(iter([*exact, *matching]), None)


def _known_field(field: str) -> None:
    if field not in (*AXES, *FIELDS):
        raise unknown_field("field", field, (*AXES, *FIELDS))


def _texts(frame: pd.DataFrame, field: str) -> dict[object, str]:
    """The values of a column, each once, as text."""
    return {value: field_words(field, None if pd.isna(value) else value) for value in frame[field].drop_duplicates()}


def _matching(texts: Iterable[str], pattern: str) -> list[str]:
    """The texts that a pattern selects: the one it equals, else those it matches."""
    found = list(texts)
    return [pattern] if pattern in found else [text for text in found if fnmatch.fnmatchcase(text, pattern)]
