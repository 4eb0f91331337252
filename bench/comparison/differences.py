"""What differs between two sides besides their cases, and what must not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.comparison.result import Difference
from bench.errors import BenchError, nearest, nearest_sentence
from bench.records import FIELDS, Environment, Group, Protocol, columns, in_order
from bench.records.fields import Kind

COMPARED: Mapping[str, Kind] = {
    name: kind
    for name in dict.fromkeys((*in_order(lambda field: field.first), *columns(Environment), *columns(Protocol)))
    if (kind := FIELDS[name].kind)
}
"""Every field that is compared with the group of a difference in it, the most important first."""

FLAGS = tuple(name for name, kind in COMPARED.items() if kind == "flags")
"""Fields that change the work of a step, or how it is done, without being an axis of the case."""

NOT_SAID = tuple(name for name in FLAGS if FIELDS[name].group not in ("environment", "protocol"))
"""Flags whose null does not count as a value: a run that failed early or is from an earlier version lacks them."""


def find_differences(baseline: pd.DataFrame, candidate: pd.DataFrame) -> list[Difference]:
    """The fields in which two frames of runs differ, in the order of `COMPARED`.

    A field that a side lacks is `None`: unknown against a value is a difference, unknown on both sides is not. Only for
    the data that runs read does unknown not count.
    """
    found = []
    for field, kind in COMPARED.items():
        one, two = (_distinct(side, field) for side in (baseline, candidate))
        if field in NOT_SAID:
            one, two = ([value for value in values if value is not None] for values in (one, two))
            if not one or not two:
                continue
        if set(map(str, one)) != set(map(str, two)):
            found.append(Difference(field, _single(one), _single(two), kind))
    return found


def refuse_flags(baseline: pd.DataFrame, candidate: pd.DataFrame, across: Sequence[str]) -> None:
    """Refuse sides whose cases do different work.

    Args:
        baseline: Runs of the common cases, `pair` naming the case.
        candidate: The same of the candidate.
        across: The fields that may differ.

    Raises:
        BenchError: A flag differs that is not compared across; the message names all of them.
    """
    lines, fields = [], []
    for field in FLAGS:
        if field in across or field not in baseline or field not in candidate:
            continue
        found = _first_conflict(baseline, candidate, field)
        if found is not None:
            one, two = (field_words(field, value) for value in found)
            lines.append(f"{field} differs: {one} in the baseline, {two} in the candidate")
            fields.append(field)
    if lines:
        options = " ".join(f"--across {field}" for field in fields)
        lines.append(
            f"same cases, but different work. Measure one side again, or compare across the difference: {options}"
        )
        raise BenchError("\n".join(lines))


def _first_conflict(baseline: pd.DataFrame, candidate: pd.DataFrame, field: str) -> tuple[Any, Any] | None:
    """The values of a flag in the first case in which they differ."""
    sides = []
    for runs in (baseline, candidate):
        if field == "loader_workers":  # without a loader there are none
            runs = runs[runs["input"] == "loader"]
        if field in NOT_SAID:
            runs = runs[runs[field].notna()]
        texts = runs[field].astype(object).where(runs[field].notna(), None).map(str)
        sides.append(dict(zip(runs["pair"], zip(texts, runs[field], strict=True), strict=True)))
    for pair, (text, value) in sides[0].items():
        other = sides[1].get(pair)
        if other is not None and other[0] != text:
            return tuple(None if pd.isna(item) else item for item in (value, other[1]))  # type: ignore[return-value]
    return None


def refuse_mixed(runs: pd.DataFrame, side: str) -> None:
    """Refuse a side on which runs of one case differ in environment, protocol or code: they are not repeats.

    Raises:
        BenchError: They do; the message names the first field that differs, and how to choose.
    """
    counts = runs.groupby("case_key", sort=False)[list(columns(Group))].nunique(dropna=False).max(axis=1)
    mixed = counts[counts > 1]
    if mixed.empty:
        return
    first = runs[runs["case_key"] == mixed.index[0]]
    field = next((name for name in COMPARED if len(_distinct(first, name)) > 1), "code_key")
    values = [field_words(field, value) for value in _distinct(first, field)]
    raise BenchError(
        f"the {side} has runs of one case with different {field} ({', '.join(values)}), which are not repeats. "
        f"Choose one: --only '{field}={values[-1]}'"
    )


def unknown_field(what: str, given: str, allowed: Iterable[str]) -> BenchError:
    """The error for an unknown field, with the nearest and all known ones."""
    names = list(allowed)
    return BenchError(
        f'unknown {what} "{given}". {nearest_sentence(nearest(given, names))}Available: {", ".join(names)}'
    )


def field_words(field: str, value: Any) -> str:
    """A value of a field as text; what absence means where it is `None`."""
    return words(value, FIELDS[field].absent)


def difference_words(differences: Sequence[Difference]) -> list[str]:
    """What differs, the most important first: `driver_version 570 → 580`; the last says how many more there are."""
    words = [
        f"{item.field} {_cut(field_words(item.field, item.baseline))} → {_cut(field_words(item.field, item.candidate))}"
        for item in differences
    ]
    more = len(words) - _MOST_DIFFERENCES
    return words if more <= 0 else [*words[:_MOST_DIFFERENCES], f"{more} more"]


_MOST_DIFFERENCES, _LONG = 6, 60


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"


def words(value: Any, nothing: str = "unknown") -> str:
    """A value as text; several joined, `nothing` for what is `None`."""
    if isinstance(value, tuple):
        named = [words(item, nothing) for item in value[:3]]
        return " and ".join(named if len(value) <= 3 else [*named[:2], f"{len(value) - 2} more"])
    if value is None:
        return nothing
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distinct(runs: pd.DataFrame, field: str) -> list[Any]:
    """The values of a column, each once, in order of appearance; unknown is `None`."""
    if field not in runs:
        return [None]
    values = [None if pd.isna(value) else value for value in runs[field].drop_duplicates().tolist()]
    return values


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)
