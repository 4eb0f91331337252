"""Every estimator on a list of cases: what a row of the store holds beside its measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.devices import Device, load_device
from bench.errors import BenchError
from bench.estimators.formula import estimate_formula
from bench.estimators.memory import estimate_trace
from bench.estimators.roofline import estimate_speed
from bench.plan import image_spec
from bench.records import Case, Estimate, ImageSpec

SHARED_FROM = 2
"""Batch sizes of one column from which two recordings for all of them are cheaper than one for each."""


def estimate_cases(cases: Sequence[Case], device: str) -> Iterator[Estimate]:
    """Estimates one by one in the order of `cases`; one that is refused has nulls and the reason in its note.

    Args:
        cases: Any number; models are built without memory.
        device: The name of a device file, or the path of one. On a CPU, and on a GPU that no file describes, only the
            formula speaks.
    """
    known: Device | None = None
    notes: list[str] = []
    try:
        known = load_device(device)
    except BenchError as error:
        notes.append(str(error))
    columns = Counter(_column_key(case) for case in cases)
    for case in cases:
        yield _estimate(case, device, known, notes, shared=columns[_column_key(case)] > SHARED_FROM)


def _column_key(case: Case) -> Case:
    """What cases share that differ in nothing but the batch size and the data path."""
    return replace(case, batch_size=1, input="synthetic")


def _estimate(case: Case, name: str, device: Device | None, notes: Sequence[str], *, shared: bool) -> Estimate:
    said = list(notes)
    fields: dict[str, Any] = {}

    def ask(estimator: Callable[[], dict[str, Any]]) -> None:
        try:
            fields.update(estimator())
        except BenchError as error:
            said.append(str(error))

    try:
        images = image_spec(case.dataset, case.image_size)
    except BenchError as error:
        return Estimate(case_key=case.key, estimate_device=name, estimate_note=str(error))
    ask(lambda: estimate_formula(case, images))
    if device is not None and device.kind == "cuda":
        ask(lambda: estimate_trace(case, device, shared=shared))
        ask(lambda: _speed(case, device, images))
    blank = Estimate(case_key=case.key, estimate_device=name)
    return replace(blank, estimate_note="; ".join(dict.fromkeys(said)) or None, **fields)


def _speed(case: Case, device: Device, images: ImageSpec) -> dict[str, float]:
    speed = estimate_speed(case, device, images)
    return {"estimated_step_time_s": speed.step_time_s, "estimated_samples_per_s": speed.samples_per_s}
