"""The results of many hosts as one folder that loads, reports and compares like any other."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.bundles.contents import read_whole
from bench.errors import BusyError, StoreError
from bench.locks import hold
from bench.store import DATA_FOLDER, schema
from bench.store.load import MERGED_FROM, newest_plans, results_folders
from bench.store.parts import LEFTOVER_AGE_S, TEMPORARY, build_table, commit, notes_of, parts, rows_hash, typed_errors

_PREFIX = f"{TEMPORARY}bench-merge-"  # the folder around is the user's: no other program names its folders like this
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge made.

    Attributes:
        folder: The new folder; the data are in `data` below it.
        sources: How many results folders went into it.
        plans: Plans, the newest of each source and environment.
        runs: Parts of runs.
        estimates: Parts of estimates.
        duplicates: Parts that were in several sources, kept once.
        duplicate_estimates: How many of these are estimates; the others are runs.
    """

    folder: Path
    sources: int
    plans: int
    runs: int
    estimates: int
    duplicates: int
    duplicate_estimates: int


@dataclass(slots=True)
class _Union:
    """Parts by what must be unique among them."""

    places: dict[str, tuple[Path, str]] = field(default_factory=dict)  # by key: a part, and the hash of its rows
    names: dict[str, str] = field(default_factory=dict)  # file names, with their key
    duplicates: int = 0

    def add(self, key: str, path: Path, digest: str, what: str) -> None:
        """Take a part. Raises StoreError if another one with this key or name says otherwise."""
        other = self.places.get(key)
        if other is not None and other[1] != digest:
            raise StoreError(
                f"{path} and {other[0]}: two different {what} under one key ({key}); nothing was merged. One of them "
                "was changed after it was written, or both hosts count as the same machine: merge without one of them"
            )
        if other is not None:
            self.duplicates += 1
            return
        if self.names.setdefault(path.name, key) != key:
            raise StoreError(f"{path}: another run has this name; nothing was merged. Merge without one of them")
        self.places[key] = (path, digest)


def merge_results(
    target: Path, sources: Sequence[Path], progress: Callable[[int, int], None] = lambda done, of: None
) -> Merged:
    """Join results into the new folder `target`, which gets its name once it is complete. The sources are only read.

    Runs are identified by their key: the same part in two sources is kept once, and two that differ are refused. Of
    plans, the newest of each source and environment is taken, as loading the sources side by side does.

    Args:
        target: The new folder; it must not exist.
        sources: Folders that `bench sweep` or a merge wrote, or folders that hold several.
        progress: Called after each part with how many were read, and of how many.

    Raises:
        StoreError: `target` exists or is inside a source, a part is damaged, two parts contradict each other, or the
            disk refuses. Nothing is left behind; what a killed merge left beside `target` goes with the next one.
    """
    if target.exists():
        raise StoreError(f"{target}: already exists; nothing was changed. Name a new folder")
    folders = results_folders(sources)
    for folder in (*sources, *folders):
        if target.resolve().is_relative_to(folder.resolve()):
            raise StoreError(f"{target}: is inside {folder}, which must not be changed; name a folder outside it")
    runs, estimates = _unions(folders, progress)
    plans = _plans(folders)
    with typed_errors(target), _unfinished_folder(target) as unfinished:
        data = unfinished / DATA_FOLDER
        _copy(runs, data / "runs")
        _copy(estimates, data / "estimates")
        for number, (rows, notes) in enumerate(plans, 1):
            commit(build_table(rows, schema.PLAN, "plan", notes), data / f"plan-{number:04d}.parquet")
        unfinished.rename(target)
    duplicates = runs.duplicates + estimates.duplicates
    counts = (len(plans), len(runs.places), len(estimates.places), duplicates, estimates.duplicates)
    return Merged(target, len(folders), *counts)


def _unions(folders: Sequence[Path], progress: Callable[[int, int], None]) -> tuple[_Union, _Union]:
    """Every run and every part of estimates, each read and checked once."""
    runs, estimates = _Union(), _Union()
    todo = [(folder, path) for folder in folders for path in parts(folder / "runs")]
    for done, (_, path) in enumerate(todo, 1):
        rows = read_whole(path, "run").to_pylist()
        for row in rows[:1]:
            runs.add(str(row["run_key"]), path, rows_hash(rows), "runs")
        progress(done, len(todo))
    for folder in folders:
        for path in parts(folder / "estimates"):
            estimates.add(path.name, path, rows_hash(read_whole(path, "estimates").to_pylist()), "parts of estimates")
    return runs, estimates


def _plans(folders: Sequence[Path]) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Rows and notes of the newest plans, each once; the note `merged_from` keeps those of one machine apart."""
    found: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
    for folder in folders:
        for path in parts(folder, "plan-*.parquet"):
            read_whole(path, "plan")  # a damaged one is refused as a damaged run is: without it no run would count
        for _, table in newest_plans(folder):
            rows = table.to_pylist()
            notes = {**notes_of(table), MERGED_FROM: rows_hash(rows)[:16]}
            found.setdefault(json.dumps(notes, sort_keys=True), (rows, notes))
    return [found[key] for key in sorted(found)]  # where two name one run the last counts: not the order of sources


def _copy(union: _Union, folder: Path) -> None:
    folder.mkdir(parents=True)
    for path, _ in union.places.values():
        shutil.copyfile(path, folder / path.name)


@contextlib.contextmanager
def _unfinished_folder(target: Path) -> Iterator[Path]:
    """A new, empty folder beside `target`, to be filled and renamed to it; gone when the context ends.

    It is locked while its writer lives. Unfinished folders beside the target whose writers are dead are deleted first.
    """
    for place in target.parent.glob(f"{_PREFIX}*"):
        if place.is_dir() and not place.is_symlink() and _is_dead(place):
            shutil.rmtree(place, ignore_errors=True)  # what cannot be deleted costs space, no more
    place = target.with_name(f"{_PREFIX}{uuid.uuid4().hex}")
    inside = place / "merged"
    try:
        inside.mkdir(parents=True)
        with _held(place):
            yield inside
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _held(place: Path) -> Iterator[None]:
    """Hold the folder's lock; on a file system without locks there is none, and the age tells who is dead."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(BusyError):
            new = place / f"{_LOCK}.new"
            stack.enter_context(hold(new, str(place)))
            new.rename(place / _LOCK)  # the kernel's lock goes along: what has this name was never free while we lived
        yield


def _is_dead(place: Path) -> bool:
    """Whether nobody holds the folder's lock; without one, whether nothing below it changed for an hour."""
    lock = place / _LOCK
    if lock.exists():
        with contextlib.suppress(BusyError), hold(lock, str(place)):
            return True
        return False
    try:
        newest = max(path.lstat().st_mtime for path in (place, *place.rglob("*")))
    except OSError:  # it changes while we look
        return False
    return time.time() - newest > LEFTOVER_AGE_S
