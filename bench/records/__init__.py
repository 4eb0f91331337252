"""The frozen types that cross rooms, and with them the columns of every result file.

A row of a result file is a `Planned` run, its `Case`, its `Protocol`, its `Measurement` and its `Environment`, flat,
with the `Estimate` of its case beside it. The fields below are the columns: their names carry the unit (`_bytes`, `_s`,
`_hz`, `_w`, `_j`, `_frac`), `None` is unknown and never 0, and raw values are kept as tuples. What else is known of a
column (whether it is in the key, compared, disclosed) is declared with it: see `bench.records.fields`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from bench.records.case import (
    AXES,
    MAX_BATCH_SIZE,
    MAX_IMAGE_SIZE,
    SWITCHES,
    USUAL,
    Case,
    Checkpointing,
    Choice,
    DataFacts,
    Group,
    ImageSpec,
    InputPath,
    MemoryFormat,
    Planned,
    Precision,
    Protocol,
    SettingValue,
    Task,
    Update,
    ZeroGrad,
    axis_words,
    case_key,
    name_cases,
    run_key,
    stable_hash,
    varying_axes,
)
from bench.records.fields import UNITS, Field, about, column, entries, key_fields, unit_of
from bench.units import MIB, TIB

SPREADS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"gpus": ("gpu_uuid_hash", "cpu_slot"), "hosts": ("gpu_uuid_hash", "cpu_slot", "host_hash")}
)
"""Over what the repeats of a case may be spread on purpose: the columns that then tell no environments apart."""


ACCELERATORS = ("cuda", "xpu", "mps")
"""Kinds of GPU, as torch calls them: NVIDIA's and AMD's (ROCm), Intel's, Apple's; the one to prefer first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine and the software under a run; absent is null in the columns and reads `unknown` in reports."""

    device: str = field(metadata=about(key=True, first=1, summary=True))  # cpu, or one of ACCELERATORS
    estimate_device: str | None = column(None, differs="no", summary=True)  # device file of the estimates of this row
    gpu_name: str | None = column(None, gpu=True, key=True, main=True, needed=1, first=1, summary=True)
    gpu_uuid_hash: str | None = column(None, gpu=True, key=True, needed=1, label=5)
    gpu_index: int | None = column(None, gpu=True)
    gpu_count: int | None = column(None, gpu=True, main=True)
    gpu_total_bytes: int | None = column(
        None, gpu=True, main=True, needed=1, first=1, summary=True, within=(256 * MIB, 4 * TIB)
    )
    # what this process may take of it, where the control group or the driver leaves less
    gpu_memory_limit_bytes: int | None = column(
        None, gpu=True, key="if true", main=True, first=1, summary=True, if_known=True, absent="none"
    )
    # dedicated, unified (the host's), or slice (of a board, by MIG)
    device_memory_kind: str | None = column(None, gpu=True, main=True, differs="no", summary=True, if_known=True)
    device_memory_note: str | None = column(None, gpu=True, differs="no", if_known=True)  # why its columns are null
    gpu_multiprocessors: int | None = column(None, gpu=True)  # of a slice, where it is one
    gpu_capability: str | None = column(None, gpu=True, key=True)
    vbios: str | None = column(None, gpu=True, helpful=1)
    driver_version: str | None = column(None, gpu=True, key=True, main=True, needed=1, first=1, label=2)
    ecc: bool | None = column(None, gpu=True, key="if unusual", usual=True, main=True, helpful=1)
    mig: bool | None = column(None, gpu=True, key=True, main=True, helpful=1, label=4)
    persistence_mode: bool | None = column(None, gpu=True, helpful=1)
    power_limit_w: float | None = column(
        None, gpu=True, key=True, main=True, needed=2, first=1, label=3, within=(5, 5000)
    )
    power_limit_default_w: float | None = column(None, gpu=True, main=True, needed=2, first=1, within=(5, 5000))
    max_sm_clock_hz: float | None = column(None, gpu=True, within=(1e8, 1e10))
    # settings of the board and the driver that change speed or energy: bench.probes.gpu_settings
    workload_power_profiles: str | None = column(
        None, gpu=True, key="if unusual", usual="none", main=True, first=1, if_known=True
    )
    edpp_multiplier_frac: float | None = column(
        None, gpu=True, key="if unusual", usual=1.0, title="EDPp multiplier", main=True, first=1, if_known=True
    )
    adaptive_tgp: bool | None = column(None, gpu=True, key="if true", usual=False, main=True, first=1, if_known=True)
    adaptive_tgp_limit_w: float | None = column(None, gpu=True, main=True, if_known=True, within=(5, 5000))
    power_smoothing: bool | None = column(None, gpu=True, key="if true", usual=False, main=True, first=1, if_known=True)
    application_clocks: str | None = column(
        None, gpu=True, key="if unusual", usual="default", main=True, first=1, if_known=True
    )
    confidential_computing: str | None = column(
        None, gpu=True, key="if unusual", usual="off", main=True, first=1, if_known=True
    )
    mps: bool | None = column(None, gpu=True, key="if true", usual=False, main=True, first=1, if_known=True)  # CUDA's
    gpu_settings_note: str | None = column(None, gpu=True, differs="no", if_known=True)  # why any of these is null
    cuda_version: str | None = column(None, gpu=True, key=True, main=True, needed=1, first=3, label=2)
    cudnn_version: str | None = column(None, gpu=True, key=True, main=True, needed=1, first=3, label=2)
    hip_version: str | None = column(None, key="if true")  # of a ROCm build of torch
    # of an XPU build of torch: its SYCL compiler
    xpu_version: str | None = column(None, gpu=True, key="if true", main=True, first=3, if_known=True)
    torch_version: str | None = column(None, key=True, main=True, needed=1, first=2, label=1)
    torch_arch_list: str | None = column(None, gpu=True)
    torch_git: str | None = None
    torchvision_version: str | None = column(None, key=True, main=True, needed=1, label=3)
    # of a run of one of timm's models; their runs' keys have it in `code_key`
    timm_version: str | None = column(None, main=True, first=3, if_known=True, absent="no model of timm")
    python_version: str | None = column(None, key=True, main=True, needed=1, label=3)
    numpy_version: str | None = None
    pandas_version: str | None = None
    pyarrow_version: str | None = None
    bench_version: str | None = column(None, main=True, differs="code", needed=1, first=10)
    # environment variables of torch's allocator: bench.records.variables
    allocator_settings: str | None = column(
        None, key=True, main=True, differs="flags", first=9, label=3, absent="none set"
    )
    # those that change speed, memory or numbers unseen
    speed_variables: str | None = column(
        None, key=True, main=True, differs="flags", first=9, label=3, absent="none set"
    )
    other_variables: str | None = column(None, if_known=True, absent="none set")  # those that change none of it
    torch_threads: int | None = column(None, main=True)
    cpu_model: str | None = column(None, key=True, main=True, needed=1, first=3, summary=True)
    cpu_cores_physical: int | None = None
    cpu_cores_logical: int | None = None
    cpu_cores_usable: int | None = column(None, key=True, main=True, needed=1, label=3)  # after affinity and quota
    cpu_governor: str | None = column(None, main=True)
    cpu_capability: str | None = column(None, main=True)  # the instruction set torch chose: AVX2, AVX512
    ram_bytes: int | None = column(
        None, key=True, main=True, needed=1, label=3, summary=True, within=(128 * MIB, 256 * TIB)
    )
    memory_limit_bytes: int | None = column(None, main=True)  # of the control group, where it is below the RAM
    os_name: str | None = column(None, main=True, needed=1)
    kernel: str | None = column(None, main=True, needed=1)
    container: str | None = column(None, main=True)
    virtualization: str | None = column(None, main=True)
    host_hash: str | None = column(None, key=True, helpful=2, label=5)
    git_commit: str | None = column(None, main=True, differs="code", helpful=1, first=10)
    git_dirty: bool | None = column(None, main=True, differs="code", helpful=1, first=10)
    in_process: bool | None = column(None, key="if true")  # whether runs share their caller's process (--in-process)
    # of the process that measures: above 0 others come first (Ray's workers have 15)
    niceness: int | None = column(None, key="if true", main=True, if_known=True)
    # several devices on one plan
    spread: str | None = column(None, key="if true", if_known=True)  # of repeats, over: gpus of a host, or hosts
    cpu_slot: str | None = column(None, key="if true", if_known=True)  # of the CPU, that played a device: cpu:0
    # the most runs at one time on this host, where several devices share a plan
    parallel: int | None = column(None, key="if true", main=True, if_known=True)
    pinned_cpus: str | None = column(None, differs="no", if_known=True)  # of the host, that runs were kept on: 0-3,8
    # how much slower short runs were with all neighbours busy than alone, before the sweep began
    neighbour_slowdown_frac: float | None = column(None, differs="no", if_known=True)

    @property
    def key(self) -> str:
        """The `environment_key`: what must be equal for two runs to be repeats of each other.

        Repeats that are spread over equal GPUs have the key without the GPU's identity; those that are spread over
        equal hosts, without the host's as well.
        """
        values = key_fields(self)
        return stable_hash({name: value for name, value in values.items() if name not in self.spread_over})

    @property
    def spread_over(self) -> tuple[str, ...]:
        """The columns that may differ between repeats of a case."""
        return SPREADS[self.spread] if self.spread else ()

    def changes_since(self, before: Mapping[str, object]) -> list[str]:
        """Why the key is not that of an environment with the fields `before`: `torch_version 2.6 -> 2.7`."""
        pairs = {entry: (before.get(name), getattr(self, name)) for name, entry in entries(Environment).items()}
        return [
            f"{entry.name} {entry.absent if old is None else old} -> {entry.absent if new is None else new}"
            for entry, (old, new) in pairs.items()
            if (entry.in_key(old) or entry.in_key(new)) and old != new and entry.name not in self.spread_over
        ]


FORMULA_PARTS = ("parameters", "gradients", "optimizer_state", "batch", "activations")
"""What the formula adds up: its columns `formula_<part>_bytes`."""

TRACE_PARTS = (*FORMULA_PARTS, "temporaries", "workspaces", "rounding")
"""What the trace's peak of `allocated` is made of: its columns `trace_<part>_bytes`."""

_LEFT_OUT_OF_ALL = {"compiled": "compiled is on, but torch.compile is not modelled"}
_LEFT_OUT_OF_THE_TRACE = {
    "cudnn_benchmark": "cudnn_benchmark is on, but the memory and choices of cuDNN's trials are not modelled",
    "deterministic": "deterministic is on, but the kernels and cuBLAS workspaces that it changes are not modelled",
}
UNMODELLED = (*_LEFT_OUT_OF_ALL, *_LEFT_OUT_OF_THE_TRACE)
"""The switches of a `Protocol` that change what a step takes, and that no estimator follows."""


def left_out(switches: Collection[str], *, traced: bool) -> list[str]:
    """What estimates leave out of runs with these `switches` on, in words for `estimate_note`.

    Args:
        switches: Names of `UNMODELLED`.
        traced: Whether the trace speaks: the formula knows no kernels, whichever they are.
    """
    known = _LEFT_OUT_OF_ALL | (_LEFT_OUT_OF_THE_TRACE if traced else {})
    return [words for switch, words in known.items() if switch in switches]


def join_notes(*notes: str | None) -> str | None:
    """Notes as one, each once; None if there is none."""
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the estimators say of one case on one device, without having executed it there."""

    case_key: str
    estimate_device: str  # a device file's name, or cpu
    estimate_note: str | None = None  # why an estimator gave none, or what it leaves out here
    formula_bytes: int | None = None
    formula_parameters_bytes: int | None = None
    formula_gradients_bytes: int | None = None
    formula_optimizer_state_bytes: int | None = None
    formula_batch_bytes: int | None = None
    formula_activations_bytes: int | None = None
    trace_peak_allocated_bytes: int | None = None
    trace_peak_reserved_bytes: int | None = None
    trace_peak_requested_bytes: int | None = None
    trace_parameters_bytes: int | None = None
    trace_gradients_bytes: int | None = None
    trace_optimizer_state_bytes: int | None = None
    trace_batch_bytes: int | None = None
    trace_activations_bytes: int | None = None
    trace_temporaries_bytes: int | None = None
    trace_workspaces_bytes: int | None = None
    trace_rounding_bytes: int | None = None
    estimated_device_bytes: int | None = None  # reserved, context and loaded modules: what nvidia-smi will show
    estimated_device_low_bytes: int | None = None  # with the least that the context may be; null: spread unknown
    estimated_device_high_bytes: int | None = None  # with the most that it may be
    estimated_device_basis: str | None = None  # where the context's figure comes from, in words
    estimated_fit: str | None = None  # fits, may not fit, does not fit; null if the device's memory is unknown
    estimated_step_time_s: float | None = None
    estimated_samples_per_s: float | None = None
    estimated_samples_per_s_low: float | None = None  # the ends of an interval that held 90 % of left-out measurements
    estimated_samples_per_s_high: float | None = None
    estimated_speed_basis: str | None = None  # how the time was estimated and how far off that was known to be
    step_flop: int | None = column(None, title="arithmetic per step")  # of its products, as torch's own counter counts
    peak_flop_per_s: float | None = column(None, title="peak rate")  # the device's, dense, at the case's precision
    least_step_time_s: float | None = None  # of its kernels at the device's peak rate and bandwidth, without the host


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
    allocator_in_force: str | None = None  # the settings that torch's allocator has, where the case names some
    data_source: str | None = column(None, differs="flags", needed=1, first=8)  # files, or synthetic
    started_unix_s: float | None = None
    duration_s: float | None = column(None, within=(1e-4, 1e6))  # of the whole run, as the parent saw it
    process_start_s: float | None = None  # from asking for the process to its first word
    # earlier tries that ended without a word, where a launcher starts runs on several machines
    lost_tries: int | None = column(None, if_known=True)
    # timing, raw
    warmup_times_s: tuple[float, ...] = ()
    step_times_s: tuple[float, ...] = ()
    data_wait_times_s: tuple[float, ...] = ()  # waiting for the batch, a part of each step's time
    # of a loader: reading, decoding, transforming and collating each step's images, in the one process that did
    batch_made_times_s: tuple[float, ...] = ()
    compilation_s: float | None = None  # of a compiled model: its first step's time beyond that of a steady one
    wall_window_s: float | None = column(None, within=(1e-6, 1e6))  # an independent clock around the measured steps
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
    peak_allocated_bytes: int | None = column(None, peak=True, title="peak memory")
    peak_requested_bytes: int | None = column(None, peak=True)
    peak_reserved_bytes: int | None = column(None, peak=True)
    cold_peak_allocated_bytes: int | None = column(None, peak=True, title="cold peak")
    cold_peak_requested_bytes: int | None = None
    cold_peak_reserved_bytes: int | None = None
    device_used_bytes: int | None = column(None, peak=True)  # this process, as NVML lists it
    device_used_total_bytes: int | None = None  # all processes of the device
    device_used_before_bytes: int | None = None  # all processes, before this run's context
    context_bytes: int | None = None  # the context and loaded modules: used - reserved
    device_total_bytes: int | None = None
    alloc_retries: int | None = None
    oom_requested_bytes: int | None = None  # what the failing allocation asked for
    host_rss_peak_bytes: int | None = column(None, peak=True, title="host memory")
    host_memory_limit_bytes: int | None = column(None, reading=3)
    # what torch may reserve on a GPU that plays a smaller card, read back
    device_memory_allowed_bytes: int | None = column(None, gpu=True, reading=3)
    # the device around the window
    sm_clock_start_hz: float | None = column(None, gpu=True, reading=2, within=(5e7, 1e10))
    sm_clock_end_hz: float | None = column(None, gpu=True, reading=2, helpful=2, within=(5e7, 1e10))
    memory_clock_start_hz: float | None = column(None, gpu=True, within=(5e7, 5e10))
    memory_clock_end_hz: float | None = column(None, gpu=True, within=(5e7, 5e10))
    temperature_start_c: float | None = column(None, gpu=True, reading=1, within=(-40, 130))
    temperature_end_c: float | None = column(None, gpu=True, reading=1, helpful=1, within=(-40, 130))
    power_end_w: float | None = column(None, gpu=True, reading=2, within=(0.5, 5000))
    energy_window_j: float | None = column(None, gpu=True)
    power_window_w: float | None = column(
        None, gpu=True, within=(0.5, 5000)
    )  # mean of the driver's samples in the window
    power_sample_count: int | None = column(None, gpu=True)  # how many there were
    throttle_reasons_start: tuple[str, ...] | None = column(None, gpu=True)  # empty: none (early parts: or unknown)
    throttle_reasons_end: tuple[str, ...] | None = column(None, gpu=True)
    thermal_slowdown_window_s: float | None = column(None, gpu=True)  # of the window, by the driver's own counter
    power_slowdown_window_s: float | None = column(None, gpu=True)  # of the window, held back by the power limit
    performance_state_end: int | None = column(None, gpu=True, reading=2)  # P0, the fastest, to P15
    pcie_generation: int | None = column(None, gpu=True, reading=3)
    pcie_width: int | None = column(None, gpu=True, reading=3)
    other_process_count: int | None = column(None, gpu=True, reading=3)  # others on the device, at the window's end
    # the host during the window
    host_others_window_frac: float | None = None  # of all processors' time: other processes
    stolen_window_s: float | None = None  # of all processors' time: what a hypervisor gave to other machines
    involuntary_switches: int | None = None  # of this process, to another
    quota_wait_window_s: float | None = None  # that threads waited for the control group's processor quota
    cpu_clock_start_hz: float | None = column(None, within=(5e7, 1e10))  # the mean over the processors
    cpu_clock_end_hz: float | None = column(None, within=(5e7, 1e10))
    nvml_error: str | None = column(None, gpu=True)  # why readings of the device are missing, where it was to be read


RECORDS = (Environment, Measurement, Protocol, DataFacts, Group, Planned, Case, Estimate)
"""The types whose fields are columns. Of a column that several have, the first says what is known of it."""

_NESTED = ("case", "data")  # of a planned run: records of their own
FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        name: next(entries(record)[name] for record in RECORDS if name in entries(record))
        for name in dict.fromkeys(name for record in RECORDS for name in entries(record) if name not in _NESTED)
    }
)
"""What is known of every column, by its name."""


def in_order(place: Callable[[Field], int]) -> tuple[str, ...]:
    """The columns that have a place in a list, the first first: `in_order(lambda field: field.needed)`."""
    return tuple(sorted((name for name in FIELDS if place(FIELDS[name])), key=lambda name: place(FIELDS[name])))


__all__ = [
    "ACCELERATORS",
    "AXES",
    "FIELDS",
    "FORMULA_PARTS",
    "MAX_BATCH_SIZE",
    "MAX_IMAGE_SIZE",
    "MEASURED",
    "RECORDS",
    "SPREADS",
    "SWITCHES",
    "TRACE_PARTS",
    "UNITS",
    "UNMODELLED",
    "USUAL",
    "Case",
    "Checkpointing",
    "Choice",
    "DataFacts",
    "Environment",
    "Estimate",
    "Field",
    "Group",
    "ImageSpec",
    "InputPath",
    "Measurement",
    "MemoryFormat",
    "Planned",
    "Precision",
    "Protocol",
    "SettingValue",
    "Status",
    "Task",
    "Update",
    "ZeroGrad",
    "axis_words",
    "case_key",
    "columns",
    "in_order",
    "join_notes",
    "left_out",
    "name_cases",
    "run_key",
    "stable_hash",
    "unit_of",
    "varying_axes",
]


def columns(record: type) -> tuple[str, ...]:
    """The column names of a record type, in order."""
    return tuple(entries(record))
