"""Made-up comparisons with a known truth: how often the verdicts are wrong, how often they find what is there.

`python -m tests.statistics.simulate` prints the tables of docs/statistics.md; `quick` in the tests runs a part of it. All of
it follows from seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.stats import judge_ratios

Random = np.random.Generator
Noise = Callable[[Random, int, int], tuple[np.ndarray, np.ndarray]]
"""From a generator, a number of cases and of processes to the log throughput of both sides, `(cases, processes)` each."""

WITHIN = 0.005
STEPS = 30


def spread(times: float) -> Noise:
    """Steps that vary by 0.5 %, and processes whose typical step varies by so many times as much."""

    def draw(random: Random, cases: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        typical = random.normal(0, times * WITHIN, (2, cases, n, 1))
        steps = np.exp(typical + random.normal(0, WITHIN, (2, cases, n, STEPS)))
        one, two = -np.log(steps.mean(axis=3))
        return one, two

    return draw


def drift(random: Random, cases: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A machine that slows by 1 % over the sweep, both sides interleaved at random."""
    one, two = spread(1)(random, cases, n)
    when = random.permuted(np.tile(np.linspace(0, 1, 2 * n), (cases, 1)), axis=1)
    return one - 0.01 * when[:, :n], two - 0.01 * when[:, n:]


def two_modes(share: float, of_cases: float = 1.0) -> Noise:
    """A share of the processes is 3 % faster than the others (clocks, memory layout), in a part of the cases."""

    def draw(random: Random, cases: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        one, two = spread(0.2)(random, cases, n)
        touched = np.arange(cases)[:, None] < of_cases * cases
        fast = [0.03 * (random.random((cases, n)) < share) * touched for _ in range(2)]
        return one + fast[0], two + fast[1]

    return draw


def heavy_tails(random: Random, cases: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Now and then a process that is far off: Student's t with 3 degrees of freedom, scaled to 0.5 %."""
    one, two = 0.005 * random.standard_t(3, (2, cases, n))
    return one, two


def stragglers(random: Random, cases: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Processes are only ever slowed down: log-normal delays of 1 % in the median."""
    one, two = -0.01 * random.lognormal(0, 1, (2, cases, n))
    return one, two


NOISES: dict[str, Noise] = {
    "spread between processes 0": spread(0),
    "spread between = within": spread(1),
    "spread between = 2 x within": spread(2),
    "drift of 1 %, interleaved": drift,
    "two modes, even": two_modes(0.5),
    "two modes, one in five": two_modes(0.2),
    "two modes in a fifth of the cases": two_modes(0.5, 0.2),
    "heavy tails (t, 3 degrees)": heavy_tails,
    "stragglers (log-normal)": stragglers,
}
SIZES = ((3, 1), (3, 50), (5, 1), (5, 12), (5, 50), (8, 50), (10, 50))
"""Processes a side, and cases of a comparison."""


@dataclass(frozen=True)
class Rates:
    """Shares of many comparisons.

    Attributes:
        any_called: Comparisons in which any case was called faster or slower.
        called: Cases that were.
        covered: Cases whose interval holds the true ratio.
    """

    any_called: float
    called: float
    covered: float


def compare_many(
    noise: Noise, n: int, cases: int, comparisons: int, *, planted: float = 0.0, share: float = 1.0, seed: int = 1
) -> Rates:
    """Run many comparisons of the same code, or of a candidate that is faster by `planted`.

    Args:
        noise: How processes vary.
        n: Processes a side.
        cases: Cases a comparison.
        comparisons: How many.
        planted: The true change of the candidate's throughput, as a fraction.
        share: Of the cases, from the first, that are changed; the rates of calling and covering are over these.
        seed: Of all of it.
    """
    random = np.random.default_rng(seed)
    changed = max(1, round(share * cases))
    truth = np.where(np.arange(cases) < changed, 1 + planted, 1.0)
    calls, any_called, covered = 0, 0, 0
    for _ in range(comparisons):
        one, two = noise(random, cases, n)
        judged = judge_ratios(np.exp(one), np.exp(two) * truth[:, None])
        found = [item.verdict in ("faster", "slower") for item in judged]
        any_called += any(found)
        calls += sum(found[:changed])
        covered += sum(item.low <= true <= item.high for item, true in zip(judged[:changed], truth, strict=False))
    return Rates(any_called / comparisons, calls / comparisons / changed, covered / comparisons / changed)


def comparisons_for(cases: int) -> int:
    """Enough for a rate of 5 % to be known within 1.5 %."""
    return 1000 if cases < 50 else 400


PLANTED = (
    ("5 % at a spread of 0.5 %, alone", 5, 1, 0.05, 1.0),
    ("5 % in 10 of 50 cases", 5, 50, 0.05, 0.2),
    ("5 % in 10 of 50 cases", 3, 50, 0.05, 0.2),
    ("2 % in 10 of 50 cases", 10, 50, 0.02, 0.2),
    ("2 % in all of 50 cases", 10, 50, 0.02, 1.0),
    ("0.5 % in all of 50 cases", 10, 50, 0.005, 1.0),
    ("0.5 %, alone", 5, 1, 0.005, 1.0),
)
"""What, processes a side, cases, the change, and its share of the cases."""


def percent(share: float) -> str:
    """`3.5 %`."""
    return f"{share:.1%}".replace("%", " %")


def main() -> None:
    """Print both tables as Markdown."""
    print("| noise | " + " | ".join(f"n = {n}, {m} case{'s' * (m > 1)}" for n, m in SIZES) + " |")
    print("|---" * (len(SIZES) + 1) + "|")
    for name, noise in NOISES.items():
        cells = []
        for n, cases in SIZES:
            rates = compare_many(noise, n, cases, comparisons_for(cases))
            cells.append(f"{percent(rates.any_called)}, {percent(rates.covered)}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\n| planted | n | cases | called |\n|---|---|---|---|")
    for name, n, cases, planted, share in PLANTED:
        rates = compare_many(spread(1), n, cases, comparisons_for(cases), planted=planted, share=share)
        print(f"| {name} | {n} | {cases} | {percent(rates.called)} |", flush=True)


if __name__ == "__main__":
    main()
