"""A running sweep: the state its stages share, and the device it runs on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.client import ask_machine, this_cpu
from bench.config import SweepConfig
from bench.devices import (
    DescribedGpu,
    Device,
    describe_gpu,
    device_from_mapping,
    load_device,
    refuse_larger,
    render_device_toml,
    with_memory,
)
from bench.devices.calibration import NONE, Calibrations
from bench.errors import DeviceError
from bench.launchers import Launcher
from bench.locks import device_lock_path, hold
from bench.probes.machine_facts import MachineFacts, read_machine_facts
from bench.probes.nvml import hash_uuid
from bench.probes.selection import DeviceChoice, expected_device, expected_devices, usable_device, usable_devices
from bench.records import Case, Environment, Planned, Status
from bench.store import Store
from bench.sweep.journal import Journal
from bench.tasks import device_facts_task, environment_task
from bench.terminal import Progress
from bench.units import GIB, MIB


@dataclass(frozen=True, slots=True)
class Budget:
    """When a sweep stops although runs are missing, and leaves them out of the plan.

    Nor does it repeat a case whose first run measured nothing.

    Attributes:
        seconds: That runs may take in all, those of earlier sweeps into the folder included.
        deadline: By `time.monotonic`.
    """

    seconds: float
    deadline: float


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """What a sweep needs besides its configuration.

    Attributes:
        out: Folder for the report; the data go below it.
        device: As `config.values.read_devices` takes it; None for what the configuration says.
        per_device: Whether each device runs the whole plan; None for what the configuration says.
        parallel: Runs at one time, or `auto`; None for what the configuration says.
        retry: Statuses of finished runs to run again.
        report: Whether to render the report at the end.
        device_files: The user's own device files; one of them must describe the GPU that runs use.
        in_process: Whether the one case runs in this very process, for a debugger: once, without a time limit.
        calibrations: Which of them the estimates may use.
        budget: When to stop before all is measured; never unless given.
        cases: Keys of the cases to plan, of those that the configuration has; None for all.
        notes: What else the plan tells readers.
    """

    out: Path
    device: str | None = None
    per_device: bool | None = None
    parallel: int | str | None = None
    retry: frozenset[Status] = frozenset()
    report: bool = True
    device_files: tuple[Device, ...] = ()
    in_process: bool = False
    calibrations: Calibrations = field(default_factory=Calibrations)
    budget: Budget | None = None
    cases: frozenset[str] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Seat:
    """A device that a sweep's runs have, one at a time.

    Attributes:
        choice: The device.
        environment: Of the runs there.
        gpu: As estimates use it; None on the CPU, and if it cannot be read.
        cpus: The host's processors that they are kept on; None for all.
        alone: Whether runs are refused while another process computes there.
        starts_failed: Runs in a row that ended before their case began, for causes outside the cases.
    """

    choice: DeviceChoice
    environment: Environment
    gpu: DescribedGpu | None = None
    cpus: tuple[int, ...] | None = None
    alone: bool = False
    starts_failed: int = 0

    @property
    def argument(self) -> dict[str, Any]:
        """What a task must know of it."""
        return {**gpu_of(self.choice), "cpus": self.cpus, "alone": self.alone}

    @property
    def remarks(self) -> list[str]:
        """What a user should know of it before the sweep begins."""
        return [
            words for words in (self.choice.warning, self.gpu and self.gpu.remark) if isinstance(words, str) and words
        ]

    @property
    def name(self) -> str:
        """What it is called in messages, where there are several."""
        choice = self.choice
        return choice.slot or (f"{choice.kind}:{choice.gpu_index}" if choice.gpu_index is not None else choice.kind)


@dataclass(slots=True)
class Session:
    """A running sweep, or its part on equal devices where it has several kinds."""

    config: SweepConfig
    options: SweepOptions
    progress: Progress
    launcher: Launcher
    store: Store
    environment: Environment
    choice: DeviceChoice
    gpu: DescribedGpu | None = None  # as estimates use it; None if it cannot be read, and for a CPU not calibrated
    plan: list[Planned] = field(default_factory=list)
    seats: list[Seat] = field(default_factory=list)  # equal devices, in an order of their own; one unless given
    beside: Sequence[Environment] = ()  # of the sweep's other kinds of devices
    silent_runs: int = 0  # in a row, in which NVML timed out
    silence: str | None = None  # why NVML is no longer queried
    notes: dict[str, Any] = field(default_factory=dict)  # stored with the plan, for readers
    names: dict[Case, str] = field(default_factory=dict)  # see `name`
    rounds: int = 0  # of repeats beyond the minimum
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        """Open the journal; nothing is read yet."""
        self.journal = Journal(self.store, self.config.protocol, self.environment)
        self.seats = self.seats or [Seat(self.choice, self.environment)]

    def name(self, case: Case) -> str:
        """The name of a case in every printed line."""
        return self.names.get(case) or str(case)


def read_environment(
    launcher: Launcher,
    choice: DeviceChoice,
    files: Sequence[Device] = (),
    limit_bytes: int | None = None,
    calibrations: Calibrations = NONE,
    cpus: Sequence[int] | None = None,
    host_limit_bytes: int | None = None,
) -> tuple[Environment, DescribedGpu | None]:
    """The environment of a device, and the GPU as estimates use it, each read in a separate process.

    Args:
        launcher: Starts the processes.
        choice: The device.
        files: The user's own device files; one of them must describe the GPU.
        limit_bytes: Memory of the smaller card that the GPU plays; None for its own.
        calibrations: Which of them the estimates may use; a device file that is given is used as it is.
        cpus: The host's processors that runs are kept on; None for all.
        host_limit_bytes: The limit on a run's host memory, for a GPU that takes host memory; None for none.

    Returns:
        The environment, which names the device of the estimates; and the GPU or calibrated CPU, or None for other CPUs
        and for GPUs of other vendors: the estimators follow NVIDIA's libraries, whatever compute capability ROCm
        reports.

    Raises:
        DeviceError: None of the files given describes this device; or it is a CPU, has no memory of its own, or is
            smaller than the limit.
        BenchError: The process does not start, or the device cannot be read.
    """
    if files and choice.kind == "cpu":
        raise DeviceError(
            f"--device-file describes a GPU, but runs would use the CPU ({choice.reason}). Remove the option"
        )
    if limit_bytes is not None and choice.kind == "cpu":
        raise DeviceError(
            f"limits.device_memory (--memory) is for GPUs, and runs would use the CPU ({choice.reason}). Remove it: "
            "there, limits.host_memory limits a run"
        )
    argument = {"device": choice.kind, **gpu_of(choice), "cpus": cpus}
    environment = Environment(**ask_machine(launcher, environment_task, argument))
    environment = replace(environment, cpu_slot=choice.slot)
    if choice.kind == "cpu":
        cpu = this_cpu()
        calibrations.refuse_unused([cpu])
        calibrated = calibrations.apply(load_device("cpu"), cpu)
        described = DescribedGpu(calibrated, cpu, _calibrated(calibrated)) if calibrated.calibration else None
        return replace(environment, estimate_device="cpu"), described
    unified = environment.device_memory_kind == "unified"
    if unified and limit_bytes is not None:
        raise DeviceError(
            f"limits.device_memory (--memory) is for GPUs with memory of their own, and {environment.gpu_name} takes "
            "the host's. Remove it: there, limits.host_memory limits a run"
        )
    if limit_bytes is not None and choice.kind == "xpu" and not _can_limit_xpu(environment.torch_version or ""):
        raise DeviceError(
            f"limits.device_memory (--memory): torch {environment.torch_version} cannot limit memory on Intel GPUs; "
            "2.10 and newer can. Remove it, or install a newer torch"
        )
    allowed_bytes = environment.gpu_memory_limit_bytes
    if environment.hip_version is not None or choice.kind != "cuda":
        if limit_bytes is not None:
            refuse_larger(limit_bytes, allowed_bytes or environment.gpu_total_bytes, environment.gpu_name or "this GPU")
        return replace(environment, estimate_device=environment.gpu_name or "unknown"), None
    facts = _read_facts(launcher, choice, context=False)
    name = str(facts["values"]["gpu_name"])
    found = device_from_mapping(name, {**facts["values"], "sources": facts["sources"]}, name)
    gpu = describe_gpu(found, files)
    calibrations.refuse_unused([found])
    device = gpu.device if files else calibrations.apply(gpu.device, found, environment.gpu_uuid_hash)
    remarks = [gpu.remark, _calibrated(device)]
    if unified:
        allowed_bytes = _host_room_bytes(facts["host_available_bytes"], host_limit_bytes)
    elif limit_bytes is not None and allowed_bytes is not None:
        refuse_larger(limit_bytes, allowed_bytes, f"{device.name} that this process may take")
    device = with_memory(device, limit_bytes or allowed_bytes)
    gpu = replace(gpu, device=device, remark=". ".join(filter(None, remarks)) or None)
    return replace(environment, estimate_device=str(gpu.device)), gpu


def _can_limit_xpu(torch_version: str) -> bool:
    """Whether `torch.xpu.set_per_process_memory_fraction` is there (pytorch/pytorch #165510)."""
    return tuple(map(int, re.findall(r"\d+", torch_version)[:2])) >= (2, 10)


def _host_room_bytes(available_bytes: int, limit_bytes: int | None) -> int:
    """What a GPU may take of the host's memory: what is available, in whole GiB, so that estimates stay the same."""
    available = max(available_bytes // GIB * GIB, MIB)
    return available if limit_bytes is None else min(available, limit_bytes)


def _calibrated(device: Device) -> str | None:
    return f"estimates of speed on {device.name} are {device.calibration}" if device.calibration else None


def _read_facts(launcher: Launcher, choice: DeviceChoice, *, context: bool) -> dict[str, Any]:
    argument = {**gpu_of(choice), "context": context}
    return ask_machine(launcher, device_facts_task, argument)


def read_device_file(launcher: Launcher, choice: DeviceChoice) -> str:
    """The text of a device file for the chosen GPU.

    Raises:
        DeviceError: The CPU was chosen: it has no such values.
        BenchError: The process does not start, or the device cannot be read.
    """
    if choice.kind != "cuda":
        where = "the CPU" if choice.kind == "cpu" else f"{choice.kind}, of which bench reads none"
        raise DeviceError(f"a device file describes a GPU, but runs would use {where} ({choice.reason})")
    facts = _read_facts(launcher, choice, context=True)
    return render_device_toml(facts["values"], facts["sources"])


def gpu_of(choice: DeviceChoice) -> dict[str, Any]:
    """The device a child should have: its lock, and the GPU's UUID if NVML knows it, or its index among the visible."""
    return {
        "gpu_uuid": choice.gpu.uuid if choice.gpu else None,
        "gpu_index": choice.gpu_index,
        "lock": lock_key(choice),
    }


@contextlib.contextmanager
def held_device(
    requested: str,
    choose: Callable[[str, MachineFacts], DeviceChoice] = usable_device,
    ready: Callable[[], None] = lambda: None,
) -> Iterator[DeviceChoice]:
    """Choose a device and lock it.

    NVML identifies it before torch, which would touch it: a second process fails at once without disturbing the first.
    If NVML cannot, torch is queried first.

    Args:
        requested: As `selection.usable_device` takes it.
        choose: Chooses the device, querying torch.
        ready: Called between locking and querying; it starts processes.

    Raises:
        DeviceError: As `choose` does.
        BusyError: Another process holds the device.
    """
    facts = MachineFacts() if requested == "cpu" else read_machine_facts(ask_torch=False)
    with contextlib.ExitStack() as held:
        expected = expected_device(requested, facts)
        if expected is not None:
            held.enter_context(_hold(expected))
        ready()
        choice = choose(requested, facts)
        if expected is None or lock_key(choice) != lock_key(expected):
            held.enter_context(_hold(choice))
        yield choice


@contextlib.contextmanager
def held_devices(requested: str, ready: Callable[[], None] = lambda: None) -> Iterator[list[DeviceChoice]]:
    """Choose and lock every device of a request, as `held_device` does for one.

    Args:
        requested: As `config.values.read_devices` takes it.
        ready: As for `held_device`.

    Raises:
        DeviceError: One of them cannot be used.
        BusyError: Another process holds one of them.
    """
    if requested != "all" and not ("," in requested or requested.startswith(("cpu:", "GPU-", "MIG-"))):
        with held_device(requested, ready=ready) as choice:
            yield [choice]
        return
    on_cpu = requested.startswith("cpu:")
    facts = MachineFacts() if on_cpu else read_machine_facts(ask_torch=False)
    with contextlib.ExitStack() as held:
        if on_cpu and "," in requested:  # the slots are of one CPU, which a sweep has to itself
            held.enter_context(_hold(DeviceChoice("cpu", "expected")))
        known = {lock_key(choice): choice for choice in expected_devices(requested, facts)}
        for choice in known.values():
            held.enter_context(_hold(choice))
        ready()
        choices = usable_devices(requested, facts)
        for choice in choices:
            if lock_key(choice) not in known:
                held.enter_context(_hold(choice))
        yield choices


def _hold(choice: DeviceChoice) -> AbstractContextManager[None]:
    name = choice.gpu.name if choice.gpu is not None and choice.gpu.name else choice.kind
    return hold(device_lock_path(lock_key(choice)), f"the device {name}")


def lock_key(choice: DeviceChoice) -> str:
    """What the locks of a device are called, the same for all processes of the host."""
    if choice.slot:
        return choice.slot.replace(":", "-slot-")
    return hash_uuid(choice.uuid) if choice.uuid else f"{choice.kind}-{choice.gpu_index or 0}"


def device_name(environment: Environment) -> str:
    """The name of the device for people."""
    return environment.gpu_name or environment.cpu_model or environment.device
