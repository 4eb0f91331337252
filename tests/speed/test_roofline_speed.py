"""How long the roofline takes: a first case well within three seconds, each further batch size within milliseconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.devices import load_device
from bench.estimators.roofline import columns, estimate_speed
from bench.records import Case, Choice

CASE = Case(Choice("imagenet"), Choice("resnet50"), Choice("adam"), 64, "bf16")
GRID = [
    Case(Choice("cifar10"), Choice(model), Choice(optimizer), 8 * batch)
    for model in ("mlp", "resnet18", "mobilenet_v2", "efficientnet_b0")
    for optimizer in ("sgd", "sgd_momentum", "adam", "adamw", "rmsprop")
    for batch in range(1, 21)
]


def forget() -> None:
    for cached in (columns._affine, columns._single, columns.optimizer_columns):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def own_recordings() -> None:
    forget()


def test_first_case_of_a_model(benchmark: Any) -> None:
    device = load_device("h200")
    benchmark.pedantic(estimate_speed, (CASE, device), setup=forget, rounds=3, warmup_rounds=1)
    assert benchmark.disabled or benchmark.stats.stats.median < 3.0


def test_further_batch_size(benchmark: Any) -> None:
    device = load_device("h200")
    estimate_speed(CASE, device)
    benchmark(lambda: estimate_speed(replace(CASE, batch_size=96), device))
    assert benchmark.disabled or benchmark.stats.stats.median < 0.05


def test_four_hundred_cases_of_a_grid(benchmark: Any) -> None:
    device = load_device("h200")
    found = benchmark.pedantic(lambda: [estimate_speed(case, device) for case in GRID], setup=forget, rounds=1)
    assert len(found) == 400
    assert benchmark.disabled or benchmark.stats.stats.median < 24.0
