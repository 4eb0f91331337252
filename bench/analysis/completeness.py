"""What there is and what is missing: failures, interruptions, skipped cases, earlier plans."""

from __future__ import annotations

import pandas as pd

from bench.analysis.cases import GROUP
from bench.analysis.findings import Finding, counted, counted_reasons, finding_of, group_reasons, tally, tally_names
from bench.records import MEASURED, DataFacts, Status, columns

REASONS = 4
"""How many a sentence names."""


def earlier_plans(frame: pd.DataFrame) -> list[Finding]:
    """What lies in the folder and is left out of the report: runs that no newest plan names any more."""
    left = frame[~frame["planned"]]
    if left.empty:
        return []
    text = f"{counted(len(left), len(frame), 'run')} of earlier configurations in the same folder are left out."
    changes = [
        f"{name} ({', '.join(words)})"
        for name, rows in left.groupby("dataset", sort=True)
        if (words := _data_changes(rows, frame[frame["planned"] & (frame["dataset"] == name)]))
    ]
    more = f" Data sets that changed since: {'; '.join(changes)}." if changes else ""
    return [finding_of("earlier_plans", False, text + more, left)]


def _data_changes(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """How a data set changed between two sets of its runs, by the last of each that say most of it."""
    old, new = (
        max(states, key=lambda facts: len(facts.known), default=DataFacts())
        for states in (reversed(data_states(before)), reversed(data_states(after)))
    )
    return new.changes_since(old)


def data_states(runs: pd.DataFrame) -> list[DataFacts]:
    """The distinct states of their data that runs note, in order of appearance; parts of earlier versions note none."""
    names = [name for name in columns(DataFacts) if name in runs]
    rows = runs[names].drop_duplicates().astype(object)
    values = rows.where(rows.notna(), None).itertuples(index=False, name=None)
    return [DataFacts(**dict(zip(names, row, strict=True))) for row in values]


def nothing_measured(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """A report without a single measurement says so first."""
    if runs["status"].isin(MEASURED).any():
        return None
    return Finding("nothing_measured", True, "Not a single run was measured: there are no numbers here to trust.")


def failed(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Runs that did not end well, by status."""
    tried = runs[~runs["status"].isin([Status.SKIPPED, Status.INTERRUPTED])]
    bad = tried[~tried["status"].isin([Status.OK, Status.THROTTLED])]
    if bad.empty:
        return None
    return finding_of(
        "failures", True, f"{counted(len(bad), len(tried), 'run')} did not end well: {tally(bad['status'])}.", bad
    )


def interrupted(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Planned runs that did not happen."""
    missing = runs[runs["status"] == Status.INTERRUPTED]
    planned = int((runs["status"] != Status.SKIPPED).sum())
    if missing.empty:
        return None
    return finding_of(
        "interrupted",
        True,
        f"{counted(len(missing), planned, 'planned run')} did not happen: the sweep was interrupted, or still runs.",
        missing,
    )


def skipped_cases(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Cases that never ran, by their reasons."""
    skipped = runs[runs["status"] == Status.SKIPPED]
    if skipped.empty:
        return None
    cases = len(runs.groupby(list(GROUP), dropna=False))
    reasons = counted_reasons(group_reasons(skipped["reason"].fillna("no reason given")), REASONS, "table.csv")
    count = len(skipped.groupby(list(GROUP), dropna=False))
    return finding_of("skipped", False, f"{counted(count, cases, 'case')} skipped: {reasons}.", skipped)


def why(runs: pd.DataFrame, where: str) -> str:
    """Why runs did not end well, by status and reason: `failed: 2 x this; 1 x that. oom: ...`.

    Args:
        runs: With `status` and `reason`.
        where: What has the reasons for which there is no room.
    """
    parts = []
    for status in tally_names(runs["status"]):
        reasons = group_reasons(runs.loc[runs["status"] == status, "reason"])
        parts.append(f"{status}: {counted_reasons(reasons, REASONS, where)}")
    return ". ".join(parts)
