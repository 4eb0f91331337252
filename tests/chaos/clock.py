"""A wall clock that jumps: below what is written, below deadlines, and below a whole real sweep."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pyarrow as pa

from bench.errors import StoreError
from bench.launchers import LocalLauncher, Outcome
from bench.store import parts
from bench.store.parts import LEFTOVER_AGE_S, TEMPORARY, clear_leftovers, commit
from tests.chaos import work
from tests.chaos.fake_sweep import bytes_of, fake_config, run_fake_sweep

YEARS_S = 1e8
JUMPS = """
import itertools, time
real, looks = time.time, itertools.count()
time.time = lambda: real() + 1e8 * (-1) ** (number := next(looks)) * (number % 9)
"""
"""As `sitecustomize`: Python reads it as each interpreter starts, the fork server's among them."""


def jump_below_sweep(folder: Path) -> None:
    """The clock jumps by years with every look, beside the file of a killed writer; the parts are the same to the byte."""
    looks = itertools.count()
    (folder / "jumping" / "data" / "runs").mkdir(parents=True)
    (folder / "jumping" / "data" / "runs" / f"{TEMPORARY}of-a-dead-writer").touch()
    with mock.patch.object(time, "time", lambda: 1.7e9 + YEARS_S * (-1) ** (number := next(looks)) * number):
        run_fake_sweep(folder / "jumping", fake_config(cases=2), conclude=False)
    if not next(looks):
        raise AssertionError("nobody looked at the clock")
    run_fake_sweep(folder / "steady", fake_config(cases=2), conclude=False)
    if bytes_of(folder / "jumping") != bytes_of(folder / "steady"):
        raise AssertionError("the wall clock changes results")


def jump_below_writer(folder: Path) -> None:
    """While a part is written, another process clears up by a clock that jumped, forwards or backwards.

    Back, or forwards by less than an hour, the part comes to its name. Beyond, its writer is taken for dead: it leaves
    with a typed error, nothing is left of the part, and the same commit goes well the next time.
    """
    table, margin_s = pa.table({"value": [1]}), 60.0
    for number, jump_s in enumerate((-50 * YEARS_S, -YEARS_S, -LEFTOVER_AGE_S, LEFTOVER_AGE_S - margin_s)):
        target = folder / f"spared-{number}.parquet"
        with _cleared_meanwhile(folder, jump_s):
            commit(table, target)
        _holds(folder, {target})
        target.unlink()
    for number, jump_s in enumerate((LEFTOVER_AGE_S + margin_s, YEARS_S, 50 * YEARS_S)):
        target = folder / f"taken-{number}.parquet"
        try:
            with _cleared_meanwhile(folder, jump_s):
                commit(table, target)
            raise AssertionError(f"a file of {jump_s:g} s ago was not cleared")
        except StoreError as error:
            if f"{target}: cannot be written (No such file or directory); finished runs are kept" not in str(error):
                raise AssertionError(f"a writer who lost its file says {error}") from error
        _holds(folder, set())
        commit(table, target)
        _holds(folder, {target})
        target.unlink()
    _clear_the_dead(folder)


def _cleared_meanwhile(folder: Path, jump_s: float) -> mock._patch[Callable[..., None]]:
    """Clear up with a clock that jumped, just before a finished file is given its name."""
    give_name = parts._link

    def clear_and_link(temporary: Path, target: Path) -> None:
        _clear(folder, jump_s)
        give_name(temporary, target)

    return mock.patch.object(parts, "_link", clear_and_link)


def _clear(folder: Path, jump_s: float) -> None:
    now_s = time.time()
    with mock.patch.object(time, "time", lambda: now_s + jump_s):
        clear_leftovers(folder)


def _clear_the_dead(folder: Path) -> None:
    """What a killed writer left goes once the clock is right, and a clock that jumped back puts it off."""
    dead = folder / f"{TEMPORARY}dead"
    dead.touch()
    long_ago = time.time() - 2 * LEFTOVER_AGE_S
    os.utime(dead, (long_ago, long_ago))
    _clear(folder, -YEARS_S)
    _holds(folder, {dead})
    _clear(folder, 0.0)
    _holds(folder, set())


def _holds(folder: Path, expected: set[Path]) -> None:
    if (found := {*folder.iterdir()}) != expected:
        raise AssertionError(f"{folder} holds {sorted(found)}, and should {sorted(expected)}")


def jump_below_deadline(folder: Path) -> None:
    """The clock jumps by years while a task takes a second, and while another takes too long."""
    launcher, looks = LocalLauncher(), itertools.count()
    launcher.run(work.answers, None, timeout_s=120)
    with mock.patch.object(time, "time", lambda: 1.7e9 + YEARS_S * (-1) ** (number := next(looks)) * number):
        started = time.monotonic()
        answer = launcher.run(work.waits_with_a_child, 1, timeout_s=60)
        took_s = time.monotonic() - started
        late = launcher.run(work.waits_with_a_child, 600, timeout_s=2)
    if answer.outcome is not Outcome.ANSWERED or not 1 <= answer.duration_s <= took_s or (answer.start_s or 0) < 0:
        raise AssertionError(f"a task of a second, {took_s:g} s in all, is called {answer}")
    if late.outcome is not Outcome.TIMED_OUT or not 2 <= late.duration_s < 30:
        raise AssertionError(f"a task past its deadline is called {late}")


def jumping_everywhere(folder: Path) -> dict[str, str]:
    """An environment in which every Python has a wall clock that jumps."""
    place = folder / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(JUMPS, encoding="utf-8")
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), root])}
