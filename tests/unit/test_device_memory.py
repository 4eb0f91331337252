"""What the driver will show: the context's interval, where it comes from, and the verdict on it."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from bench.devices import load_device, parse_device_toml, render_device_toml
from bench.devices.context import ELSEWHERE_BASIS, MEASURED_ELSEWHERE, Context, context_of
from bench.errors import ConfigError
from bench.estimators.memory_settings import device_interval, judge_fit

GIB = 1 << 30
H200 = load_device("h200")


def test_an_unmeasured_context_is_the_median_and_range_of_other_gpus() -> None:
    found = [gpu.context_bytes for gpu in MEASURED_ELSEWHERE]
    context = context_of(H200)
    assert (context.low_bytes, context.high_bytes) == (min(found), max(found))
    assert context.point_bytes == statistics.median(found)
    assert context.basis == ELSEWHERE_BASIS == f"context taken from {len(found)} GPUs measured elsewhere"


def test_a_measured_context_is_taken_with_the_spread_that_its_file_states() -> None:
    measured = dataclasses.replace(H200, context_bytes=500, context_low_bytes=450, context_high_bytes=600)
    assert device_interval(1000, measured) == {
        "estimated_device_bytes": 1500,
        "estimated_device_low_bytes": 1450,
        "estimated_device_high_bytes": 1600,
        "estimated_device_basis": "context measured on this GPU",
    }


def test_a_spread_that_is_not_known_is_null_and_said() -> None:
    found = device_interval(1000, dataclasses.replace(H200, context_bytes=500))
    assert (found["estimated_device_low_bytes"], found["estimated_device_high_bytes"]) == (None, None)
    assert (found["estimated_device_bytes"], found["estimated_device_basis"]) == (
        1500,
        "context measured on this GPU, its spread unknown",
    )


def test_a_cpu_has_no_context() -> None:
    with pytest.raises(ValueError, match="cpu has no CUDA context"):
        device_interval(1000, load_device("cpu"))


@pytest.mark.parametrize(
    ("room", "ends", "verdict"),
    [
        (30, (10, 30), "fits"),
        (29, (10, 30), "may not fit"),
        (20, (10, 30), "may not fit"),
        (19, (10, 30), "may not fit"),
        (9, (10, 30), "does not fit"),
        (20, (None, None), "fits"),
        (19, (None, None), "does not fit"),
    ],
)
def test_the_verdict_is_open_where_the_interval_lies_across_the_limit(
    room: int, ends: tuple[int | None, int | None], verdict: str
) -> None:
    assert judge_fit(lambda taken: taken <= room, Context(20, *ends, "made up")) == verdict


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"context_bytes": 5, "context_low_bytes": 4}, "context_low_bytes: needs context_bytes and both ends"),
        ({"context_low_bytes": 4, "context_high_bytes": 6}, "context_low_bytes: needs context_bytes and both ends"),
        (
            {"context_bytes": 7, "context_low_bytes": 4, "context_high_bytes": 6},
            "must lie between its low and its high",
        ),
    ],
)
def test_a_device_file_with_half_an_interval_is_refused(values: dict[str, int], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render_device_toml({"gpu_name": "A", "kind": "cuda", **values}, dict.fromkeys(values, "a test"))
    assert fault in str(caught.value)


def test_a_device_file_states_its_context_with_its_interval() -> None:
    values = {"context_bytes": 5, "context_low_bytes": 4, "context_high_bytes": 6}
    text = render_device_toml({"gpu_name": "A", "kind": "cuda", **values}, dict.fromkeys(values, "a sweep's report"))
    context = context_of(parse_device_toml("mine", text, "mine.toml"))
    assert (context.low_bytes, context.point_bytes, context.high_bytes) == (4, 5, 6)
