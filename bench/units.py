"""Parsing and printing of bytes, seconds and rates; everywhere else numbers are plain integers and floats.

Binary units throughout, as torch and `nvidia-smi` use them: 1 KiB = 1024 B. The founding documents' `KB` is 1024 B too.
"""

from __future__ import annotations

import math
import re

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_BYTE_FACTORS = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SECOND_FACTORS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "m": 60.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*")

MISSING = "–"


def parse_bytes(text: str) -> int:
    """Read `512 MiB`, `2GB`, `1.5g` or `4096` as bytes; every unit is a power of 1024.

    Raises:
        ValueError: The text is not a valid size.
    """
    match = _QUANTITY.fullmatch(text)
    unit = match[2].lower() if match else ""
    short = re.sub(r"(i?b)$", "", unit) if unit != "b" else "b"
    if not match or short not in _BYTE_FACTORS:
        raise ValueError(f'invalid memory size "{text}": expected something like 512 MiB, 2 GiB or 4096')
    return round(float(match[1]) * _BYTE_FACTORS[short])


def parse_seconds(text: str) -> float:
    """Read `90`, `90 s`, `2 min`, `250ms` or `1h` as seconds.

    Raises:
        ValueError: The text is not a valid duration.
    """
    match = _QUANTITY.fullmatch(text)
    if not match or match[2].lower() not in _SECOND_FACTORS:
        raise ValueError(f'invalid duration "{text}": expected something like 90 s, 2 min or 250 ms')
    return float(match[1]) * _SECOND_FACTORS[match[2].lower()]


def format_bytes(count: float | None) -> str:
    """Bytes with three significant digits and a binary unit: `1.50 GiB`; unknown prints as a dash."""
    if count is None or math.isnan(count):
        return MISSING
    size = float(abs(count))
    sign = "-" if count < 0 else ""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor * 0.9995:
            return f"{sign}{_three_digits(size / factor)} {unit}"
    return f"{sign}{size:.0f} B"


def exact_bytes(count: int) -> str:
    """Bytes without rounding, in a unit where that is short: `24 GiB`, `23.5 GiB`, `300 MiB`, `25,250,627,584 B`."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB)):
        text = f"{count / factor:.6g}"
        if float(text) * factor == count:
            return f"{text} {unit}"
    return f"{count:,} B"


def format_seconds(seconds: float | None) -> str:
    """Seconds with three significant digits in a suitable unit: `12.3 ms`, `4.10 s`; unknown prints as a dash."""
    if seconds is None or math.isnan(seconds):
        return MISSING
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= factor * 0.9995:
            return f"{_three_digits(seconds / factor)} {unit}"
    return "0 s" if seconds == 0 else f"{_three_digits(seconds / 1e-9)} ns"


def format_duration(seconds: float) -> str:
    """A length of wall time: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_span(seconds: float) -> str:
    """A length of time however short: `12.3 ms`, `4.10 s`, `3 min 05 s`."""
    return format_seconds(seconds) if seconds < 59.5 else format_duration(seconds)


def format_rate(per_second: float | None, what: str = "") -> str:
    """A rate with three significant digits and thousands separated: `12,300 samples/s`; unknown prints as a dash."""
    if per_second is None or math.isnan(per_second):
        return MISSING
    return f"{_three_digits(per_second)}{f' {what}/s' if what else ''}"


def format_flop(flop: float | None) -> str:
    """Multiplications and additions with three significant digits: `12.3 GFLOP`; unknown prints as a dash.

    A rate is the same with `/s` behind it.
    """
    if flop is None or math.isnan(flop):
        return MISSING
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if flop >= factor * 0.9995:
            return f"{_three_digits(flop / factor)} {prefix}FLOP"
    return f"{_three_digits(flop)} FLOP"


def format_count(count: float | None) -> str:
    """A whole number with thousands separated; unknown prints as a dash."""
    return MISSING if count is None or math.isnan(count) else f"{round(count):,}"


def format_frac(frac: float | None, digits: int = 1) -> str:
    """A signed fraction as a percentage: `+3.2 %`; unknown prints as a dash."""
    return MISSING if frac is None or math.isnan(frac) else f"{frac * 100:+.{digits}f} %"


def format_energy(joules: float | None) -> str:
    """Energy with three significant digits: `12.0 J`, `45.0 Wh`, `1.20 kWh`; unknown prints as a dash."""
    if joules is None or math.isnan(joules):
        return MISSING
    for unit, factor in (("kWh", 3.6e6), ("Wh", 3.6e3)):
        if abs(joules) >= factor * 0.9995:
            return f"{_three_digits(joules / factor)} {unit}"
    return f"{_three_digits(joules)} J" if abs(joules) >= 0.1 else f"{joules:.3g} J"


def format_money(amount: float | None) -> str:
    """An amount in whatever currency: `12.40`, or three significant digits below 10: `0.113`; unknown is a dash."""
    if amount is None or math.isnan(amount):
        return MISSING
    return f"{amount:,.2f}" if abs(amount) >= 9.995 or amount == 0 else f"{amount:#.3g}"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun: `1 case`, `1,200 cases`, `3 processes`.

    Args:
        count: How many.
        singular: The noun for one.
        plural: The noun for any other number; `singular` with `s`, or with `es` after an `s`, unless given.
    """
    noun = singular if count == 1 else plural or f"{singular}{'es' if singular.endswith('s') else 's'}"
    return f"{count:,} {noun}"


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 1e15:  # no number of this world; digits without end would fill a page
        return f"{value:.3g}"
    if size >= 1000:
        rounded = round(value, 2 - math.floor(math.log10(size)))
        return f"{rounded:,.0f}"
    return f"{value:.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
