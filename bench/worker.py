"""One run in one process: the only place that touches the device.

`measure_case` reports its phases, so that the parent knows where a run was when it hangs or dies: build, warm-up,
measure, memory, gradient noise. Failures of the run itself (no memory, an exception, a loss that is not a number)
become a status here; if the process is killed, the parent reports it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from bench import catalog
from bench.catalog import DatasetInfo
from bench.catalog.settling import parts_of
from bench.errors import DataError, Unsupported, describe_failure
from bench.forks import write_traceback
from bench.plan import describe, image_spec
from bench.probes.backends import Backend, DeviceReadings, TorchMemory, backend
from bench.probes.gpu_monitor import SILENT, UNCONFIRMED, is_unconfirmed, throttled_by
from bench.probes.host_window import HostWindow
from bench.probes.in_force import read_in_force
from bench.probes.oom import (
    describe_out_of_memory,
    is_out_of_memory,
    limit_host_memory,
    may_hide_out_of_memory,
    parse_out_of_memory,
)
from bench.probes.rss import reset_rss_peak, rss_peak_bytes
from bench.probes.step_timing import plan_step_count, time_steps
from bench.probes.torch_memory import measure_cpu_peak, start_gpu
from bench.records import Case, DataFacts, ImageSpec, Measurement, Protocol, Status
from bench.records.variables import allocator_variables, cublas_workspaces
from bench.units import exact_bytes, format_bytes
from bench.workload import Workload, build_workload, numeric_modes
from bench.workload.gradient_noise import has_batch_norm, measure_gradient_noise, microbatch_count
from bench.workload.inputs import Batch, Inputs, build_inputs
from bench.workload.shared_memory import is_shared_memory_full, shared_memory_hint

Send = Callable[[dict[str, Any]], None]

STEADY_FROM = 5  # steps in a third of the window, from which their median says anything
STEADY_TOLERANCE_FRAC = 0.10  # between the medians of the first and the last third
_OF_THE_DEVICE = ("device_used_bytes", "device_used_total_bytes", "device_used_before_bytes")
WALL_TOLERANCE_FRAC = 0.02  # between the events' sum and the wall clock: measurement.md, timing 6


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """What a worker needs to know about a run.

    Attributes:
        case: What to measure.
        protocol: How to measure it.
        device: `cpu`, or a kind of GPU, as torch calls it.
        gpu_uuid: The GPU's UUID in NVML; `None` on a CPU, or without NVML.
        host_memory_bytes: The limit on the process's host memory; `None` for none.
        repeat: The number of this fresh process of the case; random draws for training depend on it.
        nvml_error: Why NVML must not be queried; `None` if it may.
        data: The facts about the data set in the run's key.
    """

    case: Case
    protocol: Protocol
    device: str
    gpu_uuid: str | None = None
    host_memory_bytes: int | None = None
    repeat: int = 0
    nvml_error: str | None = None
    data: DataFacts = field(default_factory=DataFacts)


@dataclass(slots=True)
class _Run:
    """A running measurement; `found` collects its fields."""

    task: MeasureTask
    send: Send
    backend: Backend
    readings: DeviceReadings
    found: dict[str, Any] = field(default_factory=dict)
    memory: TorchMemory | None = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.task.device)

    @property
    def info(self) -> DatasetInfo:
        return describe(self.task.case.dataset)

    @property
    def images(self) -> ImageSpec:
        return image_spec(self.task.case.dataset, self.task.case.image_size)

    def hold_limit(self) -> None:
        """Keep a GPU that plays a smaller card within that card's memory, beside the context as it is now.

        One that takes host memory is kept within the limit on that, beside the process.
        """
        card, host = self.task.protocol.device_memory_bytes, self.task.host_memory_bytes
        if self.memory is None:
            return
        if self.memory.unified and host is not None:
            if self.memory.share_host(host, rss_peak_bytes() or 0) is None:
                return
            self.found["host_memory_limit_bytes"] = host
        elif card is not None:
            self.memory.play_card(card, self.found.get("device_used_before_bytes"))
        else:
            return
        self.found["device_memory_allowed_bytes"] = self.memory.read_allowed()

    def device_memory(self) -> dict[str, Any]:
        """What the device holds, by torch and by CUDA; what NVML says of a GPU that takes host memory is dropped."""
        if self.memory is None:
            return {}
        if self.memory.unified:
            self.found.update(dict.fromkeys(_OF_THE_DEVICE))
        return {**self.memory.peaks(), **self.memory.device_fields(held_by_others(self.found))}

    def enter(self, phase: str) -> None:
        """Report a phase."""
        self.found["phase"] = phase
        self.send({"phase": phase})


def held_by_others(found: Mapping[str, Any]) -> int | None:
    """What other processes hold of the device beside a run, in bytes; None if unknown.

    What was in use before the run, or less where others gave some back since: the process before it may still have been
    on its way out. NVML tells both at the end of the window, unless it may not see the memory of processes.
    """
    own, total, before = (found.get(name) for name in _OF_THE_DEVICE)
    return before if before is None or total is None or own is None else max(0, min(before, total - own))


def measure_case(task: MeasureTask, send: Send) -> dict[str, Any]:
    """Measure one case in this process; returns the fields of a `Measurement` as a JSON object.

    Raises:
        DeviceError: The GPU cannot be initialised, before the case begins: not the case's fault.
    """
    kind = backend(task.device)
    readings = kind.readings(task.gpu_uuid, task.nvml_error)
    run = _Run(task, send, kind, readings, {"started_unix_s": time.time()})
    os.environ |= allocator_variables(task.case.allocator, os.environ)  # torch reads them when it first allocates
    if task.protocol.threads is not None:
        torch.set_num_threads(task.protocol.threads)
    if task.device == "cpu" and task.host_memory_bytes is not None:
        limit_host_memory(task.host_memory_bytes)
        run.found["host_memory_limit_bytes"] = task.host_memory_bytes
    if task.device != "cpu":
        if task.protocol.deterministic and task.device == "cuda":
            run.found["cublas_workspace_config"] = cublas_workspaces(os.environ, deterministic=True)
        _start_gpu(run)
    try:
        with numeric_modes(task.case, task.protocol):
            _measure(run)
    except Unsupported as error:
        run.found.update(status=Status.SKIPPED, reason=str(error))
    except BaseException as error:  # noqa: BLE001 - whatever a model raises is this run's result; its traceback is logged
        write_traceback(error)
        run.found.update(_failure(run, error))
        send({name: run.found[name] for name in ("status", "reason")})  # the process may yet die of it
        run.found["host_rss_peak_bytes"] = rss_peak_bytes()
        if run.found["status"] is Status.FAILED:
            run.readings.used_bytes()  # a GPU that is lost is called so by NVML
        if run.found["status"] is Status.OOM:  # the peak so far; a sticky error has no word
            run.found.update(run.device_memory())
    return asdict(Measurement(**{**run.found, "nvml_error": run.readings.error}))


def _start_gpu(run: _Run) -> None:
    """Read the memory that other processes use on the device, then create the context."""
    run.found["device_used_before_bytes"] = run.readings.used_bytes()
    start_gpu(run.found["device_used_before_bytes"], run.task.device)
    run.memory = run.backend.memory()
    if run.memory is not None and run.memory.unified:
        run.found["device_used_before_bytes"] = None
    run.hold_limit()


def _measure(run: _Run) -> None:
    reset_rss_peak()
    run.enter("build")
    _refuse_other_data(run)
    workload = build_workload(run.task.case, run.images, run.task.protocol, run.device)
    with _inputs(run) as inputs:
        run.found.update(data_source=inputs.data_source, parameter_count=workload.parameter_count)
        _time(run, workload, inputs)
        _close(run, workload)
    del workload
    if run.memory is None:
        gc.collect()
        run.enter("memory")
        _measure_cpu_memory(run)
    if run.task.protocol.gradient_noise:
        gc.collect()
        run.enter("gradient noise")
        _measure_gradient_noise(run)
    run.found["phase"] = None


def _refuse_other_data(run: _Run) -> None:
    """Raise DataError if the data set changed since the run was planned, so that it no longer matches the key."""
    planned = run.task.data
    found = DataFacts(run.images.classes, run.info.train_samples if run.info.from_files else None)
    if changes := found.changes_since(planned):
        raise DataError(
            f"{run.task.case.dataset}: changed since the run was planned ({', '.join(changes)}). Run the same command "
            "again: it plans again"
        )


@contextlib.contextmanager
def _inputs(run: _Run) -> Iterator[Inputs]:
    inputs = build_inputs(run.task.case, run.info, run.task.protocol, run.device)
    try:
        yield inputs
    finally:
        inputs.close()


class _Intake:
    """The batches as the steps take them: how long each waited, and how long a loader took to make them."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._waits: list[float] = []
        self._made: list[float] = []

    def begin_step(self) -> None:
        """Count what is taken from now on for another step."""
        self._waits.append(0.0)
        self._made.append(0.0)

    def batches(self) -> Iterator[Batch]:
        """The batches, without keeping the one that it gives."""
        return (self._take() for _ in itertools.count())

    def _take(self) -> Batch:
        before = time.perf_counter()
        batch = next(self._inputs)
        self._waits[-1] += time.perf_counter() - before
        self._made[-1] += self._inputs.made_s or 0.0
        return batch

    def clear(self) -> None:
        """Forget the steps so far."""
        self._waits.clear()
        self._made.clear()

    def fields(self) -> dict[str, tuple[float, ...]]:
        """The columns of a measurement."""
        made = tuple(self._made) if self._inputs.made_s is not None else ()
        return {"data_wait_times_s": tuple(self._waits), "batch_made_times_s": made}


def _time(run: _Run, workload: Workload, inputs: Inputs) -> None:
    """Warm up, then measure: step times, the wall window, peaks, and the device's state at both ends."""
    intake = _Intake(inputs)
    batches = intake.batches()

    def step() -> None:
        intake.begin_step()
        workload.step(batches)

    def warm_up() -> None:
        step()
        run.hold_limit()  # beside the modules that the step has loaded

    protocol = run.task.protocol
    run.enter("warm-up")
    warm = time_steps(warm_up, protocol.warmup_steps, run.task.device)
    run.found["warmup_times_s"] = warm.step_times_s
    in_force = read_in_force(run.task.case, protocol, workload)
    run.found.update(in_force.fields)
    if run.memory is not None:
        run.found.update({f"cold_{name}": value for name, value in run.memory.peaks().items()})
        run.memory.reset()
    count = plan_step_count(warm.step_times_s, protocol.measured_steps, protocol.min_window_s)
    if run.readings.open:
        step()  # in flight while the device is read: an idle one drops its clocks within milliseconds
        run.readings.start()
    run.enter("measure")
    intake.clear()
    run.backend.synchronize()
    host = HostWindow()
    run.readings.open_window()
    timed = time_steps(step, count, run.task.device)
    if run.task.protocol.compiled or run.task.case.compile != "false":
        steady = statistics.median(timed.step_times_s)
        run.found["compilation_s"] = max(0.0, warm.step_times_s[0] - steady)
    run.found.update(step_times_s=timed.step_times_s, wall_window_s=timed.wall_window_s, **intake.fields())
    read = run.readings.close_window()
    run.found.update(read, **host.close(), status=Status.OK)
    in_force = in_force.then(
        read_in_force(run.task.case, protocol, workload)
    )  # a model may change switches at any step
    run.found.update(in_force.fields)
    if read:
        _mark_throttled(run.found)
    silent = (SILENT,) if run.readings.error else ()
    unconfirmed = (UNCONFIRMED,) if is_unconfirmed(read, timed.wall_window_s) else ()
    run.found["flags"] = (*_flags(timed.step_times_s, timed.wall_window_s), *in_force.flags, *silent, *unconfirmed)


def _mark_throttled(found: dict[str, Any]) -> None:
    """Set the status of a run during which the device throttled."""
    causes = throttled_by(
        (*(found["throttle_reasons_start"] or ()), *(found["throttle_reasons_end"] or ())),
        thermal_slowdown_s=found["thermal_slowdown_window_s"],
        window_s=found["wall_window_s"],
    )
    if causes:
        found.update(status=Status.THROTTLED, reason=f"the GPU throttled: {', '.join(causes)}")


def _close(run: _Run, workload: Workload) -> None:
    """Read what must be read before the workload is freed."""
    run.found["final_loss"] = workload.loss
    if not math.isfinite(workload.loss or 0.0):
        if run.found["status"] is Status.THROTTLED:
            run.found["flags"] = (*run.found["flags"], "throttled")
        run.found.update(status=Status.NAN_LOSS, reason=f"the loss is {workload.loss} after the measured steps")
    run.found.update(run.device_memory())
    run.found["host_rss_peak_bytes"] = rss_peak_bytes()


def _measure_cpu_memory(run: _Run) -> None:
    """The peak of torch's allocations on the CPU, in a separate pass, from building the model on."""
    settles_after = catalog.optimizer(run.task.case.optimizer.name).settles_after

    def steps(inputs: Inputs | None, mark: Callable[[], None]) -> None:
        workload = build_workload(run.task.case, run.images, run.task.protocol, run.device)
        with contextlib.nullcontext(inputs) if inputs is not None else _inputs(run) as batches:
            for _ in range(max(map(settles_after, parts_of(workload.optimizer))) + 1):  # the last has all state
                mark()
                workload.step(batches)

    if run.task.case.input == "cached":  # what it holds is the host's, not the device's: made before anything counts
        with _inputs(run) as held:
            peak = measure_cpu_peak(functools.partial(steps, held))
    else:
        peak = measure_cpu_peak(functools.partial(steps, None))
    run.found.update(
        peak_allocated_bytes=peak.warm_bytes,
        peak_requested_bytes=peak.warm_bytes,
        cold_peak_allocated_bytes=peak.total_bytes,
        cold_peak_requested_bytes=peak.total_bytes,
    )


def _measure_gradient_noise(run: _Run) -> None:
    """The gradient noise scale, on a workload and images of its own; whatever its outcome, the run is valid."""
    started = time.perf_counter()
    seeded = replace(run.task.protocol, seed=run.task.protocol.seed + run.task.repeat)
    # new samples every step, real ones where there are any; the pass has micro-batches of its own
    case = replace(run.task.case, input="loader", accumulation=1, update="step")
    try:
        if run.images.task == "segmentation":
            raise Unsupported(
                "the loss is a mean over pixels that have a class, of which images have different numbers"
            )
        microbatch_count(case.batch_size)
        workload = build_workload(case, run.images, seeded, run.device)
        notes = ["batch norm: the loss uses statistics over a microbatch"] if has_batch_norm(workload.model) else []
        with build_inputs(case, run.info, seeded, run.device) as inputs:
            run.found["gradient_noise_data_source"] = inputs.data_source
            if inputs.data_source != "files":
                notes.append("synthetic images with random labels: not representative of training")
            run.found.update(measure_gradient_noise(workload, inputs, case.batch_size).fields(notes))
    except Unsupported as error:
        run.found["gradient_noise_note"] = f"no scale: {error}"
    except BaseException as error:  # noqa: BLE001 - the pass comes after the run's figures and must not cost them
        write_traceback(error)
        run.found["gradient_noise_note"] = f"no scale: {_failure(run, error)['reason']}"
    run.found["gradient_noise_cost_s"] = time.perf_counter() - started


def _failure(run: _Run, error: BaseException) -> dict[str, Any]:
    """Status and reason of an exception, with the line that raised it."""
    hint = shared_memory_hint(error)
    if is_out_of_memory(error) or is_shared_memory_full(error):
        requested = parse_out_of_memory(error)
        reason = _with_amounts(run, describe_out_of_memory(error), requested) + hint
        return {"status": Status.OOM, "reason": reason, "oom_requested_bytes": requested}
    if run.memory is not None and may_hide_out_of_memory(error) and run.memory.is_exhausted():
        said = f"{describe_failure(error)}, after the device had no memory left to give"
        return {"status": Status.OOM, "reason": _with_amounts(run, said, None)}
    return {"status": Status.FAILED, "reason": describe_failure(error) + hint}


def _with_amounts(run: _Run, said: str, requested_bytes: int | None) -> str:
    """The reason, preceded by the limit of memory, if there is one; of the host's, with what was asked for."""
    if card := run.task.protocol.device_memory_bytes:
        allowed = run.found.get("device_memory_allowed_bytes")
        left = f", which leaves torch {format_bytes(allowed)}" if allowed is not None else ""
        return f"as a card of {exact_bytes(card)}{left}: {said}"
    case, limit = run.task.case, run.found.get("host_memory_limit_bytes")
    batch = case.batch_size * math.prod(run.images.shape) * torch.float32.itemsize
    if limit is None:
        return said
    asked = f"a batch of {case.batch_size:,} images takes {format_bytes(batch)}"
    asked = asked if requested_bytes is None else f"{format_bytes(requested_bytes)} requested"
    return (
        f"{asked}, the process may use {format_bytes(limit)} (limits.host_memory, or 90 % of the free memory): {said}"
    )


def _flags(step_times_s: tuple[float, ...], wall_s: float) -> tuple[str, ...]:
    """Flags from the window itself: steps that do not fill it, or that change during it."""
    flags = []
    if abs(wall_s - sum(step_times_s)) > WALL_TOLERANCE_FRAC * wall_s:
        flags.append("host_bound")
    third = len(step_times_s) // 3
    if third >= STEADY_FROM:
        first, last = statistics.median(step_times_s[:third]), statistics.median(step_times_s[-third:])
        if abs(last / first - 1) > STEADY_TOLERANCE_FRAC:
            flags.append("not_steady")
    return tuple(flags)
