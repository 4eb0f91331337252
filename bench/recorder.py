"""One case with the allocator's history on, in a separate process: what `bench record` runs on the GPU.

It runs the step of `bench.workload`, built in the same order as in the worker; nothing is timed. The history begins
before anything is allocated, so that its replay starts from an empty allocator. Python's garbage collector is off: it
would free tensors in the middle of a step, at a point that no other process repeats.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import catalog
from bench.errors import Unsupported, describe_failure
from bench.forks import write_traceback
from bench.plan import image_spec
from bench.probes.gpu_monitor import Readings
from bench.probes.oom import describe_out_of_memory, is_out_of_memory
from bench.probes.torch_memory import CudaMemory, start_gpu
from bench.recordings import STATISTICS, Facts, GpuFacts, Recording, pack_history, write_recording
from bench.recordings.facts import FORMAT
from bench.records import Case, Environment, Protocol, Status
from bench.records.variables import variables_set
from bench.workload import build_workload, numeric_modes
from bench.workload.inputs import Batch, build_inputs
from bench.workload.rounding import read_rounding

Send = Callable[[dict[str, Any]], None]

MAX_ENTRIES = 1_500_000  # of the history; the oldest would be dropped, and the file refuses more


@dataclass(frozen=True, slots=True)
class RecordTask:
    """What to record.

    Attributes:
        case: The case.
        environment: The machine, as the parent read it.
        gpu_uuid: The GPU's UUID in NVML; None without NVML.
        steps: Training steps.
        stacks: Whether to keep Python's call stack at each event.
        key: The recording's key.
        target: Where the file goes.
        protocol: Its seed, switches and memory limit are taken.
    """

    case: Case
    environment: Environment
    gpu_uuid: str | None
    steps: int
    stacks: bool
    key: str
    target: str
    protocol: Protocol = field(default_factory=Protocol)


@dataclass(slots=True)
class _RecordingRun:
    """A running recording."""

    task: RecordTask
    send: Send
    stats: list[dict[str, int]] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    at_failure: dict[str, int] | None = None
    memory: dict[str, int | None] = field(default_factory=dict)
    kept: Any = None  # what the case holds on the device, so that nothing is freed before the history is read

    def mark(self) -> None:
        """Note the memory that torch reports, and the length of the history."""
        self.stats.append(_read_stats())
        self.marks.append(len(_history()))


def record_case(task: RecordTask, send: Send) -> dict[str, Any]:
    """Run the case's steps with the history on and write the file.

    Returns:
        `status` and `reason`; where a file was written, also `events`, `peak_allocated_bytes`, `peak_reserved_bytes`.
        There is one if the status is ok or oom: a step that does not fit is worth recording too.

    Raises:
        DeviceError: The GPU cannot be initialised.
    """
    run = _RecordingRun(task, send)
    readings = Readings(task.gpu_uuid)
    _begin(run, readings)
    reason: str | None = None
    try:
        with numeric_modes(task.case, task.protocol):
            try:
                _train(run)
            finally:
                switches = _switches()  # a model may have changed them
        status = Status.OK
    except Unsupported as error:
        return {"status": Status.SKIPPED, "reason": str(error)}
    except BaseException as error:  # noqa: BLE001 - whatever a model raises is this case's outcome; its traceback is logged
        if not is_out_of_memory(error):
            write_traceback(error)
            return {"status": Status.FAILED, "reason": describe_failure(error)}
        reason = describe_out_of_memory(error)[:300]
        status, run.at_failure = Status.OOM, _read_stats()
    actions, addresses, sizes, stacks = pack_history(_history(), run.marks)
    _end(run, readings)
    facts = _facts(run, status, reason, switches)
    write_recording(Recording(facts, actions, addresses, sizes, stacks if task.stacks else []), Path(task.target))
    last = facts.last_stats
    return {
        "status": status,
        "reason": reason,
        "events": len(actions),
        "peak_allocated_bytes": last["allocated_bytes.all.peak"],
        "peak_reserved_bytes": last["reserved_bytes.all.peak"],
    }


def _begin(run: _RecordingRun, readings: Readings) -> None:
    """Make the context, read the device on both sides of it, and switch the history on."""
    run.send({"phase": "context"})
    before = readings.used_bytes()
    start_gpu(before)
    free, _ = torch.cuda.mem_get_info()
    after = readings.used_bytes()
    if (limit := run.task.protocol.device_memory_bytes) is not None:  # once: a replay knows one limit
        free = min(free, CudaMemory().play_card(limit, before))
    run.memory.update(nvml_before_context=before, nvml_after_context=after, free_after_context=free, limit=limit)
    gc.collect()
    gc.disable()
    torch.cuda.memory._record_memory_history(
        "all", context="all" if run.task.stacks else None, stacks="python", max_entries=MAX_ENTRIES
    )


def _train(run: _RecordingRun) -> None:
    """Build what the worker builds, in its order, and take the steps."""
    case, protocol, device = run.task.case, run.task.protocol, torch.device("cuda")
    run.send({"phase": "build"})
    workload = build_workload(case, image_spec(case.dataset, case.image_size), protocol, device)
    run.kept = [workload]
    with build_inputs(case, catalog.describe_dataset(case.dataset), protocol, device) as inputs:
        run.kept.append(next(inputs))

        def batches() -> Iterator[Batch]:
            yield run.kept[1]
            while True:
                if case.input != "synthetic":
                    run.kept[1] = next(inputs)
                yield run.kept[1]

        given = batches()
        run.mark()
        run.send({"phase": "steps"})
        for _ in range(run.task.steps):
            workload.step(given)
            torch.cuda.synchronize()
            run.mark()


def _end(run: _RecordingRun, readings: Readings) -> None:
    """Read the device again; segments are given back only when memory runs out, so this is the peak."""
    free, _ = torch.cuda.mem_get_info()
    context = CudaMemory().device_fields(run.memory["nvml_before_context"])["context_bytes"]
    used = readings.used_bytes()
    run.memory.update(free_after_steps=free, nvml_at_peak=used, context=context)


def _read_stats() -> dict[str, int]:
    figures = torch.cuda.memory_stats()
    return {name: figures.get(name, 0) for name in STATISTICS}


def _history() -> list[dict[str, Any]]:
    traces: list[list[dict[str, Any]]] = torch.cuda.memory._snapshot()["device_traces"]
    return traces[torch.cuda.current_device()]


def _facts(
    run: _RecordingRun, status: Status, reason: str | None, switches: dict[str, bool | int | str | None]
) -> Facts:
    task, environment = run.task, run.task.environment
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    gpu = GpuFacts(
        name=properties.name,
        multiprocessors=properties.multi_processor_count,
        threads_per_multiprocessor=getattr(properties, "max_threads_per_multi_processor", None),
        compute_capability=[properties.major, properties.minor],
        total_bytes=properties.total_memory,
        driver_version=environment.driver_version,
    )
    versions = {
        "torch": torch.__version__,
        "torchvision": environment.torchvision_version,
        "cuda": environment.cuda_version,
        "cudnn": environment.cudnn_version,
        "cublas": _cublas_version(),
        "bench": environment.bench_version,
    }
    return Facts(
        format=FORMAT,
        loop="bench",
        recording_key=task.key,
        case_key=task.case.key,
        axes=task.case.axes,
        status="ok" if status is Status.OK else "oom",
        reason=reason,
        steps=max(len(run.stats) - 1, 0),
        memory_stats=run.stats,
        at_failure=run.at_failure,
        gpu=gpu,
        versions={name: str(value) if value else None for name, value in versions.items()},
        switches=switches,
        variables=variables_set(os.environ, "allocator", "result"),
        memory=run.memory,
        seed=task.protocol.seed,
    )


def _switches() -> dict[str, bool | int | str | None]:
    """What decides which kernels run, as it stands while the steps are taken."""
    cuda, cudnn, rounding = torch.backends.cuda, torch.backends.cudnn, read_rounding()
    attention = {
        name: getattr(cuda, f"{name}_enabled")() if hasattr(cuda, f"{name}_enabled") else None
        for name in ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")
    }
    return {
        "matmul_tf32": rounding.matmul == "tf32",
        "cudnn_tf32": rounding.conv == "tf32",
        "cudnn_enabled": bool(cudnn.enabled),
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **attention,
    }


def _cublas_version() -> str | None:
    """Of NVIDIA's wheel; None if torch brings its own library."""
    names = ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12", "nvidia-cublas-cu11")
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
