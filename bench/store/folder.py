"""Writing a results folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.errors import StoreError
from bench.records import (
    DataFacts,
    Environment,
    Estimate,
    Group,
    Measurement,
    Planned,
    Protocol,
    Status,
    columns,
    run_key,
)
from bench.store import schema
from bench.store.consolidated import PART, Damaged, read_runs
from bench.store.parts import (
    NewerFormatError,
    Row,
    UnreadableError,
    build_table,
    clear_leftovers,
    commit,
    notes_of,
    parts,
    read,
    rows_hash,
    typed_errors,
)

DATA_FOLDER = "data"

_FINISHED = ("status", "reason", "wall_window_s", "batch_size", "step_times_s", "duration_s")
"""The columns that `Finished.of` reads."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What the sweep needs to know about an existing run.

    Attributes:
        status: Its status.
        samples_per_s: Over the measured window; `None` if there is none.
        duration_s: Of the whole run.
        reason: The reason for its status; `None` if it succeeded.
    """

    status: Status
    samples_per_s: float | None
    duration_s: float
    reason: str | None = None

    @classmethod
    def of(cls, row: Row) -> Finished:
        """From a row of a part."""
        window_s, samples = row["wall_window_s"], row["batch_size"] * len(row["step_times_s"] or ())
        rate = samples / window_s if window_s else None
        return cls(Status(row["status"]), rate, row["duration_s"] or 0.0, row["reason"])


class Store:
    """One results folder; nothing is touched until something is written."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self.folder = folder
        self.runs_folder = folder / "runs"
        self.estimates_folder = folder / "estimates"
        self.logs_folder = folder / "logs"

    def create(self) -> None:
        """Create the folders, unless a newer version has written to them.

        Runs are not checked here: all of them are read before a sweep begins (`finished_runs`).

        Raises:
            StoreError: The folders cannot be created, or a plan or estimates were written by a newer version.
        """
        for path in parts(self.folder, "plan-*.parquet"):
            _refuse_newer(path, "plan")
        for path in parts(self.estimates_folder):
            _refuse_newer(path, "estimates")
        for folder in (self.runs_folder, self.estimates_folder, self.logs_folder):
            with typed_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def clear_leftovers(self) -> None:
        """Delete the unfinished files of killed writers."""
        for folder in (self.folder, self.runs_folder, self.estimates_folder):
            clear_leftovers(folder)

    def write_plan(
        self,
        planned: Sequence[Planned],
        protocol: Protocol,
        environment: Environment,
        notes: Mapping[str, Any],
        target_frac: float | None = None,
        estimate_key: str | None = None,
    ) -> dict[str, Any] | None:
        """Store the plan, unless the newest plan for this environment is the same.

        Args:
            planned: Every run, skipped cases included.
            protocol: How all of them measure.
            environment: The machine that runs them.
            notes: What else a reader needs: the configuration's text, its name.
            target_frac: Half the width that the interval of a case's throughput was to have; `None` for none.
            estimate_key: Of the estimates that stand beside these runs (`write_estimates`); `None` for the last ones.

        Returns:
            The fields of the environment of the newest plan before, where no plan before is for this one.
        """
        rows = [
            {
                "case_key": run.case.key,
                **run.case.axes,
                "repeat": run.repeat,
                "position": run.position,
                "skip_reason": run.skip_reason,
                **asdict(group_of(run, protocol, environment)),
                "target_interval": target_frac,
                "estimate_key": estimate_key,
                **asdict(run.data),
            }
            for run in planned
        ]
        same, before = self._plans_before(environment.key)
        if same is not None and same.to_pylist() == rows:
            return None
        notes = {**notes, "environment": asdict(environment), "protocol": asdict(protocol)}
        notes["protocol"].pop("data_root")
        self._append_plan(rows, notes)
        return before

    def add_notes(self, environment_key: str, notes: Mapping[str, Any]) -> None:
        """Tell readers more of the newest plan for an environment: the same plan again, with more notes."""
        plan, _ = self._plans_before(environment_key)
        if plan is not None and (known := notes_of(plan)) != (more := {**known, **notes}):
            self._append_plan(plan.to_pylist(), more)

    def _append_plan(self, rows: Sequence[Row], notes: Mapping[str, Any]) -> None:
        table, earlier = build_table(rows, schema.PLAN, "plan", notes), parts(self.folder, "plan-*.parquet")
        for number in count(int(earlier[-1].stem.removeprefix("plan-")) + 1 if earlier else 1):
            with contextlib.suppress(FileExistsError):  # another host that writes into this folder was faster
                commit(table, self.folder / f"plan-{number:04d}.parquet")
                return

    def _plans_before(self, environment_key: str) -> tuple[pa.Table | None, dict[str, Any] | None]:
        """The newest plan for this environment; or, without one, the environment of the newest plan.

        A damaged plan is named in a warning and stays: its owner is unknown.
        """
        newest: dict[str, Any] | None = None
        for path in reversed(parts(self.folder, "plan-*.parquet")):
            try:
                table = read(path, "plan")
            except (NewerFormatError, UnreadableError):
                raise
            except StoreError as error:
                warnings.warn(f"skipped: {error}", stacklevel=3)
                continue
            if table.num_rows and table["environment_key"][0].as_py() == environment_key:
                return table, None
            if table.num_rows:
                newest = newest or notes_of(table)["environment"]
        return None, newest

    def planned_data(self, environment_key: str) -> dict[tuple[str, str], DataFacts]:
        """What the newest plan for an environment notes about its data, by data set and input; empty without a plan."""
        with warnings.catch_warnings(action="ignore"):  # `write_plan` names what is damaged
            table, _ = self._plans_before(environment_key)
        names = [name for name in columns(DataFacts) if table is not None and name in table.column_names]
        rows = table.select(["dataset", "input", *names]).to_pylist() if table is not None else []
        return {(row.pop("dataset"), row.pop("input")): DataFacts(**row) for row in rows}

    def write_run(
        self, run: Planned, attempt: int, protocol: Protocol, measurement: Measurement, environment: Environment
    ) -> Row:
        """Append one run, which exists once this returns. Returns the row.

        Raises:
            StoreError: The disk cannot write it.
            FileExistsError: The run already exists.
        """
        group = group_of(run, protocol, environment)
        key = run_key(run.case.key, group, run.repeat, attempt)
        row = {
            "run_key": key,
            "case_key": run.case.key,
            **run.case.axes,
            "repeat": run.repeat,
            "position": run.position,
            "attempt": attempt,
            **asdict(group),
            **asdict(run.data),
            **asdict(measurement),
            **asdict(protocol),
            **asdict(environment),
        }
        commit(build_table([row], schema.RUN, "run"), self.runs_folder / f"{part_name(run, attempt, key)}.parquet")
        return row

    def write_estimates(self, estimates: Sequence[Estimate], estimate_key: str) -> None:
        """Store estimates as one part. `estimate_key` names the code and versions that made them."""
        rows = [{"estimate_key": estimate_key, **asdict(estimate)} for estimate in estimates]
        with contextlib.suppress(FileExistsError):  # the same estimates again
            table = build_table(rows, schema.ESTIMATE, "estimates")
            commit(table, self.estimates_folder / f"{estimate_key}-{rows_hash(rows)[:16]}.parquet")

    def finished_runs(self) -> dict[str, Finished]:
        """The outcome of every existing run, by the name of its part (see `part_name`).

        A damaged part is moved aside with the suffix `.damaged` and a warning, so that its run is missing again.

        Raises:
            StoreError: A part cannot be read, was written by a newer version, or cannot be moved aside.
        """
        runs = read_runs(self.folder)
        for part in runs.damaged:
            _set_aside(part, "run")
        rows = runs.table.select([PART, *_FINISHED])
        return {
            row[PART].removesuffix(".parquet"): Finished.of(row)
            for batch in rows.to_batches(max_chunksize=1000)
            for row in batch.to_pylist()
        }

    def estimated(self, estimate_key: str) -> set[tuple[str, str]]:
        """`(case_key, estimate_device)` of the estimates that this code has already made."""
        known: set[tuple[str, str]] = set()
        for path in parts(self.estimates_folder, f"{estimate_key}-*.parquet"):
            try:
                table = read(path, "estimates")
            except NewerFormatError:
                raise
            except StoreError as error:
                _set_aside(Damaged(path, error), "made")
                continue
            known.update(zip(table["case_key"].to_pylist(), table["estimate_device"].to_pylist(), strict=True))
        return known


def _refuse_newer(path: Path, kind: str) -> None:
    """Raise NewerFormatError where a newer version wrote the part; other faults wait until its rows are needed."""
    try:
        read(path, kind)
    except NewerFormatError:
        raise
    except StoreError:
        pass


def _set_aside(part: Damaged, what: str) -> None:
    """Rename a damaged part, so that an intact one can replace it. Raises if the disk cannot."""
    if isinstance(part.error, UnreadableError):
        raise part.error
    warnings.warn(f"moved aside, to be {what} again: {part.error}", stacklevel=4)
    with typed_errors(part.path):
        part.path.rename(part.path.with_suffix(".damaged"))


def group_of(run: Planned, protocol: Protocol, environment: Environment) -> Group:
    """The key that this run shares with its repeats."""
    return Group(run.code_key, protocol.key, environment.key)


def part_name(run: Planned, attempt: int, key: str) -> str:
    """The name of a run's part without its ending: `<case key>-r<repeat>-a<attempt>-<run key>`."""
    return f"{run.case.key}-r{run.repeat}-a{attempt}-{key}"
