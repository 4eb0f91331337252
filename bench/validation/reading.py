"""A CSV of measurements, checked as a whole: all errors of a file are reported at once, up to a limit."""

from __future__ import annotations

import csv
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.errors import BenchError, DataError, nearest, nearest_sentence
from bench.units import counted
from bench.validation.rows import Layout, Measured, device_name

MAX_BYTES = 64 << 20
MAX_ROWS = 20_000
MAX_FAULTS = 20


def list_layouts() -> list[Layout]:
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
    layout: Layout | None = None
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


def _layout_of(path: Path, columns: list[str]) -> Layout:
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


def _missing_frac(layout: Layout, columns: list[str]) -> float:
    return len(_missing(layout, columns)) / (len(layout.columns) + len(layout.alternatives))


def _missing(layout: Layout, columns: list[str]) -> list[str]:
    missing = [name for name in layout.columns if name not in columns]
    missing += [" or ".join(group) for group in layout.alternatives if not set(group) & set(columns)]
    return missing
