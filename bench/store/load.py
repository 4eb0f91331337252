"""Reading results folders into one frame."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bench.errors import StoreError
from bench.records import SWITCHES, UNMODELLED, Group, Status, columns, join_notes, left_out
from bench.store import schema
from bench.store.consolidated import PART, PART_HASH, Damaged, join_tables, read_runs
from bench.store.parts import TEMPORARY, NewerFormatError, UnreadableError, notes_of, parts, read

if TYPE_CHECKING:
    import pandas as pd

MERGED_FROM = "merged_from"
"""The note that keeps plans of one environment apart which come from several folders; see `bench.bundles.merging`."""

Identity = tuple[Any, ...]

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


@dataclass(frozen=True, slots=True)
class Loaded:
    """The contents of results folders.

    Attributes:
        frame: One row for each run, as `bench.load` returns it.
        notes: Of the newest plan of every environment.
        damaged: Parts that were skipped, each once.
        folders: The results folders, in the order of their runs.
        paths: The paths they were found at, as given.
    """

    frame: pd.DataFrame
    notes: tuple[Notes, ...]
    damaged: tuple[Damaged, ...]
    folders: tuple[Path, ...]
    paths: tuple[str | os.PathLike[str], ...]

    def warn(self) -> None:
        """Name every damaged part in a warning."""
        for part in self.damaged:
            warnings.warn(f"skipped: {part.error}", stacklevel=3)


def load_results(*paths: str | os.PathLike[str]) -> pd.DataFrame:
    """Every run under `paths` as one frame (see `bench.load`); damaged parts are named in warnings.

    Raises:
        StoreError: As `read_results`.
    """
    loaded = read_results(*paths)
    loaded.warn()
    return loaded.frame


def read_results(*paths: str | os.PathLike[str]) -> Loaded:
    """Every run under `paths`, one row per run, and what could not be read.

    The order is that of the folders, then of the plan. `planned` is false for runs that the newest plan of their
    environment no longer names: what an earlier configuration in the same folder ran. Parts that cannot be read, or
    whose rows do not match their hash, are skipped: their runs are `interrupted`, and resuming runs them again.

    Raises:
        StoreError: A path holds no results, or a part was written by a newer version.
    """
    folders, damaged = results_folders(paths), list[Damaged]()
    tables, notes, estimates = [], list[Notes](), [schema.ESTIMATE.empty_table()]
    for folder in folders:
        every_plan = _read_all(parts(folder, "plan-*.parquet"), "plan", damaged)
        plans = _newest(every_plan)
        tables.append(_runs(folder, plans, every_plan, damaged))
        notes += [Notes(folder, key, notes_of(plan)) for key, plan in plans]
        estimates += _read_all(parts(folder / "estimates"), "estimates", damaged)
    frame = _with_switches(_to_pandas(join_tables(tables)))
    frame = _with_notes(_with_rates(_with_estimates(frame, _to_pandas(join_tables(estimates)))))
    return Loaded(frame, tuple(notes), tuple(damaged), tuple(folders), paths)


def planned_runs(loaded: Loaded) -> pd.DataFrame:
    """The runs that count: those that a newest plan names.

    Raises:
        StoreError: There are none; the message names damaged plans and what to do.
    """
    planned = loaded.frame[loaded.frame["planned"]].reset_index(drop=True)
    if planned.empty:
        raise StoreError(f"{', '.join(map(str, loaded.paths))}: {_why_nothing_counts(loaded)}")
    return planned


def _why_nothing_counts(loaded: Loaded) -> str:
    """Why no runs count, and what to do about it."""
    runs, plans = len(loaded.frame), [part for part in loaded.damaged if part.path.name.startswith("plan-")]
    what = f"none of {runs} runs count without their plan" if runs else "no runs"
    if unreadable := [str(part.path) for part in plans if isinstance(part.error, UnreadableError)]:
        return f"{what}, and the disk cannot read {', '.join(unreadable)}; fix that and try again"
    if plans:
        return (
            f"{what}, and {', '.join(str(part.path) for part in plans)} {'is' if len(plans) == 1 else 'are'} damaged. "
            "Restore from a copy, or run the same bench sweep again on its machine: it plans again and keeps the "
            "intact runs"
        )
    return "no runs and no plan; run bench sweep first"


def load_notes(*paths: str | os.PathLike[str]) -> list[Notes]:
    """The notes of the newest plan of every environment under `paths`. Raises StoreError as `read_results`."""
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
    """Whether a plan is in the folder of an unfinished merge."""
    return any(name.startswith(TEMPORARY) for name in plan.relative_to(given).parts)


def _runs(
    folder: Path, plans: Sequence[tuple[str, pa.Table]], every_plan: Sequence[pa.Table], damaged: list[Damaged]
) -> pa.Table:
    """The runs of one folder, and a row for each that its newest plans name and no part holds."""
    read = read_runs(folder)
    damaged += read.damaged
    held = read.table.drop_columns([PART, PART_HASH])
    known = set(_identities(held))
    missing: list[dict[str, Any]] = []
    planned: dict[Identity, tuple[Any, ...]] = {}  # runs that a newest plan names, with what it wants of them
    for _, plan in plans:
        notes, runs = notes_of(plan), _identities(plan)
        described = notes["environment"].get("estimate_device")
        absent = pa.array([run not in known and run not in planned for run in runs], pa.bool_())  # merged plans overlap
        for row in plan.filter(absent).to_pylist():
            status = _absent(row["skip_reason"])
            missing.append({**notes["protocol"], **notes["environment"], **row, "attempt": 0, **status})
        planned |= {run: (*wanted, described) for run, wanted in zip(runs, _tuples(plan, _WANTED), strict=True)}
    absent_runs = pa.Table.from_pylist(missing, schema=schema.RUN)
    version = pa.array([schema.SCHEMA_VERSION] * len(missing), pa.int64())
    merged = join_tables([held, absent_runs.append_column("schema_version", version)])
    runs, nothing = _identities(merged), (None,) * (len(_WANTED) + 1)
    merged = merged.append_column("planned", pa.array([run in planned for run in runs], pa.bool_()))
    earlier = _earlier_estimate_keys(every_plan) if not all(run in planned for run in runs) else {}
    for index, name in enumerate(_WANTED):
        values = [planned.get(run, nothing)[index] for run in runs]
        if name == "estimate_key":  # an earlier plan's run does not stand beside the estimates of a later one
            values = [value or earlier.get(run) for run, value in zip(runs, values, strict=True)]
        merged = merged.append_column(name, pa.array(values, schema.PLAN.field(name).type))
    merged = _with_planned_device(merged, [planned.get(run, nothing)[-1] for run in runs])
    return merged.sort_by([(name, "ascending") for name in ("position", "case_key", "repeat", "attempt")])


def _identities(table: pa.Table) -> list[Identity]:
    """What identifies the runs of a table, apart from attempts."""
    return list(_tuples(table, _RUN_IDENTITY))


def _tuples(table: pa.Table, names: Sequence[str]) -> Iterator[Identity]:
    """The rows of some columns; a column that is not there reads as null."""
    columns = [table[name].to_pylist() if name in table.column_names else [None] * len(table) for name in names]
    return zip(*columns, strict=True)


def _with_planned_device(runs: pa.Table, planned: Sequence[str | None]) -> pa.Table:
    """Runs with the device that their plan estimates for: it may be described better than when they were measured."""
    own = runs["estimate_device"].to_pylist()
    values = pa.array([new or old for new, old in zip(planned, own, strict=True)], pa.string())
    return runs.set_column(runs.schema.get_field_index("estimate_device"), "estimate_device", values)


def _earlier_estimate_keys(plans: Iterable[pa.Table]) -> dict[Identity, str | None]:
    """The estimates that plans, newest or not, name for each of their runs; the last plan has precedence."""
    found: dict[Identity, str | None] = {}
    for plan in plans:
        found |= dict(zip(_identities(plan), (key for (key,) in _tuples(plan, ["estimate_key"])), strict=True))
    return found


def _absent(skip_reason: str | None) -> dict[str, str]:
    """Status and reason of a planned run that has no part."""
    if skip_reason is not None:
        return {"status": Status.SKIPPED, "reason": skip_reason}
    return {"status": Status.INTERRUPTED, "reason": "planned but not finished; the same bench sweep resumes it"}


def newest_plans(folder: Path) -> list[tuple[str, pa.Table]]:
    """The newest plan of each environment, with its key; in a merged folder, of each source and environment.

    Damaged plans are named in warnings.
    """
    damaged: list[Damaged] = []
    plans = _newest(_read_all(parts(folder, "plan-*.parquet"), "plan", damaged))
    for part in damaged:
        warnings.warn(f"skipped: {part.error}", stacklevel=2)
    return plans


def _newest(plans: Iterable[pa.Table]) -> list[tuple[str, pa.Table]]:
    newest = {
        (table["environment_key"][0].as_py(), str(notes_of(table).get(MERGED_FROM, ""))): table
        for table in plans
        if table.num_rows
    }
    return [(environment, table) for (environment, _), table in newest.items()]


def _read_all(paths: Iterable[Path], kind: str, damaged: list[Damaged]) -> list[pa.Table]:
    """The parts that can be read; the others are added to `damaged`."""
    tables = []
    for path in paths:
        try:
            tables.append(read(path, kind))
        except NewerFormatError:
            raise
        except StoreError as error:
            damaged.append(Damaged(path, error))
    return tables


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """A frame whose whole numbers and booleans stay exact where some are unknown."""
    import pandas as pd

    exact = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(types_mapper=exact.get)
    return frame


def _with_estimates(frame: pd.DataFrame, estimates: pd.DataFrame) -> pd.DataFrame:
    """Join to each run the estimates that its plan names, made with its code and versions.

    If those are missing or damaged, there are none. A run whose plan names none gets the latest ones: the plan is from
    an older version, or missing.
    """
    exact = [*_JOIN, "estimate_key"]
    made = estimates.drop_duplicates(exact, keep="last")
    last = made.drop_duplicates(_JOIN, keep="last")[exact].rename(columns={"estimate_key": "_last"})
    frame = frame.merge(last, on=_JOIN, how="left", validate="many_to_one")
    frame["estimate_key"] = frame["estimate_key"].fillna(frame.pop("_last"))
    made = made.drop(columns=[name for name in made if name in frame and name not in exact])
    return frame.merge(made, on=exact, how="left", validate="many_to_one")


def _with_switches(frame: pd.DataFrame) -> pd.DataFrame:
    """Give the cases of parts that were written before there were switches the defaults."""
    return frame.fillna(dict(SWITCHES))


def _with_notes(frame: pd.DataFrame) -> pd.DataFrame:
    """Add to each `estimate_note` what estimates do not model of the run's protocol: they are stored by case alone."""
    switches = frame[list(UNMODELLED)].fillna(False).astype(bool)
    traced = frame["trace_peak_allocated_bytes"].notna()
    for row in frame.index[switches.any(axis=1) & (traced | frame["formula_bytes"].notna())]:
        on, note = [name for name in UNMODELLED if switches.at[row, name]], frame.at[row, "estimate_note"]
        known = note if isinstance(note, str) else None
        frame.at[row, "estimate_note"] = join_notes(known, *left_out(on, traced=bool(traced[row])))
    return frame


def _with_rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the values derived from raw ones: throughput over the window, the median step, shares of the peaks."""
    import numpy as np

    times = frame["step_times_s"]
    counts = np.array([0 if value is None else len(value) for value in times])
    measured = (counts > 0) & frame["wall_window_s"].notna().to_numpy()
    samples = frame["batch_size"].to_numpy(dtype=float) * counts
    window = frame["wall_window_s"].to_numpy(dtype=float, na_value=np.nan)
    frame["samples_per_s"] = np.where(measured, samples / np.where(measured, window, 1.0), np.nan)
    frame["median_step_time_s"] = [
        float(np.median(value)) if count else np.nan for value, count in zip(times, counts, strict=True)
    ]
    step, work, peak, least = (
        frame[name].to_numpy(dtype=float, na_value=np.nan)
        for name in ("median_step_time_s", "step_flop", "peak_flop_per_s", "least_step_time_s")
    )
    for name, least_s in (("mfu_frac", work / np.where(peak > 0, peak, np.nan)), ("roofline_frac", least)):
        frame[name] = np.where(least_s > 0, least_s, np.nan) / np.where(step > 0, step, np.nan)
    return frame
