"""Every estimator on a list of cases: what a row of the store holds beside its measurement."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from bench.devices import Device, load_device
from bench.errors import BenchError
from bench.estimators.collector import collector_off
from bench.estimators.formula import estimate_formula
from bench.estimators.memory import cudnn_plans, estimate_trace
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.roofline import estimate_speed
from bench.plan import image_spec
from bench.records import Case, Estimate, ImageSpec

SHARED_FROM = 3
"""Batch sizes of one column from which two recordings for all of them are cheaper than one for each."""


PARALLEL_FROM = 40
"""Cases from which a second process earns what it costs."""


def estimate_in_parallel(
    cases: Sequence[Case], device: str, *, workers: int, workspaces: bool = True
) -> Iterator[Estimate]:
    """Estimates in an order of their own, from forks of this process: those of one model come together.

    Where a fork dies, this process goes on alone with what is missing.

    Args:
        cases: As for `estimate_cases`.
        device: As for `estimate_cases`.
        workers: How many forks; with one, or with few cases, there are none.
        workspaces: As for `estimate_cases`.
    """
    missing = {case.key: case for case in cases}
    groups = _groups(cases)
    if min(workers, len(groups)) > 1 and len(cases) >= PARALLEL_FROM:
        context = multiprocessing.get_context("fork")
        with contextlib.suppress(BrokenProcessPool), ProcessPoolExecutor(workers, context) as pool:
            for made in as_completed([pool.submit(_estimate_group, group, device, workspaces) for group in groups]):
                for estimate in made.result():
                    del missing[estimate.case_key]
                    yield estimate
    yield from estimate_cases(list(missing.values()), device, workspaces=workspaces)


def _groups(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases whose convolutions are alike, so that cuDNN is asked once; the largest groups first."""
    groups: dict[tuple[object, ...], list[Case]] = {}
    for case in cases:
        name = (case.model, case.dataset, case.image_size, case.precision, case.memory_format)
        groups.setdefault(name, []).append(case)
    return sorted(groups.values(), key=len, reverse=True)


def _estimate_group(cases: Sequence[Case], device: str, workspaces: bool) -> list[Estimate]:
    return list(estimate_cases(cases, device, workspaces=workspaces))


def estimate_cases(cases: Sequence[Case], device: str, *, workspaces: bool = True) -> Iterator[Estimate]:
    """Estimates one by one in the order of `cases`; one that is refused has nulls and the reason in its note.

    Args:
        cases: Any number; models are built without memory.
        device: The name of a device file, or the path of one. On a CPU, and on a GPU that no file describes, only the
            formula speaks.
        workspaces: Whether the trace counts cuDNN's workspaces.
    """
    known: Device | None = None
    notes: list[str] = []
    try:
        known = load_device(device)
    except BenchError as error:
        notes.append(str(error))
    if known is not None and known.kind == "cuda" and workspaces:
        plans = cudnn_plans(known)
        notes += [plans] if isinstance(plans, str) else []
    if known is not None and known.kind == "cuda" and known.memory_bytes is None:
        notes += filter(None, [settings_in_force().unknown_total(known.name)])
    columns = Counter(_column_key(case) for case in cases)
    for case in cases:
        shared = columns[_column_key(case)] >= SHARED_FROM
        with collector_off():
            estimate = _estimate(case, device, known, notes, shared=shared, workspaces=workspaces)
        yield estimate


def _column_key(case: Case) -> Case:
    """What cases share that differ in nothing but the batch size and the data path."""
    return replace(case, batch_size=1, input="synthetic")


def _estimate(
    case: Case, name: str, device: Device | None, notes: Sequence[str], *, shared: bool, workspaces: bool
) -> Estimate:
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
        ask(lambda: estimate_trace(case, device, shared=shared, workspaces=workspaces))
        ask(lambda: _speed(case, device, images))
    blank = Estimate(case_key=case.key, estimate_device=name)
    return replace(blank, estimate_note="; ".join(dict.fromkeys(said)) or None, **fields)


def _speed(case: Case, device: Device, images: ImageSpec) -> dict[str, Any]:
    speed = estimate_speed(case, device, images)
    return {
        "estimated_step_time_s": speed.step_time_s,
        "estimated_samples_per_s": speed.samples_per_s,
        "estimated_speed_basis": speed.basis,
    }
