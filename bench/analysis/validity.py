"""How far results can be trusted: what was not kept, said in words and with the runs that it is about."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.cases import GROUP, last_attempts
from bench.analysis.completeness import failed, interrupted, nothing_measured, skipped_cases
from bench.analysis.convergence import not_converged
from bench.analysis.findings import Finding, counted, finding_of
from bench.analysis.labels import machine_labels
from bench.records import MEASURED, Status
from bench.stats import PUBLISHED_PROCESSES, geometric_interval

CONSISTENCY_WINDOW = (0.9, 1.02)
"""Where `throughput x mean step / batch` lies in an honest run: the sum of the steps over the window around them."""

SKEW_WINDOW = (0.8, 1.25)
"""Where `throughput x median step / batch` lies where no few slow steps make the mean."""

WIDE_INTERVAL_FRAC = 0.10
"""Half an interval's width beyond which a case is named as not settled."""


def validity(frame: pd.DataFrame) -> list[Finding]:
    """Everything that was not kept, grave findings first; empty where all was.

    Args:
        frame: From `bench.load`.
    """
    runs = last_attempts(frame.reset_index(drop=True))
    found = [finding for check in _CHECKS if (finding := check(frame, runs)) is not None]
    return sorted(found, key=lambda finding: not finding.grave)


def _inconsistent(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    sums = np.array([math.fsum(value) if len(value) else np.nan for value in map(_listed, runs["step_times_s"])])
    ratio = sums / runs["wall_window_s"].to_numpy(dtype=float, na_value=np.nan)
    low, high = CONSISTENCY_WINDOW
    below = (ratio < low) & ~_flagged(runs, "host_bound")  # a host that holds the device up has its own flag
    bad = runs[~np.isnan(ratio) & (below | (ratio > high))]
    if bad.empty:
        return None
    return finding_of(
        "inconsistent_rate",
        True,
        f"In {counted(len(bad), int((~np.isnan(ratio)).sum()), 'run')} the step times add up to less than "
        f"{low * 100:.0f} % or more than {high * 100:.0f} % of the window that throughput is taken over: the rate and "
        "the step times do not speak of the same steps.",
        bad,
    )


def _skewed(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    rate, median, batch = (
        runs[name].to_numpy(dtype=float, na_value=np.nan)
        for name in ("samples_per_s", "median_step_time_s", "batch_size")
    )
    ratio = rate * median / batch
    low, high = SKEW_WINDOW
    bad = runs[~np.isnan(ratio) & ((ratio < low) | (ratio > high))]
    if bad.empty:
        return None
    return finding_of(
        "skewed_steps",
        True,
        f"In {counted(len(bad), int((~np.isnan(ratio)).sum()), 'run')} a few slow steps set the mean: throughput x "
        f"median step / batch size lies outside {low:g} to {high:g}. Something else used the machine, or the work is "
        "uneven.",
        bad,
    )


def _wide(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    timed = runs[runs["status"].isin([Status.OK, Status.THROTTLED]) & (runs["samples_per_s"] > 0)]
    rates = timed.groupby(list(GROUP), dropna=False)["samples_per_s"]
    widths = rates.agg(lambda values: geometric_interval(values.tolist()).half_width_frac or 0.0)
    wide = widths[widths > WIDE_INTERVAL_FRAC]
    if wide.empty:
        return None
    keys = set(wide.index)
    return finding_of(
        "wide_intervals",
        True,
        f"The interval of throughput is wider than ±{WIDE_INTERVAL_FRAC * 100:.0f} % in "
        f"{counted(len(wide), len(widths), 'case')}: the processes do not agree. More repeats or a quieter machine "
        "narrow it.",
        timed[[key in keys for key in zip(*(timed[name] for name in GROUP), strict=True)]],
    )


def _throttled(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    bad = frame[(frame["status"] == Status.THROTTLED) | _flagged(frame, "throttled")]
    if bad.empty:
        return None
    return finding_of(
        "throttled",
        True,
        f"The device slowed itself down for heat or power in {counted(len(bad), len(frame), 'run')}; "
        "speeds come from other runs where there are any.",
        bad,
    )


_FLAGS = {
    "host_bound": "step times and the wall clock differ by more than 2 %: the host or the data path held the device up",
    "not_steady": "step times still drifted over the measured window",
    "nvml_silent": "NVML did not answer, at least in part: whether the GPU slowed itself down or was shared is unknown",
    "precision_not_in_force": "the precision that was asked for was not the one that ran",
    "switch_not_in_force": "a switch of the protocol did nothing",
    "in_process": "it had no fresh process of its own (bench sweep --in-process): for debugging only",
}


def _flags(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    names = sorted({flag for value in runs["flags"] for flag in _listed(value)} - {"throttled"})
    if not names:
        return None
    tried = int((~runs["status"].isin([Status.SKIPPED, Status.INTERRUPTED])).sum())
    masks = {name: _flagged(runs, name) for name in names}
    parts = [
        f"{name} in {counted(int(masks[name].sum()), tried, 'run')}"
        f"{f' ({_FLAGS[name]}{told_faults(runs[masks[name]], name)})' if name in _FLAGS else ''}"
        for name in names
    ]
    return finding_of("flags", True, f"Flagged: {'; '.join(parts)}.", runs[np.logical_or.reduce(list(masks.values()))])


def _processes(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    timed = runs[runs["samples_per_s"].notna()]
    if timed.empty:
        return None
    sizes = timed.groupby(list(GROUP), dropna=False).size()
    single = int((sizes == 1).sum())
    if single:
        text = (
            f"Screening: {counted(single, len(sizes), 'case')} ran in a single process, which has no interval "
            "and says nothing about the next process."
        )
        return finding_of(
            "screening", True, text, timed.groupby(list(GROUP), dropna=False).filter(lambda rows: len(rows) < 2)
        )
    if sizes.min() < PUBLISHED_PROCESSES:
        spread = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
        text = f"{spread} fresh processes a case; numbers for publication take {PUBLISHED_PROCESSES}."
        return Finding("few_processes", False, text)
    return None


def _dirty(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    dirty = runs[runs["git_dirty"].fillna(False).astype(bool)]
    if not dirty.empty:
        return finding_of("dirty_tree", True, "The harness ran from a working tree with uncommitted changes.", dirty)
    if runs["git_commit"].isna().any() and runs["bench_version"].isna().any():
        return Finding("unknown_code", False, "Neither commit nor version of the harness is known.")
    return None


def _peaks(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    measured = runs[runs["status"].isin(MEASURED) & runs["peak_allocated_bytes"].notna()]
    if measured.empty:
        return None
    distinct = measured.groupby(list(GROUP), dropna=False)["peak_allocated_bytes"].transform("nunique")
    bad = measured[distinct > 1]
    if bad.empty:
        return None
    cases = len(measured.groupby(list(GROUP), dropna=False))
    differing = len(bad.groupby(list(GROUP), dropna=False))
    return finding_of(
        "peaks_differ",
        True,
        f"The allocated peak differs between processes in {counted(differing, cases, 'case')}; the largest is shown.",
        bad,
    )


def _shared(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    bad = runs[runs["other_process_count"].fillna(0).astype(int) > 0]
    if bad.empty:
        return None
    return finding_of(
        "shared_device", True, f"Other processes were on the device in {counted(len(bad), len(runs), 'run')}.", bad
    )


def _power(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    bad = runs[runs["power_limit_w"] < runs["power_limit_default_w"] * 0.995]
    if bad.empty:
        return None
    limit, default = float(bad["power_limit_w"].iloc[0]), float(bad["power_limit_default_w"].iloc[0])
    return finding_of(
        "power_capped", True, f"The power limit was {limit:.0f} W where the card's default is {default:.0f} W.", bad
    )


def _mixed(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    machines = list(machine_labels(frame).values())
    parts = [f"{len(machines)} environments ({'; '.join(machines)})"] if len(machines) > 1 else []
    protocols = frame["protocol_key"].nunique()
    parts += [f"{protocols} measuring protocols"] if protocols > 1 else []
    codes = int(frame.groupby("case_key")["code_key"].nunique().max())
    parts += [f"{codes} versions of the measuring code or of the data"] if codes > 1 else []
    if not parts:
        return None
    return Finding("mixed_environments", False, f"Mixed: {' and '.join(parts)}; each is a row and a line of its own.")


def _synthetic(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    known = runs[runs["data_source"].notna()]
    made_up = known[known["data_source"] != "files"]
    if made_up.empty:
        return None
    read = (made_up["input"] != "synthetic").any()
    said = (
        "Where images are loaded, decoding real ones takes another time."
        if read
        else "Speed and memory do not depend on the content."
    )
    names = ", ".join(sorted({str(name) for name in made_up["dataset"]}))
    return finding_of(
        "synthetic_data",
        False,
        f"Synthetic images in {counted(len(made_up), len(known), 'run')} ({names}): right in shape and type, "
        f"random in content, so the loss says nothing. {said}",
        made_up,
    )


def _cpu_only(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    if not (frame["device"] == "cpu").all():
        return None
    return Finding("cpu_only", False, "Measured on a CPU: this is no statement about any GPU.")


def _emulated(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Precisions that a processor has by rounding only; on a GPU that is a flag of the run."""
    if "precision_in_force" not in runs:
        return None
    bad = runs[(runs["device"] == "cpu") & runs["precision_in_force"].fillna("").str.endswith("emulated")]
    if bad.empty:
        return None
    names = ", ".join(sorted(set(bad["precision"].astype(str))))
    return finding_of(
        "precision_emulated",
        False,
        f"The processor has no instructions for {names}: {counted(len(bad), len(runs), 'run')} computed in float32 and "
        "rounded, which says nothing of a processor that has them.",
        bad,
    )


def _idle_switches(frame: pd.DataFrame, runs: pd.DataFrame) -> Finding | None:
    """Switches that are on and mean nothing on a run's device."""
    bad = runs[(runs["device"] == "cpu") & runs["cudnn_benchmark"].fillna(False).astype(bool)]
    if bad.empty:
        return None
    return finding_of(
        "idle_switch",
        False,
        f"cudnn_benchmark is on in {counted(len(bad), len(runs), 'run')} on a CPU, where it does nothing.",
        bad,
    )


def told_faults(runs: pd.DataFrame, flag: str) -> str:
    """What these flagged runs say was not in force, each once, behind a colon; empty where they say nothing."""
    if flag not in ("precision_not_in_force", "switch_not_in_force") or "not_in_force" not in runs:
        return ""
    texts = list(dict.fromkeys(runs["not_in_force"].dropna().astype(str)))
    more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
    return f": {'; '.join(texts[:3])}{more}" if texts else ""


def _listed(value: object) -> list[Any]:
    """A list column's value; unknown is empty."""
    return list(value) if isinstance(value, np.ndarray | list | tuple) else []


def _flagged(frame: pd.DataFrame, flag: str) -> np.ndarray:
    return np.array([flag in _listed(value) for value in frame["flags"]], dtype=bool)


_CHECKS: tuple[Callable[[pd.DataFrame, pd.DataFrame], Finding | None], ...] = (
    nothing_measured,
    failed,
    interrupted,
    _inconsistent,
    _wide,
    not_converged,
    _skewed,
    _throttled,
    _flags,
    _processes,
    _dirty,
    _peaks,
    _shared,
    _power,
    _cpu_only,
    _emulated,
    _idle_switches,
    _synthetic,
    _mixed,
    skipped_cases,
)
