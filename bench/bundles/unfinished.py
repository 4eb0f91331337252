"""The folder beside a target in which a merge is made: locked while its writer lives, deleted once it is dead."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BusyError
from bench.locks import hold
from bench.store.parts import LEFTOVER_AGE_S, TEMPORARY

_PREFIX = f"{TEMPORARY}bench-merge-"  # the folder around is the user's: no other program calls its files so
_LOCK = "lock"


@contextlib.contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """A new, empty folder beside `target`, to be filled and renamed to it; gone when the context ends.

    What writers who were killed left beside the target is deleted first.

    Raises:
        OSError: The folder cannot be made.
    """
    clear_unfinished(target.parent)
    place = target.with_name(f"{_PREFIX}{uuid.uuid4().hex}")
    inside = place / "merged"
    try:
        inside.mkdir(parents=True)
        with _held(place):
            yield inside
    finally:
        shutil.rmtree(place, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Delete the unfinished folders in `folder` whose writers are dead; those of the living stay."""
    for place in folder.glob(f"{_PREFIX}*"):
        if place.is_dir() and not place.is_symlink() and _is_dead(place):
            shutil.rmtree(place, ignore_errors=True)  # what cannot be deleted costs space, no more


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
