"""What one run measured, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a run ended; the set is closed."""

    OK = "ok"
    OOM = "oom"  # the device, the memory limit of the host, or its shared memory was exceeded
    TIMEOUT = "timeout"  # the deadline passed; the run was killed
    CRASHED = "crashed"  # the process died: a signal, or an exit without an answer
    FAILED = "failed"  # the model, the data or the optimizer raised
    SKIPPED = "skipped"  # the case cannot run, or a rule excludes it; never started
    NAN_LOSS = "nan_loss"  # it ran, and the loss was not finite
    THROTTLED = "throttled"  # it ran while the device slowed itself down for heat or power
    INTERRUPTED = "interrupted"  # planned, and not finished when the sweep ended; resume runs it


MEASURED = (Status.OK, Status.THROTTLED, Status.NAN_LOSS)
"""The statuses whose rows hold step times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one run measured. Peaks are over the measured window unless named `cold` (from the process's start)."""

    status: Status
    reason: str | None = None
    phase: str | None = None  # where a run that did not end well was: build, warm-up, measure, memory, gradient noise
    flags: tuple[str, ...] = ()  # what was not kept: host_bound, not_steady, precision_not_in_force, throttled, ...
    precision_in_force: str | None = None  # what products were computed in, as far as torch and the device tell
    not_in_force: str | None = None  # precision and switches that were requested and did nothing, and why
    cublas_workspace_config: str | None = None  # of a deterministic run: what CUBLAS_WORKSPACE_CONFIG was in it
    data_source: str | None = None  # files, or synthetic
    started_unix_s: float | None = None
    duration_s: float | None = None  # of the whole run, as the parent saw it
    process_start_s: float | None = None  # from asking for the process to its first word
    # timing, raw
    warmup_times_s: tuple[float, ...] = ()
    step_times_s: tuple[float, ...] = ()
    data_wait_times_s: tuple[float, ...] = ()  # waiting for the batch, a part of each step's time
    wall_window_s: float | None = None  # an independent clock around the measured steps
    final_loss: float | None = None
    parameter_count: int | None = None
    # the gradient noise scale, from a pass of its own; the seed of each repeat is another
    gradient_noise_scale: float | None = None  # trace / g2, in samples
    gradient_noise_g2: float | None = None  # |G|^2, the mean over the steps
    gradient_noise_trace: float | None = None  # tr(Sigma) of one sample's gradient, the mean over the steps
    gradient_noise_microbatch: int | None = None  # samples
    gradient_noise_steps: int | None = None  # that were measured
    gradient_noise_cost_s: float | None = None  # of the whole pass: building, leading steps, measured ones
    gradient_noise_data_source: str | None = None  # files, or synthetic
    gradient_noise_note: str | None = None  # why there is none, or what it is not
    gradient_noise_g2_values: tuple[float, ...] = ()  # raw, one per step; may be negative
    gradient_noise_trace_values: tuple[float, ...] = ()
    # memory as torch and the driver report it
    peak_allocated_bytes: int | None = None
    peak_requested_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    cold_peak_allocated_bytes: int | None = None
    cold_peak_requested_bytes: int | None = None
    cold_peak_reserved_bytes: int | None = None
    device_used_bytes: int | None = None  # this process, as NVML lists it
    device_used_total_bytes: int | None = None  # all processes of the device
    device_used_before_bytes: int | None = None  # all processes, before this run's context
    context_bytes: int | None = None  # the context and loaded modules: used - reserved
    device_total_bytes: int | None = None
    alloc_retries: int | None = None
    oom_requested_bytes: int | None = None  # what the failing allocation asked for
    host_rss_peak_bytes: int | None = None
    host_memory_limit_bytes: int | None = None
    # the device around the window
    sm_clock_start_hz: float | None = None
    sm_clock_end_hz: float | None = None
    memory_clock_start_hz: float | None = None
    memory_clock_end_hz: float | None = None
    temperature_start_c: float | None = None
    temperature_end_c: float | None = None
    power_end_w: float | None = None
    energy_window_j: float | None = None
    throttle_reasons_start: tuple[str, ...] | None = None  # empty: none active (in early parts also: unknown)
    throttle_reasons_end: tuple[str, ...] | None = None
    thermal_slowdown_window_s: float | None = None  # of the window, by the driver's own counter
    power_slowdown_window_s: float | None = None  # of the window, held below its clocks by the power limit
    pcie_generation: int | None = None
    pcie_width: int | None = None
    other_process_count: int | None = None  # other processes on the device at the end of the window
    nvml_error: str | None = None  # why readings of the device are missing, where it was to be read
