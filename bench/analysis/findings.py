"""One thing that was not kept, and the words for counting it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import pandas as pd

from bench.records import Group, columns

_GROUP = ("case_key", *columns(Group))  # `bench.analysis.cases.GROUP`: cases are summarised with findings
GroupKey: TypeAlias = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a reader must know before trusting the numbers.

    Attributes:
        code: Its name for scripts: `screening`, `throttled`, ...
        grave: Whether it weakens the numbers themselves; otherwise it bounds what they speak about.
        text: A sentence; may hold text from results, so it is escaped where it is printed.
        run_keys: The runs it is about, or nothing where it is about all of them.
        groups: Of those of them that never happened, and so have no run key: what `group_keys` says, each once.
    """

    code: str
    grave: bool
    text: str
    run_keys: tuple[str, ...] = ()
    groups: tuple[GroupKey, ...] = ()


def finding_of(code: str, grave: bool, text: str, runs: pd.DataFrame) -> Finding:
    """A finding about these runs."""
    keys = tuple(str(key) for key in runs["run_key"] if pd.notna(key))
    return Finding(code, grave, text, keys, tuple(dict.fromkeys(group_keys(runs[runs["run_key"].isna()]))))


def group_keys(runs: pd.DataFrame) -> list[GroupKey]:
    """Of each run, its case, environment, protocol and code; what is unknown is `None`, which equals itself."""
    return [
        tuple(None if pd.isna(value) else str(value) for value in row)
        for row in runs[list(_GROUP)].itertuples(index=False, name=None)
    ]


def counted(count: int, of: int, what: str) -> str:
    """`all 12 runs`, `3 of 12 runs`."""
    noun = what if of == 1 else f"{what}s"
    return f"all {of} {noun}" if count == of and of > 1 else f"{count} of {of} {noun}"


def tally(series: pd.Series) -> str:
    """`oom 3, failed 1`, the commonest first."""
    counts = series.value_counts()
    names = sorted(counts.index, key=lambda name: (-counts[name], str(name)))
    return ", ".join(f"{name} {counts[name]}" for name in names)
