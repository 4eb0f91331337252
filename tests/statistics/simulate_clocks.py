"""Made-up comparisons at known clocks: how often the word on clocks beside a verdict is wrong, and how often it is had.

`python -m tests.statistics.simulate_clocks` prints the table of docs/statistics.md. All of it follows from seeds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from bench.comparison.clocks import ClockRole, explain
from bench.stats import judge_ratios
from tests.statistics.simulate import percent

BETWEEN = 0.004
"""Processes differ by so much at one clock: a fraction of their time."""

STEP_HZ, BASE_HZ = 15e6, 1.98e9
"""Clocks move in steps; each process is up to one step off its side's, and its two readings are of the same step."""


@dataclass(frozen=True)
class Truth:
    """What is true of a candidate.

    Attributes:
        name: In words.
        clock: Of its clock over the baseline's.
        follows: How far its time follows the clock: 1 where the multiprocessors limit it, 0 where memory does.
        work: Of the work of its code over the baseline's, in time at one clock.
    """

    name: str
    clock: float = 1.0
    follows: float = 1.0
    work: float = 1.0


TRUTHS = (
    Truth("nothing differs"),
    Truth("clocks 6 % lower, time follows them", clock=0.94),
    Truth("clocks 6 % lower, time follows half", clock=0.94, follows=0.5),
    Truth("clocks 6 % lower, memory limits", clock=0.94, follows=0.0),
    Truth("5 % more work", work=1.05),
    Truth("5 % more work, memory limits", follows=0.0, work=1.05),
    Truth("5 % more work, clocks 6 % lower, time follows them", clock=0.94, work=1.05),
    Truth("5 % more work, clocks 5 % higher, time follows them", clock=1.05, work=1.05),
)
SIZES = ((5, 1), (5, 12), (10, 50))
"""Processes a side, and cases of a comparison."""


@dataclass(frozen=True)
class ClockRates:
    """Shares of cases over many comparisons, and of comparisons.

    Attributes:
        roles: Cases by the role of clocks in them.
        cycles_called: Comparisons in which the cycles of any case were called different.
        cannot_explain: Comparisons in which of any case clocks were said not to explain it.
    """

    roles: dict[ClockRole, float]
    cycles_called: float
    cannot_explain: float


def explain_many(truth: Truth, n: int, cases: int, comparisons: int, seed: int = 1) -> ClockRates:
    """Judge many comparisons of which the truth is known, in seconds and in cycles.

    Args:
        truth: Of the candidate, in every case.
        n: Processes a side.
        cases: Cases a comparison.
        comparisons: How many.
        seed: Of all of it.
    """
    random = np.random.default_rng(seed)
    found, called, cannot = Counter[ClockRole](), 0, 0
    for _ in range(comparisons):
        hz = np.array([BASE_HZ, BASE_HZ * truth.clock])[:, None, None]
        hz = hz + STEP_HZ * random.integers(-1, 2, (2, cases, n))
        seconds = np.exp(random.normal(0, BETWEEN, (2, cases, n))) * (hz / BASE_HZ) ** -truth.follows
        seconds[1] *= truth.work
        in_seconds = judge_ratios(*(1 / seconds), higher_is_better=True)
        in_cycles = judge_ratios(*(seconds * hz), higher_is_better=False)
        told = [
            ClockRole(explain(one, two, higher_is_better=True)["clocks"])
            for one, two in zip(in_seconds, in_cycles, strict=True)
        ]
        found.update(told)
        called += any(item.verdict in ("faster", "slower") for item in in_cycles)
        cannot += ClockRole.CANNOT_EXPLAIN in told
    shares = {role: found[role] / comparisons / cases for role in ClockRole}
    return ClockRates(shares, called / comparisons, cannot / comparisons)


def clock_row(truth: Truth, n: int, cases: int) -> str:
    """A row of the table."""
    found = explain_many(truth, n, cases, 1000 if cases < 50 else 200)
    roles = ", ".join(
        f"{role.replace('_', ' ')} {percent(share)}"
        for role, share in sorted(found.roles.items(), key=lambda item: -item[1])[:2]
        if share
    )
    return (
        f"| {truth.name} | {n} | {cases} | {percent(found.cycles_called)} | {percent(found.cannot_explain)} | {roles} |"
    )


def main() -> None:
    """Print the table as Markdown."""
    print(
        "| truth | n | cases | any case called different in cycles | any case: clocks cannot explain it | of all cases |"
    )
    print("|---" * 6 + "|")
    for truth in TRUTHS:
        for n, cases in SIZES:
            print(clock_row(truth, n, cases), flush=True)


if __name__ == "__main__":
    main()
