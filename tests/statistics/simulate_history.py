"""Made-up histories with a known truth: how often a change is seen where there is none, and how often one that is there.

`python -m tests.statistics.simulate_history` prints the tables of docs/history.md; all of it follows from seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.stats import LEAST_RESULTS, find_changes
from tests.statistics.simulate import NOISES, percent

BETWEEN = {"results vary as processes do": 0.0, "results vary by 0.5 % more": 0.005, "results vary by 2 % more": 0.02}
"""What results of different days add to the spread of processes, as a standard deviation."""
SIZES = ((3, 5, 12), (5, 3, 1), (5, 3, 12), (10, 3, 1), (10, 5, 12), (10, 3, 50), (30, 3, 12))
"""Results, processes of each, and cases of a history; fewer than five results are interleaved."""


@dataclass(frozen=True)
class HistoryRates:
    """Shares of many histories.

    Attributes:
        false: Histories with any change that is not planted.
        found: Planted changes that were found at their place.
        near: The same, one place off counted too.
    """

    false: float
    found: float
    near: float


def series(
    random: np.random.Generator, noise: str, results: int, processes: int, cases: int, between: float
) -> np.ndarray:
    """The logarithms of histories without a change, `(cases, results, processes)`; days differ case by case."""
    drawn = NOISES[noise](random, cases, results * processes)[0].reshape(cases, results, processes)
    return drawn + random.normal(0, 1, (cases, results, 1)) * between


def observe(
    noise: str,
    results: int,
    processes: int,
    cases: int,
    histories: int,
    *,
    between: float = 0.0,
    planted: dict[int, float] | None = None,
    seed: int = 1,
) -> HistoryRates:
    """Search many histories.

    Args:
        noise: Of the processes, a name of `NOISES`.
        results: Of each history.
        processes: Of each result.
        cases: Of each history.
        histories: How many.
        between: The standard deviation that each result adds to all of its processes, on logarithms.
        planted: By place, the change of the true level of the first case there, as a fraction.
        seed: Of all of it.
    """
    random = np.random.default_rng(seed)
    planted = planted or {}
    false = found = near = 0
    for _ in range(histories):
        logs = series(random, noise, results, processes, cases, between)
        for place, change in planted.items():
            logs[0, place:] += np.log1p(change)
        mixed = [results < LEAST_RESULTS] * cases
        changes = [[change.place for change in case] for case in find_changes(np.exp(logs).tolist(), interleaved=mixed)]
        false += any(changes[1:]) or any(all(abs(place - p) > 1 for p in planted) for place in changes[0])
        found += sum(place in changes[0] for place in planted)
        near += sum(any(abs(place - p) <= 1 for p in changes[0]) for place in planted)
    count = histories * max(len(planted), 1)
    return HistoryRates(false / histories, found / count, near / count)


def histories_for(cases: int) -> int:
    """Enough for a rate of 5 % to be known within 2 % (1.4 % with few cases)."""
    return 1000 if cases < 12 else 400 if cases < 50 else 200


PLANTED = (
    ("5 % at the newest of 3, interleaved, 12 cases", 3, 5, 12, 0.0, {2: -0.05}),
    ("5 % at the newest of 10", 10, 5, 1, 0.005, {9: -0.05}),
    ("5 % at the newest of 10, 12 cases", 10, 5, 12, 0.005, {9: -0.05}),
    ("5 % at the newest of 10, 50 cases", 10, 5, 50, 0.005, {9: -0.05}),
    ("2 % at the newest of 10, 12 cases", 10, 5, 12, 0.0, {9: -0.02}),
    ("2 % in the middle of 10, 12 cases", 10, 5, 12, 0.0, {5: -0.02}),
    ("2 % in the middle of 20, 12 cases", 20, 5, 12, 0.005, {10: -0.02}),
    ("5 % that returns, of 10, 12 cases", 10, 5, 12, 0.005, {4: -0.05, 7: 0.0526}),
    ("5 % two times, of 12, 12 cases", 12, 5, 12, 0.005, {4: -0.05, 8: -0.05}),
    ("0.5 % in the middle of 20", 20, 5, 1, 0.0, {10: -0.005}),
)
"""What, results, processes, cases, what results add, and the changes by their place."""


def false_cell(noise: str, between: str, results: int, processes: int, cases: int) -> str:
    """A cell of the table of false alarms; a dash where results are interleaved, to which days add nothing."""
    if results < LEAST_RESULTS and BETWEEN[between]:
        return "–"
    histories = histories_for(cases)
    return percent(observe(noise, results, processes, cases, histories, between=BETWEEN[between]).false)


def false_row(noise: str, between: str, sizes: Sequence[tuple[int, int, int]] = SIZES) -> str:
    """A row of that table."""
    return f"| {noise}; {between} | {' | '.join(false_cell(noise, between, *size) for size in sizes)} |"


def planted_row(name: str, *size: object) -> str:
    """A row of the table of changes that are there."""
    results, processes, cases, between, planted = size
    rates = observe("spread between = within", results, processes, cases, 100, between=between, planted=planted)
    return f"| {name} | {processes} | {between * 100:g} % | {percent(rates.found)} | {percent(rates.near)} | {percent(rates.false)} |"


def main() -> None:
    """Print both tables as Markdown."""
    heads = [f"{t}{' interleaved' * (t < LEAST_RESULTS)} results of {n}, {m} case{'s' * (m > 1)}" for t, n, m in SIZES]
    print(f"| noise | {' | '.join(heads)} |\n|{'---|' * (len(SIZES) + 1)}")
    for noise in NOISES:
        for between in BETWEEN if noise == "spread between = within" else list(BETWEEN)[:1]:
            print(false_row(noise, between), flush=True)
    print(
        "\n| planted | processes | results add | found at its place | or next to it | others found |\n|---|---|---|---|---|---|"
    )
    for row in PLANTED:
        print(planted_row(*row), flush=True)


if __name__ == "__main__":
    main()
