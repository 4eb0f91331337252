"""Comparisons as values for `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.cli.comparison_text import ordered

if TYPE_CHECKING:
    from bench.comparison import Comparison, Cost


def as_value(
    baseline: str, made: Mapping[str, Comparison], costs: Sequence[Cost], *, worst_first: bool
) -> dict[str, Any]:
    """One comparison flat; of several candidates, each under `comparisons`.

    Args:
        baseline: The name of the baseline.
        made: Comparisons by the name of their candidate.
        costs: Of all sides.
        worst_first: Whether cases are ordered by what got worse.
    """
    values = [
        {"baseline": baseline, "candidate": name, **_value(comparison, worst_first)}
        for name, comparison in made.items()
    ]
    cost = [asdict(item) for item in costs]
    if len(values) == 1:
        return {**values[0], "cost": cost}
    return {"baseline": baseline, "comparisons": values, "cost": cost}


def _value(comparison: Comparison, worst_first: bool) -> dict[str, Any]:
    return {
        "margin": comparison.margin,
        "confidence": comparison.confidence,
        "across": list(comparison.across),
        "processes": comparison.processes,
        "differences": [item._asdict() for item in comparison.differences],
        "cases": [_known(row) for row in ordered(comparison.cases, worst_first).to_dict("records")],
        "geomean": {name: asdict(item) for name, item in comparison.geomean.items()},
        "missing": [item._asdict() for item in comparison.missing],
        "regressions": [_known(row) for row in comparison.regressions.to_dict("records")],
        "notes": comparison.notes,
    }


def _known(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row with plain numbers, and null for what is unknown."""
    import pandas as pd

    plain = {str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}
    return {name: None if pd.isna(value) else value for name, value in plain.items()}
