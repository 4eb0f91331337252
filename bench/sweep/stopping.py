"""When a case has been repeated often enough: rounds of one more run for each case that is not settled.

Repeats end when the interval of a case's throughput is as narrow as requested, when the case has had the maximum number
of runs, or when the time allowed is used up; never because a difference has become, or is no longer, significant. The
decision depends on the finished runs alone, so a sweep that was killed decides the same again.

Looking after every run and stopping at the first narrow interval stops too often when the processes happen to agree.
Without a correction, normal logarithms of throughput and at most 20 runs, only 89.9 % of the 95 % intervals contain the
true value when looking begins at 3 runs, and 91.7 % when it begins at 5, in the worst case (a spread between processes
of 1.8 or 2 times the requested half-width). Hence three rules: looking begins at `LEAST_REPEATS` runs; there, only an
interval of at most `FIRST_LOOK_FRAC` of the requested width ends it; later, a case is settled where its interval is
narrow enough and was already so `CONFIRMING_REPEATS` runs earlier, so that the runs in between are added whatever they
show. At least 93.1 % of the intervals then contain the true value, whatever the spread; `tests/unit/test_stopping.py`
simulates it, with the rules and without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.config import SweepConfig
from bench.plan import order_round
from bench.records import Planned, Status
from bench.stats import geometric_interval
from bench.sweep.journal import Journal

FIRST_LOOK_FRAC = 0.5  # of the requested width: what ends a case at its first look
CONFIRMING_REPEATS = 2  # between the first narrow interval and the one that ends a case
FEWEST_RATES = 2  # a case needs before more runs are useful: one that always fails is not repeated


@dataclass(frozen=True, slots=True)
class Round:
    """One more run of some cases.

    Attributes:
        runs: In the order of execution; empty if no case is to be repeated.
        unsettled: How many cases are not settled, including those that are allowed no more runs.
        wide: How many of them have an interval that is wider than requested.
        spent_s: The duration of all runs so far, in seconds.
    """

    runs: list[Planned]
    unsettled: int
    wide: int
    spent_s: float


def next_round(plan: Sequence[Planned], config: SweepConfig, device: str, journal: Journal) -> Round:
    """The round that follows a plan whose runs are all finished.

    A case whose next run already exists keeps it, whatever its interval is now (a retried run may have changed it):
    measurements are never dropped. Under a time budget, a round takes the cases in its random order
    for as long as their runs, by the mean of those they have had, fit into what is left.

    Args:
        plan: All runs so far, every one finished.
        config: The sweep; without `target_interval` there are no rounds.
        device: `cpu` or `cuda`.
        journal: The finished runs.
    """
    target, measure = config.measure.target_frac(device), config.measure
    cases = _cases(plan)
    durations = {key: _durations_s(journal, runs) for key, runs in cases.items()}
    spent_s = sum(sum(values) for values in durations.values())
    if target is None:
        return Round([], 0, 0, spent_s)
    rates = {key: values for key, runs in cases.items() if len(values := rates_of(journal, runs)) >= FEWEST_RATES}
    unsettled = {key for key, values in rates.items() if not is_settled(values, target, measure.least_repeats)}
    open_runs = [runs[-1] for runs in cases.values() if len(runs) < measure.most_repeats]
    wanted = [run for run in open_runs if run.case.key in unsettled or journal.attempts(_after(run))]
    left_s = float("inf") if measure.time_budget is None else measure.time_budget - spent_s
    runs: list[Planned] = []
    for run in order_round(wanted, config, len(plan)):
        had_s = durations[run.case.key]
        cost_s = sum(had_s) / len(had_s)
        if cost_s <= left_s or journal.attempts(_after(run)):
            left_s -= cost_s
            runs.append(replace(_after(run), position=len(plan) + len(runs)))
    return Round(runs, len(unsettled), sum(not _within(rates[key], target) for key in unsettled), spent_s)


def is_settled(rates: Sequence[float], target_frac: float, least: int) -> bool:
    """Whether a case needs no more runs.

    Args:
        rates: Samples per second, one per process, in the order of the repeats.
        target_frac: The target half-width of the interval, as a fraction of its middle.
        least: The number of runs before the first look.
    """
    count = len(rates)
    if count < least or not _within(rates, target_frac):
        return False
    if _within(rates[:least], target_frac * FIRST_LOOK_FRAC):
        return True
    return any(_within(rates[:size], target_frac) for size in range(least, count - CONFIRMING_REPEATS + 1))


def rates_of(journal: Journal, runs: Iterable[Planned]) -> list[float]:
    """Samples per second of a case's runs, in the order of the repeats.

    Those that ended `ok`, or the throttled ones if there are no others, as in the summary of a report.
    """
    last = [attempts[-1] for run in runs if (attempts := journal.attempts(run))]
    for status in (Status.OK, Status.THROTTLED):
        rates = [run.samples_per_s for run in last if run.status is status and run.samples_per_s]
        if rates:
            return rates
    return []


def _within(rates: Sequence[float], target_frac: float) -> bool:
    width = geometric_interval(rates).half_width_frac
    return width is not None and width <= target_frac


def _cases(plan: Sequence[Planned]) -> dict[str, list[Planned]]:
    """The runs of each case that is not skipped, in the order of the repeats."""
    cases: dict[str, list[Planned]] = {}
    for run in sorted(plan, key=lambda run: run.repeat):
        if run.skip_reason is None:
            cases.setdefault(run.case.key, []).append(run)
    return cases


def _durations_s(journal: Journal, runs: Iterable[Planned]) -> list[float]:
    """The duration of each run of a case, over all its attempts."""
    return [sum(attempt.duration_s for attempt in journal.attempts(run)) for run in runs]


def _after(run: Planned) -> Planned:
    """The next repeat; its position is not decided yet."""
    return replace(run, repeat=run.repeat + 1)
