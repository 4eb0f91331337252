"""The frozen types that cross rooms, and with them the columns of every result file.

A row of a result file is a `Planned` run, its `Case`, its `Protocol`, its `Measurement` and its `Environment`, flat,
with the `Estimate` of its case beside it. The fields below are the columns: their names carry the unit (`_bytes`, `_s`,
`_hz`, `_w`, `_j`, `_frac`), `None` is unknown and never 0, and raw values are kept as tuples.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Literal

Precision = Literal["float32", "tf32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]
InputPath = Literal["synthetic", "cached", "loader"]
SettingValue = bool | int | float | str | tuple[Any, ...]

AXES = ("dataset", "model", "optimizer", "batch_size", "precision", "memory_format", "input", "image_size")


class Status(StrEnum):
    """How a run ended; the set is closed."""

    OK = "ok"
    OOM = "oom"  # the device, or the memory limit of the host, was exceeded
    TIMEOUT = "timeout"  # the deadline passed; the run was killed
    CRASHED = "crashed"  # the process died: a signal, or an exit without an answer
    FAILED = "failed"  # the model, the data or the optimizer raised
    SKIPPED = "skipped"  # the case cannot run, or a rule excludes it; never started
    NAN_LOSS = "nan_loss"  # it ran, and the loss was not finite
    THROTTLED = "throttled"  # it ran while the device slowed itself down for heat or power
    INTERRUPTED = "interrupted"  # planned, and not finished when the sweep ended; resume runs it


MEASURED = (Status.OK, Status.THROTTLED, Status.NAN_LOSS)
"""The statuses whose rows hold step times."""


def stable_hash(value: object) -> str:
    """16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """An entry of a catalog with the settings that differ from its defaults, in the order of their names."""

    name: str
    settings: tuple[tuple[str, SettingValue], ...] = ()

    @classmethod
    def of(cls, name: str, settings: Mapping[str, SettingValue] | None = None) -> Choice:
        """A choice from a mapping of settings; lists become tuples."""
        return cls(name, tuple(sorted((key, _frozen(value)) for key, value in (settings or {}).items())))

    @property
    def options(self) -> dict[str, SettingValue]:
        """The settings as a dictionary."""
        return dict(self.settings)

    def __str__(self) -> str:
        """As it is written on the command line: `adam:foreach=false,lr=0.01`."""
        if not self.settings:
            return self.name
        return f"{self.name}:{','.join(f'{key}={_spelled(value)}' for key, value in self.settings)}"


def _frozen(value: Any) -> SettingValue:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _spelled(value: SettingValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The shape of one sample as the model sees it, and how many classes its labels have."""

    channels: int
    height: int
    width: int
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        return (self.channels, self.height, self.width)


@dataclass(frozen=True)
class Case:
    """One point of the grid. `image_size` is the side of the square image in pixels, the data set's own unless set."""

    dataset: Choice
    model: Choice
    optimizer: Choice
    batch_size: int
    precision: Precision = "float32"
    memory_format: MemoryFormat = "contiguous"
    input: InputPath = "synthetic"
    image_size: int = 0

    @property
    def axes(self) -> dict[str, str | int]:
        """The case as flat columns, in the order of `AXES`."""
        return {
            axis: str(value) if isinstance(value, Choice) else value
            for axis, value in ((axis, getattr(self, axis)) for axis in AXES)
        }

    @functools.cached_property
    def key(self) -> str:
        """The `case_key`: the same for the same axes on every machine and version."""
        return stable_hash(self.axes)

    def __str__(self) -> str:
        """The axes that a reader needs, the defaults left out."""
        words = [f"{self.model} on {self.dataset}", str(self.optimizer), f"batch {self.batch_size}"]
        words += [self.precision] if self.precision != "float32" else []
        words += [self.memory_format] if self.memory_format != "contiguous" else []
        words += [self.input] if self.input != "synthetic" else []
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a run measures. Every field is part of the comparison key."""

    warmup_steps: int = 5
    measured_steps: int = 30  # at least; more where they are shorter than the window
    min_window_s: float = 0.3  # the measured window lasts at least this long
    seed: int = 42
    loader_workers: int = 2
    threads: int | None = None  # torch's CPU threads in the worker; torch's own default where null
    cudnn_benchmark: bool = False
    deterministic: bool = False
    compiled: bool = False  # torch.compile around the model
    data_root: str | None = None  # not part of the key: where files lie says nothing about speed

    @property
    def key(self) -> str:
        """The `protocol_key`."""
        return stable_hash({name: value for name, value in asdict(self).items() if name != "data_root"})


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of the plan.

    Attributes:
        case: Which case.
        repeat: Which of its fresh processes, from 0.
        position: When in the order, from 0.
        skip_reason: Why it will not run, or `None`.
        code_key: Of the code that decides what the case's run does; a change of it makes another run.
    """

    case: Case
    repeat: int
    position: int
    skip_reason: str | None = None
    code_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one run measured. Peaks are over the measured window unless named `cold` (from the process's start)."""

    status: Status
    reason: str | None = None
    phase: str | None = None  # where a run that did not end well was: build, warm-up, measure, memory
    flags: tuple[str, ...] = ()  # what was not kept: host_bound, not_steady, throttled, ...
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
    throttle_reasons_start: tuple[str, ...] = ()
    throttle_reasons_end: tuple[str, ...] = ()
    thermal_slowdown_window_s: float | None = None  # of the window, by the driver's own counter
    power_slowdown_window_s: float | None = None  # of the window, held below its clocks by the power limit
    pcie_generation: int | None = None
    pcie_width: int | None = None
    other_process_count: int | None = None  # other processes on the device at the end of the window


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine and the software under a run; absent is null in the columns and reads `unknown` in reports."""

    device: str  # cpu, or cuda
    estimate_device: str | None = None  # the device file that the estimates beside this row were made for
    gpu_name: str | None = None
    gpu_uuid_hash: str | None = None
    gpu_index: int | None = None
    gpu_count: int | None = None
    gpu_total_bytes: int | None = None
    gpu_multiprocessors: int | None = None
    gpu_capability: str | None = None
    vbios: str | None = None
    driver_version: str | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence_mode: bool | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    max_sm_clock_hz: float | None = None
    cuda_version: str | None = None
    cudnn_version: str | None = None
    hip_version: str | None = None  # of a ROCm build of torch
    torch_version: str | None = None
    torch_arch_list: str | None = None
    torch_git: str | None = None
    torchvision_version: str | None = None
    python_version: str | None = None
    numpy_version: str | None = None
    pandas_version: str | None = None
    pyarrow_version: str | None = None
    bench_version: str | None = None
    allocator_settings: str | None = None
    speed_variables: str | None = None  # environment variables that change speed or memory unseen
    torch_threads: int | None = None
    cpu_model: str | None = None
    cpu_cores_physical: int | None = None
    cpu_cores_logical: int | None = None
    cpu_cores_usable: int | None = None  # after affinity and cgroup quota
    cpu_governor: str | None = None
    cpu_capability: str | None = None  # the instruction set torch chose: AVX2, AVX512
    ram_bytes: int | None = None
    memory_limit_bytes: int | None = None  # of the control group, where it is below the RAM
    os_name: str | None = None
    kernel: str | None = None
    container: str | None = None
    virtualization: str | None = None
    host_hash: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None

    @property
    def key(self) -> str:
        """The `environment_key`: what must be equal for two runs to be repeats of each other."""
        return stable_hash({name: getattr(self, name) for name in _COMPARED})


_COMPARED = (
    "device", "gpu_name", "gpu_uuid_hash", "gpu_capability", "driver_version", "mig", "power_limit_w", "cuda_version",
    "cudnn_version", "torch_version", "torchvision_version", "python_version", "allocator_settings", "speed_variables", "cpu_model",
    "cpu_cores_usable", "ram_bytes", "host_hash",
)  # fmt: skip


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
    estimated_device_bytes: int | None = None
    estimated_step_time_s: float | None = None
    estimated_samples_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """What must be equal for two runs of a case to be repeats of each other.

    Attributes:
        code_key: Of the code that decides what the case's run does.
        protocol_key: Of how it is measured.
        environment_key: Of the machine and the versions.
    """

    code_key: str
    protocol_key: str
    environment_key: str


def run_key(case_key: str, group: Group, repeat: int, attempt: int) -> str:
    """The name of one run: everything that two equal runs share, and their turn."""
    return stable_hash([case_key, group.code_key, group.protocol_key, group.environment_key, repeat, attempt])


def columns(record: type) -> tuple[str, ...]:
    """The column names of a record type, in order."""
    return tuple(field.name for field in fields(record))
