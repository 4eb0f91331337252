"""Whether results are fit to be published, and if not, what stands against it, case by case.

Built on `validity`, which says how far to trust numbers; this says which of that forbids publishing them, and adds what
only a publication needs: enough processes, intervals as narrow as asked, every disclosure, and numbers that can be
true (`bench.analysis.plausible`). The rules are those of the measuring protocol: a rule that was not kept is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.cases import GROUP, last_attempts, summarise_cases
from bench.analysis.completeness import why
from bench.analysis.disclosed import missing_disclosures
from bench.analysis.findings import Finding, counted, finding_of, group_keys, tally
from bench.analysis.labels import CaseLabels
from bench.analysis.plausible import implausible
from bench.analysis.validity import told_faults, validity
from bench.config import TARGETS_FRAC
from bench.records import Status
from bench.stats import PUBLISHED_PROCESSES, geometric_interval

FOREIGN_BYTES = 512 << 20
"""Memory taken on the device before a run's own context beyond which somebody else must hold it: the driver's reserve
stays below (NVML's first memory query counts it as used, the second does not)."""

FOREIGN_JUMP_BYTES = 128 << 20
"""The same, above the emptiest that the same device was seen."""

SLOWED_CLOCK_FRAC = 0.85
"""A run whose SM clock ended below this share of the fastest of its case ran on a device that slowed down."""

DRIFT_FRAC = 0.10
"""Between the medians of the first and the last half of a window, beyond which the window holds two speeds."""

_BLOCKS = {
    "nothing_measured": True,
    "interrupted": True,
    "inconsistent_rate": True,
    "skewed_steps": True,
    "dirty_tree": True,
    "unknown_code": True,
    "not_converged": True,
    "power_capped": False,
    "peaks_differ": False,
}
"""Which findings of `validity` forbid publishing; those it does not name keep their weight. A power limit below the
default and peaks that differ are disclosed in the report: they bound the numbers and do not make them wrong."""

_ASKED_MORE = ("failures", "wide_intervals", "throttled", "flags", "screening", "few_processes", "shared_device")
"""Findings of `validity` that the checks here put more strictly."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """What stands against publishing, and what a reader is to be told.

    Attributes:
        findings: Those that forbid publishing (`grave`) first.
    """

    findings: tuple[Finding, ...]

    @property
    def objections(self) -> tuple[Finding, ...]:
        """What forbids publishing."""
        return tuple(finding for finding in self.findings if finding.grave)

    @property
    def publishable(self) -> bool:
        """Whether nothing does."""
        return not self.objections

    def joined(self, findings: Sequence[Finding]) -> Fitness:
        """The verdict with more findings."""
        return Fitness(tuple(sorted((*self.findings, *findings), key=lambda finding: not finding.grave)))


def judge(frame: pd.DataFrame, asked_frac: float | None = None) -> Fitness:
    """Judge results.

    Args:
        frame: The planned runs, from `bench.load`.
        asked_frac: Half the width that intervals of throughput may have, as a fraction. Unless given, what each sweep
            asked for, and where it asked for nothing, `TARGETS_FRAC`.
    """
    frame = frame.reset_index(drop=True)
    runs = last_attempts(frame)
    known = [finding for finding in validity(frame) if finding.code not in _ASKED_MORE]
    graded = [replace(finding, grave=_BLOCKS.get(finding.code, finding.grave)) for finding in known]
    noisy = _noisy(runs, asked_frac)
    own = [finding for check in _CHECKS if (finding := check(frame, runs)) is not None]
    own += [*([noisy] if noisy else []), *_flags(runs), *implausible(frame, runs), *missing_disclosures(frame, runs)]
    return Fitness(()).joined([*graded, *own])


def named_cases(finding: Finding, frame: pd.DataFrame, summary: pd.DataFrame | None = None) -> list[dict[str, Any]]:
    """The cases that a finding is about, in a reader's order.

    Args:
        finding: From `judge`.
        frame: What it was found in.
        summary: Of `frame`, where the caller has it.

    Returns:
        `case_key`, `case` in words and `run_keys` of each; empty where the finding is about all of them.
    """
    never = frame["run_key"].isna()
    meant = set(finding.groups)
    unrun = pd.Series([key in meant for key in group_keys(frame[never])], index=frame.index[never], dtype=bool)
    rows = frame[frame["run_key"].isin(set(finding.run_keys)) | unrun.reindex(frame.index, fill_value=False)]
    if rows.empty:
        return []
    summary = summarise_cases(frame) if summary is None else summary
    labels = CaseLabels(summary)
    groups = {key: keys.dropna().tolist() for key, keys in rows.groupby(list(GROUP), dropna=False)["run_key"]}
    return [
        {"case_key": row["case_key"], "case": labels.case(row), "run_keys": groups[key]}
        for row in summary.to_dict("records")
        if (key := tuple(row[name] for name in GROUP)) in groups
    ]


def _noisy(runs: pd.DataFrame, asked_frac: float | None) -> Finding | None:
    """Cases whose interval is wider than asked; one process has none and is named by `short_of_repeats`."""
    timed = runs[(runs["status"] == Status.OK) & (runs["samples_per_s"] > 0)]
    if timed.empty:
        return None
    groups = timed.groupby(list(GROUP), dropna=False)
    widths = groups["samples_per_s"].transform(lambda rates: geometric_interval(rates.tolist()).half_width_frac or 0.0)
    asked = _asked(timed, asked_frac)
    bad = timed[widths > asked]
    if bad.empty:
        return None
    worst = widths[bad.index]
    limits = " and ".join(f"±{limit * 100:g} %" for limit in sorted(set(asked)))
    return finding_of(
        "noisy",
        True,
        f"The interval of throughput is wider than {limits} in {_cases(bad, timed)}: from ±{worst.min() * 100:.1f} % "
        f"to ±{worst.max() * 100:.1f} %. More repeats or a quieter machine narrow it.",
        bad,
    )


def _asked(runs: pd.DataFrame, asked_frac: float | None) -> pd.Series:
    """The half width of each run's case: as given, as its sweep asked for, or as its kind of device is held to."""
    usual = runs["device"].map(lambda device: TARGETS_FRAC.get(device, TARGETS_FRAC["cuda"])).astype(float)
    if asked_frac is not None:
        return pd.Series(asked_frac, index=runs.index)
    return runs["target_interval"].astype(float).fillna(usual) if "target_interval" in runs else usual


def _short(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    timed = runs[runs["samples_per_s"].notna()]
    if timed.empty:
        return None
    sizes = timed.groupby(list(GROUP), dropna=False)["case_key"].transform("size")
    bad = timed[sizes < PUBLISHED_PROCESSES]
    if bad.empty:
        return None
    fewest = int(sizes.min())
    return finding_of(
        "short_of_repeats",
        True,
        f"Fewer than {PUBLISHED_PROCESSES} processes measured {_cases(bad, timed)} (the fewest: {fewest}); set "
        f"measure.repeats to {PUBLISHED_PROCESSES} or more and sweep again: what is there is kept.",
        bad,
    )


def _failed(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Runs that did not end well; running out of memory in every process is an answer and none of them."""
    tried = runs[~runs["status"].isin([Status.SKIPPED, Status.INTERRUPTED])]
    if tried.empty:
        return None
    out = tried["status"] == Status.OOM
    always = out.groupby([tried[name] for name in GROUP], dropna=False).transform("all")
    bad = tried[~tried["status"].isin([Status.OK, Status.THROTTLED]) & ~always.astype(bool)]
    if bad.empty:
        return None
    what = f"{counted(len(bad), len(tried), 'run')} did not end well: {tally(bad['status'])}"
    return finding_of("failed", True, f"{what}. Reasons: {why(bad, 'the report')}.", bad)


def _out_of_memory(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    out = runs[runs["status"] == Status.OOM]
    if out.empty:
        return None
    return finding_of("out_of_memory", False, f"{_cases(out, runs)} ran out of memory.", out)


def _throttled(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Runs that count and were slowed: by their status, by the driver's own word, or by a clock that fell."""
    said = runs["status"].eq(Status.THROTTLED) | _holds(runs, "flags", lambda flag: flag == "throttled")
    # the four reasons that count as throttling, of NVML's eleven, are those whose name ends so (bench.probes)
    reasons = [_holds(runs, f"throttle_reasons_{end}", lambda name: name.endswith("slowdown")) for end in _ENDS]
    share = _numbers(runs, "thermal_slowdown_window_s") / _numbers(runs, "wall_window_s")
    clocks = runs["sm_clock_end_hz"].astype(float)
    fastest = clocks.groupby([runs[name] for name in GROUP], dropna=False).transform("max")
    slowed = (clocks < SLOWED_CLOCK_FRAC * fastest).to_numpy(dtype=bool)
    bad = runs[said.to_numpy(dtype=bool) | reasons[0] | reasons[1] | (share > 0.01) | slowed]
    if bad.empty:
        return None
    return finding_of(
        "throttled",
        True,
        f"The device slowed itself down for heat or power in {counted(len(bad), len(runs), 'run')} that count: by the "
        "run's status, the driver's reasons or counter, or an SM clock below the others of the same case.",
        bad,
    )


def _retried(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    kept = frame[(frame["status"] == Status.THROTTLED) & ~frame.index.isin(runs.index)]
    if kept.empty:
        return None
    text = f"{counted(len(kept), len(frame), 'run')} throttled and ran once more; both are kept and the second counts."
    return finding_of("throttled_retried", False, text, kept)


def _contaminated(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Runs that shared their device, by the process list or by memory that somebody else held."""
    listed = _numbers(runs, "other_process_count") > 0
    before = runs["device_used_before_bytes"].astype(float)
    emptiest = before.groupby(runs["environment_key"], dropna=False).transform("min")
    beside = _numbers(runs, "device_used_total_bytes") - _numbers(runs, "device_used_bytes")
    held = (before > FOREIGN_BYTES) | (before > emptiest + FOREIGN_JUMP_BYTES) | (beside > FOREIGN_BYTES)
    bad = runs[listed | held.to_numpy(dtype=bool)]
    if bad.empty:
        return None
    return finding_of(
        "contaminated",
        True,
        f"Another process was on the device in {counted(len(bad), len(runs), 'run')}: the driver listed one, or memory "
        "was taken that is not the run's own.",
        bad,
    )


def _drifting(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Windows that hold two speeds, whether or not the run flagged itself."""
    drifts = np.array([_drift(value) for value in runs["step_times_s"]])
    bad = runs[(drifts > DRIFT_FRAC) | _holds(runs, "flags", lambda flag: flag == "not_steady")]
    if bad.empty:
        return None
    return finding_of(
        "not_steady",
        True,
        f"In {counted(len(bad), len(runs), 'run')} the step times changed over the measured window, between its halves "
        f"by up to {np.nanmax(drifts) * 100:.0f} %; a longer warm-up or a quieter machine is called for.",
        bad,
    )


def _drift(steps: Any) -> float:
    """How far the medians of a window's halves are apart, as a fraction; 0 for fewer than 10 steps."""
    if not isinstance(steps, np.ndarray | list | tuple) or len(steps) < 10:
        return 0.0
    times = np.asarray(steps, dtype=float)
    first, last = float(np.median(times[: len(times) // 2])), float(np.median(times[len(times) // 2 :]))
    return abs(last / first - 1) if first > 0 else 0.0


_FLAG_WORDS = {
    "host_bound": "step times and the wall clock differ by more than 2 %",
    "precision_not_in_force": "the precision that was asked for was not the one that ran",
    "switch_not_in_force": "a switch of the protocol did nothing",
}
_ENDS = ("start", "end")


def _flags(runs: pd.DataFrame) -> list[Finding]:
    """Every other flag, by its own name."""
    names = {str(flag) for value in runs["flags"] for flag in _listed(value)} - {"throttled", "not_steady"}
    found = []
    for name in sorted(names):
        bad = runs[_holds(runs, "flags", lambda flag, name=name: flag == name)]  # type: ignore[misc]
        words = f": {_FLAG_WORDS[name]}{told_faults(bad, name)}" if name in _FLAG_WORDS else ""
        code = name if name in _FLAG_WORDS else "flagged"
        found.append(finding_of(code, True, f"Flagged {name} in {counted(len(bad), len(runs), 'run')}{words}.", bad))
    return found


def _holds(runs: pd.DataFrame, column: str, test: Callable[[str], bool]) -> np.ndarray:
    return np.array([any(test(str(item)) for item in _listed(value)) for value in runs[column]], dtype=bool)


def _listed(value: Any) -> Sequence[Any]:
    return list(value) if isinstance(value, np.ndarray | list | tuple) else ()


def _numbers(runs: pd.DataFrame, column: str) -> np.ndarray:
    return runs[column].to_numpy(dtype=float, na_value=np.nan)


def _cases(bad: pd.DataFrame, of: pd.DataFrame) -> str:
    return counted(len(bad[list(GROUP)].drop_duplicates()), len(of[list(GROUP)].drop_duplicates()), "case")


_CHECKS: tuple[Callable[[pd.DataFrame, pd.DataFrame], Finding | None], ...] = (
    _failed,
    _short,
    _throttled,
    _contaminated,
    _drifting,
    _out_of_memory,
    _retried,
)
