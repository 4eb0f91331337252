"""What disturbs the speed of a machine: what processes of the same case differed by, beside their rates.

Nothing differs between processes of a case but the moment, so what their rates go along with is what disturbs them.
Each reading is compared with the rates within its case, over all cases together: both lose their case's mean, and rates
are divided by their case's spread, so that no noisy case decides for all. The p-value is by permutation within cases
(R. A. Fisher, The Design of Experiments, 1935), corrected by Holm over all readings that moved. A disturbance is called
where that leaves it significant and it has the sign that its cause has. Going along is no proof: two readings that move
together (clock and temperature, say) are both called, the one that explains more first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from bench.stats import CONFIDENCE, holm
from bench.units import counted

PERMUTATIONS = 4000
FEWEST_RUNS = 8
"""Fewer runs show no disturbance, whatever they say."""
_NOTABLE_FRAC = 0.05
"""Of a window, or of the host, from which a reading is named although no effect on the rates is shown."""

Evidence = Literal["explains", "seen"]


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One thing that disturbs runs.

    Attributes:
        code: For scripts.
        evidence: `explains`: rates go along with it; `seen`: it was there, without an effect that these runs show.
        what: A sentence without a full stop.
        remedy: What to do about it.
        share_frac: Of the variance between processes of a case, what goes along with it; None where only seen.
        effect_frac: What the rate changes by, from the lowest tenth of its readings to the highest; None where only
            seen.
        p_value: Corrected for all readings that were compared; None where only seen.
    """

    code: str
    evidence: Evidence
    what: str
    remedy: str
    share_frac: float | None = None
    effect_frac: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A reading that may go along with the rates.

    Attributes:
        code: Its name.
        words: What rates go along with.
        remedy: What to do about it.
        sign: 1 where more of it makes runs faster, -1 slower, 0 either.
        read: From runs in the order of their start to one value each; NaN is unknown.
        notable: From which mean value it is named even without an effect; None for never.
    """

    code: str
    words: str
    remedy: str
    sign: int
    read: Callable[[pd.DataFrame], np.ndarray]
    notable: float | None = None


def _column(name: str) -> Callable[[pd.DataFrame], np.ndarray]:
    def read(runs: pd.DataFrame) -> np.ndarray:
        if name not in runs:
            return np.full(len(runs), np.nan)
        found: np.ndarray = runs[name].to_numpy(dtype=float, na_value=np.nan)
        return found

    return read


def _share_of_window(name: str) -> Callable[[pd.DataFrame], np.ndarray]:
    return lambda runs: _column(name)(runs) / _column("wall_window_s")(runs)


def _mean(*names: str) -> Callable[[pd.DataFrame], np.ndarray]:
    def read(runs: pd.DataFrame) -> np.ndarray:
        found: np.ndarray = np.mean([_column(name)(runs) for name in names], axis=0)
        return found

    return read


def _is_first(runs: pd.DataFrame) -> np.ndarray:
    """1 for the first run of each case in time."""
    return (~runs["case_key"].duplicated()).to_numpy(dtype=float)


_COOL = "Improve the cooling, or lock clocks that the card holds: `sudo nvidia-smi -lgc CLOCK`"
_LOAD = "Stop other work on the host, or keep it off some cores and run on these: `taskset -c CORES bench sweep ...`"
_INTERLEAVE = (
    "Interleave what you compare, one process of each side at a time (docs/statistics.md), and let the machine warm up"
)
_SUSPECTS = (
    _Suspect(
        "gpu_clock",
        "the GPU's clock",
        "Lock it: `sudo nvidia-smi -pm 1; sudo nvidia-smi -lgc CLOCK`, with a clock below the highest",
        1,
        _mean("sm_clock_start_hz", "sm_clock_end_hz"),
    ),
    _Suspect(
        "gpu_memory_clock",
        "the clock of the GPU's memory",
        "Lock it: `sudo nvidia-smi -pm 1; sudo nvidia-smi -lmc CLOCK`",
        1,
        _mean("memory_clock_start_hz", "memory_clock_end_hz"),
    ),
    _Suspect(
        "cpu_clock",
        "the processors' clock",
        "Use the governor performance and turn turbo off: `sudo cpupower frequency-set -g performance`, `echo 1 | sudo "
        "tee /sys/devices/system/cpu/intel_pstate/no_turbo` (elsewhere 0 into cpufreq/boost)",
        1,
        _mean("cpu_clock_start_hz", "cpu_clock_end_hz"),
    ),
    _Suspect("gpu_temperature", "the GPU's temperature", _COOL, -1, _mean("temperature_start_c", "temperature_end_c")),
    _Suspect(
        "thermal_slowdown",
        "the GPU slowing down for heat",
        _COOL,
        -1,
        _share_of_window("thermal_slowdown_window_s"),
        _NOTABLE_FRAC,
    ),
    _Suspect(
        "power_cap",
        "the GPU's power limit",
        "Raise it if it is below the board's default (`sudo nvidia-smi -pl WATTS`), or lock clocks that stay below it: "
        "`sudo nvidia-smi -lgc CLOCK`",
        -1,
        _share_of_window("power_slowdown_window_s"),
        _NOTABLE_FRAC,
    ),
    _Suspect(
        "gpu_neighbours",
        "other processes on the GPU",
        "Stop them (`nvidia-smi` lists them), or choose another GPU with --device",
        -1,
        _column("other_process_count"),
        1e-9,
    ),
    _Suspect(
        "gpu_memory_of_others",
        "memory that others hold on the GPU",
        "Stop other processes on it (`nvidia-smi` lists them), or choose another GPU with --device",
        -1,
        _column("device_used_before_bytes"),
    ),
    _Suspect(
        "host_neighbours",
        "other processes' use of the host's processors",
        _LOAD,
        -1,
        _column("host_others_window_frac"),
        _NOTABLE_FRAC,
    ),
    _Suspect(
        "switches",
        "how often the run had to give its processor to another process",
        _LOAD,
        -1,
        _share_of_window("involuntary_switches"),
    ),
    _Suspect(
        "stolen",
        "time that the hypervisor gives to other machines",
        "Use a machine with processors of its own (dedicated, bare metal)",
        -1,
        _share_of_window("stolen_window_s"),
        _NOTABLE_FRAC,
    ),
    _Suspect(
        "quota",
        "waiting for the container's processor quota",
        "Raise the quota (`docker run --cpus N`), or use fewer threads: measure.threads",
        -1,
        _share_of_window("quota_wait_window_s"),
        _NOTABLE_FRAC,
    ),
    _Suspect(
        "first_run",
        "being the first run of a case",
        "Run the sweep once before it counts, so that files, caches and compiled kernels are there",
        0,
        _is_first,
    ),
    _Suspect("drift", "the time since the start (drift)", _INTERLEAVE, 0, _column("started_unix_s")),
)
_NEIGHBOURS_IN_TIME = _Suspect(
    "slow_changes",
    "the run before, of whatever case (slow changes)",
    _INTERLEAVE,
    1,
    lambda runs: np.full(len(runs), np.nan),
)


def find_disturbances(runs: pd.DataFrame) -> list[Disturbance]:
    """What disturbs the runs, what explains most first; empty if nothing was found.

    Args:
        runs: Those that measured, of one environment and protocol.
    """
    runs = runs[runs["samples_per_s"] > 0].sort_values("started_unix_s", kind="stable").reset_index(drop=True)
    counts = runs.groupby("case_key")["case_key"].transform("size") if len(runs) else runs["case_key"]
    runs = runs[counts >= 2].reset_index(drop=True) if len(runs) else runs
    explained = _explaining(runs) if len(runs) >= FEWEST_RUNS else []
    named = {found.code for found in explained}
    seen = [found for suspect in _SUSPECTS if suspect.code not in named and (found := _seen(suspect, runs))]
    return [*sorted(explained, key=lambda found: -(found.share_frac or 0.0)), *seen]


def _explaining(runs: pd.DataFrame) -> list[Disturbance]:
    """The readings that rates go along with."""
    logs = np.log(runs["samples_per_s"].to_numpy(dtype=float))
    cases = [np.asarray(rows) for rows in runs.groupby("case_key", sort=False).indices.values()]
    residuals = _centred(logs, cases)
    rates = _in_spreads(residuals, cases)
    if not rates.any():
        return []
    shuffled = _shuffled(rates, cases)
    tested: list[tuple[_Suspect, float, float, float]] = []
    for suspect in _SUSPECTS:
        values = suspect.read(runs)
        known = np.isfinite(values)
        if known.sum() < FEWEST_RUNS:
            continue
        moved = np.where(known, _centred(np.where(known, values, np.nan), cases), 0.0)
        size = float(np.sqrt((moved**2).sum()))
        if size <= 1e-9 * float(np.abs(values[known]).max()):
            continue
        length = size * float(np.sqrt((rates[known] ** 2).sum()))
        correlation = float(moved @ rates) / length if length else 0.0
        p = _p_value(shuffled @ moved, float(moved @ rates), suspect.sign)
        slope = float(moved @ residuals) / size**2
        low, high = np.quantile(moved[known], (0.1, 0.9)) if suspect.code != "first_run" else (0.0, 1.0)
        tested.append((suspect, correlation, p, math.expm1(slope * float(high - low))))
    beside = float(rates[1:] @ rates[:-1])
    p = _p_value((shuffled[:, 1:] * shuffled[:, :-1]).sum(axis=1), beside, 1)
    after = beside / float(rates @ rates)
    tested.append((_NEIGHBOURS_IN_TIME, after, p, math.nan))
    corrected = holm([p for *_, p, _ in tested])
    found = [
        _explains(suspect, correlation, effect, float(p), len(runs))
        for (suspect, correlation, _, effect), p in zip(tested, corrected, strict=True)
        if p < 1 - CONFIDENCE and correlation * (suspect.sign or correlation) > 0
    ]
    causes = [each for each in found if each.code != _NEIGHBOURS_IN_TIME.code]
    return causes or found  # whatever lasts longer than a run also makes neighbours in time alike


def _centred(values: np.ndarray, cases: list[np.ndarray]) -> np.ndarray:
    """Values less the mean of their case; what is unknown stays so, and is not counted."""
    found = np.full(len(values), np.nan)
    for rows in cases:
        known = rows[np.isfinite(values[rows])]
        if len(known):
            found[known] = values[known] - values[known].mean()
    return found


def _in_spreads(residuals: np.ndarray, cases: list[np.ndarray]) -> np.ndarray:
    """Residuals in units of their case's spread; 0 where a case has none."""
    found = np.zeros(len(residuals))
    for rows in cases:
        spread = float(np.sqrt((residuals[rows] ** 2).sum() / (len(rows) - 1)))
        found[rows] = residuals[rows] / spread if spread > 1e-12 else 0.0
    return found


def _shuffled(rates: np.ndarray, cases: list[np.ndarray]) -> np.ndarray:
    """The rates in other orders within each case, always the same ones; `(PERMUTATIONS, len(rates))`."""
    random = np.random.default_rng(0)
    found = np.zeros((PERMUTATIONS, len(rates)))
    for rows in cases:
        found[:, rows] = random.permuted(np.tile(rates[rows], (PERMUTATIONS, 1)), axis=1)
    return found


def _p_value(others: np.ndarray, found: float, sign: int) -> float:
    """How often other orders go along at least as well, in the direction of the sign, or in either for 0."""
    reached = np.abs(others) >= abs(found) if sign == 0 else others * sign >= found * sign
    return float((reached.sum() + 1) / (len(others) + 1))


def _explains(suspect: _Suspect, correlation: float, effect: float, p: float, n: int) -> Disturbance:
    share = correlation**2
    size = "" if math.isnan(effect) else f"; {effect * 100:+.1f} % from its low to its high readings"
    if suspect.code == "first_run":
        size = f"; it is {effect * 100:+.1f} % off the others"
    what = (
        f"rates go along with {suspect.words}: {share * 100:.0f} % of the variance between processes of a case "
        f"(n = {n}, p = {p:.2g}){size}"
    )
    known = None if math.isnan(effect) else effect
    return Disturbance(suspect.code, "explains", what, suspect.remedy, share, known, p)


def _seen(suspect: _Suspect, runs: pd.DataFrame) -> Disturbance | None:
    """What was there without an effect that the runs show."""
    values = suspect.read(runs)
    known = values[np.isfinite(values)]
    if suspect.notable is None or not len(known) or float(known.mean()) < suspect.notable:
        return None
    there = int((known > 0).sum())
    mean = f"{known.mean():.2g}" if suspect.code == "gpu_neighbours" else f"{known.mean() * 100:.0f} %"
    what = f"{suspect.words}: {mean} on average, in {there} of {counted(len(known), 'run')}; no effect is shown"
    return Disturbance(suspect.code, "seen", what, suspect.remedy)
