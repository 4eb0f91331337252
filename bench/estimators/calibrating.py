"""What a calibration fits: the rates with which the roofline agrees best with measured steps of one machine.

Few factors, each with a meaning: one on the bandwidth, one on the rate of products for each precision that was
measured, and one on the host's time per kernel. They start at the rated figures (on a CPU, which has none, at the
measured ceilings). A weak pull holds each near its start, so that a factor on which no step depends stays there.
Squares of logarithms are minimised, with less weight on steps far off (`scipy.optimize.least_squares`, `soft_l1`).

How good that is on steps that it has not seen is found out by leaving steps out: each case alone, and with all others
of its model, since batch sizes of one model err alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.devices import Device
from bench.devices.calibration import reckoned
from bench.devices.schema import CALIBRATED
from bench.errors import BenchError
from bench.estimators.kept import recorded_on, recording_of
from bench.estimators.memory import Target
from bench.estimators.roofline import Kernel, dispatch_s, estimate_speed, kernel_time_s, kernels_of
from bench.forks import write_traceback
from bench.records import Case

SPREAD = 0.1
"""Of the logarithm of a step's time around a good estimate: what counts as near."""
PULL = 1.0
"""Of the logarithm of a factor around its start."""
MOST = math.log(50.0)
"""No factor is larger than 50 or smaller than 1/50: what is further off is not this model's error."""
FEWEST_STEPS = 3
"""Fewer steps are not fitted."""


@dataclass(frozen=True, slots=True)
class Step:
    """One case and how long a step of it took.

    Attributes:
        case: As measured.
        step_time_s: The geometric mean over processes.
    """

    case: Case
    step_time_s: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """A step beside its estimates in seconds; None where there is none.

    Attributes:
        case_key: Of the case.
        measured_s: Its time.
        before_s: As estimated without a calibration.
        fitted_s: With the factors that were fitted to all steps, this one included.
        left_out_s: With those fitted without this case.
        model_left_out_s: With those fitted without all cases of its model; None if no two models were measured.
        reason: Why it was not fitted.
    """

    case_key: str
    measured_s: float
    before_s: float | None = None
    fitted_s: float | None = None
    left_out_s: float | None = None
    model_left_out_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit.

    Attributes:
        values: `calibrated_` keys of the device, as fitted; empty if there were too few steps.
        factors: What each is as a multiple of its start.
        predicted: Every step, in order.
    """

    values: dict[str, float]
    factors: dict[str, float]
    predicted: tuple[Predicted, ...]


@dataclass(frozen=True, slots=True)
class _Timed:
    """A step that can be estimated: each distinct kernel with its number."""

    step: Step
    kernels: Mapping[Kernel, int]
    before_s: float | None


def fit_calibration(
    steps: Sequence[Step], device: Device, *, workspaces: bool, heard: Callable[[str], None] = lambda phase: None
) -> Fitted:
    """Fit the `calibrated_` values of a device to measured steps.

    Args:
        steps: Each case once.
        device: Without a calibration; with rated rates or reachable ones.
        workspaces: As for `Target`.
        heard: Called with what is done next.
    """
    timed: dict[int, _Timed] = {}
    reasons: dict[int, str] = {}
    for number, step in enumerate(steps):
        heard(f"recording {step.case}")
        try:
            timed[number] = _timed(step, device, workspaces)
        except BenchError as error:
            reasons[number] = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a user's model raises costs its own step
            write_traceback(error)
            reasons[number] = f"{type(error).__name__}: {error}"
    start = _start(device, {timed[number].step.case.precision for number in timed})
    fit = _Fit(device, start, tuple(timed.values()))
    if len(timed) < max(FEWEST_STEPS, 1):
        known = [Predicted(step.case.key, step.step_time_s, reason=reasons.get(n)) for n, step in enumerate(steps)]
        return Fitted({}, {}, tuple(known))
    heard("fitting")
    logs = fit.solve(range(len(timed)))
    heard("leaving steps out")
    alone = fit.leave_out(logs, list(range(len(timed))))
    by_model = fit.leave_out(logs, [str(item.step.case.model) for item in timed.values()])
    fitted = fit.times_s(logs)
    found = {
        number: Predicted(
            item.step.case.key, item.step.step_time_s, item.before_s, fitted[place], alone[place], by_model[place]
        )
        for place, (number, item) in enumerate(timed.items())
    }
    predicted = [
        found.get(n) or Predicted(step.case.key, step.step_time_s, reason=reasons[n]) for n, step in enumerate(steps)
    ]
    factors = {key: math.exp(log) for key, log in zip(start, logs, strict=True)}
    values = {key: start[key] * factors[key] for key in start}
    return Fitted(values, factors, tuple(predicted))


def step_time_s(kernels: Mapping[Kernel, int], case: Case, device: Device) -> float:
    """Seconds of a step of these kernels, as `estimate_speed` has it of a recording."""
    ceilings = reckoned(device)
    times = (count * kernel_time_s(kernel, ceilings, case.precision) for kernel, count in kernels.items())
    launches = math.fsum(count * kernel.launches for kernel, count in kernels.items())
    return max(math.fsum(times), launches * dispatch_s(device))


def _timed(step: Step, device: Device, workspaces: bool) -> _Timed:
    """A step with its kernels and its estimate before. Raises BenchError where it cannot be recorded or estimated."""
    target = Target.of(recorded_on(device), workspaces=workspaces, allocator=step.case.allocator)
    recording = recording_of(step.case, target.machine)
    kernels = Counter(kernel for _, kernel in kernels_of(recording))
    start = _start(device, {step.case.precision})
    step_time_s(kernels, step.case, _with(device, start))  # raises where a rate is unknown
    before = estimate_speed(recording, step.case, device).step_time_s if device.kind == "cuda" else None
    return _Timed(step, kernels, before)


def _start(device: Device, precisions: set[str]) -> dict[str, float]:
    """The calibrated keys and where the fit starts: the rated figure, or without one the measured ceiling."""
    rates = {
        "bandwidth_bytes_per_s": device.memory_bandwidth_bytes_per_s or device.reachable_bandwidth_bytes_per_s,
        **{
            f"{name}_flop_per_s": device.peak_flop_per_s(name) or getattr(device, f"reachable_{name}_flop_per_s")
            for name in ("float32", "tf32", "bf16", "fp16")
            if name in precisions
        },
        "dispatch_s": dispatch_s(device),
    }
    return {f"{CALIBRATED}{key}": value for key, value in rates.items() if value is not None}


def _with(device: Device, values: Mapping[str, float]) -> Device:
    return replace(device, **values)  # type: ignore[arg-type]  # all are rates


@dataclass(frozen=True, slots=True)
class _Fit:
    """The problem: factors on the start, by their logarithms in its order."""

    device: Device
    start: Mapping[str, float]
    timed: tuple[_Timed, ...]

    def times_s(self, logs: Sequence[float], places: Sequence[int] | range | None = None) -> list[float]:
        """The steps' times with such factors."""
        keys = zip(self.start.items(), logs, strict=True)
        device = _with(self.device, {key: value * math.exp(log) for (key, value), log in keys})
        chosen = range(len(self.timed)) if places is None else places
        return [step_time_s(self.timed[n].kernels, self.timed[n].step.case, device) for n in chosen]

    def solve(self, places: Sequence[int] | range, begin: Sequence[float] | None = None) -> list[float]:
        """The logarithms of the factors that fit these steps best."""
        from scipy.optimize import least_squares

        measured = np.log([self.timed[n].step.step_time_s for n in places])

        def residuals(logs: np.ndarray) -> np.ndarray:
            errors = (np.log(self.times_s(logs.tolist(), places)) - measured) / SPREAD
            return np.concatenate([errors, logs / PULL])

        first = np.zeros(len(self.start)) if begin is None else np.asarray(begin)
        found: Any = least_squares(residuals, first, bounds=(-MOST, MOST), loss="soft_l1", xtol=1e-4, ftol=1e-4)
        return [float(value) for value in found.x]

    def leave_out(self, logs: Sequence[float], groups: Sequence[Hashable]) -> list[float | None]:
        """The time of each step with factors that were fitted without its group; None if nothing else is left."""
        found: list[float | None] = [None] * len(self.timed)
        for group in dict.fromkeys(groups):
            out = [n for n, name in enumerate(groups) if name == group]
            rest = [n for n, name in enumerate(groups) if name != group]
            if rest:
                for place, time_s in zip(out, self.times_s(self.solve(rest, logs), out), strict=True):
                    found[place] = time_s
        return found
