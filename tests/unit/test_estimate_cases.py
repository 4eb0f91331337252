"""Estimates of many cases: the same from forks as from one process, and from a column as one by one."""

from __future__ import annotations

from dataclasses import replace

from bench.catalog import parse_choice
from bench.estimators import cases as estimating
from bench.records import Case

CASES = [
    Case(
        parse_choice("dataset", "mnist"),
        parse_choice("model", f"mlp:hidden={width}"),
        parse_choice("optimizer", name),
        batch,
    )
    for width in (8, 16)
    for name in ("sgd", "adam")
    for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
]


def test_forks_say_what_one_process_says() -> None:
    alone = list(estimating.estimate_cases(CASES, "h200"))
    together = [made for made, lost in estimating.estimate_apart(CASES, "h200", workers=2, timeout_s=120) if not lost]
    assert sorted(alone, key=lambda found: found.case_key) == sorted(together, key=lambda found: found.case_key)
    assert [found.case_key for found in alone] == [case.key for case in CASES]
    assert all(found.trace_peak_allocated_bytes and found.estimated_samples_per_s for found in alone)
    assert all(found.estimated_speed_basis for found in alone)


def test_a_column_serves_its_batches_as_recordings_of_their_own_do() -> None:
    shared = list(estimating.estimate_cases(CASES, "h200"))
    for case, found in list(zip(CASES, shared, strict=True))[2::7]:
        (alone,) = estimating.estimate_cases([case], "h200")
        assert alone == found


def test_arithmetic_is_counted_where_the_device_has_no_peak_for_it() -> None:
    bf16 = replace(CASES[5], precision="bf16")
    (on_t4,), (on_h200,) = estimating.estimate_cases([bf16], "t4"), estimating.estimate_cases([bf16], "h200")
    assert (on_t4.peak_flop_per_s, on_t4.least_step_time_s, on_t4.estimated_step_time_s) == (None, None, None)
    assert "peak_bf16_flop_per_s is unknown" in (on_t4.estimate_note or "")
    assert on_h200.peak_flop_per_s == 9.89e14
    assert 0 < (on_h200.least_step_time_s or 0) < (on_h200.estimated_step_time_s or 0)
    assert on_t4.step_flop == on_h200.step_flop == 2 * 32 * (2 * 784 + 3 * 10) * 8  # no gradient of the images


def test_a_cpu_has_no_peak_and_no_count() -> None:
    (found,) = estimating.estimate_cases(CASES[:1], "cpu")
    assert (found.step_flop, found.peak_flop_per_s, found.least_step_time_s) == (None, None, None)


def test_what_cannot_be_trained_is_refused_in_words() -> None:
    case = Case(
        parse_choice("dataset", "cifar10"), parse_choice("model", "resnet18"), parse_choice("optimizer", "sgd"), 1
    )
    (found,) = estimating.estimate_cases([replace(case, image_size=32)], "h200")
    assert found.trace_peak_allocated_bytes is None
    assert (
        found.estimate_note is not None
        and "Expected more than 1 value per channel when training" in found.estimate_note
    )
