"""Reading results folders into one frame."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bench.errors import StoreError
from bench.records import UNMODELLED, Group, Status, columns, join_notes, left_out
from bench.store import schema
from bench.store.parts import TEMPORARY, NewerFormatError, UnreadableError, notes_of, parts, read, version_of

if TYPE_CHECKING:
    import pandas as pd

MERGED_FROM = "merged_from"
"""The note that keeps plans of one environment apart which come from several folders; see `bench.bundles.merging`."""

_JOIN = ["case_key", "estimate_device"]
_RUN_IDENTITY = ["case_key", "repeat", *columns(Group)]
_WANTED = ["target_interval", "estimate_key"]
"""Columns of a plan that each of its runs gets."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What the writer of the newest plan of one environment noted: the sweep's name, configuration, command."""

    folder: Path
    environment_key: str
    values: dict[str, Any]


def load_results(*paths: str | os.PathLike[str]) -> pd.DataFrame:
    """Every run under `paths` as one frame, one row a run (see `bench.load`).

    The order is that of the folders, then of the plan. `planned` is false for runs that the newest plan of their
    environment no longer names: what an earlier configuration in the same folder ran. Parts that cannot be read, or
    whose rows differ from their own hash, are named in a warning and left out: their runs read as `interrupted`, and
    resume runs them again.

    Raises:
        StoreError: A path holds no results, or a part was written by a newer version.
    """
    folders = results_folders(paths)
    frame = _to_pandas(_joined([table for folder in folders for table in _runs(folder)]))
    tables = [table for folder in folders for table in _read_all(parts(folder / "estimates"), "estimates")]
    estimates = _to_pandas(_joined([schema.ESTIMATE.empty_table(), *tables]))
    return _with_notes(_with_rates(_with_estimates(frame, estimates)))


def planned_runs(loaded: pd.DataFrame, paths: Sequence[Path]) -> pd.DataFrame:
    """The runs that count: those that a newest plan names.

    Args:
        loaded: From `load_results(*paths)`.
        paths: Where it was loaded from.

    Raises:
        StoreError: There are none; the message names the plans that are damaged, and says what to do.
    """
    planned = loaded[loaded["planned"]].reset_index(drop=True)
    if planned.empty:
        raise StoreError(f"{', '.join(map(str, paths))}: {_why_nothing_counts(len(loaded), results_folders(paths))}")
    return planned


def _why_nothing_counts(runs: int, folders: Iterable[Path]) -> str:
    """What keeps `runs` runs, or none, from counting, and what to do about it."""
    faults: dict[bool, list[str]] = {True: [], False: []}  # by whether the disk refuses
    for path in (path for folder in folders for path in parts(folder, "plan-*.parquet")):
        try:
            read(path, "plan")
        except StoreError as error:
            faults[isinstance(error, UnreadableError)].append(str(path))
    what = f"none of {runs} runs counts without its plan" if runs else "no runs"
    if faults[True]:
        return f"{what}, and the disk does not give {', '.join(faults[True])}; mend that, and try again"
    if faults[False]:
        return (
            f"{what}, and {', '.join(faults[False])} {'is' if len(faults[False]) == 1 else 'are'} damaged. Restore "
            "from a copy, or run the same bench sweep again on its machine: it plans anew and keeps the runs that are "
            "whole"
        )
    return "no runs, and none planned; run bench sweep first"


def load_notes(*paths: str | os.PathLike[str]) -> list[Notes]:
    """The notes of the newest plan of every environment under `paths`. Raises StoreError as `load_results`."""
    return [
        Notes(folder, key, notes_of(table)) for folder in results_folders(paths) for key, table in newest_plans(folder)
    ]


def results_folders(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The results folders at or below `paths`, each once, in the order given.

    Raises:
        StoreError: A path does not exist or holds no results.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        here = sorted({plan.parent for plan in path.rglob("plan-*.parquet") if not _is_unfinished(plan, path)})
        if not here:
            state = "holds no results" if path.exists() else "does not exist"
            raise StoreError(f"{path}: {state}; give a folder that `bench sweep` wrote (reports/NAME)")
        found.update(dict.fromkeys(here))
    return list(found)


def _is_unfinished(plan: Path, given: Path) -> bool:
    """Whether a plan lies in what a merge has not finished, or never will."""
    return any(name.startswith(TEMPORARY) for name in plan.relative_to(given).parts)


def _runs(folder: Path) -> list[pa.Table]:
    """The runs of one folder, and a table of what its newest plans name and no part holds."""
    tables = _read_all(parts(folder / "runs"), "run")
    known = {tuple(row.values()) for table in tables for row in table.select(_RUN_IDENTITY).to_pylist()}
    missing: list[dict[str, Any]] = []
    planned: dict[tuple[Any, ...], dict[str, Any]] = {}  # runs that a newest plan names, with what it wants of them
    for _, plan in newest_plans(folder):
        notes = notes_of(plan)
        for row in plan.to_pylist():
            skip_reason = row.pop("skip_reason")
            run, wanted = tuple(row[name] for name in _RUN_IDENTITY), {name: row.pop(name, None) for name in _WANTED}
            if run not in known and run not in planned:  # merged plans may name the same run
                missing.append(
                    {**notes["protocol"], **notes["environment"], **row, "attempt": 0, **_absent(skip_reason)}
                )
            planned[run] = wanted
    merged = _joined([*tables, pa.Table.from_pylist(missing, schema=schema.RUN)])
    version = pa.array([version_of(table) for table in tables for _ in range(table.num_rows)], pa.int64())
    padded = pa.concat_arrays([version, pa.array([schema.SCHEMA_VERSION] * len(missing), pa.int64())])
    runs = [tuple(row.values()) for row in merged.select(_RUN_IDENTITY).to_pylist()]
    named = pa.array([run in planned for run in runs], pa.bool_())
    merged = merged.append_column("schema_version", padded).append_column("planned", named)
    earlier = _earlier_estimate_keys(folder) if not all(run in planned for run in runs) else {}
    for name in _WANTED:
        values = [planned[run][name] if run in planned else None for run in runs]
        if name == "estimate_key":  # an earlier plan's run is not beside the estimates of a later one's
            values = [value or earlier.get(run) for run, value in zip(runs, values, strict=True)]
        merged = merged.append_column(name, pa.array(values, schema.PLAN.field(name).type))
    merged = merged.combine_chunks()
    return [merged.sort_by([("position", "ascending"), ("case_key", "ascending"), ("repeat", "ascending"),
                            ("attempt", "ascending")])]  # fmt: skip


def _earlier_estimate_keys(folder: Path) -> dict[tuple[Any, ...], str | None]:
    """The estimates that the plans of a folder, newest or not, name for each of their runs; the last plan's count."""
    found: dict[tuple[Any, ...], str | None] = {}
    with warnings.catch_warnings(action="ignore"):  # `newest_plans` names what is damaged
        tables = _read_all(parts(folder, "plan-*.parquet"), "plan")
    for table in tables:
        if "estimate_key" in table.column_names:
            rows = table.select([*_RUN_IDENTITY, "estimate_key"]).to_pylist()
            found |= {tuple(row[name] for name in _RUN_IDENTITY): row["estimate_key"] for row in rows}
    return found


def _absent(skip_reason: str | None) -> dict[str, str]:
    """Status and reason of a planned run that has no part."""
    if skip_reason is not None:
        return {"status": Status.SKIPPED, "reason": skip_reason}
    return {"status": Status.INTERRUPTED, "reason": "planned and not finished; the same bench sweep goes on with it"}


def newest_plans(folder: Path) -> list[tuple[str, pa.Table]]:
    """The newest plan of each environment, with its key; in a merged folder, of each source and environment."""
    newest = {
        (table["environment_key"][0].as_py(), str(notes_of(table).get(MERGED_FROM, ""))): table
        for table in _read_all(parts(folder, "plan-*.parquet"), "plan")
        if table.num_rows
    }
    return [(environment, table) for (environment, _), table in newest.items()]


def _read_all(paths: Iterable[Path], kind: str) -> list[pa.Table]:
    tables = []
    for path in paths:
        try:
            tables.append(read(path, kind))
        except NewerFormatError:
            raise
        except StoreError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return tables


def _joined(tables: list[pa.Table]) -> pa.Table:
    """Tables below each other; of a column that two later versions gave different types, the first one's rows."""
    types: dict[str, pa.DataType] = {}
    for number, table in enumerate(tables):
        odd = [item.name for item in table.schema if types.setdefault(item.name, item.type) != item.type]
        tables[number] = table.drop_columns(odd) if odd else table
    return pa.concat_tables(tables, promote_options="default")


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """A frame whose whole numbers and booleans stay exact where some are unknown."""
    import pandas as pd

    exact = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(types_mapper=exact.get)
    return frame


def _with_estimates(frame: pd.DataFrame, estimates: pd.DataFrame) -> pd.DataFrame:
    """Beside each run, the estimates that its plan names: made with its code and versions, not with those of others.

    Where those are missing or damaged there are none. A run whose plan names none gets the last ones: the plan is
    older than the naming, or gone.
    """
    exact = [*_JOIN, "estimate_key"]
    made = estimates.drop_duplicates(exact, keep="last")
    last = made.drop_duplicates(_JOIN, keep="last")[exact].rename(columns={"estimate_key": "_last"})
    frame = frame.merge(last, on=_JOIN, how="left", validate="many_to_one")
    frame["estimate_key"] = frame["estimate_key"].fillna(frame.pop("_last"))
    made = made.drop(columns=[name for name in made if name in frame and name not in exact])
    return frame.merge(made, on=exact, how="left", validate="many_to_one")


def _with_notes(frame: pd.DataFrame) -> pd.DataFrame:
    """Add to each run's `estimate_note` what the estimates leave out of its protocol: they are kept by case alone."""
    switches = frame[list(UNMODELLED)].fillna(False).astype(bool)
    traced = frame["trace_peak_allocated_bytes"].notna()
    for row in frame.index[switches.any(axis=1) & (traced | frame["formula_bytes"].notna())]:
        on, note = [name for name in UNMODELLED if switches.at[row, name]], frame.at[row, "estimate_note"]
        known = note if isinstance(note, str) else None
        frame.at[row, "estimate_note"] = join_notes(known, *left_out(on, traced=bool(traced[row])))
    return frame


def _with_rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Add what is derived from the raw values: throughput over the window, and the median step."""
    import numpy as np

    times = frame["step_times_s"]
    counts = np.array([0 if value is None else len(value) for value in times])
    measured = (counts > 0) & frame["wall_window_s"].notna().to_numpy()
    samples = frame["batch_size"].to_numpy(dtype=float) * counts
    window = frame["wall_window_s"].to_numpy(dtype=float, na_value=np.nan)
    frame["samples_per_s"] = np.where(measured, samples / np.where(measured, window, 1.0), np.nan)
    frame["median_step_time_s"] = [float(np.median(value)) if count else np.nan
                                   for value, count in zip(times, counts, strict=True)]  # fmt: skip
    return frame
