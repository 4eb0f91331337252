"""How far the runs of a stored order are, wherever they are done: from parts and claims alone.

Schedulers are not asked: what they say of a job (that it ended well, that it ended at all) comes late or is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.records import Status
from bench.store.consolidated import consolidate, read_runs
from bench.store.parts import notes_of, read
from bench.sweep.claims import is_lost
from bench.sweep.journal import MAX_ATTEMPTS

ORDERS = "orders"
CLAIMS = "claims"
"""Folders beside the parts of a results folder."""

PART_FOLDER = "part-"
"""So begin the names of the results folders of a plan that has several orders."""

_CLAIM = re.compile(r"(?P<case>[0-9a-f]+)-r(?P<repeat>\d+)-a\d+-[0-9a-f]+\.\d+")


class State(StrEnum):
    """How far a run is."""

    DONE = "done"  # it has its part, whatever its status
    RUNNING = "running"  # a live process has claimed it
    LOST = "lost"  # it was claimed by a process that is gone
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one run of an order is.

    Attributes:
        index: Its position in the order.
        state: In a word.
        status: Of its last attempt; None until it has one.
        attempts: How many attempts have parts.
    """

    index: int
    state: State
    status: Status | None
    attempts: int


def find_orders(data: Path) -> list[Path]:
    """Every order of a sweep's data: one, or one in each of its parts."""
    found = [*data.glob(f"{ORDERS}/order-*.parquet"), *data.glob(f"{PART_FOLDER}*/{ORDERS}/order-*.parquet")]
    return sorted(found)


def read_standings(order: Path) -> list[Standing]:
    """The standing of every run of an order that is not skipped, by index.

    A run is done if any machine did it. One that was throttled once has a second attempt and is missing until then.

    Raises:
        StoreError: The order or a part cannot be read.
    """
    table = read(order, "order")
    protocol_key = notes_of(table)["protocol_key"]
    folder = order.parent.parent
    made: dict[tuple[str, str, int], dict[int, Status]] = {}
    names = ("protocol_key", "case_key", "code_key", "repeat", "attempt", "status")
    stored = read_runs(folder)
    consolidate(folder, stored)  # the next look reads what this one has read already as one file
    runs = stored.table.select(names).to_pydict()
    for protocol, case, code, repeat, attempt, status in zip(*(runs[name] for name in names), strict=True):
        if protocol == protocol_key:
            made.setdefault((case, code, repeat), {})[attempt] = Status(status)
    claimed = _claimed(folder / CLAIMS)
    found = []
    for row in table.select(["case_key", "code_key", "repeat", "position", "skip_reason"]).to_pylist():
        if row["skip_reason"] is not None:
            continue
        attempts = made.get((row["case_key"], row["code_key"], row["repeat"]), {})
        last = attempts[max(attempts)] if attempts else None
        again = last is Status.THROTTLED and len(attempts) < MAX_ATTEMPTS
        state = claimed.get((row["case_key"], row["repeat"]), State.MISSING)
        if last is not None and not again:
            state = State.DONE
        found.append(Standing(row["position"], state, last, len(attempts)))
    return found


def _claimed(folder: Path) -> dict[tuple[str, int], State]:
    """Of each claimed run, by case key and repeat, whether the newest of its claims is held by a live process."""
    newest: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.glob("*"), key=lambda path: (path.stem, len(path.suffix), path.suffix)):
        if match := _CLAIM.fullmatch(path.name):
            newest[match["case"], int(match["repeat"])] = path
    return {run: State.LOST if is_lost(path) else State.RUNNING for run, path in newest.items()}


def to_do(
    standings: Sequence[Standing], retry: frozenset[Status] = frozenset(), elsewhere: frozenset[int] = frozenset()
) -> list[tuple[int, int]]:
    """The runs to start, `(index, attempt)` in the order of execution.

    Args:
        standings: Of all runs.
        retry: Statuses of finished runs that are to be tried again.
        elsewhere: Indices that already wait in a queue.
    """
    return [
        (each.index, each.attempts)
        for each in sorted(standings, key=lambda each: each.index)
        if each.index not in elsewhere
        and (each.state in (State.MISSING, State.LOST) or (each.state is State.DONE and each.status in retry))
    ]
