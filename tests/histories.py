"""Results of several days, made up: folders whose runs began a day apart, or took turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.records import Case, Environment, Measurement
from tests.results import GPU, make_cases, make_results

CASES = make_cases(datasets=["mnist"], optimizers=("sgd",), batch_sizes=(64, 256))
BEGIN_S, DAY_S = 1.75e9, 86_400.0


def make_days(
    folder: Path,
    factors: Sequence[float],
    *,
    cases: Sequence[Case] = CASES,
    repeats: int = 3,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
    environment: Environment = GPU,
    in_turn: bool = False,
    memory: Sequence[float] | None = None,
    **settings: Any,
) -> list[Path]:
    """Write a results folder `day-00`, `day-01`, ... for each factor of throughput.

    Args:
        folder: Where they go.
        factors: Of the throughput of all cases, by day.
        cases: What runs.
        repeats: Processes of each case and day.
        changes: By day, what is different in its environment and in all later ones.
        environment: Of the first day.
        in_turn: Whether the days are not days but take turns, a process each.
        memory: Factors of the peak of memory; 1 unless given.
        **settings: Further arguments of `make_results`.
    """
    made = []
    for day, factor in enumerate(factors):
        environment = dataclasses.replace(environment, **(changes or {}).get(day, {}))
        larger = memory[day] if memory else 1.0

        def change(
            measured: Measurement,
            case: Case,
            repeat: int,
            day: int = day,
            factor: float = factor,
            larger: float = larger,
        ) -> Measurement:
            begun = (repeat * 1000 + day * 10) if in_turn else day * DAY_S + repeat * 10
            measured = dataclasses.replace(measured, started_unix_s=BEGIN_S + begun)
            if measured.wall_window_s is None:
                return measured
            return dataclasses.replace(
                measured,
                wall_window_s=measured.wall_window_s / factor,
                step_times_s=tuple(value / factor for value in measured.step_times_s),
                peak_allocated_bytes=round(measured.peak_allocated_bytes * larger),
            )

        place = folder / f"day-{day:02d}"
        made.append(
            make_results(
                place, cases, environment=environment, repeats=repeats, seed=100 + day, change=change, **settings
            )
        )
    return made
