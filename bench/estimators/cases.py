"""Every estimator on a list of cases: what a row of the store holds beside its measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.errors import BenchError
from bench.estimators.formula import estimate_formula
from bench.records import Case, Estimate


def estimate_cases(cases: Sequence[Case], device: str) -> Iterator[Estimate]:
    """Estimates one by one in the order of `cases`; one that is refused has nulls and the reason in its note.

    Args:
        cases: Any number; models are built once each, on the meta device.
        device: The device file's name that the estimates are for.
    """
    yield from (_estimate(case, device) for case in cases)


def _estimate(case: Case, device: str) -> Estimate:
    try:
        return replace(Estimate(case_key=case.key, estimate_device=device), **estimate_formula(case))  # type: ignore[arg-type]
    except BenchError as error:
        return Estimate(case_key=case.key, estimate_device=device, estimate_note=str(error))
