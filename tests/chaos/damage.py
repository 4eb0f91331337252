"""Parts cut short or changed in one byte: recovered, or refused with their name; never a wrong number."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.store import Store, load_notes
from bench.store.parts import notes_of, parts, read
from tests.chaos.attempts import OUT
from tests.chaos.fake_sweep import fake_config, run_fake_sweep

KINDS = {"plan": "plan-*.parquet", "run": "runs/*.parquet", "estimates": "estimates/*.parquet"}


def damage_parts(seed: int, count: int, folder: Path) -> Counter[str]:
    """Cut a plan, a run and estimates at every length, and flip a bit of every byte; `count` of these where fewer."""
    generator, done = random.Random(seed), Counter[str]()
    run_fake_sweep(folder / OUT, fake_config(cases=2, repeats=1), conclude=False)
    places = [(kind, sorted((folder / OUT / "data").glob(pattern))[0]) for kind, pattern in KINDS.items()]
    points = [
        (kind, path, cut, at) for kind, path in places for cut in (True, False) for at in range(path.stat().st_size)
    ]
    done["bytes"] = len(points) // 2
    for kind, path, cut, at in points if len(points) <= count else generator.sample(points, count):
        whole = path.read_bytes()
        changed = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << generator.randrange(8)]) + whole[at + 1 :]
        good = _content(path, kind)
        path.write_bytes(changed)
        try:
            done[_outcome(path, kind, good)] += 1
        finally:
            path.write_bytes(whole)
    for kind, path in places:
        _resume(folder, kind, path, done)
    return done


def _content(path: Path, kind: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    table = read(path, kind)
    rows = [{key: value for key, value in row.items() if value is not None} for row in table.to_pylist()]
    return rows, notes_of(table)


def _outcome(path: Path, kind: str, good: tuple[list[dict[str, Any]], dict[str, Any]]) -> str:
    try:
        found = _content(path, kind)
    except StoreError as error:
        if str(path) not in str(error):
            raise AssertionError(f"the message does not name {path}: {error}") from error
        return "refused with its name"
    if found != good:
        raise AssertionError(f"{path}: damaged, and read as something else")
    return "read as it was"


def _resume(folder: Path, kind: str, path: Path, done: Counter[str]) -> None:
    """A sweep over a folder with a damaged part makes it anew, and loads whole; what it knows to be its own is set aside."""
    whole, runs = path.read_bytes(), set(Store(folder / OUT / "data").finished_runs())  # some took two attempts
    path.write_bytes(whole[: len(whole) // 2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_fake_sweep(folder / OUT, fake_config(cases=2, repeats=1), conclude=False)
    if not any(str(path) in str(warning.message) for warning in caught):
        raise AssertionError(f"{path}: made anew without a word")
    again = parts(path.parent, "plan-*.parquet")[-1] if kind == "plan" else path  # a plan is given the next number
    aside = path if kind == "plan" else path.with_suffix(".damaged")
    if again.read_bytes() != whole or not aside.exists():
        raise AssertionError(f"{path}: not made anew as it was")
    if kind == "plan":
        aside.unlink()
    if len(load_notes(folder / OUT)) != 1 or set(Store(folder / OUT / "data").finished_runs()) != runs:
        raise AssertionError(f"{folder}: does not load whole")
    for aside in (folder / OUT).rglob("*.damaged"):
        aside.unlink()
    done[f"damaged {kind} made anew"] += 1
