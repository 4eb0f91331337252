"""Results of different dates, commits, drivers or versions as one line for each case, with the changes of its level.

A result is what one folder holds of one environment, protocol and code; its time is that of its first run, as the run
recorded it. Results on the same model of device form a line for each case; runs that do other work form other lines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.analysis import CaseLabels, last_attempts, spread_hosts
from bench.analysis.labels import device_name, sort_cases
from bench.comparison.differences import FLAGS, NOT_SAID, field_words, find_differences
from bench.comparison.joining import BROKEN, check_numbers
from bench.comparison.metrics import DEFAULT_METRICS, METRICS, Metric
from bench.comparison.result import Difference
from bench.devices import card_name
from bench.errors import BenchError, UnknownNameError
from bench.records import AXES, MEASURED, Group, Status, columns
from bench.stats import (
    CONFIDENCE,
    LEAST_RESULTS,
    MARGIN,
    LevelChange,
    Verdict,
    find_changes,
    geometric_interval,
    host_means,
)
from bench.units import counted

_RUN = ["run_key", "started_unix_s", "wall_window_s"]
"""What a run has to itself: the key alone is the same for the same turn of the same sweep, repeated."""


class DatedResult(NamedTuple):
    """One result of a history.

    Attributes:
        name: Of its folder or bundle.
        started_unix_s: When its first run began.
        machine: The models of the devices it ran on.
        torch_version: Of its runs.
        driver_version: Of the GPU; None on a CPU.
        git_commit: Of the harness; None outside a checkout.
    """

    name: str
    started_unix_s: float
    machine: str
    torch_version: str | None
    driver_version: str | None
    git_commit: str | None


@dataclass(frozen=True, slots=True)
class HistoryChange:
    """A change of a case's level.

    Attributes:
        line: Of which line: its number in `History.points`.
        label: The case in words.
        case_key: The case's.
        machine: The model of the device.
        metric: Which number changed.
        before_result: The last result before it, as a position in `History.results`.
        after_result: The first result after it.
        before: Level before it, in the metric's unit.
        after: Level after it.
        ratio: After over before.
        low: Lower end of its interval.
        high: Upper end.
        p_adjusted: Corrected for all places and all cases of the metric.
        verdict: `faster` or `slower`; of memory and energy, less is `faster`.
        regression: Whether it is for the worse, and the newest result is the first to show it.
        differences: What else differs between the two results, in the case's runs, the most important first.
    """

    line: int
    label: str
    case_key: str
    machine: str
    metric: str
    before_result: int
    after_result: int
    before: float
    after: float
    ratio: float
    low: float
    high: float
    p_adjusted: float
    verdict: Verdict
    regression: bool
    differences: list[Difference]


class NoLongerRuns(NamedTuple):
    """A case that ran in the result before and not in the newest one: a regression.

    Attributes:
        label: The case in words.
        case_key: The case's.
        machine: The model of the device.
        before_result: Where it ran, as a position in `History.results`.
        after_result: Where it did not.
        status: How it ended there.
        reason: The reason that the run gave; None if unknown.
        differences: What else differs between the two.
    """

    label: str
    case_key: str
    machine: str
    before_result: int
    after_result: int
    status: str
    reason: str | None
    differences: list[Difference]


@dataclass(frozen=True)
class History:
    """What became of each case over the results.

    Attributes:
        results: In order of time.
        points: One row per line, metric and result, sorted by case and time: `line` (a number), `label` (the case in
            words), `machine`, `case_key`, the axes, `metric`, `result` (position in `results`), `middle` (geometric
            mean over processes, in the metric's unit), `low` and `high` (its interval), `n` (processes, or hosts),
            `level` (mean of the results between two changes), `status` and `reason`. Unknown is NaN.
        changes: By case and time.
        broken: Cases that no longer run.
        notes: What a reader should know besides, one sentence each.
        margin: The smallest change that counts, as a fraction.
        confidence: Of every interval, and of there being no false change of a metric.
    """

    results: list[DatedResult]
    points: pd.DataFrame
    changes: list[HistoryChange]
    broken: list[NoLongerRuns]
    notes: list[str]
    margin: float
    confidence: float

    @property
    def regressed(self) -> bool:
        """Whether the newest result is a regression in any case."""
        return bool(self.broken) or any(change.regression for change in self.changes)

    @property
    def headline(self) -> str:
        """The outcome in a sentence."""
        many = counted(len(self.results), "result")
        worse = [change for change in self.changes if change.regression]
        lines = len({change.line for change in worse})
        parts = [f"{counted(lines, 'line')} changed for the worse"] if worse else []
        parts += [f"{counted(len(self.broken), 'case')} failed that ran before"] if self.broken else []
        if parts:
            newest = sorted({change.after_result for change in worse} | {item.after_result for item in self.broken})
            return f"A new regression: {' and '.join(parts)} in {' and '.join(map(self.words, newest))}."
        if self.changes:
            return f"{counted(len(self.changes), 'change')} over {many}; none for the worse is new with the newest."
        return f"No change was found over {many}."

    def words(self, result: int) -> str:
        """A result by its name, with its date."""
        return f"{self.results[result].name} ({date_words(self.results[result].started_unix_s)})"


def date_words(unix_s: float) -> str:
    """A time as date, hour and minute, in UTC; as seconds where no calendar has it."""
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return f"{unix_s:.6g} s"


def trace_history(
    sides: Sequence[tuple[str, pd.DataFrame]],
    *,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    metrics: Sequence[str] | None = None,
) -> History:
    """Order results by time, and find where the level of a case changed.

    Args:
        sides: Names of results, and their runs from `bench.load`; in any order, as their runs say when they ran.
        margin: The smallest change that counts, as a fraction.
        confidence: Of every interval, and of there being no false change among all the cases of a metric.
        metrics: Names in `METRICS`; throughput and peak memory unless given.

    Raises:
        BenchError: No run says when it started, or no result measured a metric that was requested.
    """
    check_numbers(margin, confidence)
    runs, results, notes = _join(sides)
    lines = _lines(runs)
    known = _measured_metrics(runs, metrics)
    points, changes = [], list[HistoryChange]()
    for metric in known:
        drawn = [_points(line, metric, confidence) for line in lines]
        found = _changes(lines, drawn, metric, margin, confidence)
        notes += _short_lines(lines, drawn, metric)
        for line, table, of_line in zip(lines, drawn, found, strict=True):
            points.append(
                _with_levels(table, of_line).drop(columns=["values"]).assign(**line.named, metric=metric.name)
            )
            changes += of_line
    first = ["line", "label", "machine", "case_key", *AXES, "metric", "result"]
    table = pd.concat(points, ignore_index=True)
    table = table[[*first, *(name for name in table if name not in first)]]
    return History(results, table, changes, _broken(lines), list(dict.fromkeys(notes)), margin, confidence)


@dataclass(frozen=True)
class _Line:
    """A case on one model of device: its runs by result, in order of time.

    Attributes:
        named: `line`, `label`, `machine`, `case_key` and the axes.
        runs: By the position of the result.
        newest: The newest result on its model of device.
    """

    named: dict[str, Any]
    runs: dict[int, pd.DataFrame]
    newest: int


def _join(sides: Sequence[tuple[str, pd.DataFrame]]) -> tuple[pd.DataFrame, list[DatedResult], list[str]]:
    """All runs that count, with the position of their `result`; the results by time; and what was left out."""
    notes, parts = list[str](), []
    for name, frame in sides:
        planned = frame[frame["planned"].astype(bool)] if "planned" in frame else frame
        parts.append(last_attempts(planned.reset_index(drop=True)).assign(_name=name))
    runs = pd.concat(parts, ignore_index=True)
    begun = runs["started_unix_s"].to_numpy(dtype=float, na_value=np.nan)
    runs["started_unix_s"] = np.where(np.isfinite(begun), begun, np.nan)
    ran = runs["started_unix_s"].notna()
    again = ran & runs.duplicated(_RUN)
    for name in dict.fromkeys(runs.loc[again, "_name"]):
        notes.append(f"{name}: holds runs that another result holds too; they count once.")
    runs = runs[~again]
    runs["_code"] = _code_turns(runs)
    keys = ["_name", *(name for name in columns(Group) if name != "code_key"), "_code"]
    runs["_start"] = runs.groupby(keys, dropna=False)["started_unix_s"].transform("min")
    for name in dict.fromkeys(runs.loc[runs["_start"].isna(), "_name"]):
        notes.append(f"{name}: runs of an environment in which none has started are left out.")
    runs = runs[runs["_start"].notna()].sort_values(["_start", *keys, "position", "repeat"], kind="stable")
    if runs.empty:
        raise BenchError("no run says when it started, so that nothing can be put in order; run bench sweep first")
    runs["result"] = runs.groupby(["_start", *keys], dropna=False, sort=True).ngroup()
    runs["machine"] = [_machine(row) for row in runs[_DEVICE].to_dict("records")]
    results = []
    for _, of_result in runs.groupby("result", sort=True):
        first = of_result.iloc[0]
        facts = [None if pd.isna(first[name]) else str(first[name]) for name in DatedResult._fields[3:]]
        machine = ", ".join(dict.fromkeys(of_result["machine"]))
        results.append(DatedResult(str(first["_name"]), float(first["_start"]), machine, *facts))
    return runs.reset_index(drop=True), results, notes


def _code_turns(runs: pd.DataFrame) -> pd.Series:
    """Whether a run is of the first code of its case in its folder (0), of the second (1), ...

    The key of the code is of the case's own model and optimizer too, so that cases of one result differ in it.
    """
    case = ["_name", *(name for name in columns(Group) if name != "code_key"), "case_key"]
    begun = runs.groupby([*case, "code_key"], dropna=False)["started_unix_s"].transform("min").fillna(np.inf)
    return begun.groupby([runs[name] for name in case], dropna=False).rank("dense").astype(int) - 1


_DEVICE = ["device", "gpu_name", "cpu_model", "device_memory_bytes"]


def _machine(row: Mapping[Any, Any]) -> str:
    """The model of the device, or the smaller card that it played."""
    limit = row["device_memory_bytes"]
    return device_name(row) if pd.isna(limit) else card_name(device_name(row), int(limit))


def _lines(runs: pd.DataFrame) -> list[_Line]:
    """The lines, in a reader's order."""
    keys = ["machine", *AXES, *(flag for flag in FLAGS if flag not in NOT_SAID)]
    texts = runs[keys].astype(object).where(runs[keys].notna(), None).map(str)
    held = texts.groupby(keys, sort=False).ngroup()
    for flag in NOT_SAID:  # a run that failed early does not say; its neighbours do
        said = runs[flag].astype(object).where(runs[flag].notna(), None)
        texts[flag] = said.groupby(held).ffill().groupby(held).bfill().map(str)
    runs = runs.assign(line=texts.groupby(list(texts), sort=False).ngroup())
    heads = runs.drop_duplicates("line").reset_index(drop=True)
    varied = [flag for flag in FLAGS if flag != "device_memory_bytes" and _differs(texts, flag)]
    words = [
        ", ".join(f"{flag} {field_words(flag, None if pd.isna(row[flag]) else row[flag])}" for flag in varied)
        for row in heads[list(FLAGS)].to_dict("records")
    ]
    heads = sort_cases(heads.assign(protocol=words, code=""))
    labels, newest = CaseLabels(heads), runs.groupby("machine")["result"].max()
    grouped = dict(iter(runs.groupby("line")))
    return [
        _Line(
            {"line": number, "label": labels.case(row), **{name: row[name] for name in ("machine", "case_key", *AXES)}},
            {int(str(result)): table for result, table in grouped[row["line"]].groupby("result", sort=True)},
            int(newest[row["machine"]]),
        )
        for number, row in enumerate(heads.to_dict("records"))
    ]


def _differs(texts: pd.DataFrame, flag: str) -> bool:
    """Whether a flag has several values for the same axes and machine."""
    return bool((texts.groupby(["machine", *AXES])[flag].nunique() > 1).any())


def _measured_metrics(runs: pd.DataFrame, asked: Sequence[str] | None) -> list[Metric]:
    """The metrics to follow; of the default ones, those that any result measured."""
    for name in asked or ():
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS, list_command="compare --help")
    names = list(dict.fromkeys(asked or DEFAULT_METRICS))
    found = [METRICS[name] for name in names if np.isfinite(METRICS[name].values(runs)).any()]
    missing = [name for name in names if METRICS[name] not in found]
    if missing and asked:
        raise BenchError(f"no result measured {', '.join(missing)}; remove the metric")
    return found or [METRICS[DEFAULT_METRICS[0]]]


def _points(line: _Line, metric: Metric, confidence: float) -> pd.DataFrame:
    """One row per result; `values` are those of the processes, or of hosts where repeats were spread over several."""
    rows = []
    for result, runs in line.runs.items():
        numbers = metric.values(runs)
        known = np.isfinite(numbers)
        values = host_means(numbers[known].tolist(), spread_hosts(runs)[known].tolist()) if known.any() else []
        interval = geometric_interval(values, confidence) if values else None
        status, reason = _end(runs)
        ends = (interval.middle, interval.low, interval.high) if interval else (None, None, None)
        shown = dict(zip(("middle", "low", "high"), ends, strict=True))
        rows.append({"result": result, **shown, "n": len(values), "status": status, "reason": reason, "values": values})
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(("middle", "low", "high"), float))


def _end(runs: pd.DataFrame) -> tuple[str, str | None]:
    """How a case ended in a result: measured if any run was, else as most of its runs."""
    statuses = runs["status"].astype(str)
    status = Status.OK if statuses.isin(MEASURED).any() else statuses.mode().iloc[0]
    reasons = runs.loc[statuses == status, "reason"].dropna()
    return str(status), None if status == Status.OK or reasons.empty else str(reasons.iloc[0])


def _changes(
    lines: Sequence[_Line], drawn: Sequence[pd.DataFrame], metric: Metric, margin: float, confidence: float
) -> list[list[HistoryChange]]:
    """The changes of each line in one metric; those of all lines are one family."""
    counting = [table[table["n"] > 1] for table in drawn]
    mixed = [_interleaved(line, table["result"].tolist()) for line, table in zip(lines, counting, strict=True)]
    series = [table["values"].tolist() for table in counting]

    def search(some: Sequence[Sequence[Sequence[float]]]) -> list[list[LevelChange]]:
        return find_changes(some, interleaved=mixed, margin=margin, confidence=confidence)

    before = search([values[:-1] for values in series])  # as it was before the newest result
    found = []
    for line, table, now, then in zip(lines, counting, search(series), before, strict=True):
        places = table["result"].tolist()
        of_line = []
        for number, change in enumerate(now):
            worse = (change.ratio > 1) != metric.higher_is_better
            since = now[number - 1].place if number else 0
            known = any(since < old.place and (old.ratio > 1) == (change.ratio > 1) for old in then)
            last = number == len(now) - 1 and places[-1] == line.newest
            sides = places[change.place - 1], places[change.place]
            of_line.append(
                HistoryChange(
                    line=line.named["line"],
                    label=line.named["label"],
                    case_key=line.named["case_key"],
                    machine=line.named["machine"],
                    metric=metric.name,
                    before_result=sides[0],
                    after_result=sides[1],
                    before=change.before,
                    after=change.after,
                    ratio=change.ratio,
                    low=change.low,
                    high=change.high,
                    p_adjusted=change.p_adjusted,
                    verdict=Verdict.SLOWER if worse else Verdict.FASTER,
                    regression=worse and last and not known,
                    differences=find_differences(*(line.runs[side] for side in sides)),
                )
            )
        found.append(of_line)
    return found


def _interleaved(line: _Line, results: Sequence[int]) -> bool:
    """Whether results took turns on one device: of any two neighbours, runs alternate as often as in a random order."""
    for pair in itertools.pairwise(results):
        both = pd.concat([line.runs[result] for result in pair]).dropna(subset="started_unix_s")
        both = both.sort_values("started_unix_s", kind="stable")
        turns = int((both["result"].diff().iloc[1:] != 0).sum())
        one_device = both[["host_hash", "gpu_uuid_hash"]].astype(object).fillna("").drop_duplicates()
        if turns < len(both) / 2 or len(one_device) > 1:
            return False
    return len(results) > 1


def _with_levels(table: pd.DataFrame, changes: Sequence[HistoryChange]) -> pd.DataFrame:
    """The points with the mean of the results between two changes, each result counted once."""
    starts = [change.after_result for change in changes]
    segment = np.searchsorted(starts, table["result"].to_numpy(), side="right")
    counts = (table["n"] > 1).to_numpy()
    level = np.full(len(table), math.nan)
    for number in range(len(starts) + 1):
        inside = segment == number
        logs = np.log(table.loc[inside & counts, "middle"].to_numpy(dtype=float))
        if len(logs):
            level[inside] = math.exp(logs[0]) if (logs == logs[0]).all() else math.exp(float(logs.mean()))
    return table.assign(level=level)


def _short_lines(lines: Sequence[_Line], drawn: Sequence[pd.DataFrame], metric: Metric) -> list[str]:
    """Which lines have no verdicts, and why."""
    short = single = 0
    for line, table in zip(lines, drawn, strict=True):
        counting = table.loc[table["n"] > 1, "result"].tolist()
        single += int((table["n"] == 1).sum())
        short += len(counting) < LEAST_RESULTS and not _interleaved(line, counting)
    notes = []
    if short:
        notes.append(
            f"{metric.label}: {short} of {counted(len(lines), 'line')} have fewer than {LEAST_RESULTS} results of two "
            "or more processes, which do not show how much results differ by themselves: no change is called there. "
            "bench compare compares two results by their processes; interleaved results need no more than two."
        )
    if single:
        notes.append(
            f"{metric.label}: {counted(single, 'point')} of one process say nothing about variation, and do not count."
        )
    return notes


def _broken(lines: Sequence[_Line]) -> list[NoLongerRuns]:
    """Cases that the newest result planned and did not measure, and the one before did."""
    found = []
    for line in lines:
        results = list(line.runs)
        if len(results) < 2 or results[-1] != line.newest:
            continue
        before, after = line.runs[results[-2]], line.runs[results[-1]]
        status, reason = _end(after)
        if status in BROKEN and _end(before)[0] == Status.OK:
            label, case_key, machine = (str(line.named[name]) for name in ("label", "case_key", "machine"))
            differences = find_differences(before, after)
            found.append(NoLongerRuns(label, case_key, machine, results[-2], results[-1], status, reason, differences))
    return found
