"""Results as a sweep would write them, made up: a folder with runs of every status, written through the real store.

The numbers follow a simple machine (a fixed cost a step, a cost a sample, a spread between processes and a smaller one
between steps), so that reports made from them look like reports. Everything follows from `seed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from bench.records import Case, Choice, Environment, Estimate, Measurement, Planned, Protocol, Status
from bench.store import Store

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

CPU = Environment(
    device="cpu",
    estimate_device="cpu",
    torch_version="2.15.0+cpu",
    torchvision_version="0.30.0",
    python_version="3.11.9",
    numpy_version="2.3.1",
    pandas_version="3.1.0",
    pyarrow_version="26.0.0",
    bench_version="0.1.0",
    torch_threads=2,
    cpu_model="Example Eight 3.0 GHz",
    cpu_cores_physical=8,
    cpu_cores_logical=16,
    cpu_cores_usable=2,
    ram_bytes=16 * GIB,
    os_name="Debian 13",
    kernel="6.12.0",
    host_hash="0123456789abcdef",
    git_commit="f" * 40,
    git_dirty=False,
)

_PROTOCOL = Protocol(warmup_steps=3, measured_steps=8)

GPU = dataclasses.replace(
    CPU,
    device="cuda",
    estimate_device="h200",
    gpu_name="NVIDIA H200",
    gpu_uuid_hash="feedfeedfeedfeed",
    gpu_index=0,
    gpu_count=1,
    gpu_total_bytes=141 * GIB,
    gpu_multiprocessors=132,
    gpu_capability="9.0",
    vbios="96.00.99.00.01",
    driver_version="570.86.10",
    ecc=True,
    mig=False,
    persistence_mode=True,
    power_limit_w=700.0,
    power_limit_default_w=700.0,
    max_sm_clock_hz=1.98e9,
    cuda_version="12.8",
    cudnn_version="9.7.1",
    torch_version="2.15.0+cu128",
    torch_arch_list="sm_80 sm_90",
)

_PARAMETERS = {"mlp": 101_770, "resnet18": 11_173_962, "resnet50": 25_557_032, "vit_b_16": 86_567_656}
_SIDES = {"mnist": (1, 28), "cifar10": (3, 32), "imagenet": (3, 224)}
_STATES = {"sgd": 0, "sgd_momentum": 1, "adam": 2, "adamw": 2}


def make_cases(
    datasets: Iterable[str] = ("mnist", "cifar10"),
    models: Iterable[str] = ("mlp",),
    optimizers: Iterable[str] = ("sgd", "sgd_momentum", "adam"),
    batch_sizes: Iterable[int] = (16, 64, 256, 1024),
    **axes: Any,
) -> list[Case]:
    """The product of the axes; `axes` are further fields of `Case`, the same for all."""
    batch_sizes, optimizers, models = tuple(batch_sizes), tuple(optimizers), tuple(models)
    return [
        Case(
            Choice.of(dataset),
            Choice.of(model),
            Choice.of(optimizer),
            batch,
            **{"image_size": _SIDES.get(dataset, (3, 64))[1], **axes},
        )
        for dataset in datasets
        for model in models
        for optimizer in optimizers
        for batch in batch_sizes
    ]


def make_results(
    folder: Path,
    cases: Sequence[Case] | None = None,
    *,
    environment: Environment = CPU,
    protocol: Protocol = _PROTOCOL,
    repeats: int = 3,
    seed: int = 1,
    outcomes: Mapping[int, Status] | None = None,
    change: Callable[[Measurement, Case, int], Measurement] | None = None,
    memory_bytes: int | None = None,
    trace: bool = False,
    notes: Mapping[str, Any] | None = None,
    data_source: str = "files",
) -> Path:
    """Write a results folder and return it.

    Args:
        folder: Where to write; made if it is not there.
        cases: What was run; a small grid of the founding documents unless given.
        environment: The machine: `CPU`, `GPU`, or a changed copy.
        protocol: How runs measure.
        repeats: Fresh processes a case.
        seed: Of all spread.
        outcomes: Status of every run of a case, by the case's index; `SKIPPED` and `INTERRUPTED` runs have no part.
        change: Replaces a measurement before it is written: `(measurement, case, repeat) -> measurement`.
        memory_bytes: Cases whose peak is above run out of memory.
        trace: Whether the trace's and the device's estimates are there.
        notes: Beside the plan; a name, a configuration's text and a command unless given.
        data_source: `files` or `synthetic`.
    """
    cases = make_cases() if cases is None else list(cases)
    outcomes = outcomes or {}
    generator = random.Random(seed)
    planned = _plan(cases, outcomes, repeats, generator)
    with unsynced():
        store = Store(folder)
        store.create()
        store.write_plan(planned, protocol, environment, NOTES if notes is None else notes)
        store.write_estimates([_estimate(case, environment, trace) for case in cases], f"e{seed}")
        index = {case.key: number for number, case in enumerate(cases)}
        for run in planned:
            status = outcomes.get(index[run.case.key], Status.OK)
            if status in (Status.SKIPPED, Status.INTERRUPTED):
                continue
            if memory_bytes is not None and _peak(run.case) > memory_bytes:
                status = Status.OOM
            measurement = _measure(run.case, status, environment, protocol, generator, data_source)
            if change is not None:
                measurement = change(measurement, run.case, run.repeat)
            store.write_run(run, 0, protocol, measurement, environment)
    return folder


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Files that are written within need not outlast a power cut: waiting for the disk takes a third of the time."""
    with mock.patch.object(os, "fsync"):
        yield


NOTES = {
    "name": "example",
    "description": "Founding models, made up",
    "config": {
        "name": "example",
        "grid": {"dataset": ["mnist", "cifar10"], "model": ["mlp"], "optimizer": ["sgd"], "batch_size": [16, 64]},
        "exclude": [{"reason": "too large", "model": ["mlp"], "batch_size": [4096]}],
    },
    "device": "auto",
}
"""As `bench sweep` notes them beside a plan."""


def _plan(
    cases: Sequence[Case], outcomes: Mapping[int, Status], repeats: int, generator: random.Random
) -> list[Planned]:
    skipped = [(case, 0) for number, case in enumerate(cases) if outcomes.get(number) == Status.SKIPPED]
    runnable = [case for number, case in enumerate(cases) if outcomes.get(number) != Status.SKIPPED]
    order = [(case, repeat) for repeat in range(repeats) for case in generator.sample(runnable, len(runnable))]
    names = {case.key for case, _ in skipped}
    return [
        Planned(case, repeat, position, "excluded by a rule of the example" if case.key in names else None)
        for position, (case, repeat) in enumerate(skipped + order)
    ]


def _sizes(case: Case) -> dict[str, int]:
    """The formula's categories in bytes."""
    channels, side = _SIDES.get(case.dataset.name, (3, 64))[0], case.image_size
    weights = 4 * _PARAMETERS.get(case.model.name, 5_000_000)
    activations = 512 if case.model.name == "mlp" else 900 * channels * side * side
    return {
        "parameters": weights,
        "gradients": weights,
        "optimizer_state": weights * _STATES.get(case.optimizer.name, 1),
        "batch": case.batch_size * (4 * channels * side * side + 8),
        "activations": case.batch_size * activations,
    }


def _peak(case: Case) -> int:
    """What a run of the case takes, in bytes: more than the formula says."""
    return 512 * math.ceil((sum(_sizes(case).values()) * 1.17 + 300 * KIB) / 512)


def _estimate(case: Case, environment: Environment, trace: bool) -> Estimate:
    sizes = _sizes(case)
    fields: dict[str, Any] = {f"formula_{name}_bytes": size for name, size in sizes.items()}
    fields["formula_bytes"] = sum(sizes.values())
    if trace:
        peak = _peak(case) + (0 if case.batch_size % 3 else 1024)
        rest = peak - sum(sizes.values())
        fields |= {f"trace_{name}_bytes": size for name, size in sizes.items()}
        fields |= {
            "trace_temporaries_bytes": rest // 2,
            "trace_workspaces_bytes": rest // 4,
            "trace_rounding_bytes": rest - rest // 2 - rest // 4,
        }
        reserved = 2 * MIB * math.ceil(peak / (2 * MIB))
        fields |= {
            "trace_peak_allocated_bytes": peak,
            "trace_peak_reserved_bytes": reserved,
            "trace_peak_requested_bytes": peak - 4 * KIB,
            "estimated_device_bytes": reserved + 600 * MIB,
            "estimated_samples_per_s": 1.2 * case.batch_size / _step_s(case, environment),
        }
        if environment.device == "cuda":  # MFU is 40 % and the roofline 50 % of a true step
            fields |= {
                "step_flop": round(0.4 * 5e13 * _step_s(case, environment)),
                "peak_flop_per_s": 5e13,
                "least_step_time_s": 0.5 * _step_s(case, environment),
            }
    device = environment.estimate_device or environment.device
    return Estimate(case_key=case.key, estimate_device=device, **fields)


def _step_s(case: Case, environment: Environment) -> float:
    """The true seconds a step of the case."""
    sizes = _sizes(case)
    per_second = 4e12 if environment.device == "cuda" else 2e10
    faster = {"bf16": 0.4, "fp16": 0.42, "tf32": 0.55}.get(case.precision, 1.0)
    fixed = 4e-4 if environment.device == "cuda" else 2e-4
    waiting = {"loader": 2e-6, "cached": 2e-7}.get(case.input, 0.0) * case.batch_size
    work = sizes["batch"] * 2 + sizes["activations"] * 30 + sizes["parameters"] * (3 + sizes["optimizer_state"] / 1e12)
    return fixed + waiting + faster * work / per_second + sizes["optimizer_state"] / 2e10


def _measure(
    case: Case, status: Status, environment: Environment, protocol: Protocol, generator: random.Random, source: str
) -> Measurement:
    common: dict[str, Any] = {"started_unix_s": 1.7e9, "duration_s": 2.0, "process_start_s": 0.1, "data_source": source}
    if status in _REASONS:
        reason, phase = _REASONS[status]
        if status == Status.OOM:
            common |= {"oom_requested_bytes": _peak(case) // 2, "peak_allocated_bytes": _peak(case) // 2}
        return Measurement(status=status, reason=reason, phase=phase, **common)
    typical = _step_s(case, environment) * math.exp(generator.gauss(0, 0.01))
    steps = [typical * math.exp(abs(generator.gauss(0, 0.02))) for _ in range(max(protocol.measured_steps, 8))]
    warmup = [
        typical * (30 if number == 0 else 1.4 if number == 1 else 1.05) for number in range(protocol.warmup_steps)
    ]
    gpu = environment.device == "cuda"
    reserved = 2 * MIB * math.ceil(_peak(case) * 1.03 / (2 * MIB))
    memory = (
        {
            "peak_reserved_bytes": reserved,
            "device_used_bytes": reserved + 610 * MIB,
            "peak_requested_bytes": _peak(case) - 4 * KIB,
            "device_total_bytes": environment.gpu_total_bytes,
            "temperature_start_c": 41.0,
            "temperature_end_c": 55.0,
            "sm_clock_end_hz": 1.9e9,
            "energy_window_j": sum(steps) * 420.0,
            "other_process_count": 0,
        }
        if gpu
        else {}
    )
    return Measurement(
        status=status,
        reason="the loss became nan" if status == Status.NAN_LOSS else None,
        flags=("throttled",) if status == Status.THROTTLED else (),
        warmup_times_s=tuple(warmup),
        step_times_s=tuple(steps),
        data_wait_times_s=tuple(step * 0.3 for step in steps) if case.input == "loader" else (),
        wall_window_s=sum(steps) * 1.002,
        final_loss=math.nan if status == Status.NAN_LOSS else 2.3,
        parameter_count=_sizes(case)["parameters"] // 4,
        peak_allocated_bytes=_peak(case),
        cold_peak_allocated_bytes=_peak(case),
        host_rss_peak_bytes=_peak(case) + 400 * MIB,
        **memory,
        **common,
    )


_REASONS = {
    Status.OOM: ("CUDA out of memory: tried to allocate 2.00 GiB", "warm-up"),
    Status.TIMEOUT: ("no answer after 60 s; the run was ended", "measure"),
    Status.CRASHED: ("ended by signal 9 (SIGKILL)", "measure"),
    Status.FAILED: ("RuntimeError: the made-up model raised", "build"),
}
