from __future__ import annotations

import math

import pytest

from bench import units


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("512 MiB", 512 << 20),
        ("2GB", 2 << 30),
        ("1.5g", 3 << 29),
        ("1 KB", 1024),
        ("7 B", 7),
        ("1TiB", 1 << 40),
    ],
)
def test_amounts_of_memory_are_read_in_powers_of_1024(text: str, count: int) -> None:
    assert units.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "lots", "-3", "3 XB", "1 2", "nan", "inf MiB"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'^invalid memory size ".*": expected something like 512 MiB, 2 GiB or 4096$'):
        units.parse_bytes(text)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90 s", 90), ("2 min", 120), ("250ms", 0.25), ("1h", 3600)])
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert units.parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "nan", "-1 s", "3 fortnights"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'^invalid duration ".*": expected something like 90 s, 2 min or 250 ms$'):
        units.parse_seconds(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (407_080, "398 KiB"),
        (1 << 20, "1.00 MiB"),
        (1_048_575, "1.00 MiB"),
        (150_754_820_096, "140 GiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes_print_with_three_digits(count: float | None, text: str) -> None:
    assert units.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0 s"), (4.1, "4.10 s"), (0.0123, "12.3 ms"), (4.2e-5, "42.0 µs"), (3e-9, "3.00 ns")],
)
def test_seconds_print_in_the_unit_that_suits(seconds: float | None, text: str) -> None:
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.4, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (59.7, "1 min 00 s")]
)
def test_durations_print_for_people(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


def test_rates_print_with_thousands_separated() -> None:
    assert units.format_rate(12_345.6, "samples") == "12,300 samples/s"
    assert units.format_rate(None, "samples") == "–"


def test_fractions_print_signed() -> None:
    assert units.format_frac(0.0316) == "+3.2 %"
    assert units.format_frac(-0.5, 0) == "-50 %"
    flop = (None, 0, 12_345, 999.6e6, 3.11e12, 2.5e15)
    assert [units.format_flop(value) for value in flop] == [
        *(units.MISSING, "0.00 FLOP", "12,300 FLOP", "1.00 GFLOP", "3.11 TFLOP", "2.50 PFLOP")
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "case"), "1 case"),
        ((0, "case"), "0 cases"),
        ((1200, "run"), "1,200 runs"),
        ((2, "process"), "2 processes"),
        ((1, "part of estimates", "parts of estimates"), "1 part of estimates"),
        ((3, "part of estimates", "parts of estimates"), "3 parts of estimates"),
    ],
)
def test_a_count_agrees_with_its_noun(arguments: tuple[int, str], text: str) -> None:
    assert units.counted(*arguments) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (24 << 30, "24 GiB"),
        (47 << 29, "23.5 GiB"),
        (300 << 20, "300 MiB"),
        ((24 << 30) + 1, "25,769,803,777 B"),
        (150_110_011_392, "150,110,011,392 B"),
    ],
)
def test_exact_bytes_lose_nothing(count: int, text: str) -> None:
    assert units.exact_bytes(count) == text


@pytest.mark.parametrize(
    ("joules", "text"),
    [(0.0123, "0.0123 J"), (12, "12.0 J"), (3600, "1.00 Wh"), (162_000, "45.0 Wh"), (4.32e6, "1.20 kWh"), (None, "–")],
)
def test_energy_prints_in_the_unit_that_suits(joules: float | None, text: str) -> None:
    assert units.format_energy(joules) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "0.00"), (0.1128, "0.113"), (3.4, "3.40"), (12.4, "12.40"), (1234.5, "1,234.50"), (None, "–")],
)
def test_money_prints_with_two_decimals_or_three_digits(amount: float | None, text: str) -> None:
    assert units.format_money(amount) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12.3 ms"), (59.0, "59.0 s"), (59.9, "1 min 00 s")])
def test_a_span_prints_however_short(seconds: float, text: str) -> None:
    assert units.format_span(seconds) == text
