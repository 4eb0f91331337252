"""Two frames of runs become a comparison.

The cost of samples: energy from the rows, and money if a price per hour is given.

Choosing runs: by patterns on their axes and fields, or the first processes of each case.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.comparison.differences import COMPARED, field_words, find_differences, refuse_flags, unknown_field
from bench.comparison.metrics import DEFAULT_METRICS, METRICS, Metric
from bench.comparison.pairing import Half, all_pairs, check_across, common_pairs, halve, in_order, label_pairs
from bench.comparison.result import Comparison, GeoMean, Missing
from bench.errors import BenchError, UnknownNameError
from bench.records import AXES, Status
from bench.stats import CONFIDENCE, MARGIN, Judgement, Verdict, geometric_interval, judge_ratios

SAMPLES = 1_000_000
"""Prices are for this many samples: the price of one has too many zeros to read."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one case on one machine.

    Attributes:
        case_key: Which case.
        label: The case as text.
        name: Of the results.
        joules_per_sample: Energy of the measured window over its samples, geometric mean over processes; `None` where
            the machine has no counter.
        price_per_million_samples: In the currency of the price per hour; `None` if no price is given.
    """

    case_key: str
    label: str
    name: str
    joules_per_sample: float | None
    price_per_million_samples: float | None


def find_costs(
    sides: Mapping[str, pd.DataFrame], prices: Mapping[str, float], across: Sequence[str] = ()
) -> list[Cost]:
    """The cost of each case on each side, sorted by the axes; only if energy or price is known.

    Args:
        sides: Frames of `bench.load` by name.
        prices: An hour's price by the name of a side.
        across: The fields that the sides are compared across; they are omitted from the labels.
    """
    found = []
    halves = {name: halve(frame, "baseline", across) for name, frame in sides.items()}
    labels = label_pairs(list(halves.values()), across)
    for name, half in halves.items():
        energy, speed = (METRICS[metric].values(half.runs) for metric in ("joules_per_sample", "samples_per_s"))
        for pair in in_order(half, half.rows):
            rows = half.rows[pair]
            joules, rate = (_middle(values[rows].tolist()) for values in (energy, speed))
            price = prices[name] / 3600 / rate * SAMPLES if name in prices and rate else None
            if joules is not None or price is not None:
                found.append(Cost(str(half.firsts[pair]["case_key"]), labels[pair], name, joules, price))
    return found


def _middle(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return geometric_interval(known).middle if known else None


LEAST_PROCESSES = 2
"""One process shows nothing about the variation between processes."""


def first_processes(frame: pd.DataFrame, processes: int | None) -> pd.DataFrame:
    """The runs of the first processes of each case, all of them where `processes` is `None`.

    A run among them that failed or is missing is not replaced by a later one: which runs count depends on their number
    alone, never on their measurements.

    Raises:
        BenchError: `processes` is below `LEAST_PROCESSES`.
    """
    if processes is None:
        return frame
    if processes < LEAST_PROCESSES:
        raise BenchError(f"processes {processes}: a verdict needs at least {LEAST_PROCESSES} per case")
    return frame[frame["repeat"] < processes].reset_index(drop=True)


def select_runs(frame: pd.DataFrame, patterns: Sequence[str]) -> pd.DataFrame:
    """The runs that match patterns such as `model=resnet*`.

    Args:
        frame: From `bench.load`.
        patterns: `FIELD=PATTERN`, with the wildcards of file names; a value that equals the pattern takes
            precedence (`mlp:hidden=[256,128]` is not a wildcard). Of several for one field any may match; those
            of different fields must all match.

    Raises:
        BenchError: A pattern without a field, a field that is not known, or no run that matches.
    """
    wanted: dict[str, list[str]] = {}
    for pattern in patterns:
        field, equals, value = pattern.partition("=")
        if not equals:
            raise BenchError(f'"{pattern}": write FIELD=PATTERN, as in model=resnet*')
        _known_field(field)
        wanted.setdefault(field, []).append(value)
    chosen = frame
    for field, values in wanted.items():
        texts = _texts(chosen, field)
        meant = {text for value in values for text in _matching(texts.values(), value)}
        kept = [value for value, text in texts.items() if text in meant]
        if not kept:
            there = ", ".join(list(texts.values())[:6])
            raise BenchError(f"no run matches {field} = {' or '.join(values)}. Available: {there}")
        chosen = chosen[chosen[field].isin(kept)]
    return chosen.reset_index(drop=True)


def split_values(frames: Iterable[pd.DataFrame], field: str, text: str) -> tuple[str, str] | None:
    """The two values of a field in `BASELINE,CANDIDATE`; `None` if no comma stands between two known ones.

    Values with settings hold commas themselves (`mlp:hidden=[256,128],mlp`), so a comma counts only between two values
    that runs have, or patterns that match some. A text with one comma is split there whatever its halves are.

    Raises:
        BenchError: The field is not known.
    """
    _known_field(field)
    known = {name for frame in frames for name in _texts(frame, field).values()}
    parts = text.split(",")
    splits = [(",".join(parts[:place]), ",".join(parts[place:])) for place in range(1, len(parts))]
    if len(splits) == 1:
        return splits[0]
    exact = [halves for halves in splits if known.issuperset(halves)]
    matching = [halves for halves in splits if all(_matching(known, half) for half in halves)]
    return next(iter([*exact, *matching]), None)


def _known_field(field: str) -> None:
    if field not in (*AXES, *COMPARED):
        raise unknown_field("field", field, (*AXES, *COMPARED))


def _texts(frame: pd.DataFrame, field: str) -> dict[object, str]:
    """The values of a column, each once, as text."""
    return {value: field_words(field, None if pd.isna(value) else value) for value in frame[field].drop_duplicates()}


def _matching(texts: Iterable[str], pattern: str) -> list[str]:
    """The texts that a pattern selects: the one it equals, else those it matches."""
    found = list(texts)
    return [pattern] if pattern in found else [text for text in found if fnmatch.fnmatchcase(text, pattern)]


_BROKEN = (Status.OOM, Status.TIMEOUT, Status.CRASHED, Status.FAILED, Status.NAN_LOSS)
"""Statuses of a case that ran before and no longer does."""


def compare(
    baseline: pd.DataFrame,
    candidate: pd.DataFrame,
    *,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    across: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    processes: int | None = None,
) -> Comparison:
    """Compare two frames of runs, case by case and overall.

    Args:
        baseline: From `bench.load`.
        candidate: The same.
        margin: The smallest change that counts, as a fraction.
        confidence: Of every interval, and of no false verdict among all the cases of a metric.
        across: Axes and flags that may differ between the sides; cases are joined on the other axes.
        metrics: Names in `METRICS`; throughput and peak memory unless given.
        processes: Only the first so many processes of each case count, on both sides; a case that lacks any of them is
            `unclear`. After adaptive stopping, the number that every case had before the first look.

    Raises:
        BenchError: The sides have no case in common, a flag differs that the comparison is not across, a side mixes
            runs that are not repeats of each other, or neither side measured a metric that was requested.
    """
    _check_numbers(margin, confidence)
    across = check_across(across)
    one = halve(first_processes(baseline, processes), "baseline", across)
    two = halve(first_processes(candidate, processes), "candidate", across)
    pairs = common_pairs(one, two, across)
    shared = [half.runs[half.runs["pair"].isin(set(pairs))] for half in (one, two)]
    refuse_flags(shared[0], shared[1], across)
    everything = [pair for pair in all_pairs(one, two) if _wanted(one, two, pair)]
    chosen = _measured_metrics(one, two, metrics)
    rows, geomean = list[dict[str, Any]](), dict[str, GeoMean]()
    labels = label_pairs((one, two), across)
    for metric in chosen:
        judged = judge_ratios(
            _values(one, pairs, metric),
            _values(two, pairs, metric),
            margin=margin,
            confidence=confidence,
            higher_is_better=metric.higher_is_better,
            processes=processes,
        )
        rows += [
            _row(one, two, pair, labels[pair], metric, item, across) for pair, item in zip(pairs, judged, strict=True)
        ]
        ratios = [item.ratio for item in judged if item.ratio is not None]
        geomean[metric.name] = GeoMean.of(geometric_interval(ratios, confidence) if ratios else None, len(everything))
    cases = pd.DataFrame(rows)
    missing = _missing(one, two, everything, labels)
    return Comparison(
        differences=find_differences(*shared),
        cases=cases,
        geomean=geomean,
        missing=missing,
        regressions=_regressions(cases, missing),
        notes=_notes(*shared),
        margin=margin,
        confidence=confidence,
        across=across,
        processes=processes,
    )


def _check_numbers(margin: float, confidence: float) -> None:
    if not 0 < margin < 1:
        raise BenchError(f"margin {margin:g}: must be a fraction between 0 and 1; 0.01 is 1 %")
    if not 0.5 <= confidence < 1:
        raise BenchError(f"confidence {confidence:g}: must be a fraction of at least 0.5 and below 1; 0.95 is usual")


def _measured_metrics(one: Half, two: Half, asked: Sequence[str] | None) -> list[Metric]:
    """The metrics to compare; of the default ones, those that a side measured.

    Raises:
        UnknownNameError: The metric is unknown.
        BenchError: Neither side measured one that was requested.
    """
    for name in asked or ():
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS, list_command="compare --help")
    found = []
    for metric in (METRICS[name] for name in dict.fromkeys(asked or DEFAULT_METRICS)):
        if any(np.isfinite(metric.values(half.runs)).any() for half in (one, two)):
            found.append(metric)
        elif asked:
            raise BenchError(
                f"neither side measured {metric.name}; remove the metric, or measure on a machine that reports it"
            )
    return found or [METRICS[DEFAULT_METRICS[0]]]


def _values(half: Half, pairs: Sequence[Hashable], metric: Metric) -> list[list[float]]:
    """One number per process of each case."""
    values = metric.values(half.runs).tolist()
    return [[value for row in half.rows[pair] if (value := values[row]) == value] for pair in pairs]


def _row(
    one: Half, two: Half, pair: Hashable, label: str, metric: Metric, judged: Judgement, across: Sequence[str]
) -> dict[str, Any]:
    """A row of `Comparison.cases`."""
    first, second = one.firsts[pair], two.firsts[pair]
    known = {
        name: np.nan if (value := getattr(judged, name)) is None else value
        for name in ("baseline", "candidate", "ratio", "low", "high", "p_value", "p_adjusted")
    }
    reason = judged.reason
    if judged.ratio is None:
        ends = [(half.side, *half.end(pair)) for half in (one, two)]
        told = [f"{side}: {status}, {why}" if why else f"{side}: {status}" for side, status, why in ends]
        told = [text for text, (_, status, _) in zip(told, ends, strict=True) if status != Status.OK]
        reason = f"{reason} ({'; '.join(told)})" if told else reason
    return {
        "case_key": first["case_key"],
        "candidate_case_key": second["case_key"],
        "label": label,
        **{axis: first[axis] for axis in AXES},
        **{f"{axis}_candidate": second[axis] for axis in across if axis in AXES},
        "metric": metric.name,
        "baseline": known.pop("baseline"),
        "candidate": known.pop("candidate"),
        "ratio": known.pop("ratio"),
        "low": known.pop("low"),
        "high": known.pop("high"),
        "verdict": str(judged.verdict),
        "reason": reason,
        "n_baseline": judged.n_baseline,
        "n_candidate": judged.n_candidate,
        **known,
    }


def _wanted(one: Half, two: Half, pair: Hashable) -> bool:
    """Whether any side planned to run a case: one that every side skips was never planned."""
    return any(half.end(pair)[0] not in (Status.SKIPPED, "not planned") for half in (one, two))


def _missing(one: Half, two: Half, pairs: Sequence[Hashable], labels: Mapping[Hashable, str]) -> list[Missing]:
    """Cases that a side did not measure, with their status there."""
    found = []
    for pair in pairs:
        knows = one if pair in one.rows else two
        before, after = one.end(pair), two.end(pair)
        for half, (status, reason) in ((one, before), (two, after)):
            if status != Status.OK:
                broken = half is two and before[0] == Status.OK and status in _BROKEN
                key = str(knows.firsts[pair]["case_key"])
                found.append(Missing(key, labels[pair], half.side, status, reason, broken))
    return found


def _regressions(cases: pd.DataFrame, missing: Sequence[Missing]) -> pd.DataFrame:
    """Regressions: rows with the verdict `slower`, and rows of cases that no longer run."""
    broken = {item.case_key for item in missing if item.broken}
    return cases[(cases["verdict"] == Verdict.SLOWER) | cases["case_key"].isin(broken)].reset_index(drop=True)


def _notes(one: pd.DataFrame, two: pd.DataFrame) -> list[str]:
    """What a reader should know besides the numbers."""
    measured = ["run_key", "wall_window_s"]  # the key alone is the same for the same turn of the same sweep, repeated
    if len(one[measured].dropna().merge(two[measured].dropna())):
        return ["Both sides contain the same runs."]
    notes = []
    hosts = set(one["host_hash"].dropna()) & set(two["host_hash"].dropna())
    begun = [side["started_unix_s"].dropna().astype(float) for side in (one, two)]
    if hosts and all(len(times) for times in begun):
        first, second = sorted(begun, key=lambda times: float(times.min()))
        if first.max() < second.min():
            notes.append(
                "The two sides were measured on one machine, one after the other: slow drift between them would look "
                "like a difference. docs/statistics.md explains how to interleave them."
            )
    return notes
