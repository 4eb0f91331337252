"""What there is and what is missing: failures, interruptions, skipped cases, earlier plans."""

from __future__ import annotations

import pandas as pd

from bench.analysis.cases import GROUP
from bench.analysis.findings import Finding, counted, finding_of, tally
from bench.records import MEASURED, Status


def earlier_plans(frame: pd.DataFrame) -> list[Finding]:
    """What lies in the folder and is left out of the report: runs that no newest plan names any more."""
    left = frame[~frame["planned"]]
    if left.empty:
        return []
    text = f"{counted(len(left), len(frame), 'run')} of earlier configurations in the same folder are left out."
    return [finding_of("earlier_plans", False, text, left)]


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
        "interrupted", True,
        f"{counted(len(missing), planned, 'planned run')} did not happen: the sweep was interrupted, or still runs.",
        missing,
    )  # fmt: skip


def skipped_cases(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Cases that never ran, with the first reason."""
    skipped = runs[runs["status"] == Status.SKIPPED]
    if skipped.empty:
        return None
    cases = len(runs.groupby(list(GROUP), dropna=False))
    reasons = skipped["reason"].fillna("no reason given")
    first, others = str(reasons.iloc[0]), reasons.nunique() - 1
    more = f", and {others} other reason{'s' if others > 1 else ''}" if others else ""
    count = len(skipped.groupby(list(GROUP), dropna=False))
    return finding_of("skipped", False, f"{counted(count, cases, 'case')} skipped: {first}{more}.", skipped)
