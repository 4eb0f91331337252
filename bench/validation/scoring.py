"""From a CSV of measurements and their estimates to an error table.

A file is checked as a whole: every fault is reported at once, up to a number. One constant a GPU is fitted and
cross-validated; errors are given by GPU and model family.
"""

from __future__ import annotations

import csv
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.errors import BenchError, DataError, nearest, nearest_sentence
from bench.stats import ErrorSummary, relative_error, summarise_errors
from bench.units import counted
from bench.validation.estimating import Estimated
from bench.validation.rows import Measured, TableLayout, device_name

MAX_BYTES = 64 << 20
MAX_ROWS = 20_000
MAX_FAULTS = 20


def list_layouts() -> list[TableLayout]:
    """Every layout in this folder, by name: the modules that define LAYOUT."""
    package = importlib.import_module("bench.validation")
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"bench.validation.{name}") for name in names]
    return [module.LAYOUT for module in modules if hasattr(module, "LAYOUT")]


def read_measurements(path: Path, device: str | None = None) -> tuple[list[Measured], int]:
    """The rows of a file, and how many were skipped (unsupported cases, or other devices than the requested one).

    Args:
        path: A CSV with a header, UTF-8, at most 64 MiB and 20,000 rows.
        device: The device of rows without one; rows of other devices are skipped.

    Raises:
        DataError: The file cannot be read, has no layout's columns, or has errors: each with its line.
        UnknownNameError: No such device.
    """
    asked = device_name(device) if device else None
    rows: list[Measured] = []
    faults: list[str] = []
    count = left_out = 0
    layout: TableLayout | None = None
    for line, cells in _lines(path):
        layout = layout or _layout_of(path, list(cells))
        count += 1
        if count > MAX_ROWS:
            raise DataError(f"{path}: more than {MAX_ROWS} rows; split the file")
        try:
            row = layout.read(cells, line, asked)
        except BenchError as error:
            faults.append(f"{path}:{line}: {error}")
            if len(faults) == MAX_FAULTS:
                faults.append("... and perhaps more")
                break
            continue
        if row is None or (asked is not None and row.device != asked):
            left_out += 1
        else:
            rows.append(row)
    if faults:
        raise DataError("\n".join(faults))
    if not count:
        raise DataError(f"{path}: no rows below the header")
    if not rows:
        where = f" on {asked}" if asked else ""
        raise DataError(f"{path}: none of its {counted(count, 'row')} can be estimated{where}")
    return rows, left_out


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Line numbers and cells by column; missing cells of a short row are empty."""
    try:
        if not path.is_file():
            state = "a folder" if path.is_dir() else "not a file" if path.exists() else "no such file"
            raise DataError(f"{path}: {state}; give a CSV of measurements (bench validate --help lists the columns)")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MiB; split the file")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restkey="", restval="", strict=True)
            if reader.fieldnames is None:
                raise DataError(f"{path}: empty; the first line must name the columns")
            names = [str(name).strip() for name in reader.fieldnames]
            twice = sorted({name for name in names if name and names.count(name) > 1})
            if twice:
                raise DataError(f"{path}: columns {', '.join(twice[:5])} appear more than once")
            reader.fieldnames = names
            for cells in reader:
                if any(isinstance(value, list) for value in cells.values()):
                    raise DataError(f"{path}:{reader.line_num}: more cells than columns")
                yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error


def _layout_of(path: Path, columns: list[str]) -> TableLayout:
    """The layout that a file's columns fit, the one with most columns first. Raises DataError."""
    layouts = sorted(list_layouts(), key=lambda layout: -len(layout.columns))
    for layout in layouts:
        if not _missing(layout, columns):
            return layout
    closest = min(layouts, key=lambda layout: (_missing_frac(layout, columns), len(layout.columns)))
    missing = _missing(closest, columns)
    near = nearest_sentence(nearest(missing[0].split(" ")[0], columns))
    known = "; ".join(f"{layout.name}: {', '.join(layout.columns)}" for layout in layouts)
    raise DataError(
        f"{path}: its columns match no known layout. Closest: {closest.name}, but missing {', '.join(missing)}. {near}"
        f"Layouts: {known}"
    )


def _missing_frac(layout: TableLayout, columns: list[str]) -> float:
    return len(_missing(layout, columns)) / (len(layout.columns) + len(layout.alternatives))


def _missing(layout: TableLayout, columns: list[str]) -> list[str]:
    missing = [name for name in layout.columns if name not in columns]
    missing += [" or ".join(group) for group in layout.alternatives if not set(group) & set(columns)]
    return missing


@dataclass(frozen=True, slots=True)
class GroupScore:
    """Errors of some rows.

    Attributes:
        device: Name, or `all`.
        family: Name, or `all`.
        constant_bytes: What was added to every estimate of a driver's peak: context and loaded modules, fitted on this
            device's rows; None if nothing was fitted.
        errors: With that constant; None if no row has an estimate.
        held_out: With the constant fitted on the other families' rows (other rows, where there is one family only);
            None if there are none.
        failures: Rows without an estimate.
        below: Rows whose estimate is below the measurement: a run given that much memory would have failed.
    """

    device: str
    family: str
    constant_bytes: int | None
    errors: ErrorSummary | None
    held_out: ErrorSummary | None
    failures: int
    below: int

    @property
    def exact(self) -> int:
        """Rows whose estimate is the measurement, to the byte; a fitted constant makes one of its rows exact."""
        return round(self.errors.share_exact * self.errors.n) if self.errors else 0


@dataclass(frozen=True, slots=True)
class Score:
    """The table, and the signed error of every row by its line (absent where the estimator refused)."""

    groups: tuple[GroupScore, ...]
    row_errors: dict[int, float]
    constants: dict[str, int]


def fit_constant(rows: Sequence[Estimated]) -> int:
    """The constant in bytes that makes the mean relative error smallest: a median weighed by 1 / measured.

    Raises:
        ValueError: No row has an estimate.
    """
    known = [
        (row.measured_bytes - row.estimated_bytes, 1 / row.measured_bytes)
        for row in rows
        if row.estimated_bytes is not None
    ]
    if not known:
        raise ValueError("no estimates to fit a constant to")
    known.sort()
    sums = np.cumsum([weight for _, weight in known])
    return known[int(np.searchsorted(sums, sums[-1] / 2))][0]


FORMULA = "formula"


def score_others(rows: Sequence[Estimated]) -> dict[str, Score]:
    """The table of every other estimator on the same rows, by its name: the formula, then those that a file published.

    The formula gets a constant per GPU as the trace does; what others published stands as it is.
    """
    found = {FORMULA: score([replace(row, estimated_bytes=row.formula_bytes) for row in rows])}
    for name in dict.fromkeys(name for row in rows for name, _ in row.published):
        theirs = [replace(row, estimated_bytes=dict(row.published).get(name)) for row in rows]
        found[name] = score(theirs, with_constant=False)
    return found


def score(rows: Iterable[Estimated], *, with_constant: bool = True) -> Score:
    """The table: each device's families, each device, and all; the constant is fitted to peaks of the driver's only.

    Args:
        rows: Of any devices.
        with_constant: Whether to fit one; estimates are taken to hold context and modules otherwise.
    """
    rows = sorted(rows, key=lambda row: (row.device, row.family, row.line))
    devices = list(dict.fromkeys(row.device for row in rows))
    constants: dict[str, int] = {}
    fitted: dict[int, float] = {}
    held: dict[int, float] = {}
    for device in devices:
        mine = [row for row in rows if row.device == device]
        shown = [row for row in mine if row.quantity == "device" and row.estimated_bytes is not None]
        if shown and with_constant:
            constants[device] = fit_constant(shown)
        for row in mine:
            if row.estimated_bytes is None:
                continue
            constant = constants.get(device, 0) if row.quantity == "device" else 0
            fitted[row.line] = relative_error(row.estimated_bytes + constant, row.measured_bytes)
            others = _others(row, shown)
            if row.quantity != "device" or not with_constant:
                held[row.line] = fitted[row.line]
            elif others:
                held[row.line] = relative_error(row.estimated_bytes + fit_constant(others), row.measured_bytes)
    groups = []
    for device in devices:
        mine = [row for row in rows if row.device == device]
        families = list(dict.fromkeys(row.family for row in mine))
        for family in families if len(families) > 1 else []:
            some = [row for row in mine if row.family == family]
            groups.append(_group(device, family, some, constants.get(device), fitted, held))
        groups.append(_group(device, "all", mine, constants.get(device), fitted, held))
    if len(devices) > 1:
        groups.append(_group("all", "all", rows, None, fitted, held))
    return Score(tuple(groups), fitted, constants)


def _others(row: Estimated, rows: Sequence[Estimated]) -> list[Estimated]:
    """Rows of other families, or all other rows where there is one family only."""
    return [other for other in rows if other.family != row.family] or [other for other in rows if other is not row]


def _group(
    device: str,
    family: str,
    rows: Sequence[Estimated],
    constant: int | None,
    fitted: dict[int, float],
    held: dict[int, float],
) -> GroupScore:
    errors = [fitted[row.line] for row in rows if row.line in fitted]
    left = [held[row.line] for row in rows if row.line in held]
    return GroupScore(
        device,
        family,
        constant,
        summarise_errors(errors),
        summarise_errors(left),
        failures=sum(row.estimated_bytes is None for row in rows),
        below=sum(error < 0 for error in errors),
    )
