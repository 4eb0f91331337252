"""How long the roofline takes on a recording that is there: milliseconds, for any batch size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.devices import load_device
from bench.estimators.kept import machine_of, recording_of
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.roofline import estimate_speed
from bench.records import Case, Choice

CASE = Case(Choice("imagenet"), Choice("resnet50"), Choice("adam"), 64, "bf16")


def test_further_batch_size(benchmark: Any) -> None:
    device = load_device("h200")
    machine, batches = machine_of(device, settings_in_force()), iter(range(64, 100_000))

    def further() -> None:
        case = replace(CASE, batch_size=next(batches))
        estimate_speed(recording_of(case, machine, shared=True), case, device)

    benchmark.pedantic(further, rounds=20, warmup_rounds=1)
