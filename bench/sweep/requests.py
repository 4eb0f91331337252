"""What a plan asks of a cluster: jobs, time and memory, and a request of resources for one case.

Nothing is started. Memory and the time of steps are estimates for devices that are named; without any there are none.
Times beside them are limits, as configured.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bench.config import SweepConfig
from bench.errors import BenchError
from bench.plan import build_plan, name_planned
from bench.records import Case, Estimate
from bench.sweep.slurm import JOB_S, cores_of, job_seconds
from bench.sweep.unit import MOST_RUNS
from bench.units import GIB, MIB, counted, format_bytes, format_duration

HOST_BYTES = 4 * GIB
"""Host memory for a job beside what its case needs.

The four processes of `bench run-planned` on a CPU, with torch, had 0.8 GiB together (PSS; resnet18, batch 16). The rest
is for CUDA and its libraries, which were not measured.
"""

PREFETCHED = 2
"""Batches that each process of a loader keeps ready: torch's own `prefetch_factor`."""

DOES_NOT_FIT = "does not fit"  # as `Estimate.estimated_fit` has it


@dataclass(frozen=True, slots=True)
class Demand:
    """What one case needs.

    Attributes:
        case: The case.
        name: What it is called in its plan.
        runs: The positions of its runs in the order.
        device_bytes: By device, the memory that `nvidia-smi` will show, at most; None where it cannot be estimated.
        fits: By device: `fits`, `may not fit`, `does not fit`; None where it is unknown.
        steps_s: By device, the estimated time of the steps of one run; None where it cannot be estimated.
        formula_bytes: By the formula, on any device; None where no device was named.
        host_bytes: Host memory for one job.
        limit_s: The time that all its runs may take in one job.
    """

    case: Case
    name: str
    runs: tuple[int, ...]
    device_bytes: dict[str, int | None]
    fits: dict[str, str | None]
    steps_s: dict[str, float | None]
    formula_bytes: int | None
    host_bytes: int
    limit_s: float

    @property
    def fits_nowhere(self) -> bool:
        """Whether it fits on none of the devices that were named."""
        return bool(self.fits) and all(word == DOES_NOT_FIT for word in self.fits.values())


@dataclass(frozen=True, slots=True)
class Demands:
    """What a plan needs of a cluster.

    Attributes:
        launcher: `slurm` or `ray`, or `local`.
        jobs: Array tasks on Slurm, tasks on Ray; None on a host of its own.
        runs: How many.
        chunk: Runs of one job.
        job_limit_s: The time limit of one job; None where there is none.
        most_s: Device time if every run takes as long as it may.
        steps_s: By device, device time of the steps of cases with an estimate; starting processes is not in it.
        reasons: By device, why there is the formula alone; without those where more is estimated.
        cases: Each that is not skipped.
    """

    launcher: str
    jobs: int | None
    runs: int
    chunk: int
    job_limit_s: float | None
    most_s: float
    steps_s: dict[str, float | None]
    reasons: dict[str, str]
    cases: tuple[Demand, ...]


def find_demands(
    config: SweepConfig,
    kind: str,
    estimates: Mapping[str, Sequence[Estimate]],
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> Demands:
    """What the plan of a configuration needs.

    Args:
        config: The sweep.
        kind: `cpu` or `cuda`: what the plan is for.
        estimates: By the name of each device, an estimate for each case that is not skipped, in the plan's order.
        reasons: As `Demands` has them.
    """
    planned = [run for run in build_plan(config, kind) if run.skip_reason is None]
    positions: dict[Case, list[int]] = {}
    for run in planned:
        positions.setdefault(run.case, []).append(run.position)
    names = name_planned(list(positions))
    by_key = {device: {each.case_key: each for each in made} for device, made in estimates.items()}
    cases = []
    for case, runs in positions.items():
        own = {device: made[case.key] for device, made in by_key.items()}
        steps = {device: _steps_s(config, each) for device, each in own.items()}
        limit_s = config.launcher.time or JOB_S + len(runs) * config.limits.run_timeout
        cases.append(
            Demand(
                case,
                names[case],
                tuple(sorted(runs)),
                {
                    device: each.estimated_device_high_bytes or each.estimated_device_bytes
                    for device, each in own.items()
                },
                {device: each.estimated_fit for device, each in own.items()},
                steps,
                next((each.formula_bytes for each in own.values()), None),
                _host_bytes(config, kind, case, next(iter(own.values()), None)),
                limit_s,
            )
        )
    launcher = config.launcher.kind
    chunk = min(config.launcher.chunk, len(planned)) if launcher == "slurm" else 1
    return Demands(
        launcher=launcher,
        jobs=None if launcher == "local" else math.ceil(len(planned) / max(1, chunk)),
        runs=len(planned),
        chunk=chunk,
        job_limit_s=job_seconds(config.launcher, len(planned)) if launcher == "slurm" else None,
        most_s=len(planned) * config.limits.run_timeout,
        steps_s={device: _total_s(cases, device) for device in estimates},
        reasons=dict(reasons),
        cases=tuple(cases),
    )


def _steps_s(config: SweepConfig, estimate: Estimate) -> float | None:
    """The estimated time of the steps of one run."""
    step_s = estimate.estimated_step_time_s
    if step_s is None:
        return None
    measure = config.measure
    return measure.warmup_steps * step_s + max(measure.min_window, measure.measured_steps * step_s)


def _total_s(cases: Sequence[Demand], device: str) -> float | None:
    known = [steps * len(case.runs) for case in cases if (steps := case.steps_s[device]) is not None]
    return math.fsum(known) if known else None


def _host_bytes(config: SweepConfig, kind: str, case: Case, estimate: Estimate | None) -> int:
    """Host memory of a job, in whole GiB: what torch needs, the model where it is built, and batches that wait."""
    own = estimate.formula_parameters_bytes or 0 if estimate else 0
    if estimate and case.input == "loader":
        own += (estimate.formula_batch_bytes or 0) * (1 + PREFETCHED * config.measure.loader_workers)
    if kind == "cpu":
        own += config.limits.host_memory or (estimate.formula_bytes or 0 if estimate else 0)
    return math.ceil((HOST_BYTES + own) / GIB) * GIB


def demand_lines(demands: Demands) -> list[str]:
    """What a plan needs, for the terminal."""
    runs = counted(demands.runs, "run")
    lines = [f"at most {format_duration(demands.most_s)} of device time: limits.run_timeout for each of {runs}"]
    if demands.launcher == "slurm" and demands.job_limit_s is not None:
        jobs = f"{counted(demands.jobs or 0, 'job')} of up to {counted(demands.chunk, 'run')}"
        lines.insert(0, f"Slurm: {jobs}, each with a time limit of {format_duration(demands.job_limit_s)}")
    elif demands.launcher == "ray":
        lines.insert(0, f"Ray: {counted(demands.jobs or 0, 'task')} of one run each")
    sizes = [case.formula_bytes for case in demands.cases if case.formula_bytes is not None]
    by_formula = f"{format_bytes(min(sizes))} to {format_bytes(max(sizes))} by the formula alone; " if sizes else ""
    lines += [f"on {device}: {by_formula}{reason}" for device, reason in demands.reasons.items()]
    for device, seconds in demands.steps_s.items():
        if device in demands.reasons:
            continue
        told = "unknown" if seconds is None else format_duration(seconds)
        lines.append(f"on {device}: steps alone take {told} (estimated); starting processes is not in it")
        known = [bytes_ for case in demands.cases if (bytes_ := case.device_bytes[device]) is not None]
        unknown = len(demands.cases) - len(known)
        more = f"; unknown for {counted(unknown, 'case')}" if unknown else ""
        if known:
            lines.append(f"on {device}: cases need {format_bytes(min(known))} to {format_bytes(max(known))}{more}")
        words = [case.fits[device] for case in demands.cases]
        lines += [
            f"on {device}: {counted(words.count(word), 'case')}: {word}"
            for word in ("may not fit", DOES_NOT_FIT)
            if word in words
        ]
    nowhere = [case for case in demands.cases if case.fits_nowhere]
    if nowhere:
        lines.append(f"{counted(len(nowhere), 'case')} on no device that was named:")
        lines += [f"  {case.case.key}  {case.name}" for case in nowhere]
    return lines


def choose_demand(demands: Demands) -> Demand:
    """The case that needs the most memory on any device.

    Raises:
        BenchError: There are several cases, and no device was named; none is left; or the plan has several orders.
    """
    if not demands.cases:
        raise BenchError("--emit: every case of the plan is skipped")
    if len(demands.cases) > 1 and not any(any(case.device_bytes.values()) for case in demands.cases):
        raise BenchError(
            f"--emit describes one case, and the plan has {len(demands.cases)}. Name a device with --for (bench list "
            "devices), so that the case that needs the most memory can be found, or leave one with --set"
        )
    if demands.runs > MOST_RUNS:
        raise BenchError(
            f"--emit names runs by their place in one order, and a plan of {demands.runs:,} runs has several, of "
            f"{MOST_RUNS:,} runs each. Narrow it with --set"
        )
    return max(demands.cases, key=lambda case: max((value or 0 for value in case.device_bytes.values()), default=0))


def _device_bytes(demand: Demand) -> int | None:
    return max((value for value in demand.device_bytes.values() if value is not None), default=None)


def _memory_words(demand: Demand) -> str:
    needed = _device_bytes(demand)
    if needed is None:
        return "GPU memory: unknown; bench plan --for DEVICE estimates it"
    return f"GPU memory: {format_bytes(needed)}, as estimated for {', '.join(demand.device_bytes)}"


def slurm_request(config: SweepConfig, demand: Demand, kind: str, order: str) -> str:
    """A job script that does all runs of one case.

    Args:
        config: The sweep.
        demand: Of the case.
        kind: `cpu` or `cuda`.
        order: The results folder, which holds the order.
    """
    settings, minutes = config.launcher, math.ceil(demand.limit_s / 60)
    options = [
        f"job-name=bench-{demand.case.key}",
        *(f"{name}={value}" for name in ("partition", "account", "constraint") if (value := getattr(settings, name))),
        "nodes=1",
        "ntasks=1",
        f"cpus-per-task={cores_of(config, {demand.case.input})}",
        *([f"gres={settings.gres}"] if settings.gres else ["gpus-per-node=1"] if kind == "cuda" else []),
        f"mem={demand.host_bytes // MIB}M",
        f"time={minutes // 60:02d}:{minutes % 60:02d}:00",
        "no-requeue",
    ]
    told = [f"# {demand.name}"]
    told += [f"# {_memory_words(demand)}; Slurm has no request for it: name a card by gres"] if kind == "cuda" else []
    body = [*settings.setup, f"bench run-planned {shlex.quote(order)} {' '.join(map(str, demand.runs))}"]
    return "\n".join(["#!/bin/bash", *(f"#SBATCH --{option}" for option in options), *told, *body]) + "\n"


def kubernetes_request(config: SweepConfig, demand: Demand, kind: str, order: str) -> str:
    """A pod that does all runs of one case; takes what `slurm_request` takes."""
    needed, folder = _device_bytes(demand), json.dumps(order)  # a string of JSON is one of YAML
    gpu = ['          nvidia.com/gpu: "1"'] if kind == "cuda" else []
    affinity = [
        "  affinity:",
        "    nodeAffinity:",
        "      requiredDuringSchedulingIgnoredDuringExecution:",
        "        nodeSelectorTerms:",
        "          - matchExpressions:",
        "              - key: nvidia.com/gpu.memory  # in MiB; NVIDIA's GPU feature discovery labels nodes with it",
        "                operator: Gt",
        f'                values: ["{math.ceil((needed or 0) / MIB)}"]',
    ]
    words = [f"# {line}" for line in (demand.name, *([_memory_words(demand)] if kind == "cuda" else []))]
    arguments = ", ".join(f'"{index}"' for index in demand.runs)
    return (
        "\n".join(
            [
                *words,
                "apiVersion: v1",
                "kind: Pod",
                "metadata:",
                f"  name: bench-{demand.case.key}",
                "spec:",
                "  restartPolicy: Never",
                f"  activeDeadlineSeconds: {math.ceil(demand.limit_s)}",
                *(affinity if kind == "cuda" and needed is not None else []),
                "  containers:",
                "    - name: bench",
                "      image: IMAGE  # has bench, the version that wrote the order",
                f'      command: ["bench", "run-planned", {folder}, {arguments}]',
                "      resources:",
                "        requests:",
                f'          cpu: "{cores_of(config, {demand.case.input})}"',
                f"          memory: {demand.host_bytes // MIB}Mi",
                "        limits:",
                f"          memory: {demand.host_bytes // MIB}Mi",
                *gpu,
                "      volumeMounts:",
                f"        - {{name: results, mountPath: {folder}}}",
                "        - {name: shared-memory, mountPath: /dev/shm}  # loaders need more than 64 MiB",
                "  volumes:",
                "    - {name: results, persistentVolumeClaim: {claimName: CLAIM}}",
                "    - {name: shared-memory, emptyDir: {medium: Memory}}",
            ]
        )
        + "\n"
    )


REQUESTS = {"slurm": slurm_request, "k8s": kubernetes_request}
