"""Made-up results of several GPUs for reports that compare them: out of memory, failures, cases that one never planned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bench.records import Case, Environment, Measurement, Status
from tests.results import GIB, GPU, NOTES, make_cases, make_results

A100 = dataclasses.replace(
    GPU,
    gpu_name="NVIDIA A100-SXM4-80GB",
    gpu_total_bytes=80 * GIB,
    estimate_device="a100",
    power_limit_w=400.0,
    power_limit_default_w=400.0,
    host_hash="a" * 16,
    gpu_uuid_hash="a" * 16,
    gpu_capability="8.0",
    vbios=None,
)
RTX_4090 = dataclasses.replace(
    GPU,
    gpu_name="NVIDIA GeForce RTX 4090",
    gpu_total_bytes=24 * GIB,
    estimate_device="rtx4090",
    power_limit_w=400.0,
    power_limit_default_w=450.0,
    host_hash="b" * 16,
    gpu_uuid_hash="b" * 16,
    gpu_capability="8.9",
    ecc=None,
    driver_version="565.57.01",
)

CASES = [
    *make_cases(["imagenet"], ["resnet50"], ["sgd_momentum", "adam"], [8, 32, 128, 512, 1024]),
    *make_cases(["cifar10"], ["resnet18"], ["adam"], [64, 1024], precision="bf16"),
]
FACTORS = {"h200": 1.0, "a100": 2.0, "rtx4090": 0.8}
"""How much longer a step takes than on the first."""


def make_machine(
    folder: Path, environment: Environment, factor: float, seed: int, cases: list[Case], **settings
) -> Path:
    """One results folder whose steps take `factor` times as long as those of `tests.results`."""

    def change(measurement: Measurement, case: Case, repeat: int) -> Measurement:
        if not measurement.step_times_s:
            return measurement
        steps = tuple(step * factor for step in measurement.step_times_s)
        return dataclasses.replace(
            measurement,
            step_times_s=steps,
            wall_window_s=(measurement.wall_window_s or 0.0) * factor,
            energy_window_j=sum(steps) * environment.power_limit_w if environment.power_limit_w else None,
        )

    make_results(
        folder / "data",
        cases,
        environment=environment,
        seed=seed,
        change=settings.pop("change", change),
        notes={**NOTES, "name": folder.name},
        **settings,
    )
    return folder


def make_machines(root: Path, repeats: int = 5) -> list[Path]:
    """`h200`, `a100` (one case failed) and `rtx4090` (small memory; the cases of CIFAR-10 were never planned)."""
    few = [case for case in CASES if case.dataset.name == "imagenet"]
    return [
        make_machine(root / "h200", GPU, FACTORS["h200"], 1, CASES, memory_bytes=141 * GIB, repeats=repeats),
        make_machine(
            root / "a100",
            A100,
            FACTORS["a100"],
            2,
            CASES,
            memory_bytes=80 * GIB,
            repeats=repeats,
            outcomes={1: Status.FAILED},
        ),
        make_machine(root / "rtx4090", RTX_4090, FACTORS["rtx4090"], 3, few, memory_bytes=20 * GIB, repeats=repeats),
    ]
