"""The results of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from bench.records.fields import Kind
from bench.stats import Interval

Side = Literal["baseline", "candidate"]


class Difference(NamedTuple):
    """One field in which the two sides differ.

    Attributes:
        field: The column of `bench.load`.
        baseline: Its value there; several are a tuple in order of appearance, unknown is `None`.
        candidate: The same of the candidate.
        kind: `environment` (machine and versions), `protocol` (how it was measured), `code` (of bench), or
            `flags` (what changes the work that a step does; refused unless the comparison is across it).
    """

    field: str
    baseline: Any
    candidate: Any
    kind: Kind


@dataclass(frozen=True, slots=True)
class GeoMean:
    """The geometric mean of one metric's ratios over the cases that both sides measured.

    Attributes:
        ratio: Candidate over baseline; `None` if no case has a ratio.
        low: Lower end of Student's t interval over the cases' log ratios; `None` for fewer than two cases.
        high: Upper end.
        n: Cases with a ratio.
        n_planned: Cases that either side planned.
    """

    ratio: float | None
    low: float | None
    high: float | None
    n: int
    n_planned: int

    @classmethod
    def of(cls, interval: Interval | None, n_planned: int) -> GeoMean:
        """From an interval over the cases; `None` if there is no case."""
        if interval is None:
            return cls(None, None, None, 0, n_planned)
        return cls(interval.middle, interval.low, interval.high, interval.n, n_planned)


class Missing(NamedTuple):
    """A case that one side lacks.

    Attributes:
        case_key: Of the side that planned it (the baseline's where both did).
        label: The case as text.
        side: The side that has no measurement of it.
        status: How it ended there, or `not planned`.
        reason: The reason that the run gave; `None` if unknown.
        broken: Whether the baseline measured it and the candidate failed: a regression.
    """

    case_key: str
    label: str
    side: Side
    status: str
    reason: str | None
    broken: bool


@dataclass(frozen=True)
class Comparison:
    """What changed from a baseline to a candidate.

    Attributes:
        differences: What differs between the two sides besides the cases, the most important first.
        cases: One row per common case and metric, sorted by the axes: `case_key`, `candidate_case_key`,
            `label` (the case in words), the axes (of the baseline; `<axis>_candidate` for an axis compared across),
            `metric`, `baseline` and `candidate` (geometric means over processes, in the metric's unit), `ratio`
            (candidate over baseline), `low` and `high` (its interval for this case alone), `verdict` (`faster`,
            `slower`, `same`, `unclear`; see `verdict_words` for memory and energy), `reason`, `n_baseline` and
            `n_candidate` (processes, or hosts), `p_value`, `p_adjusted` (Holm, over the cases of the metric), and
            `within` (`hosts` or `gpus` where each number was compared with one of the same host or card). Beside the
            verdict on a speed: `clock_ratio` and `cycles_ratio` (candidate over baseline, cycles a step or a sample)
            with `cycles_low`, `cycles_high` and `cycles_verdict` (`faster` is fewer), `clocks` (a `ClockRole`) and
            `clocks_reason` (in words; why there are no cycles where `clocks` is unknown). Unknown is NaN.
        geomean: By metric.
        missing: Cases that one side did not measure.
        regressions: The rows of `cases` whose verdict is `slower`, and of every case that the baseline measured and
            the candidate failed.
        notes: What a reader should know besides the numbers, one sentence each.
        margin: The smallest change that counts, as a fraction.
        confidence: Of every interval, and of all verdicts on a metric together.
        across: The fields that the two sides were compared across.
        processes: Only the first so many processes of each case were counted; `None` if all were.
    """

    differences: list[Difference]
    cases: pd.DataFrame
    geomean: Mapping[str, GeoMean]
    missing: list[Missing]
    regressions: pd.DataFrame
    notes: list[str]
    margin: float
    confidence: float
    across: tuple[str, ...]
    processes: int | None = None
