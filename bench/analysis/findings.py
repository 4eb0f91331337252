"""What a reader must know before trusting or publishing results: one closed table of rules, and what they find.

`RULES` is the table. A rule is a function that names the affected runs. Above it stand what it weakens, its sentence
and its remedy; its name is the code. The report, `bench check` and the end of a sweep read what `judge` finds by it, so
that one thing has one code and one count wherever it is said. docs/publishing.md explains each code.

The rules are those of the measuring protocol, and comparisons of two numbers of one run that were read independently of
each other, or of a number with what physics or the record's own keys allow. None of them knows how a lie came about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.analysis.cases import GROUP, last_attempts, summarise_cases
from bench.analysis.labels import SERIES_AXES, CaseLabels, machine_labels
from bench.analysis.reasons import counted, counted_reasons, group_reasons, tally, tally_names
from bench.config import TARGETS_FRAC
from bench.records import AXES, FIELDS, MEASURED, DataFacts, Group, Status, case_key, columns, in_order, run_key
from bench.stats import PUBLISHED_PROCESSES
from bench.store import DATA_FOLDER, Loaded
from bench.units import MIB, exact_bytes

CONSISTENCY_WINDOW = (0.9, 1.02)
"""Where the sum of the steps lies in an honest run, as a fraction of the window around them."""

SKEW_WINDOW = (0.8, 1.25)
"""Where `throughput x median step / batch size` lies where no few slow steps make the mean."""

SYNCHRONISED_FRAC = 0.5
"""Of the wall clock, below which the steps' own times cannot have waited for the device."""

SPEED_FACTOR = 10.0
"""Times the roofline's speed, above which a rate is not believed: the roofline is a first estimate, not a bound."""

SHORT_WINDOW_FRAC = 0.02
"""Of the window asked for, below which its length is not in seconds: steps are counted so as to fill it."""

SLOWED_CLOCK_FRAC = 0.85
"""A run whose SM clock ended below this share of the fastest of its case ran on a device that slowed down."""

DRIFT_FRAC = 0.10
"""Between the medians of the first and the last half of a window, beyond which the window holds two speeds."""

FOREIGN_BYTES = 512 * MIB
"""Memory taken on the device before a run's own context beyond which another process must hold it: the driver's reserve
stays below (NVML's first memory query counts it as used, the second does not)."""

FOREIGN_JUMP_BYTES = 128 * MIB
"""The same, above the emptiest that the same device was seen."""

_WARMUPS_COMPARED = 3
"""Steps of warm-up from which their times are compared with the measured ones: on a busy host the first is cold and
another may be stalled, so that two may both say nothing."""

_NAMED = 4
"""How many reasons, parts or flags a sentence names."""

_MEMORY_ORDER = (
    ("peak_requested_bytes", "peak_allocated_bytes"),
    ("peak_allocated_bytes", "peak_reserved_bytes"),
    ("peak_reserved_bytes", "device_total_bytes"),
    ("peak_reserved_bytes", "device_memory_bytes"),
    ("device_used_bytes", "device_total_bytes"),
    ("peak_allocated_bytes", "gpu_total_bytes"),
)
"""The left is a part of the right, by what torch's allocator and the driver count."""

GroupKey: TypeAlias = tuple[str | None, ...]
Mask: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[np.float64]


class Weakens(StrEnum):
    """What a finding weakens."""

    READING = "reading"
    """The numbers themselves, and with them their publication."""
    PUBLISHING = "publishing"
    """Their publication: they hold for a reader who knows of it."""
    NOTHING = "nothing"
    """Neither: it says what the numbers are about."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What a rule found.

    Attributes:
        runs: Which attempts it is about; none of them is no finding. `None` where it is about the results as a whole.
        of: Which attempts were looked at.
        words: What the rule's sentence has beside the counts.
    """

    runs: Mask | None
    of: Mask | None = None
    words: Mapping[str, object] = field(default_factory=dict)


Find: TypeAlias = Callable[["Runs"], Hit | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
        code: Its name for scripts.
        weakens: What a finding by it weakens.
        text: The sentence. `{runs}` and `{cases}` read `3 of 12 runs`; the other places are the `words` of its hit.
        remedy: What to do about it, in a short sentence.
        find: What it finds in `Runs`; `None` where it is found elsewhere: in loading, or in the files of a report.
        formerly: The code that earlier versions gave to what this one names; empty where it is the same.
    """

    code: str
    weakens: Weakens
    text: str
    remedy: str
    find: Find | None = None
    formerly: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that was not kept.

    Attributes:
        rule: Which.
        text: Its sentence with the counts; may hold text from results, so it is escaped where it is printed.
        runs: The run keys it is about, by case (what `group_keys` says of it); a case without keys never ran. Empty
            where the finding is about the results as a whole.
    """

    rule: Rule
    text: str
    runs: Mapping[GroupKey, Sequence[str]] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The rule's."""
        return self.rule.code

    @property
    def weakens(self) -> Weakens:
        """The rule's."""
        return self.rule.weakens

    @property
    def remedy(self) -> str:
        """The rule's."""
        return self.rule.remedy

    @property
    def blocks(self) -> bool:
        """Whether it stands against publishing."""
        return self.weakens is not Weakens.NOTHING

    @property
    def run_keys(self) -> list[str]:
        """The runs it is about."""
        return [key for keys in self.runs.values() for key in keys]


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found, at most one finding for each rule, in the table's order: what weakens most comes first.

    Attributes:
        found: The findings, in that order.
    """

    found: tuple[Finding, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        """The findings in their order."""
        return iter(self.found)

    def weakening(self, what: Weakens) -> tuple[Finding, ...]:
        """Those that weaken `what`."""
        return tuple(finding for finding in self.found if finding.weakens is what)

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """What stands against publishing."""
        return tuple(finding for finding in self.found if finding.blocks)

    @property
    def publishable(self) -> bool:
        """Whether nothing does."""
        return not self.blocking

    def joined(self, more: Iterable[Finding]) -> Findings:
        """These and more."""
        order = list(RULES)
        return Findings(tuple(sorted((*self.found, *more), key=lambda finding: order.index(finding.code))))


def group_keys(frame: pd.DataFrame) -> list[GroupKey]:
    """Of each row, its case, environment, protocol and code; what is unknown is `None`, which equals itself."""
    keys = frame[list(GROUP)].astype(object)
    return list(keys.where(keys.notna(), None).itertuples(index=False, name=None))


class Runs:
    """The planned attempts, column by column; what several rules ask of them is computed once.

    Masks and columns have one value for each row of `frame`. Numbers that are unknown are NaN.

    Attributes:
        frame: One row an attempt, as `bench.load` gives them.
        summary: One row a case, from `summarise_cases`.
        asked_frac: Half the width asked of intervals of throughput, as a fraction, where the user asked for one.
        groups: `group_keys` of the frame.
        keys: The run key of each attempt.
        case: The position of each attempt's case in `summary`.
        last: The attempts that count.
        measured: Those of them that measured.
        tried: Those of them that were run.
        timed: Those of them that the speed of their case comes from.
    """

    def __init__(self, frame: pd.DataFrame, summary: pd.DataFrame, asked_frac: float | None) -> None:
        """Take planned runs and their summary."""
        self.frame, self.summary, self.asked_frac = frame, summary, asked_frac
        places = {key: place for place, key in enumerate(group_keys(summary))}
        self.groups, self.keys = group_keys(frame), _run_keys(frame)
        self.case = np.array([places[key] for key in self.groups], dtype=np.int64)
        turns = frame[[*GROUP, "repeat", "attempt"]].reset_index(drop=True)
        self.last = np.zeros(len(frame), dtype=bool)
        self.last[last_attempts(turns).index] = True
        self._status = frame["status"].to_numpy(dtype=object)
        self.measured = self.last & self.having(*MEASURED)
        self.tried = self.last & ~self.having(Status.SKIPPED, Status.INTERRUPTED)
        spare = self.having(Status.THROTTLED) & (summary["runs_ok"].to_numpy()[self.case] == 0)
        self.timed = self.last & (self.having(Status.OK) | spare) & (self.number("samples_per_s") > 0)

    def having(self, *statuses: Status) -> Mask:
        """The attempts that ended so."""
        mask: Mask = np.isin(self._status, [str(status) for status in statuses])
        return mask

    def number(self, column: str) -> Numbers:
        """A column of numbers; one that older results lack is unknown."""
        if column not in self.frame:
            return np.full(len(self.frame), np.nan)
        return self.frame[column].to_numpy(dtype=float, na_value=np.nan)

    def having_text(self, column: str, text: str) -> Mask:
        """Where a column has this text; nowhere in results that lack the column."""
        if column not in self.frame:
            return np.zeros(len(self.frame), dtype=bool)
        mask: Mask = (self.frame[column] == text).to_numpy(dtype=bool, na_value=False)
        return mask

    def known(self, column: str) -> Mask:
        """Where a column has a value."""
        return self.frame[column].notna().to_numpy() if column in self.frame else np.zeros(len(self.frame), dtype=bool)

    def true(self, column: str) -> Mask:
        """Where a column of booleans is known to be true."""
        return self.frame[column].fillna(False).to_numpy(dtype=bool)

    def lists(self, column: str) -> list[Any]:
        """A column of lists; unknown is empty."""
        return [value if isinstance(value, np.ndarray | list | tuple) else () for value in self.frame[column]]

    def grouped(self, column: str, by: npt.NDArray[Any] | pd.Series) -> Any:
        """The numbers of the attempts that count, grouped so that a `transform` has a value for each attempt."""
        return pd.Series(self.number(column)).where(self.last).groupby(by, dropna=False)

    def of_case(self, column: str) -> Numbers:
        """A column of the summary, for each attempt that of its case."""
        return self.summary[column].to_numpy(dtype=float, na_value=np.nan)[self.case]

    def cases(self, mask: Mask) -> int:
        """How many cases these attempts are of."""
        return len(np.unique(self.case[mask]))

    @cached_property
    def cpu(self) -> Mask:
        """Attempts on a processor."""
        return (self.frame["device"] == "cpu").to_numpy(dtype=bool)

    @cached_property
    def steps(self) -> _Steps:
        """What the measured steps come to."""
        return _Steps(self.lists("step_times_s"))

    @cached_property
    def warmups(self) -> _Steps:
        """What the steps of warm-up come to."""
        return _Steps(self.lists("warmup_times_s"))

    @cached_property
    def flags(self) -> dict[str, Mask]:
        """The attempts that carry each flag."""
        masks: dict[str, Mask] = {}
        for place, value in enumerate(self.lists("flags")):
            for flag in value:
                masks.setdefault(str(flag), np.zeros(len(self.frame), dtype=bool))[place] = True
        return masks

    def flagged(self, flag: str) -> Mask:
        """The attempts that carry a flag."""
        return self.flags.get(flag, np.zeros(len(self.frame), dtype=bool))

    @cached_property
    def out_of_memory(self) -> Mask:
        """The attempts of cases that ran out of memory in every process: an answer, and not a failure."""
        counts = [
            np.bincount(self.case[mask], minlength=len(self.summary))
            for mask in (self.tried, self.tried & self.having(Status.OOM))
        ]
        always: Mask = (counts[1] > 0) & (counts[0] == counts[1])
        return self.tried & always[self.case]

    @cached_property
    def half_widths(self) -> Numbers:
        """Half the interval of throughput of each attempt's case, as a fraction; unknown for a single process."""
        low, high = self.of_case("samples_per_s_low"), self.of_case("samples_per_s_high")
        return (high - low) / 2 / self.of_case("samples_per_s")

    @cached_property
    def targets(self) -> Numbers:
        """The half width that each attempt's sweep asked for; unknown where it, or the user now, did not."""
        asked = self.number("target_interval")
        return asked if self.asked_frac is None else np.full_like(asked, np.nan)


class _Steps:
    """Sums, medians and the like of the times of each attempt's steps, in seconds; NaN where there are none.

    Attributes:
        count: How many steps.
        total: Their sum.
        least: The shortest.
        median: The median.
        drift: How far the medians of the two halves are apart, as a fraction; 0 for fewer than 10 steps.
    """

    def __init__(self, times: Sequence[Sequence[float]]) -> None:
        rows = [_summed(np.asarray(values, dtype=float)) for values in times]
        self.count, self.total, self.least, self.median, self.drift = np.array(rows, dtype=float).reshape(-1, 5).T


def _summed(times: Numbers) -> tuple[float, float, float, float, float]:
    count = len(times)
    if not count:
        return 0, np.nan, np.nan, np.nan, 0
    drift = 0.0
    if count >= 10 and (first := _median(times[: count // 2])) > 0:
        drift = abs(_median(times[count // 2 :]) / first - 1)
    return count, float(times.sum()), float(times.min()), _median(times), drift


def _median(times: Numbers) -> float:
    """As `np.median`, which takes several times as long for so few."""
    ordered = np.sort(times)
    return float(ordered[(len(times) - 1) // 2] + ordered[len(times) // 2]) / 2


RULES: dict[str, Rule] = {}
"""The table: every rule by its code, in the order of this file."""


def _rule(weakens: Weakens, text: str, remedy: str, formerly: str = "") -> Callable[[Find], Find]:
    """A row of the table, found by the function below it, whose name is the code behind an underscore."""

    def add(find: Find) -> Find:
        code = find.__name__.removeprefix("_")
        RULES[code] = Rule(code, weakens, text, remedy, find, formerly)
        return find

    return add


FLAGS = {"not_steady", "throttled"}
"""Codes that are flags of runs as well: what a run of this version can say against itself.

The rules of these two look beyond the flag; `_flag_rule` adds those that do not.
"""


def _flag_rule(flag: str, text: str, remedy: str, formerly: str = "", weakens: Weakens = Weakens.READING) -> None:
    """A row of the table about the runs that carry a flag, which is the code."""
    FLAGS.add(flag)
    RULES[flag] = Rule(flag, weakens, text, remedy, lambda runs: _flag(runs, flag), formerly)


# What weakens the numbers, and with them their publication.


@_rule(
    Weakens.READING,
    "Not a single run was measured: there are no numbers here to trust.",
    "Fix what the reasons of the failures name, and sweep again.",
)
def _nothing_measured(runs: Runs) -> Hit | None:
    return None if runs.measured.any() else Hit(None)


RULES["damaged_part"] = Rule(
    "damaged_part",
    Weakens.READING,
    "{parts}.",
    "Restore it from a copy, or sweep again; of a damaged plan without a copy, delete it first.",
)


@_rule(
    Weakens.READING,
    "{runs} did not end well: {statuses}. Reasons: {reasons}.",
    "Fix what the reasons name, then run the same bench sweep with --retry and these statuses.",
)
def _failed(runs: Runs) -> Hit:
    """Runs that did not end well; running out of memory in every process is an answer and none of them."""
    bad = runs.tried & ~runs.having(Status.OK, Status.THROTTLED) & ~runs.out_of_memory
    rows = runs.frame.loc[bad, ["status", "reason"]]
    why = [
        f"{status}: {_reasons(rows.loc[rows['status'] == status, 'reason'], 'the report')}"
        for status in tally_names(rows["status"])
    ]
    return Hit(bad, runs.tried, {"statuses": tally(rows["status"]), "reasons": ". ".join(why)})


@_rule(
    Weakens.READING,
    "{runs} that were planned did not happen: the sweep was interrupted, or still runs.",
    "Run the same bench sweep again: it resumes.",
)
def _interrupted(runs: Runs) -> Hit:
    return Hit(runs.having(Status.INTERRUPTED), runs.last & ~runs.having(Status.SKIPPED))


@_rule(
    Weakens.READING,
    "The device slowed itself down for heat or power in {runs}: by the run's status, the driver's reasons or "
    "counter, or an SM clock below the others of the same case.",
    "Cool the machine, then bench sweep --retry throttled.",
)
def _throttled(runs: Runs) -> Hit:
    """Runs that count and were slowed: by their status, by the driver's own word, or by a clock that fell."""
    # the four reasons that count as throttling, of NVML's eleven, are those whose name ends so (bench.probes)
    said = runs.having(Status.THROTTLED) | runs.flagged("throttled")
    for end in ("start", "end"):
        reasons = runs.lists(f"throttle_reasons_{end}")
        said |= np.array([any(str(name).endswith("slowdown") for name in names) for names in reasons], dtype=bool)
    share = runs.number("thermal_slowdown_window_s") / runs.number("wall_window_s")
    fastest = runs.grouped("sm_clock_end_hz", runs.case).transform("max").to_numpy()
    return Hit(said | (share > 0.01) | (runs.number("sm_clock_end_hz") < SLOWED_CLOCK_FRAC * fastest))


@_rule(
    Weakens.READING,
    "Another process was on the device in {runs}: the driver listed one, or memory was taken that is not the "
    "run's own.",
    "End the other process and sweep again.",
)
def _contaminated(runs: Runs) -> Hit:
    """Runs that shared their device, by the process list or by memory that another process held."""
    before = runs.number("device_used_before_bytes")
    environment = runs.frame["environment_key"].reset_index(drop=True)
    emptiest = runs.grouped("device_used_before_bytes", environment).transform("min").to_numpy()
    beside = runs.number("device_used_total_bytes") - runs.number("device_used_bytes")
    held = (before > FOREIGN_BYTES) | (before > emptiest + FOREIGN_JUMP_BYTES) | (beside > FOREIGN_BYTES)
    return Hit((runs.number("other_process_count") > 0) | held)


@_rule(
    Weakens.READING,
    "In {runs} the step times changed over the measured window, between its halves by up to {most}.",
    "Use more warm-up steps or a quieter machine.",
)
def _not_steady(runs: Runs) -> Hit:
    """Windows that hold two speeds, whether or not the run flagged itself."""
    bad = runs.tried & ((runs.steps.drift > DRIFT_FRAC) | runs.flagged("not_steady"))
    return Hit(bad, runs.tried, {"most": f"{runs.steps.drift[bad].max(initial=0) * 100:.0f} %"})


_flag_rule(
    "host_bound",
    "In {runs} the step times and the wall clock differ by more than 2 %: the host or the data path delayed "
    "the device.",
    "Free the host's processors, or give the loader more workers.",
)

_flag_rule(
    "nvml_silent",
    "NVML did not answer, at least in part, in {runs}: whether the GPU slowed itself down or was shared is unknown.",
    "Run bench env, fix the driver, and sweep again.",
    formerly="flagged",
)

_flag_rule(
    "precision_not_in_force",
    "In {runs} the precision that was asked for was not the one that ran{faults}.",
    "Unset the variable that overrules it, let the model leave torch's switches alone, or leave the precision out on "
    "that card.",
)

_flag_rule(
    "switch_not_in_force",
    "In {runs} a switch of the protocol did nothing{faults}.",
    "Unset what is in its way, or the switch.",
)

_flag_rule(
    "in_process",
    "{runs} had no fresh process of their own: bench sweep --in-process, for debugging.",
    "Sweep again without --in-process.",
)


@_rule(
    Weakens.READING,
    "{runs} had worker slots of the CPU for devices, which share its memory and caches: they are for tests.",
    "Sweep again with --device cpu.",
)
def _cpu_slots(runs: Runs) -> Hit:
    return Hit(runs.known("cpu_slot"), runs.tried)


@_rule(
    Weakens.READING,
    "Neighbours on the host slowed short runs by up to {most} when the sweep of {runs} began, which is more than "
    "the target.",
    "Sweep again with --parallel auto, or --parallel 1.",
)
def _disturbed(runs: Runs) -> Hit:
    """Runs beside others that were found to disturb them by more than is asked of an interval."""
    usual = runs.frame["device"].map(lambda device: TARGETS_FRAC.get(device, TARGETS_FRAC["cuda"])).to_numpy(float)
    target = runs.number("target_interval")
    slowdown = runs.number("neighbour_slowdown_frac")
    bad = runs.tried & (slowdown > np.where(np.isnan(target), usual, target))
    return Hit(bad, runs.tried, {"most": f"{slowdown[bad].max(initial=0) * 100:.1f} %"})


@_rule(
    Weakens.READING,
    "Flagged {flags} in {runs}.",
    "See what the version of the harness that wrote them says of these flags.",
)
def _flagged(runs: Runs) -> Hit:
    """Flags of other versions of the harness."""
    names = sorted({*runs.flags} - {*FLAGS})
    bad = np.logical_or.reduce([runs.flagged(name) for name in names]) if names else np.zeros_like(runs.tried)
    return Hit(bad, runs.tried, {"flags": _some(names, ", ")})


@_rule(
    Weakens.READING,
    "In {runs} a few slow steps set the mean: throughput x median step / batch size lies outside "
    f"{SKEW_WINDOW[0]:g} to {SKEW_WINDOW[1]:g}.",
    "Use a quieter machine; if the work itself is uneven, measure more steps.",
)
def _skewed_steps(runs: Runs) -> Hit:
    with np.errstate(over="ignore"):  # absurd numbers give an absurd ratio
        ratio = runs.number("samples_per_s") * runs.number("median_step_time_s") / runs.number("batch_size")
    low, high = SKEW_WINDOW
    return Hit((ratio < low) | (ratio > high), runs.last & ~np.isnan(ratio))


@_rule(
    Weakens.READING,
    f"In {{runs}} the step times add up to less than {CONSISTENCY_WINDOW[0] * 100:.0f} % or more than "
    f"{CONSISTENCY_WINDOW[1] * 100:.0f} % of the window that throughput is taken over: the rate and the step "
    "times are not of the same steps.",
    "Time both over the same steps, and sweep again.",
)
def _inconsistent_rate(runs: Runs) -> Hit:
    ratio = runs.steps.total / runs.number("wall_window_s")
    low, high = CONSISTENCY_WINDOW
    below = (ratio < low) & ~runs.flagged("host_bound")  # a host that delays the device has its own flag
    return Hit(below | (ratio > high), runs.last & ~np.isnan(ratio))


@_rule(
    Weakens.READING,
    "In {runs} the steps (their sum, or on a GPU their median times their number) fill less than "
    f"{SYNCHRONISED_FRAC * 100:.0f} % of the wall clock: a clock was read without waiting for the device.",
    "Synchronise the device before each reading of the clock, and sweep again.",
)
def _unsynchronised(runs: Runs) -> Hit:
    """Steps that take far less than the wall clock: together, or on a device most of them, where few wait for all."""
    limit = SYNCHRONISED_FRAC * runs.number("wall_window_s")
    most = (runs.steps.median * runs.steps.count < limit) & ~runs.cpu
    return Hit((runs.steps.total < limit) | most, runs.measured)


@_rule(
    Weakens.READING,
    f"{{runs}} went more than {SPEED_FACTOR:g} times as fast as the device's peak rates allow by the roofline: "
    "the window did not wait for the device, or its unit is wrong.",
    "Synchronise the device at the ends of the window, check the unit, and sweep again.",
)
def _too_fast(runs: Runs) -> Hit:
    ratio = runs.number("samples_per_s") / runs.number("estimated_samples_per_s")
    return Hit(ratio > SPEED_FACTOR, runs.measured)


@_rule(
    Weakens.READING,
    "Numbers that cannot be in the unit their column says (a factor of 1000?): {suspects}.",
    "Correct the unit where the number is written, and sweep again.",
)
def _wrong_unit(runs: Runs) -> Hit:
    """Columns whose numbers do not fit their own unit."""
    wall, steps, warm = runs.number("wall_window_s"), runs.steps, runs.warmups
    watts, limit = runs.number("energy_window_j") / wall, runs.number("power_limit_default_w")
    short = wall < SHORT_WINDOW_FRAC * runs.number("min_window_s")
    apart = (warm.least > 300 * steps.median) | (warm.median < steps.median / 300)  # the least: others are cold
    suspects = {
        "wall_window_s is longer than the whole run": wall > 1.05 * runs.number("duration_s"),
        "wall_window_s is far below the window asked for": short & (steps.count < 10_000),
        "step_times_s and warmup_times_s are of different magnitude, or a stalled warm-up": apart
        & (warm.count >= _WARMUPS_COMPARED),
        "energy_window_j is not the power of this device": (watts > 5 * limit) | (watts < 0.001 * limit),
    }
    for name, entry in FIELDS.items():
        if entry.within is not None:
            values, (low, high) = runs.number(name), entry.within
            suspects[f"{name} is outside {low:g} to {high:g}"] = (values < low) | (values > high)
    return _suspected(runs, suspects)


@_rule(
    Weakens.READING,
    "Memory that cannot be (a unit, or another batch): {suspects}.",
    "Correct the unit or the batch where the number is written, and sweep again.",
)
def _impossible_memory(runs: Runs) -> Hit:
    """Peaks that are less than what they hold, or more than what holds them."""
    peak, formula = runs.number("peak_allocated_bytes"), runs.number("formula_bytes")
    least = runs.number("formula_parameters_bytes") + runs.number("formula_batch_bytes")
    suspects = {
        "peak_allocated_bytes is less than parameters and batch": peak < least,
        "peak_allocated_bytes is hundreds of times the formula": peak > 200 * formula + 256 * MIB,
        "peak_allocated_bytes is more than the RAM": (peak > runs.number("ram_bytes")) & runs.cpu,
    }
    suspects |= {
        f"{part} is more than {whole}": runs.number(part) > runs.number(whole) for part, whole in _MEMORY_ORDER
    }
    return _suspected(runs, suspects)


@_rule(
    Weakens.READING,
    "Batch sizes that peak at the same byte ({sizes}): {runs} cannot have held the batch that the row says.",
    "Feed the model the whole batch, and sweep again.",
)
def _batch_unseen(runs: Runs) -> Hit:
    """Cases that differ in their batch size alone and peak at the same byte: the larger batch never was on the device.

    The batch itself is allocated while the step runs, in blocks of 512 B, so that honest peaks differ.
    """
    of = runs.measured & runs.known("peak_allocated_bytes") & runs.known("batch_size")
    rest = [name for name in (*GROUP, *AXES) if name not in ("case_key", "batch_size", "code_key")]
    rows = runs.frame.loc[of, [*rest, "peak_allocated_bytes", "batch_size"]]
    sizes = rows.groupby([*rest, "peak_allocated_bytes"], dropna=False, sort=False)["batch_size"]
    bad = np.zeros_like(of)
    bad[of] = (sizes.transform("nunique") > 1).to_numpy(dtype=bool)
    return Hit(bad, runs.measured, {"sizes": ", ".join(map(str, sorted(set(runs.frame.loc[bad, "batch_size"]))[:6]))})


@_rule(
    Weakens.READING,
    "In {runs} the batch size or another axis is not the one that the row's own key was made from: it was "
    "changed after planning.",
    "Restore the rows from a copy, or sweep again.",
)
def _keys_differ(runs: Runs) -> Hit:
    """Rows whose axes are not those that their own keys were made from."""
    axes = list(zip(*(runs.frame[name].tolist() for name in AXES), strict=True))
    made = {row: case_key(dict(zip(AXES, row, strict=True))) for row in dict.fromkeys(axes)}
    turns = (runs.frame[name].tolist() for name in ("repeat", "attempt"))
    wrong = [
        made[row] != group[0] or (key is not None and key != _run_key(group, int(repeat), int(attempt)))
        for row, group, key, repeat, attempt in zip(axes, runs.groups, runs.keys, *turns, strict=True)
    ]
    return Hit(np.array(wrong, dtype=bool))


# What weakens their publication alone.


def _overlaps(runs: Runs) -> Numbers:
    """How many other runs of these results overlapped each in time on its host; NaN but on clusters.

    A run began, by the clock of its host, when its process did its first word, and lasted as its parent saw it.
    """
    found = np.full(len(runs.frame), np.nan)
    started = runs.number("started_unix_s")
    ended = started + runs.number("duration_s") - runs.number("process_start_s")
    on_cluster = runs.having_text("spread", "hosts") & np.isfinite(started) & np.isfinite(ended)
    hosts = runs.frame["host_hash"].astype(str).to_numpy(dtype=object)
    for host in dict.fromkeys(hosts[on_cluster]):
        here = on_cluster & (hosts == host)
        begun = np.searchsorted(np.sort(started[here]), ended[here], side="left")
        over = np.searchsorted(np.sort(ended[here]), started[here], side="right")
        found[here] = begun - over - 1
    return found


@_rule(
    Weakens.PUBLISHING,
    "{runs} had up to {most} runs beside them on the host, and nobody measured how much that disturbs.",
    "Sweep again with --parallel auto or 1; on a cluster, with one job a node (sbatch --exclusive).",
)
def _neighbours(runs: Runs) -> Hit:
    """Neighbours that the sweep started itself, or that the clocks of one host show where a scheduler did."""
    beside = np.where(runs.known("parallel"), runs.number("parallel") - 1, _overlaps(runs))
    bad = runs.tried & (beside > 0) & ~runs.known("neighbour_slowdown_frac")
    return Hit(bad, runs.tried, {"most": f"{beside[bad].max(initial=0):.0f}"})


@_rule(
    Weakens.PUBLISHING,
    "{runs} had a niceness of up to {most}: other processes of the host came first.",
    "Sweep again where workers have the usual priority; on Ray: RAY_worker_niceness=0 ray start ...",
)
def _low_priority(runs: Runs) -> Hit:
    niceness = runs.number("niceness")
    bad = runs.tried & (niceness > 0)
    return Hit(bad, runs.tried, {"most": f"{niceness[bad].max(initial=0):.0f}"})


@_rule(
    Weakens.PUBLISHING,
    "The interval of throughput is wider than {limits} in {cases}: from {least} to {most}.",
    "Use more repeats or a quieter machine.",
)
def _noisy(runs: Runs) -> Hit:
    """Cases whose interval is wider than asked; those whose sweep asked for a width are named by `not_converged`."""
    usual = runs.frame["device"].map(lambda device: TARGETS_FRAC.get(device, TARGETS_FRAC["cuda"])).to_numpy(float)
    asked = usual if runs.asked_frac is None else np.full_like(usual, runs.asked_frac)
    of = runs.timed & np.isnan(runs.targets)
    bad = of & (runs.half_widths > asked)
    widths = runs.half_widths[bad]
    return Hit(
        bad,
        of,
        {
            "limits": _percents(asked[of]),
            "least": f"±{widths.min(initial=np.inf) * 100:.1f} %",
            "most": f"±{widths.max(initial=0) * 100:.1f} %",
        },
    )


@_rule(
    Weakens.PUBLISHING,
    "The interval of throughput did not come within the {limits} asked for in {cases}, after {processes}: the "
    "repeats or the time allowed were spent, or the sweep ended first.",
    "Raise measure.max_repeats or measure.time_budget, or use a quieter machine.",
)
def _not_converged(runs: Runs) -> Hit:
    """Cases whose repeats, or the time for them, were spent before the interval was narrow enough."""
    of = runs.timed & ~np.isnan(runs.targets)
    bad = of & ~(runs.half_widths <= runs.targets)
    counts = runs.of_case("processes")[bad].astype(int)
    least, most = counts.min(initial=1 << 30), counts.max(initial=0)
    spent = f"{most} process{'es' if most != 1 else ''}" if least == most else f"{least} to {most} processes"
    return Hit(bad, of, {"limits": _percents(runs.targets[of]), "processes": spent})


@_rule(
    Weakens.PUBLISHING,
    f"Fewer than {PUBLISHED_PROCESSES} processes measured {{cases}} (the fewest: {{fewest}}){{single}}.",
    f"Sweep again with --set measure.repeats={PUBLISHED_PROCESSES}: the runs that are there are kept.",
)
def _short_of_repeats(runs: Runs) -> Hit:
    processes = runs.of_case("processes")
    bad = runs.timed & (processes < PUBLISHED_PROCESSES)
    fewest = int(processes[bad].min(initial=PUBLISHED_PROCESSES))
    single = ": a single process is screening, without an interval" if fewest == 1 else ""
    return Hit(bad, runs.timed, {"fewest": fewest, "single": single})


@_rule(
    Weakens.PUBLISHING,
    "The harness ran from a working tree with uncommitted changes in {runs}.",
    "Commit, and sweep again.",
)
def _dirty_tree(runs: Runs) -> Hit:
    return Hit(runs.true("git_dirty"))


@_rule(
    Weakens.PUBLISHING,
    "Neither commit nor version of the harness is known in {runs}.",
    "Install the harness from a checkout or a package, and sweep again.",
)
def _unknown_code(runs: Runs) -> Hit:
    return Hit(~runs.known("git_commit") & ~runs.known("bench_version"), runs.measured)


@_rule(Weakens.PUBLISHING, "Not disclosed in {runs}: {fields}.", "Run bench env: it says why a field is unknown.")
def _missing_disclosure(runs: Runs) -> Hit:
    seen = runs.known("other_process_count") | runs.known("device_used_before_bytes")
    others = {"whether other processes were on the device": runs.measured & ~runs.cpu & ~seen}
    return _unknown(runs, in_order(lambda field: field.needed), others)


RULES["figure_differs"] = Rule(
    "figure_differs",
    Weakens.PUBLISHING,
    "Figures or their numbers that are not what the data make: {files}.",
    "Render the report again with bench report.",
)


RULES["report_differs"] = Rule(
    "report_differs",
    Weakens.PUBLISHING,
    "Files of the report that are not what the data make: {files}.",
    "Render the report again with bench report.",
)


RULES["report_incomplete"] = Rule(
    "report_incomplete",
    Weakens.PUBLISHING,
    "Missing from the report: {files}.",
    "Render the report again with bench report.",
)


# What bounds the numbers, and weakens nothing.


_flag_rule(
    "energy_unconfirmed",
    "In {runs} the GPU's energy counter and the driver's samples of its power differ by more than 20 %: the energy of "
    "these runs is left out.",
    "Update the driver; energy of this GPU cannot be relied on until both agree.",
    weakens=Weakens.NOTHING,
)


@_rule(
    Weakens.NOTHING,
    "Measured on a CPU: this is no statement about any GPU.",
    "Sweep on the GPU that the question is about.",
)
def _cpu_only(runs: Runs) -> Hit | None:
    return Hit(None) if runs.cpu.all() else None


@_rule(
    Weakens.NOTHING,
    "Synthetic images in {runs} ({datasets}): right in shape and type, random in content, so the loss says "
    "nothing. {speed}",
    "Run bench data fetch, and sweep again where the content matters.",
)
def _synthetic_data(runs: Runs) -> Hit:
    of = runs.last & runs.known("data_source")
    bad = of & (runs.frame["data_source"].astype(object) != "files").to_numpy(dtype=bool)
    rows = runs.frame.loc[bad, ["input", "dataset"]]
    loaded = "Decoding real images may take a different amount of time."
    said = loaded if (rows["input"] != "synthetic").any() else "Speed and memory do not depend on the content."
    return Hit(bad, of, {"datasets": ", ".join(sorted(map(str, set(rows["dataset"])))), "speed": said})


@_rule(
    Weakens.NOTHING,
    "{cases} ran out of memory in every process.",
    "Use a smaller batch or a device with more memory; bench fit finds the largest batch.",
)
def _out_of_memory(runs: Runs) -> Hit:
    return Hit(runs.out_of_memory)


@_rule(
    Weakens.NOTHING,
    "The allocated peak differs between processes in {cases}; the largest is shown.",
    "Quote the largest; more repeats show how far it varies.",
)
def _peaks_differ(runs: Runs) -> Hit:
    of = runs.measured & runs.known("peak_allocated_bytes")
    return Hit(of & (runs.of_case("peaks_agree") == 0), of)


@_rule(
    Weakens.NOTHING,
    "The power limit was below the card's default in {runs}: {watts}.",
    "Quote the limit with the numbers, or restore the default with nvidia-smi.",
)
def _power_capped(runs: Runs) -> Hit:
    limit, default = runs.number("power_limit_w"), runs.number("power_limit_default_w")
    bad = runs.last & (limit < default * 0.995)
    watts = {f"{low:.0f} W of {usual:.0f} W" for low, usual in zip(limit[bad], default[bad], strict=True)}
    return Hit(bad, words={"watts": ", ".join(sorted(watts))})


@_rule(
    Weakens.NOTHING,
    "The GPU ran with settings that change its speed or energy in {runs}: {settings}.",
    "Quote them with the numbers, or set them back: bench env names each with what to do.",
)
def _settings_changed(runs: Runs) -> Hit:
    bad, told = np.zeros_like(runs.last), set()
    for name, field_of in FIELDS.items():
        if field_of.usual is None or name not in runs.frame:
            continue
        values = runs.frame[name].astype(object)
        changed = runs.last & runs.known(name) & (values != field_of.usual).to_numpy(dtype=bool, na_value=False)
        told |= {f"{field_of.title} {field_of.words(value)}" for value in values[changed]}
        bad |= changed
    return Hit(bad, words={"settings": "; ".join(sorted(told))})


@_rule(
    Weakens.NOTHING,
    "The GPU played a smaller card in {runs}, of {memory}: what fits is that card's, the speed is the GPU's.",
    "Quote the limit with the numbers, or sweep without limits.device_memory (--memory).",
)
def _smaller_card(runs: Runs) -> Hit:
    limit = runs.number("device_memory_bytes")
    sizes = sorted({int(size) for size in limit[runs.last & (limit > 0)]})
    return Hit(runs.last & (limit > 0), words={"memory": " or ".join(map(exact_bytes, sizes))})


@_rule(
    Weakens.NOTHING,
    "{runs} throttled and ran once more; both are kept and the second counts.",
    "Cool the machine if there are many.",
)
def _throttled_retried(runs: Runs) -> Hit:
    return Hit(runs.having(Status.THROTTLED) & ~runs.last, np.ones(len(runs.frame), dtype=bool))


@_rule(
    Weakens.NOTHING,
    "The processor has no instructions for {precisions}: {runs} computed in float32 and rounded, which says "
    "nothing of a processor that has them.",
    "Leave the precision out, or sweep on a processor that has it.",
)
def _precision_emulated(runs: Runs) -> Hit:
    """Precisions that a processor has by rounding only; on a GPU that is a flag of the run."""
    if "precision_in_force" not in runs.frame:
        return Hit(np.zeros_like(runs.last))
    emulated = runs.frame["precision_in_force"].fillna("").astype(str).str.endswith("emulated").to_numpy(dtype=bool)
    bad = runs.last & runs.cpu & emulated
    return Hit(bad, words={"precisions": ", ".join(sorted(set(runs.frame.loc[bad, "precision"].astype(str))))})


@_rule(Weakens.NOTHING, "cudnn_benchmark is on in {runs} on a CPU, where it does nothing.", "Leave the switch out.")
def _idle_switch(runs: Runs) -> Hit:
    """Switches that are on and mean nothing on a run's device."""
    return Hit(runs.cpu & runs.true("cudnn_benchmark"))


@_rule(
    Weakens.NOTHING,
    "Unknown, and worth knowing, in {runs}: {fields}.",
    "Run bench env: it says why a field is unknown.",
)
def _unknown_detail(runs: Runs) -> Hit:
    """A consumer card has no ECC and an installed package no commit: these are named and forbid nothing."""
    return _unknown(runs, in_order(lambda field: field.helpful), {})


@_rule(
    Weakens.NOTHING,
    "Mixed: {parts}; each is a row and a line of its own.",
    "Compare within one of them, or use bench compare.",
)
def _mixed_environments(runs: Runs) -> Hit | None:
    frame = runs.frame
    machines = list(machine_labels(frame).values())
    parts = [f"{len(machines)} environments ({'; '.join(machines)})"] if len(machines) > 1 else []
    protocols = frame["protocol_key"].nunique()
    parts += [f"{protocols} measuring protocols"] if protocols > 1 else []
    codes = int(frame.groupby("case_key")["code_key"].nunique().max()) if len(frame) else 0
    parts += [f"{codes} versions of the measuring code or of the data"] if codes > 1 else []
    return Hit(None, words={"parts": " and ".join(parts)}) if parts else None


@_rule(
    Weakens.NOTHING,
    "{cases} skipped: {reasons}.",
    "Change the rule or the axis that the reason names, if the case matters.",
)
def _skipped(runs: Runs) -> Hit:
    skipped = runs.last & runs.having(Status.SKIPPED)
    reasons = runs.frame.loc[skipped, "reason"].fillna("no reason given")
    return Hit(skipped, words={"reasons": _reasons(reasons, "table.csv")})


RULES["earlier_plans"] = Rule(
    "earlier_plans",
    Weakens.NOTHING,
    "{runs} of earlier configurations in the same folder are left out.{changes}",
    "Give each configuration an --out of its own to keep them apart.",
)
RULES["reproduction"] = Rule(
    "reproduction",
    Weakens.NOTHING,
    "Measured by bench reproduce, to repeat {originals}.",
    "Get those results, and compare: bench compare THOSE THESE.",
)


# Words and masks that several rules share.


def _reasons(reasons: pd.Series, where: str) -> str:
    return counted_reasons(group_reasons(reasons), _NAMED, where) if len(reasons) else ""


def _some(words: Sequence[str], between: str) -> str:
    """The first words, and how many more there are."""
    more = [f"and {len(words) - _NAMED} more"] if len(words) > _NAMED else []
    return between.join([*words[:_NAMED], *more])


def _percents(fractions: Numbers) -> str:
    return " and ".join(f"±{fraction * 100:g} %" for fraction in np.unique(fractions))


def _flag(runs: Runs, flag: str) -> Hit:
    """Runs that carry a flag; `{faults}` is what they say was not in force."""
    bad = runs.tried & runs.flagged(flag)
    said = runs.frame.loc[bad, "not_in_force"].dropna() if "not_in_force" in runs.frame else ()
    faults = list(dict.fromkeys(map(str, said)))
    return Hit(bad, runs.tried, {"faults": f": {_some(faults, '; ')}" if faults else ""})


def _suspected(runs: Runs, suspects: Mapping[str, Mask]) -> Hit:
    hit = {text: mask for text, every in suspects.items() if (mask := every & runs.measured).any()}
    of = int(runs.measured.sum())
    parts = "; ".join(f"{text} in {counted(int(mask.sum()), of, 'run')}" for text, mask in hit.items())
    return Hit(np.logical_or.reduce([np.zeros_like(runs.last), *hit.values()]), runs.measured, {"suspects": parts})


def _run_key(group: GroupKey, repeat: int, attempt: int) -> str:
    known: dict[str, Any] = dict(zip(GROUP, group, strict=True))
    return run_key(known.pop("case_key"), Group(**known), repeat, attempt)


def _unknown(runs: Runs, names: Sequence[str], more: Mapping[str, Mask]) -> Hit:
    """One hit for all the fields that some run lacks."""
    gaps = {name: runs.measured & ~runs.known(name) for name in sorted(names, key=lambda name: FIELDS[name].gpu)}
    gaps = {name: gap & ~runs.cpu if FIELDS[name].gpu else gap for name, gap in gaps.items()} | dict(more)
    if "gpu_total_bytes" in gaps:  # a GPU that takes host memory has none, and its row says so
        gaps["gpu_total_bytes"] &= (runs.frame["device_memory_kind"] != "unified").to_numpy(dtype=bool, na_value=True)
    apple = (runs.frame["device"] == "mps").to_numpy(dtype=bool, na_value=False)
    others = apple | (runs.frame["device"] == "xpu").to_numpy(dtype=bool, na_value=False) | runs.known("hip_version")
    for name, absent in {"cuda_version": others, "cudnn_version": others, "driver_version": apple}.items():
        if name in gaps:  # the software of another vendor, whose GPUs have none
            gaps[name] &= ~absent
    lacking = {name: gap for name, gap in gaps.items() if gap.any()}
    bad = np.logical_or.reduce([np.zeros_like(runs.last), *lacking.values()])
    return Hit(bad, runs.measured, {"fields": ", ".join(lacking)})


def judge(frame: pd.DataFrame, asked_frac: float | None = None, summary: pd.DataFrame | None = None) -> Findings:
    """Look for everything that a reader must know of results.

    Args:
        frame: From `bench.load`. Runs that no newest plan names are only counted.
        asked_frac: Half the width that intervals of throughput may have, as a fraction. Unless given, what each sweep
            asked for, and where it asked for nothing, `TARGETS_FRAC`.
        summary: `summarise_cases` of the planned runs, where the caller has it.
    """
    planned = frame if frame["planned"].all() else frame[frame["planned"]].reset_index(drop=True)
    runs = Runs(planned, summarise_cases(planned) if summary is None else summary, asked_frac)
    found = [_evaluate(rule, runs) for rule in RULES.values() if rule.find is not None]
    left = [] if planned is frame else [_earlier_plans(frame)]
    return Findings().joined([*filter(None, found), *left])


def _evaluate(rule: Rule, runs: Runs) -> Finding | None:
    """What one rule finds, in words."""
    assert rule.find is not None
    hit = rule.find(runs)
    if hit is None:
        return None
    if hit.runs is None:
        return Finding(rule, rule.text.format(**hit.words))
    of = runs.last if hit.of is None else hit.of
    bad = hit.runs & of
    if not bad.any():
        return None
    counts = {
        "runs": counted(int(bad.sum()), int(of.sum()), "run"),
        "cases": counted(runs.cases(bad), runs.cases(of), "case"),
    }
    affected = [(runs.groups[place], runs.keys[place]) for place in np.flatnonzero(bad).tolist()]
    return Finding(rule, rule.text.format(**counts, **hit.words), _by_case(affected))


def _by_case(affected: Iterable[tuple[GroupKey, str | None]]) -> dict[GroupKey, list[str]]:
    cases: dict[GroupKey, list[str]] = {}
    for group, key in affected:
        cases.setdefault(group, []).extend([] if key is None else [key])
    return cases


def _run_keys(frame: pd.DataFrame) -> list[str | None]:
    """The key of each run; those that never ran have none."""
    return [key if isinstance(key, str) else None for key in frame["run_key"].tolist()]


def _earlier_plans(frame: pd.DataFrame) -> Finding:
    """What lies in the folder and is left out of the report: runs that no newest plan names any more."""
    facts = [name for name in columns(DataFacts) if name in frame]  # parts of earlier versions have none
    rows = frame[["planned", "dataset", *facts]]
    left = rows[~rows["planned"]]
    changes = [
        f"{name} ({', '.join(words)})"
        for name, before in left.groupby("dataset", sort=True)
        if (words := _data_changes(before, rows[rows["planned"] & (rows["dataset"] == name)]))
    ]
    rule, told = RULES["earlier_plans"], f" Data sets that changed since: {'; '.join(changes)}." if changes else ""
    text = rule.text.format(runs=counted(len(left), len(frame), "run"), changes=told)
    keys = frame.loc[~frame["planned"], [*GROUP, "run_key"]]
    return Finding(rule, text, _by_case(zip(group_keys(keys), _run_keys(keys), strict=True)))


def _data_changes(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """How a data set changed between two sets of its runs, by the last of each that say most of it."""
    old, new = (
        max(reversed(_data_states(runs)), key=lambda facts: len(facts.known), default=DataFacts())
        for runs in (before, after)
    )
    return new.changes_since(old)


def _data_states(runs: pd.DataFrame) -> list[DataFacts]:
    """The distinct states of their data that runs note, in order of appearance."""
    rows = runs.drop(columns=["planned", "dataset"]).drop_duplicates().astype(object)
    values = rows.where(rows.notna(), None).itertuples(index=False, name=None)
    return [DataFacts(**dict(zip(rows.columns, row, strict=True))) for row in values]


def damaged_parts(loaded: Loaded) -> list[Finding]:
    """The finding about the parts that loading left out, where there are any.

    Files are named below their results folder, and that folder too where there are several, so that no finding depends
    on where the results lie.
    """
    names = []
    for part in loaded.damaged:
        folder = next(folder for folder in loaded.folders if part.path.is_relative_to(folder))
        whole = folder.resolve()
        name = whole.parent.name if whole.name == DATA_FOLDER else whole.name
        place = part.path.relative_to(folder).as_posix()
        names.append(f"{f'{name}/' if len(loaded.folders) > 1 else ''}{place}: {part.reason}")
    if not names:
        return []
    head = "A part was" if len(names) == 1 else f"{len(names)} parts were"
    return [found_elsewhere("damaged_part", parts=f"{head} left out: {_some(names, '; ')}")]


def found_elsewhere(code: str, **words: object) -> Finding:
    """A finding by a rule that does not look at runs, with the words of its sentence."""
    return Finding(RULES[code], RULES[code].text.format(**words))


class CaseNames:
    """What the cases that findings are about are called."""

    def __init__(self, summary: pd.DataFrame) -> None:
        """Take the summary of the results that the findings are about."""
        self._labels = CaseLabels(summary)
        told = [name for name in ("model", "dataset", "batch_size", *SERIES_AXES) if name in summary]
        self._rows = dict(zip(group_keys(summary), summary[told].to_dict("records"), strict=True))
        self._places = {key: place for place, key in enumerate(self._rows)}

    def of(self, finding: Finding) -> list[dict[str, Any]]:
        """The cases that a finding is about, in a reader's order.

        Returns:
            `case_key`, `case` in words and `run_keys` of each; empty where the finding is about all results.
        """
        return [
            {"case_key": key[0], "case": self._labels.case(self._rows[key]), "run_keys": list(finding.runs[key])}
            for key in sorted(finding.runs.keys() & self._places.keys(), key=self._places.__getitem__)
        ]
