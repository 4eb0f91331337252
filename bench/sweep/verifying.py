"""Checks an estimated largest batch size with real steps around it, in fresh processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.client import RUN_S, estimates_in_order
from bench.devices import Device, describe_gpu, describes, load_device, with_memory
from bench.devices.calibration import NONE, Calibrations
from bench.errors import BenchError, DeviceError
from bench.launchers import Launcher, LocalLauncher, Outcome, interrupt_on_terminate
from bench.probes.machine_facts import MachineFacts
from bench.probes.selection import DeviceChoice, usable_device
from bench.records import MEASURED, Case, Environment, Estimate, Protocol, Status
from bench.sweep.session import gpu_of, held_device, read_environment
from bench.tasks import measure_task
from bench.terminal import Progress

if TYPE_CHECKING:
    from bench.estimators.fitting import Fit
    from bench.estimators.saving import Saving

MAX_RUNS = 12
FIRST_STEP, WIDER = 1, 4
"""The distance of the second run from the estimate, and the factor for each one after it: an exact estimate takes two
runs, one that is off by 64 about ten."""

PROTOCOL = Protocol(warmup_steps=2, measured_steps=3, min_window_s=0.0)
"""The optimizer has its state after the first step, and the allocator is steady after the third."""

SPEED_PROTOCOL = Protocol(warmup_steps=5, measured_steps=10, min_window_s=0.5)
"""Where the speed counts too, and each way runs once."""

_KEPT = (
    "status",
    "reason",
    "peak_allocated_bytes",
    "peak_requested_bytes",
    "peak_reserved_bytes",
    "device_used_bytes",
    "context_bytes",
    "alloc_retries",
    "oom_requested_bytes",
)


@dataclass(frozen=True, slots=True)
class PresentGpu:
    """The GPU that runs use, and its description for the estimates; `limit_bytes` is the memory it plays, or None."""

    launcher: Launcher
    choice: DeviceChoice
    environment: Environment
    device: Device
    remark: str | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of real runs.

    Attributes:
        largest_batch_size: The largest that ran below the first that did not; None if none did.
        smallest_too_large: The smallest that ran out of memory; None if none did.
        runs: Each with its `batch_size`, its status, and bytes as in `Measurement`, in order.
        largest_fitting_batch_size: The largest that ran at all, which may lie above one that did not.
        most: The end of the search, where that is below the GPU's limit; None if memory ends it.
    """

    largest_batch_size: int | None
    smallest_too_large: int | None
    runs: tuple[dict[str, Any], ...]
    largest_fitting_batch_size: int | None = None
    most: int | None = None

    @property
    def exact(self) -> bool:
        """Whether one more sample than the largest was tried and did not fit, or the search ended there."""
        if self.most is not None and self.largest_batch_size == self.most:
            return True
        return self.smallest_too_large is not None and self.smallest_too_large - (self.largest_batch_size or 0) == 1

    @property
    def largest_run(self) -> dict[str, Any] | None:
        """The run at the largest batch size."""
        found = [run for run in self.runs if run["batch_size"] == self.largest_batch_size]
        return found[0] if found else None


@contextlib.contextmanager
def present_gpu(
    device: str | Device, limit_bytes: int | None = None, calibrations: Calibrations = NONE
) -> Iterator[PresentGpu]:
    """Lock this machine's GPU, as a sweep does.

    Args:
        device: `auto` for any, or the name or file of the device that it must be.
        limit_bytes: Memory of the smaller card that it plays; None for its own.
        calibrations: Which of them the estimates may use.

    Raises:
        DeviceError: There is no GPU, it cannot be described, it is not the one requested, or smaller than the limit.
        BusyError: A sweep is using it.
        UnknownNameError: No such device.
    """
    known = None if device == "auto" else load_device(device)
    with interrupt_on_terminate(), held_device("auto", _choose_gpu) as choice:
        launcher = LocalLauncher()
        environment, gpu = read_environment(launcher, choice, limit_bytes=limit_bytes, calibrations=calibrations)
        name = environment.gpu_name or "unknown"
        if gpu is None:
            raise DeviceError(f"{name} is not an NVIDIA GPU, and the estimates follow NVIDIA's libraries")
        if known is not None:
            if not describes(known, name, environment.gpu_total_bytes):
                raise DeviceError(
                    f"{device} does not describe this machine's {name}. Use --device auto, or write a file for it: "
                    "bench env --device-file mine.toml"
                )
            allowed = gpu.device.memory_bytes
            described = describe_gpu(gpu.found, [known])
            device_here = with_memory(described.device, allowed if allowed != gpu.found.memory_bytes else None)
            gpu = replace(described, device=device_here)
        yield PresentGpu(launcher, choice, environment, gpu.device, gpu.remark, limit_bytes)


def _choose_gpu(requested: str, facts: MachineFacts) -> DeviceChoice:
    choice = usable_device(requested, facts)
    if choice.kind != "cuda":
        raise DeviceError(
            f"--verify and --device auto need a GPU, and this machine has none to use ({choice.reason}). For the "
            "estimate alone, give --device NAME without --verify; see bench env"
        )
    return choice


def verify_fit(
    gpu: PresentGpu, case: Case, fit: Fit, progress: Progress, *, workspaces: bool
) -> tuple[Verified, Estimate | None]:
    """What real runs around a fit's answer say, and the estimate at the batch size that they end with.

    Raises:
        BenchError: As `verify_largest`.
    """
    at_all = fit.largest_fitting_batch_size
    verified = verify_largest(
        gpu,
        case,
        fit.largest_batch_size,
        progress,
        most=fit.end_of_search,
        fits_again=at_all if at_all != fit.largest_batch_size else None,
    )
    if verified.largest_batch_size is None:
        return verified, None
    there = [replace(case, batch_size=verified.largest_batch_size)]
    (made,) = estimates_in_order(gpu.launcher, there, gpu.device, workspaces=workspaces, say=progress.say)
    return verified, made


def verify_largest(
    gpu: PresentGpu,
    case: Case,
    estimated: int | None,
    progress: Progress,
    *,
    most: int | None = None,
    fits_again: int | None = None,
) -> Verified:
    """Run real steps at and around the estimated largest batch size, until the limit or `MAX_RUNS` is reached.

    Args:
        gpu: The GPU.
        case: The case; its own batch size does not matter.
        estimated: The largest batch up to which all fit by the estimate.
        progress: Shows the runs.
        most: The largest batch to try, for example the size of the data set.
        fits_again: A larger batch that fits by the estimate though one between them does not; it is tried last.

    Raises:
        BenchError: A run failed for another reason than memory, which shows nothing about the limit.
    """
    runs: list[dict[str, Any]] = []
    progress.start(MAX_RUNS)

    def fits(batch_size: int) -> bool:
        progress.begin(f"batch {batch_size}")
        run = _run(gpu, replace(case, batch_size=batch_size, input="synthetic"), any_ran=bool(runs))
        runs.append(run)
        progress.finish(f"batch {batch_size}: {run['status']}")
        return run["status"] in MEASURED

    low, high = search_limit(estimated or 1, fits, MAX_RUNS - (fits_again is not None), most)
    at_all = low
    if fits_again is not None and fits_again > (low or 0) and fits_again not in {run["batch_size"] for run in runs}:
        at_all = fits_again if fits(fits_again) else low
    ran = [run["batch_size"] for run in runs if run["status"] in MEASURED]
    return Verified(low, high, tuple(runs), max(ran, default=at_all), most)


def verify_saving(gpu: PresentGpu, saving: Saving, progress: Progress) -> tuple[dict[str, Any], ...]:
    """Real steps of each way of a Pareto set, or of those with another precision if no other way fits.

    Returns:
        Of each run its `label`, `changes`, `batch_size`, status, `samples_per_s` (None if it did not end well), and
        bytes as in `Measurement`. A way that this machine cannot run is `skipped`.

    Raises:
        BenchError: A run failed for another reason than memory.
    """
    options = (saving.pareto or saving.other_precisions)[:MAX_RUNS]
    runs: list[dict[str, Any]] = []
    progress.start(len(options))
    for option in options:
        progress.begin(option.label)
        run = _run(gpu, replace(option.case, input="synthetic"), any_ran=True, protocol=SPEED_PROTOCOL)
        runs.append({"label": option.label, "changes": option.changes, **run})
        progress.finish(f"{option.label}: {run['status']}")
    return tuple(runs)


def _run(gpu: PresentGpu, case: Case, *, any_ran: bool, protocol: Protocol = PROTOCOL) -> dict[str, Any]:
    protocol = replace(protocol, device_memory_bytes=gpu.limit_bytes)
    argument = {"case": case, "protocol": protocol, "device": "cuda", **gpu_of(gpu.choice), "host_memory_bytes": None}
    answer = gpu.launcher.run(measure_task, argument, timeout_s=RUN_S)
    status = answer.value.get("status") if answer.outcome is Outcome.ANSWERED else None
    refused = status == Status.SKIPPED and any_ran  # a few samples that the model cannot train on are below the limit
    if status not in (*MEASURED, Status.OOM) and not refused:
        reason = answer.value.get("reason") or answer.reason or "no reason given"
        raise BenchError(f"batch {case.batch_size} neither ran nor ran out of memory: {reason}")
    window, steps = answer.value.get("wall_window_s"), answer.value.get("step_times_s") or ()
    rate = case.batch_size * len(steps) / window if status in MEASURED and window else None
    return {"batch_size": case.batch_size, "samples_per_s": rate, **{name: answer.value.get(name) for name in _KEPT}}


def search_limit(
    start: int, fits: Callable[[int], bool], budget: int, most: int | None = None
) -> tuple[int | None, int | None]:
    """The largest batch size that fits and the smallest that does not, as close as `budget` trials allow.

    Args:
        start: The first to try, 1 or more.
        fits: True below some limit and false above it.
        budget: Trials, 1 or more.
        most: The largest to try, `start` or more; None for any.

    Returns:
        `(largest that fitted, smallest that did not)`, adjacent if the limit was found; None if no trial had
        that outcome.
    """
    low = high = None
    at, step = start, FIRST_STEP
    for _ in range(budget):
        if fits(at):
            low = at
        else:
            high = at
        if high == 1 or (low is not None and (low == most or (high is not None and high - low == 1))):
            break
        if low is None or high is None:
            at = min(start + step, most or start + step) if high is None else max(1, start - step)
            step *= WIDER
        else:
            at = (low + high) // 2
    return low, high
