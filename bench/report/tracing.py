"""From a number in a report back to the runs and Parquet parts that it came from.

A number is read as reports print it; every column whose value would print so is meant.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis import GROUP, CaseLabels, last_attempts, summarise_cases
from bench.analysis.cases import PEAKS
from bench.errors import BenchError, nearest, nearest_sentence
from bench.records import UNITS, Estimate, columns, unit_of
from bench.report.sections.table import column_titles
from bench.store import planned_runs, read_results
from bench.store.parts import parts, read

MAX_FOUND = 50
"""Places of one number; more say that it is too short to mean one."""

_KEY = re.compile(r"[0-9a-f]{6,16}")
_HOW = {
    "samples_per_s": "geometric mean over the processes of batch size x steps / wall time of the measured window",
    "median_step_time_s": "geometric mean over the processes of each one's median step",
    "step_p10_s": "10th percentile of all measured steps of the processes",
    "step_p50_s": "median of all measured steps of the processes",
    "step_p90_s": "90th percentile of all measured steps of the processes",
    "step_p99_s": "99th percentile of all measured steps of the processes",
    "mfu_frac": "arithmetic of a step (step_flop) / (the median step x the device's dense peak, peak_flop_per_s)",
    "roofline_frac": "least time of a step at the device's peaks (least_step_time_s) / the median step",
    "data_wait_frac": "time spent waiting for data / time of all measured steps",
    "joules_per_sample": "energy of the measured windows / samples in them",
}
_RUN_COLUMN = {"joules_per_sample": "energy_window_j", "data_wait_frac": "median_step_time_s"} | {
    f"step_p{share}_s": "median_step_time_s" for share in (10, 50, 90, 99)
}
_HEADLINE = ("samples_per_s", "peak_allocated_bytes")
_ESTIMATED = set(columns(Estimate)) - {"case_key", "estimate_device", "estimate_note"}


@dataclass(frozen=True, slots=True)
class Source:
    """A run behind a number: its key, turn and status, its own value in the column's unit, and its part."""

    run_key: str | None
    repeat: int
    attempt: int
    status: str
    counts: bool
    value: float | None
    part: str | None


@dataclass(frozen=True, slots=True)
class Traced:
    """One number of a report, or one case.

    Attributes:
        case_key: Of the case it stands in the row of.
        case: The case in words.
        column: Its column in `table.csv`; the speed's where a case was asked for.
        value: In the column's unit; null where the case has none.
        title: The column's heading in the report, or nothing where it stands in the CSV alone.
        how: How it was computed.
        sources: The runs of the case, those that count first.
        estimate_parts: Parts of estimates that it came from.
        places: Files of the report that hold it, with lines.
    """

    case_key: str
    case: str
    column: str
    value: float | None
    title: str
    how: str
    sources: Sequence[Source]
    estimate_parts: Sequence[str] = ()
    places: Sequence[str] = field(default_factory=tuple)


def trace_back(text: str, results: Sequence[Path]) -> list[Traced]:
    """Everything that `text` may mean in the report of `results`, in the order of its table.

    Args:
        text: A number as it is printed (`12,300`, `244 MiB`, `1.31 ms`) or as a CSV has it, a case key, a run key or
            the name of a part (at least 6 digits of it), or words of a case.
        results: Results folders, with or without their reports.

    Raises:
        BenchError: It means nothing there; the message has the nearest case.
        StoreError: The results cannot be read.
    """
    loaded = read_results(*results)
    loaded.warn()
    frame = planned_runs(loaded)
    book = _Book(frame, summarise_cases(frame), loaded.folders)
    found = list(book.numbers(text)) or list(book.runs(text)) or list(book.cases(text))
    if not found:
        near = nearest_sentence(nearest(text, book.labels))
        raise BenchError(
            f'"{text}": no number, case or run of {", ".join(map(str, results))}. {near}Give a number as the report '
            "prints it (12,300 or 244 MiB) or as table.csv has it, a case key, a run key, or words of a case"
        )
    return found


class _Book:
    """The results, by row and column."""

    def __init__(self, frame: pd.DataFrame, summary: pd.DataFrame, folders: Sequence[Path]) -> None:
        """Take a frame with its summary, and the folders that it was loaded from."""
        self.frame, self.rows, self.folders = frame, summary.to_dict("records"), folders
        labels = CaseLabels(summary)
        self.labels = [labels.case(row) for row in self.rows]
        self.titles = column_titles()
        counting = last_attempts(frame)
        self._last = set(counting["run_key"].dropna())
        self._runs = {key: part.to_dict("records") for key, part in frame.groupby(list(GROUP), dropna=False)}
        self._parts = {path.stem.rpartition("-")[2]: path for folder in folders for path in parts(folder / "runs")}

    def numbers(self, text: str) -> Iterator[Traced]:
        """Cells of the summary that print as `text`; where there is none, runs with such a number of their own."""
        wanted = parse_printed(text)
        if wanted is None:
            return
        cells = [
            (place, str(name))
            for place, row in enumerate(self.rows)
            for name in row
            if wanted.is_shown_by(str(name), row[name])
        ]
        shown = [(place, name) for place, name in cells if _base(name) in self.titles]
        for place, name in (shown or cells)[:MAX_FOUND]:  # what the report shows was read there
            yield self._traced(place, name, float(self.rows[place][name]))
        if not cells:
            yield from self._of_single_runs(wanted)

    def runs(self, text: str) -> Iterator[Traced]:
        """The case of a run key, or of a part's name."""
        key = Path(text).name.removesuffix(".parquet").rpartition("-")[2]
        if _KEY.fullmatch(key):
            for place, row in enumerate(self.rows):
                if any(str(run["run_key"]).startswith(key) for run in self._of(row)):
                    yield self._traced(place, "samples_per_s", _known(row["samples_per_s"]))

    def cases(self, text: str) -> Iterator[Traced]:
        """The cases of a key, or those whose words hold all words of `text`."""
        words = [word for word in re.split(r"[\s,]+", text.casefold()) if word]
        for place, (row, label) in enumerate(zip(self.rows, self.labels, strict=True)):
            its = re.split(r"[\s,]+", f"{label} {row['optimizer']} {row['precision']}".casefold())
            key = _KEY.fullmatch(text) and str(row["case_key"]).startswith(text)
            if key or (words and all(word in its for word in words)):
                for column in _HEADLINE:
                    yield self._traced(place, column, _known(row[column]))

    def _of_single_runs(self, wanted: Printed) -> Iterator[Traced]:
        for place, row in enumerate(self.rows):
            for run in self._of(row):
                for column in _RAW:
                    if wanted.is_shown_by(column, run.get(column)):
                        yield self._traced(place, column, float(run[column]), run["run_key"])

    def _of(self, row: Mapping[Any, Any]) -> list[dict[Any, Any]]:
        return self._runs.get(tuple(row[name] for name in GROUP), [])

    def _traced(self, place: int, column: str, value: float | None, only: str | None = None) -> Traced:
        row = self.rows[place]
        base = _base(column)
        runs = [run for run in self._of(row) if only is None or run["run_key"] == only]
        sources = [self._source(run, _RUN_COLUMN.get(base, base)) for run in runs]
        estimated = base in _ESTIMATED or base.endswith("_relative_error")
        return Traced(
            str(row["case_key"]),
            self.labels[place],
            column,
            value,
            self.titles.get(base, ""),
            "one process's own number" if only else _how(column, base),
            sorted(sources, key=lambda one: not one.counts),
            self._estimate_parts(row) if estimated else (),
            tuple(_places(self.folders, value)),
        )

    def _source(self, run: Mapping[Any, Any], column: str) -> Source:
        part = self._parts.get(str(run["run_key"]))
        return Source(
            None if pd.isna(run["run_key"]) else str(run["run_key"]),
            int(run["repeat"]),
            int(run["attempt"]),
            str(run["status"]),
            run["run_key"] in self._last,
            _known(run.get(column)),
            str(part) if part else None,
        )

    def _estimate_parts(self, row: Mapping[Any, Any]) -> tuple[str, ...]:
        """The last part that holds the estimates beside the case's runs: the one that loading takes."""
        wanted = {(run["case_key"], run["estimate_device"], run["estimate_key"]) for run in self._of(row)}
        held = [path for folder in self.folders for path in parts(folder / "estimates") if wanted & _estimated_in(path)]
        return tuple(map(str, held[-1:]))


_RAW = ("samples_per_s", "median_step_time_s", "wall_window_s", *PEAKS, "energy_window_j")


def _estimated_in(path: Path) -> set[tuple[str, str, str]]:
    table = read(path, "estimates")
    return set(zip(*(table[name].to_pylist() for name in ("case_key", "estimate_device", "estimate_key")), strict=True))


def _how(column: str, base: str) -> str:
    """How the summary computes a column, in words."""
    if column != base:
        over = "processes, or of hosts' means where repeats were spread over hosts"
        return f"end of the 95 % interval (Student's t on the logarithms of the {over}): {_HOW.get(base, base)}"
    if base.endswith("_relative_error"):
        return "(estimate - measured) / measured"
    if base in _ESTIMATED:
        return "an estimate: nothing was run for it"
    return _HOW.get(base, "the largest over the processes" if base.endswith("_bytes") else "the same in every run")


def _base(column: str) -> str:
    """The column that an interval's end belongs to."""
    return column.removesuffix("_low").removesuffix("_high")


def _known(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _places(folders: Sequence[Path], value: float | None) -> Iterator[str]:
    """Lines of the reports' CSV files that hold the number to its last digit."""
    for folder in folders if value is not None else ():
        report = folder.parent
        for path in (report / "table.csv", *sorted((report / "figures").glob("*.csv"))):
            if path.is_file():
                with contextlib.suppress(csv.Error, OSError):  # a file that is no CSV holds no line of it
                    yield from _lines(path, path.relative_to(report).as_posix(), value)


def _lines(path: Path, name: str, value: float | None) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file)
        head = next(rows, [])
        for line, row in enumerate(rows, 2):
            for title, cell in zip(head, row, strict=False):
                if cell and cell[0] in "-0123456789" and _number(cell) == value:
                    yield f"{name}, line {line}, column {title}"


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


_NUMBER = re.compile(
    r"([-+]?)(\d{1,3}(?:,\d{3}){1,9}|\d{1,30})?(\.\d{1,30})?(e[-+]?\d{1,2})?\s*([^\d\s].{0,20})?", re.IGNORECASE
)
_SPELLINGS = {spelling: (kind, factor) for kind, unit in UNITS.items() for spelling, factor in unit.spellings.items()}


@dataclass(frozen=True, slots=True)
class Printed:
    """A number that somebody read in a report.

    Attributes:
        digits: As it was read, without sign, separators and unit.
        negative: Its sign: None where none was written.
        value: In the base unit of its kind, without its sign.
        reach: Half of its last digit, in the same unit.
        kind: The ending of the columns that it may stand in; empty where no unit was written.
        factor: One of its unit, in the base unit.
    """

    digits: str
    negative: bool | None
    value: float
    reach: float
    kind: str
    factor: float

    def is_shown_by(self, column: str, value: Any) -> bool:
        """Whether `value` in `column` prints as this number, or is it to the digits that were read."""
        kind = kind_of(column)
        if not kind or (self.kind and self.kind != kind) or not isinstance(value, int | float) or math.isnan(value):
            return False
        if self.negative is not None and self.negative != (value < 0):
            return False
        size = abs(float(value))
        if abs(size - self.value) <= self.reach * (1 + 1e-9):
            return True
        shown = parse_printed(UNITS[kind].measured(size))
        return shown is not None and shown.digits == self.digits and (not self.kind or shown.factor == self.factor)


def parse_printed(text: str) -> Printed | None:
    """Read `12,300 samples/s`, `244 MiB`, `-12.3 %` or `0.00131`; None where it is no number."""
    match = _NUMBER.fullmatch(text.strip().replace("\u2212", "-"))
    if match is None or not (match[2] or match[3]):
        return None
    unit = (match[5] or "").strip().casefold().replace("\u03bc", "µ")
    if unit and unit not in _SPELLINGS:
        return None
    kind, factor = _SPELLINGS.get(unit, ("", 1))
    digits = f"{(match[2] or '0').replace(',', '')}{match[3] or ''}"
    power = int(match[4][1:]) if match[4] else 0
    reach = 0.5 * 10.0 ** (power - (len(match[3]) - 1 if match[3] else 0)) * factor
    negative = None if not match[1] else match[1] == "-"
    return Printed(digits, negative, float(digits) * 10.0**power * factor, reach, kind, float(factor))


def kind_of(column: str) -> str:
    """The ending that says a column's unit; empty for columns that reports do not print as measurements."""
    base = _base(column)
    if base.endswith("_relative_error"):
        return "_frac"
    unit = unit_of(base)
    return unit if unit and UNITS[unit].spellings else ""
