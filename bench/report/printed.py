"""Numbers as reports print them, read back: which columns' values would print so."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from bench.units import GIB, KIB, MIB, TIB, format_bytes, format_frac, format_rate, format_seconds

_NUMBER = re.compile(
    r"([-+]?)(\d{1,3}(?:,\d{3}){1,9}|\d{1,30})?(\.\d{1,30})?(e[-+]?\d{1,2})?\s*([^\d\s].{0,20})?", re.IGNORECASE
)
_UNITS = {
    "b": ("_bytes", 1),
    "kib": ("_bytes", KIB),
    "mib": ("_bytes", MIB),
    "gib": ("_bytes", GIB),
    "tib": ("_bytes", TIB),
    "kb": ("_bytes", KIB),
    "mb": ("_bytes", MIB),
    "gb": ("_bytes", GIB),
    "s": ("_s", 1.0),
    "ms": ("_s", 1e-3),
    "µs": ("_s", 1e-6),
    "us": ("_s", 1e-6),
    "ns": ("_s", 1e-9),
    "samples/s": ("_per_s", 1),
    "/s": ("_per_s", 1),
    "samples / s": ("_per_s", 1),
    "%": ("_frac", 0.01),
    "j/sample": ("joules_per_sample", 1),
    "j": ("_j", 1),
}


@dataclass(frozen=True, slots=True)
class Printed:
    """A number that somebody read in a report.

    Attributes:
        digits: As it was read, without sign, separators and unit.
        negative: Its sign: None where none was written.
        value: In the base unit of its kind, without its sign.
        reach: Half of its last digit, in the same unit.
        kind: The ending of the columns that it may stand in; empty where no unit was written.
        factor: One of its unit, in the base unit.
    """

    digits: str
    negative: bool | None
    value: float
    reach: float
    kind: str
    factor: float

    def is_shown_by(self, column: str, value: Any) -> bool:
        """Whether `value` in `column` prints as this number, or is it to the digits that were read."""
        kind = kind_of(column)
        if not kind or (self.kind and self.kind != kind) or not isinstance(value, int | float) or math.isnan(value):
            return False
        if self.negative is not None and self.negative != (value < 0):
            return False
        size = abs(float(value))
        if abs(size - self.value) <= self.reach * (1 + 1e-9):
            return True
        shown = parse_printed(_shown(kind, size))
        return shown is not None and shown.digits == self.digits and (not self.kind or shown.factor == self.factor)


def parse_printed(text: str) -> Printed | None:
    """Read `12,300 samples/s`, `244 MiB`, `-12.3 %` or `0.00131`; None where it is no number."""
    match = _NUMBER.fullmatch(text.strip().replace("\u2212", "-"))
    if match is None or not (match[2] or match[3]):
        return None
    unit = (match[5] or "").strip().casefold().replace("\u03bc", "µ")
    if unit and unit not in _UNITS:
        return None
    kind, factor = _UNITS.get(unit, ("", 1))
    digits = f"{(match[2] or '0').replace(',', '')}{match[3] or ''}"
    power = int(match[4][1:]) if match[4] else 0
    reach = 0.5 * 10.0 ** (power - (len(match[3]) - 1 if match[3] else 0)) * factor
    negative = None if not match[1] else match[1] == "-"
    return Printed(digits, negative, float(digits) * 10.0**power * factor, reach, kind, float(factor))


def kind_of(column: str) -> str:
    """The ending that says a column's unit; empty for columns that reports do not print as measurements."""
    base = column.removesuffix("_low").removesuffix("_high")
    if base.endswith("_relative_error"):
        return "_frac"
    return next(
        (kind for kind in ("joules_per_sample", "_bytes", "_per_s", "_frac", "_j", "_s") if base.endswith(kind)), ""
    )


def _shown(kind: str, size: float) -> str:
    match kind:
        case "_bytes":
            return format_bytes(size)
        case "_per_s":
            return format_rate(size, "samples")
        case "_s":
            return format_seconds(size)
        case "_frac":
            return format_frac(size).removeprefix("+")
        case _:
            return f"{size:.3g}"
