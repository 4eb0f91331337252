"""Numbers as a person reads them in a report, found again among columns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.units import format_bytes, format_frac, format_rate, format_seconds


@pytest.mark.parametrize(
    ("text", "column", "value", "shown"),
    [
        ("12,300", "samples_per_s", 12_345.6, True),
        ("12,300 samples/s", "samples_per_s_low", 12_345.6, True),
        ("12345.6", "samples_per_s", 12_345.6, True),
        ("12,346", "samples_per_s", 12_345.6, True),
        ("12,347", "samples_per_s", 12_345.6, False),
        ("12,300", "peak_allocated_bytes", 12_345, False),
        ("244.5 MiB", "peak_allocated_bytes", 256_376_832, True),
        ("244 MiB", "peak_allocated_bytes", 256_376_832, True),
        ("245 MiB", "peak_allocated_bytes", 256_376_832, True),
        ("243 MiB", "peak_allocated_bytes", 256_376_832, False),
        ("244 KiB", "peak_allocated_bytes", 256_376_832, False),
        ("244 MiB", "samples_per_s", 256_376_832, False),
        ("1.31 ms", "step_p50_s", 0.0013149, True),
        ("1.31 ms", "step_p50_s", 0.00132, False),
        ("-12.3 %", "formula_relative_error", -0.1234, True),
        ("12.3 %", "formula_relative_error", -0.1234, True),
        ("+12.3 %", "formula_relative_error", -0.1234, False),
        ("1.2e4", "samples_per_s", 12_400, True),
        ("1.2e4", "samples_per_s", 12_600, False),
        ("12,300", "batch_size", 12_300, False),
        ("12,300", "samples_per_s", math.nan, False),
        ("12,300", "samples_per_s", None, False),
    ],
)
def test_a_number_is_found_in_the_columns_of_its_unit_to_the_digits_read(text, column, value, shown):
    from bench.report.tracing import parse_printed

    wanted = parse_printed(text)
    assert wanted is not None
    assert wanted.is_shown_by(column, value) is shown


@pytest.mark.parametrize(
    "text", ["", "resnet18 batch 64", "–", "12,300 apples", "1,23", "0x10", "--", "nan", "1" * 5000, "," * 5000, "mlp"]
)
def test_what_is_no_number_is_none(text):
    from bench.report.tracing import parse_printed

    assert parse_printed(text) is None


def test_kinds_follow_from_the_column_s_name():
    from bench.report.tracing import kind_of

    assert [
        kind_of(name) for name in ("samples_per_s_high", "step_p50_s", "batch_size", "case_key", "trace_relative_error")
    ] == ["_per_s", "_s", "", "", "_frac"]


@given(st.floats(1e-9, 1e12))
def test_whatever_is_printed_is_found_again(value):
    from bench.report.tracing import parse_printed

    for column, text in {
        "samples_per_s": format_rate(value, "samples"),
        "step_p50_s": format_seconds(value),
        "peak_allocated_bytes": format_bytes(value),
        "formula_relative_error": format_frac(value),
    }.items():
        wanted = parse_printed(text)
        assert wanted is not None, text
        assert wanted.is_shown_by(column, value), (column, text)
