"""Numbers of the summary as cells of tables; unknown prints as a dash and is never 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bench.records import FIELDS
from bench.units import MISSING, format_bytes, format_frac, format_rate, format_seconds


def known(value: Any) -> bool:
    """Whether a cell of a frame holds something."""
    return value is not None and not pd.isna(value)


def integer(value: Any) -> str:
    """A whole number with thousands separated."""
    return f"{int(value):,}" if known(value) else MISSING


def bytes_cell(value: Any) -> str:
    """Bytes with a unit."""
    return format_bytes(int(value)) if known(value) else MISSING


def seconds_cell(value: Any) -> str:
    """Seconds with a unit."""
    return format_seconds(float(value)) if known(value) else MISSING


def share_cell(value: Any, digits: int = 1) -> str:
    """A share as a percentage: `41.3 %`."""
    return format_frac(float(value), digits).removeprefix("+") if known(value) else MISSING


def error_words(value: Any) -> str:
    """A signed relative error: `-12.3 %`, `exact`."""
    if not known(value):
        return MISSING
    return "exact" if value == 0 else format_frac(float(value))


def rate_cell(row: Mapping[Any, Any]) -> str:
    """Throughput with its interval: `12,300 (12,100 to 12,500)`; a single process is marked `screening`."""
    if not known(row["samples_per_s"]):
        return MISSING
    rate = format_rate(row["samples_per_s"])
    if not known(row["samples_per_s_low"]):
        return f"{rate} (screening)"
    return f"{rate} ({format_rate(row['samples_per_s_low'])} to {format_rate(row['samples_per_s_high'])})"


def times(ratio: float) -> str:
    """A ratio with three significant digits: `2.13×`, `0.972×`, `135×`."""
    if not known(ratio):
        return MISSING
    digits = 3 if ratio < 1 else 2 if ratio < 10 else 1 if ratio < 100 else 0
    return f"{ratio:,.{digits}f}×"


def ratio_words(ratio: float, low: float | None, high: float | None) -> str:
    """A ratio with its interval: `2.13× (2.05 to 2.21)`; where there is none, it says so."""
    if not known(low) or not known(high):
        return f"{times(ratio)} (no interval)"
    ends = [times(float(end)).removesuffix("×") for end in (low, high) if end is not None]
    return f"{times(ratio)} ({' to '.join(ends)})"


def listed(values: Iterable[object], limit: int) -> str:
    """`a, b and c`; from `limit` on, how many more there are."""
    words = [str(value) for value in values]
    if len(words) > limit:
        words = [*words[:limit], f"{len(words) - limit} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else "nothing"


def field_words(name: str, value: Any) -> str:
    """A field of a record for people, by the unit in its name; what absence means where it is absent."""
    return FIELDS[name].words(value) if known(value) else FIELDS[name].absent
