"""Made-up comparisons with a known truth: how often the verdicts are wrong, how often they find what is there.

`python -m tests.statistics.simulate` prints the tables of docs/statistics.md; `quick` in the tests runs a part of it. All of
it follows from seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.stats import geometric_interval, host_means, judge_ratios

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


BETWEEN_HOSTS = 0.01
HOSTS = ((1, 8), (4, 2), (16, 1), (4, 4), (16, 4))
"""Hosts of a side, and processes on each."""


@dataclass(frozen=True)
class HostRates:
    """Shares over many cases whose repeats were spread over hosts.

    Attributes:
        called: Comparisons of one case, with itself on other hosts, that were called faster or slower.
        called_by_process: The same where processes count instead of hosts.
        covered: Intervals that hold the mean of all hosts.
        covered_by_process: The same where processes count.
        covered_here: Intervals over processes that hold the mean of the hosts that took part.
    """

    called: float
    called_by_process: float
    covered: float
    covered_by_process: float
    covered_here: float


def spread_over_hosts(hosts: int, each: int, cases: int, seed: int = 1) -> HostRates:
    """Identical code on other hosts, which differ by 1 %, in processes that differ by 0.5 % on one host.

    Args:
        hosts: Of a side; the other side has as many others.
        each: Processes on each host.
        cases: How many, each compared alone.
        seed: Of all of it.
    """
    random = np.random.default_rng(seed)
    speeds = random.normal(0, BETWEEN_HOSTS, (2, cases, hosts, 1))
    rates = np.exp(speeds + random.normal(0, WITHIN, (2, cases, hosts, each))).reshape(2, cases, -1)
    names = np.repeat(np.arange(hosts), each).tolist()
    means = [[host_means(values.tolist(), names) for values in side] for side in rates]
    called = []
    for one, two in ((means[0], means[1]), (rates[0], rates[1])):
        judged = [judge_ratios([left], [right])[0].verdict for left, right in zip(one, two, strict=True)]
        called.append(sum(verdict in ("faster", "slower") for verdict in judged) / cases)
    covered = []
    here = np.exp(speeds[0].mean(axis=(1, 2)))
    for values, truth in ((means[0], np.ones(cases)), (rates[0], np.ones(cases)), (rates[0], here)):
        found = [geometric_interval(list(each_case)) for each_case in values]
        ends = [(item.low or 0, item.high or np.inf) for item in found]
        covered.append(float(np.mean([low <= true <= high for (low, high), true in zip(ends, truth, strict=True)])))
    return HostRates(*called, *covered)


def host_row(hosts: int, each: int, cases: int = 4000) -> str:
    """A row of the table over hosts."""
    found = spread_over_hosts(hosts, each, cases)
    shares = (found.covered, found.covered_by_process, found.covered_here, found.called, found.called_by_process)
    return f"| {hosts} | {each} | {' | '.join(map(percent, shares))} |"


PLANTED_BETWEEN_HOSTS = 0.02


def compare_over_hosts(hosts: int, each: int, cases: int, *, same: bool, planted: float, seed: int = 1) -> Rates:
    """A candidate that is faster by `planted` on every host, on the baseline's own hosts or on as many others.

    Args:
        hosts: Of a side; they differ by 1 %, processes of one by 0.5 %.
        each: Processes on each host.
        cases: How many, each compared alone.
        same: Whether both sides ran on the same hosts, so that each host is compared with itself.
        planted: The true change, as a fraction.
        seed: Of all of it.
    """
    random = np.random.default_rng(seed)
    speeds = random.normal(0, BETWEEN_HOSTS, (2, cases, hosts, 1))
    if same:
        speeds[1] = speeds[0]
    rates = np.exp(speeds + random.normal(0, WITHIN, (2, cases, hosts, each))).reshape(2, cases, -1)
    rates[1] *= 1 + planted
    names = np.repeat(np.arange(hosts), each).tolist()
    one, two = ([host_means(values.tolist(), names) for values in side] for side in rates)
    paired = [same and hosts > 1]  # processes of one host are no pairs
    judged = [judge_ratios([left], [right], paired=paired)[0] for left, right in zip(one, two, strict=True)]
    called = sum(item.verdict in ("faster", "slower") for item in judged) / cases
    covered = sum((item.low or 0) <= 1 + planted <= (item.high or np.inf) for item in judged) / cases
    return Rates(called, called, covered)


def pair_row(hosts: int, each: int, cases: int = 1000) -> str:
    """A row of the table over hosts that both sides used; of the last column, over a fifth as many cases."""
    alike = compare_over_hosts(hosts, each, cases, same=True, planted=0)
    changed = compare_over_hosts(hosts, each, cases, same=True, planted=PLANTED_BETWEEN_HOSTS)
    others = compare_over_hosts(hosts, each, cases // 5, same=False, planted=PLANTED_BETWEEN_HOSTS)
    shares = (alike.called, changed.covered, changed.called, others.called)
    return f"| {hosts} | {each} | {' | '.join(map(percent, shares))} |"


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
    print("\n| hosts | processes on each | covered, by host | covered, by process | covered here, by process ", end="")
    print("| called, by host | called, by process |\n" + "|---" * 7 + "|")
    for hosts, each in HOSTS:
        print(host_row(hosts, each), flush=True)
    print("\n| hosts | processes on each | alarms, same hosts | covered, same | 2 % found, same | 2 % found, others |")
    print("|---" * 6 + "|")
    for hosts, each in HOSTS:
        print(pair_row(hosts, each), flush=True)
    print("\n| planted | n | cases | called |\n|---|---|---|---|")
    for name, n, cases, planted, share in PLANTED:
        rates = compare_many(spread(1), n, cases, comparisons_for(cases), planted=planted, share=share)
        print(f"| {name} | {n} | {cases} | {percent(rates.called)} |", flush=True)


if __name__ == "__main__":
    main()
