"""Two frames of runs become a comparison: which runs count, which cases belong together, and what their samples cost.

Runs are chosen by patterns on their axes and fields, or as the first processes of each case. The cost of a sample is
its energy, from the rows, and money if a price per hour is given.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd

from bench.analysis import last_attempts, spread_cards, spread_hosts
from bench.comparison.clocks import UNKNOWN_CLOCKS, Clocks, explain, read_clocks, say_clocks, why_no_cycles
from bench.comparison.differences import (
    COMPARED,
    FLAGS,
    field_words,
    find_differences,
    refuse_flags,
    refuse_mixed,
    unknown_field,
)
from bench.comparison.metrics import DEFAULT_METRICS, METRICS, Metric
from bench.comparison.result import Comparison, GeoMean, Missing, Side
from bench.errors import BenchError, UnknownNameError
from bench.records import AXES, SWITCHES, USUAL, InputPath, MemoryFormat, Precision, Status, axis_words, varying_axes
from bench.stats import CONFIDENCE, MARGIN, Judgement, Verdict, geometric_interval, host_means, judge_ratios
from bench.units import counted

Row = dict[Hashable, Any]


@dataclass(frozen=True, slots=True)
class Half:
    """One side of a comparison.

    Extracting single rows of large frames is slow, so what each case needs is read once.

    Attributes:
        side: Its name.
        runs: The runs that count, with `pair`: the case's axes except those compared across.
        rows: By pair, the positions of its runs in `runs`.
        firsts: By pair, `case_key` and the axes of its first run.
        ends: By pair, its status: `ok` if any run has it, else the most common one, and the first reason for it.
    """

    side: Side
    runs: pd.DataFrame
    rows: dict[Hashable, list[int]]
    firsts: dict[Hashable, Row]
    ends: dict[Hashable, tuple[str, str | None]]

    def end(self, pair: Hashable) -> tuple[str, str | None]:
        """The status of a case; `not planned` if the side does not have it."""
        return self.ends.get(pair, ("not planned", None))


def check_across(across: Sequence[str]) -> tuple[str, ...]:
    """The fields that may differ, each once.

    Raises:
        BenchError: A field that is neither an axis nor a flag.
    """
    for field in across:
        if field not in (*AXES, *FLAGS):
            raise unknown_field("field to compare across", field, (*AXES, *FLAGS))
    return tuple(dict.fromkeys(across))


def halve(frame: pd.DataFrame, side: Side, across: Sequence[str]) -> Half:
    """The runs of a side that count: still planned, the last attempt of each, grouped by case.

    Raises:
        BenchError: The runs of a case differ in more than their repeat, or several cases fall into one.
    """
    planned = frame[frame["planned"].astype(bool)] if "planned" in frame else frame
    runs = last_attempts(planned.reset_index(drop=True)).reset_index(drop=True)
    refuse_mixed(runs, side)
    joined = [axis for axis in AXES if axis not in across]
    runs["pair"] = list(runs[joined].astype(object).itertuples(index=False, name=None))
    _refuse_ambiguous(runs, side, across)
    rows: dict[Hashable, list[int]] = {}
    for position, pair in enumerate(runs["pair"]):
        rows.setdefault(pair, []).append(position)
    heads = runs.iloc[[found[0] for found in rows.values()]][["case_key", *AXES]].to_dict("records")
    statuses, reasons = runs["status"].astype(str).tolist(), runs["reason"].tolist()
    ends = {
        pair: _end([statuses[row] for row in found], [reasons[row] for row in found]) for pair, found in rows.items()
    }
    return Half(side, runs, rows, dict(zip(rows, heads, strict=True)), ends)


def common_pairs(baseline: Half, candidate: Half, across: Sequence[str]) -> list[Hashable]:
    """The cases that both sides planned, in a sorted order.

    Raises:
        BenchError: There are none; the message names the axes that differ.
    """
    common = [pair for pair in baseline.rows if pair in candidate.rows]
    if common:
        return in_order(baseline, common)
    if baseline.runs.empty or candidate.runs.empty:
        empty = baseline if baseline.runs.empty else candidate
        raise BenchError(f"the {empty.side} has no runs to compare; check --only, or run bench sweep first")
    lines = [
        f"{axis} differs: {_listed(baseline, axis)} in the baseline, {_listed(candidate, axis)} in the candidate"
        for axis in AXES
        if axis not in across and set(baseline.runs[axis]) != set(candidate.runs[axis])
    ]
    disjoint = [axis for axis in AXES if not set(baseline.runs[axis]) & set(candidate.runs[axis])]
    advice = "choose sides with common cases (bench plan lists cases)"
    if disjoint and len(disjoint) <= 2:
        advice += f", or compare across: {' '.join(f'--across {axis}' for axis in disjoint)}"
    raise BenchError("\n".join(["the sides have no case in common", *lines, advice]))


def in_order(half: Half, pairs: Iterable[Hashable]) -> list[Hashable]:
    """Cases of a side in a sorted order."""
    return sorted(pairs, key=lambda pair: _reading_order(half.firsts[pair]))


def all_pairs(one: Half, two: Half) -> list[Hashable]:
    """The cases that either side planned, sorted; runs are in the shuffled order of their execution."""
    firsts = {**two.firsts, **one.firsts}
    return sorted(firsts, key=lambda pair: _reading_order(firsts[pair]))


def label_pairs(halves: Sequence[Half], across: Sequence[str] = ()) -> dict[Hashable, str]:
    """Every case of some sides as unique texts, without the axes compared across if possible.

    Args:
        halves: The sides whose cases are listed together.
        across: Fields that may differ between the sides.
    """
    firsts = {pair: row for half in reversed(halves) for pair, row in half.firsts.items()}
    columns = {axis: [row[axis] for row in firsts.values()] for axis in AXES}
    told = varying_axes(columns, [axis for axis, usual in USUAL.items() if usual is None])
    labels = {}
    for pair, row in firsts.items():
        shown = [
            "optimizer",
            *(axis for axis, usual in USUAL.items() if axis in told or row[axis] != (usual or row[axis])),
        ]
        words = (axis_words(axis, row[axis]) for axis in shown if axis not in across)
        labels[pair] = ", ".join([f"{row['model']} on {row['dataset']}", f"batch {row['batch_size']}", *words])
    return labels


def _end(statuses: list[str], reasons: list[Any]) -> tuple[str, str | None]:
    if Status.OK in statuses:
        return str(Status.OK), None
    commonest = max(dict.fromkeys(statuses), key=statuses.count)
    told = (reason for reason, status in zip(reasons, statuses, strict=True) if status == commonest)
    return commonest, next((str(reason) for reason in told if reason is not None and not pd.isna(reason)), None)


def _reading_order(row: Row) -> tuple[Any, ...]:
    """Data set, model and optimizer by name, the other axes in their natural order, batch sizes last."""
    closed = {"precision": Precision, "memory_format": MemoryFormat, "input": InputPath}
    ranks = (get_args(kind).index(row[axis]) if row[axis] in get_args(kind) else 9 for axis, kind in closed.items())
    names = (str(row[axis]) for axis in ("dataset", "model", "optimizer"))
    switches = ((row[axis] != usual, row[axis]) for axis, usual in SWITCHES.items())
    return (*names, *ranks, row["image_size"], *switches, row["batch_size"])


def _refuse_ambiguous(runs: pd.DataFrame, side: Side, across: Sequence[str]) -> None:
    """Refuse an axis compared across that has several values for one case on a side."""
    for axis in (axis for axis in across if axis in AXES):
        counts = runs.groupby("pair", sort=False)[axis].nunique()
        if len(counts) and counts.max() > 1:
            values = ", ".join(field_words(axis, value) for value in dict.fromkeys(runs[axis]))
            raise BenchError(
                f"across {axis}: the {side} has several values for one case ({values}). Choose one per side: "
                f"--across {axis}=BASELINE,CANDIDATE"
            )


def _listed(half: Half, axis: str, most: int = 4) -> str:
    values = [field_words(axis, value) for value in dict.fromkeys(half.runs[axis])]
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f"{', '.join(values[:most])}{more}"


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


BROKEN = (Status.OOM, Status.TIMEOUT, Status.CRASHED, Status.FAILED, Status.NAN_LOSS)
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
    check_numbers(margin, confidence)
    across = check_across(across)
    one = halve(first_processes(baseline, processes), "baseline", across)
    two = halve(first_processes(candidate, processes), "candidate", across)
    pairs = common_pairs(one, two, across)
    shared = [half.runs[half.runs["pair"].isin(set(pairs))] for half in (one, two)]
    refuse_flags(shared[0], shared[1], across)
    everything = [pair for pair in all_pairs(one, two) if _wanted(one, two, pair)]
    chosen = _measured_metrics(one, two, metrics)
    over_hosts = [_over_hosts(half, pairs) for half in (one, two)]
    if processes is not None and any(over_hosts):
        raise BenchError(
            f"processes {processes}: repeats were spread over hosts, and their number was fixed. Leave it out"
        )
    rows, geomean = list[dict[str, Any]](), dict[str, GeoMean]()
    labels = label_pairs((one, two), across)
    places = [(spread_hosts(half.runs), spread_cards(half.runs)) for half in (one, two)]
    read = [read_clocks(half.runs) for half in (one, two)]

    def judge(values: Sequence[np.ndarray], *, higher_is_better: bool) -> tuple[list[_Matched], list[Judgement]]:
        numbers = _numbers(one, two, pairs, values, places)
        return numbers, judge_ratios(
            [each.baseline for each in numbers],
            [each.candidate for each in numbers],
            margin=margin,
            confidence=confidence,
            higher_is_better=higher_is_better,
            processes=processes,
            unit="host" if all(over_hosts) else "process",
            paired=[each.within is not None for each in numbers],
        )

    for metric in chosen:
        values = [metric.values(half.runs) for half in (one, two)]
        numbers, judged = judge(values, higher_is_better=metric.higher_is_better)
        told = [dict(UNKNOWN_CLOCKS)] * len(pairs)
        if metric.kind == "speed":
            cycles, why = _cycles(one, two, pairs, metric, values, read)
            _, in_cycles = judge(cycles, higher_is_better=False)
            told = [
                {**UNKNOWN_CLOCKS, "clocks_reason": reason}
                if reason
                else explain(seconds, item, higher_is_better=metric.higher_is_better)
                for seconds, item, reason in zip(judged, in_cycles, why, strict=True)
            ]
        rows += [
            {**_row(one, two, pair, labels[pair], metric, item, across), "within": each.within, **clocks}
            for pair, item, each, clocks in zip(pairs, judged, numbers, told, strict=True)
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
        notes=[*_notes(*shared), *_say_pairs(cases), *filter(None, [say_clocks(cases, margin)])],
        margin=margin,
        confidence=confidence,
        across=across,
        processes=processes,
    )


def check_numbers(margin: float, confidence: float) -> None:
    """Refuse what is not a margin or a confidence. Raises BenchError."""
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


@dataclass(frozen=True, slots=True)
class _Matched:
    """What is compared of one case.

    Attributes:
        baseline: One number per process, or per host where repeats were spread over several.
        candidate: The same.
        within: `hosts` or `gpus` where the numbers are pairs of one host or card each; None where they are not.
    """

    baseline: list[float]
    candidate: list[float]
    within: str | None = None


def _cycles(
    one: Half,
    two: Half,
    pairs: Sequence[Hashable],
    metric: Metric,
    values: Sequence[np.ndarray],
    read: Sequence[Clocks],
) -> tuple[list[np.ndarray], list[str | None]]:
    """The runs' cycles of a step or of a sample, NaN where the case has none; and for each case why it has none."""
    found, why = [np.full(len(side), np.nan) for side in values], list[str | None]()
    for pair in pairs:
        rows = [
            [row for row in half.rows[pair] if known[row] == known[row]]
            for half, known in zip((one, two), values, strict=True)
        ]
        why.append(why_no_cycles(zip(read, rows, strict=True)))
        if why[-1] is None:
            for side, known, clocks, chosen in zip(found, values, read, rows, strict=True):
                side[chosen] = clocks.hz[chosen] * (1 / known[chosen] if metric.higher_is_better else known[chosen])
    return found, why


def _numbers(
    one: Half,
    two: Half,
    pairs: Sequence[Hashable],
    values: Sequence[np.ndarray],
    places: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[_Matched]:
    """The numbers of each case, in pairs where both sides have the same hosts or the same cards.

    Args:
        one: The baseline.
        two: The candidate.
        pairs: The cases.
        values: Of each side, one value per run; NaN if unknown.
        places: Of each side, the host and the card that each run counts for.
    """
    sides = [(half, known.tolist(), *where) for half, known, where in zip((one, two), values, places, strict=True)]
    found = []
    for pair in pairs:
        by_host, by_card = list[dict[str, list[float]]](), list[dict[str, list[float]]]()
        for half, numbers, *names_of in sides:
            for names, kept in zip(names_of, (by_host, by_card), strict=True):
                blocks: dict[str, list[float]] = {}
                for row in half.rows[pair]:
                    if numbers[row] == numbers[row]:
                        blocks.setdefault(names[row], []).append(numbers[row])
                kept.append(blocks)
        found.append(_paired_hosts(*by_host) or _paired_cards(*by_card) or _unpaired(*by_host))
    return found


def _paired_hosts(one: Mapping[str, list[float]], two: Mapping[str, list[float]]) -> _Matched | None:
    """A number for each host that both sides have; None unless one side's hosts are all among the other's."""
    shared = [host for host in one if host and host in two]
    if len(shared) < 2 or len(shared) < min(len(one), len(two)):
        return None
    before, after = (host_means(*_flat({host: side[host] for host in shared})) for side in (one, two))
    return _Matched(before, after, "hosts")


def _paired_cards(one: Mapping[str, list[float]], two: Mapping[str, list[float]]) -> _Matched | None:
    """Every process beside one of the other side on the same card; None unless each card had as many on both sides."""
    if len(one) < 2 or {card: len(each) for card, each in one.items()} != {c: len(each) for c, each in two.items()}:
        return None
    before, after = ([value for card in one for value in side[card]] for side in (one, two))
    return _Matched(before, after, "gpus")


def _unpaired(one: Mapping[str, list[float]], two: Mapping[str, list[float]]) -> _Matched:
    return _Matched(host_means(*_flat(one)), host_means(*_flat(two)))


def _flat(blocks: Mapping[str, list[float]]) -> tuple[list[float], list[str]]:
    """Values, and the block of each."""
    return [value for each in blocks.values() for value in each], [name for name, each in blocks.items() for _ in each]


def _over_hosts(half: Half, pairs: Sequence[Hashable]) -> bool:
    """Whether the repeats of any case ran on several hosts, on purpose."""
    hosts = spread_hosts(half.runs)
    return any(len({hosts[row] for row in half.rows[pair]}) > 1 for pair in pairs)


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
                broken = half is two and before[0] == Status.OK and status in BROKEN
                key = str(knows.firsts[pair]["case_key"])
                found.append(Missing(key, labels[pair], half.side, status, reason, broken))
    return found


def _regressions(cases: pd.DataFrame, missing: Sequence[Missing]) -> pd.DataFrame:
    """Regressions: rows with the verdict `slower`, and rows of cases that no longer run."""
    broken = {item.case_key for item in missing if item.broken}
    return cases[(cases["verdict"] == Verdict.SLOWER) | cases["case_key"].isin(broken)].reset_index(drop=True)


def _name_machines(side: str, runs: pd.DataFrame) -> str | None:
    """The GPUs and hosts of a side, where it has several of either; None where it has not."""
    gpus, hosts = (list(dict.fromkeys(runs[name].dropna())) for name in ("gpu_uuid_hash", "host_hash"))
    if max(len(gpus), len(hosts)) < 2:
        return None
    names = ", ".join(dict.fromkeys(runs["gpu_name"].dropna())) or "CPUs"
    cards = [f"{counted(len(gpus), 'GPU')} ({', '.join(gpus)})"] if gpus else []
    told = ", ".join([*cards, f"{counted(len(hosts), 'host')} ({', '.join(hosts)})"])
    return f"The {side} was measured on {names}: {told}."


def _say_unit(side: str, runs: pd.DataFrame) -> str | None:
    """What the numbers of a side that was spread over hosts stand for; None for another."""
    hosts = set(spread_hosts(runs)) - {""}
    if len(hosts) > 1:
        return (
            f"Repeats of the {side} ran on {len(hosts)} hosts on purpose: n counts hosts, each by the mean of its runs."
        )
    if hosts:
        return f"All runs of the {side} were on one host: its interval says nothing about others."
    return None


def _say_pairs(cases: pd.DataFrame) -> Iterator[str]:
    """Which cases were compared within hosts or cards."""
    words = {"hosts": ("host", "n counts hosts"), "gpus": ("device", "n counts pairs of processes")}
    for within, (place, unit) in words.items():
        if count := cases.loc[cases["within"] == within, "case_key"].nunique():
            of = f"{count} of {counted(cases['case_key'].nunique(), 'case')}"
            yield f"{of} compared within each {place}, as both sides used the same ones: {unit}."


def _notes(one: pd.DataFrame, two: pd.DataFrame) -> list[str]:
    """What a reader should know besides the numbers."""
    measured = ["run_key", "wall_window_s"]  # the key alone is the same for the same turn of the same sweep, repeated
    if len(one[measured].dropna().merge(two[measured].dropna())):
        return ["Both sides contain the same runs."]
    sides = (("baseline", one), ("candidate", two))
    notes = [note for side, runs in sides if (note := _name_machines(side, runs))]
    notes += [note for side, runs in sides if (note := _say_unit(side, runs))]
    hosts = _hosts(one) & _hosts(two)
    begun = [side["started_unix_s"].dropna().astype(float) for side in (one, two)]
    if hosts and all(len(times) for times in begun):
        first, second = sorted(begun, key=lambda times: float(times.min()))
        if first.max() < second.min():
            notes.append(
                "The two sides were measured on one machine, one after the other: slow drift between them would look "
                "like a difference. docs/statistics.md explains how to interleave them."
            )
    return notes


def _hosts(runs: pd.DataFrame) -> set[tuple[str, str]]:
    """The hosts of some runs by their hash and processor: machines that were cloned have the hash in common."""
    named = runs[["host_hash", "cpu_model"]].drop_duplicates().dropna(subset="host_hash")
    return {(str(host), str(model)) for host, model in named.itertuples(index=False)}
