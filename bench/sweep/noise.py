"""`bench noise`: the same few cases again and again in fresh processes, and what that says of this machine.

The runs are an ordinary sweep, in rounds of one run of every case, until the time is spent: one that was killed goes on
with what is missing. Nothing differs between the runs of a case (an A/A), so that what their rates differ by is noise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import TARGETS_FRAC, SweepConfig
from bench.devices.calibration import slug
from bench.devices.kept_noise import KeptNoise, environment_fields, keep_noise
from bench.launchers import LocalLauncher, interrupt_on_terminate
from bench.probes.diagnosis import diagnose
from bench.probes.machine_facts import read_machine_facts
from bench.records import Environment
from bench.store import load_results
from bench.store.parts import typed_errors
from bench.sweep.calibrating import config_of, overrides_of, repeat_within, write_whole
from bench.sweep.session import Budget, SweepOptions, device_name, held_device, read_environment
from bench.sweep.stages import run_sweep
from bench.terminal import Progress

if TYPE_CHECKING:
    import pandas as pd

    from bench.stats import NoiseFloor

RUNS_SHARE = 0.85
"""Of the time, for runs; starting, estimating and the analysis take the rest."""
METRICS_TOLD = ("samples_per_s", "median_step_time_s", "peak_allocated_bytes", "joules_per_sample")
_SETTINGS_THAT_DISTURB = (
    *("governor", "mig_slice", "unified_memory", "persistence_off", "gpu_shared", "cuda_mps", "power_capped"),
    *("power_profile", "edpp_multiplier", "adaptive_tgp", "power_smoothing", "application_clocks"),
)
"""Findings of `bench env` that concern the noise of runs."""

_CASES = {  # on a fast card the host decides the speed of the first and the last, and the device that of the second
    "gpu": (
        ("mlp", "mnist", "adam", 64, "float32", "contiguous"),
        ("resnet50", "imagenet", "sgd_momentum", 32, "float32", "contiguous"),
        ("resnet18", "cifar10", "sgd_momentum", 128, "float32", "contiguous"),
    ),
    "cpu": (
        ("mlp", "mnist", "sgd", 64, "float32", "contiguous"),
        ("mlp:hidden=1024", "cifar10", "adam", 256, "float32", "contiguous"),
        ("resnet18", "cifar10", "sgd_momentum", 8, "float32", "contiguous"),
    ),
}


@dataclass(frozen=True, slots=True)
class NoiseOptions:
    """How to measure the noise.

    Attributes:
        out: The folder of the results; None for one named after the device below `reports`.
        device: `auto`, `cpu`, `cuda`, `xpu` or `mps`, or one of several: `cuda:N`, `xpu:N`.
        minutes: What all of it may take.
        repeats: The most processes per case.
        config: The cases; None for those of this module.
        keep: Whether `bench env` and later sweeps of this account know of it.
    """

    out: Path | None = None
    device: str = "auto"
    minutes: float = 10.0
    repeats: int = 40
    config: SweepConfig | None = None
    keep: bool = True


@dataclass(frozen=True, slots=True)
class MeasuredNoise:
    """The outcome.

    Attributes:
        folder: Of the results.
        content: What `noise.json` holds: `visible`, `disturbances`, `settings`, `cases` and more.
        kept: The file that `bench env` reads; None if there is none.
        failed: Whether a case failed, or no case had two runs.
    """

    folder: Path
    content: dict[str, Any]
    kept: Path | None
    failed: bool


def measure_noise(options: NoiseOptions, progress: Progress) -> MeasuredNoise:
    """Measure the noise of a device of this machine.

    Raises:
        BenchError: The device, folder or configuration cannot be used; finished runs are kept.
        KeyboardInterrupt: On Ctrl-C or SIGTERM; finished runs are kept.
    """
    began, seconds = time.monotonic(), 60.0 * options.minutes
    launcher = LocalLauncher()
    with interrupt_on_terminate():
        with held_device(options.device, ready=launcher.warm) as choice:
            environment, _ = read_environment(launcher, choice)
        folder = options.out or Path("reports") / f"noise-{slug(device_name(environment))}"
        with typed_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        own = options.config or config_of(
            _CASES["cpu" if environment.device == "cpu" else "gpu"], "noise", "An A/A on one machine", {}
        )
        progress.deadline = began + RUNS_SHARE * seconds
        outcome = run_sweep(
            repeat_within(own, options.repeats, options.minutes),
            SweepOptions(
                out=folder, device=options.device, report=False, budget=Budget(RUNS_SHARE * seconds, progress.deadline)
            ),
            progress,
        )
    frame = load_results(folder)
    frame = frame[frame["planned"] & (frame["environment_key"] == environment.key)]
    progress.say("simulating comparisons with this noise")
    content = _content(frame, environment, outcome.counts)
    write_whole(folder / "noise.json", json.dumps(content, indent=1) + "\n")
    kept = None
    if content["noise"] is not None and options.keep:
        kept = keep_noise(_kept(content, environment), environment)
    return MeasuredNoise(folder, content, kept, outcome.failed or content["noise"] is None)


def _content(frame: pd.DataFrame, environment: Environment, counts: dict[str, int]) -> dict[str, Any]:
    """What the runs say."""
    from bench.analysis.calibration import measured_runs, rates_of_cases, recommend
    from bench.analysis.disturbances import find_disturbances
    from bench.records import AXES
    from bench.stats import noise_floor

    runs = measured_runs(frame)
    rates = rates_of_cases(runs)
    noise = noise_floor(list(rates.values())) if rates else None
    target = TARGETS_FRAC[environment.device]
    settings = recommend(runs, noise, target, {})
    facts = read_machine_facts(ask_torch=False)
    advised = [asdict(each) for each in diagnose(facts) if each.code in _SETTINGS_THAT_DISTURB]
    cases = []
    for key, values in rates.items():
        first = runs[runs["case_key"] == key].iloc[0]
        alone = noise_floor([values])
        case = {axis: first[axis].item() if hasattr(first[axis], "item") else first[axis] for axis in AXES}
        found = {"spread_frac": alone.spread_frac, "visible": [asdict(side) for side in alone.visible]} if alone else {}
        cases.append({**case, "case_key": key, "processes": len(values), "spread_frac": None, "visible": [], **found})
    started = frame["started_unix_s"].dropna()
    return {
        "device": device_name(environment),
        "kind": environment.device,
        "environment_key": environment.key,
        "measured_unix_s": float(started.max()) if len(started) else None,
        "runs": counts,
        "measured_runs": len(runs),
        "cases": cases,
        "noise": asdict(noise) if noise else None,
        "metrics": _metrics(runs, noise),
        "disturbances": [asdict(each) for each in find_disturbances(runs)],
        "advice": advised,
        "settings": {**asdict(settings), "overrides": overrides_of(settings)},
    }


def _metrics(runs: pd.DataFrame, noise: NoiseFloor | None) -> dict[str, Any]:
    """The spread of each metric of `bench compare`, and the differences in it that can be seen."""
    from bench.comparison.metrics import METRICS
    from bench.stats import noise_floor

    found: dict[str, Any] = {}
    for name in METRICS_TOLD:
        values = METRICS[name].values(runs)
        each: Sequence[list[float]] = [
            [float(value) for value in values[(runs["case_key"] == key).to_numpy()] if value == value]
            for key in runs["case_key"].drop_duplicates()
        ]
        floor = noise if name == METRICS_TOLD[0] else noise_floor([group for group in each if len(group) >= 2])
        if floor is not None:
            visible = [[item.processes, item.frac, item.low, item.high] for item in floor.visible]
            found[name] = {"spread_frac": floor.spread_frac, "visible": visible}
    return found


def _kept(content: dict[str, Any], environment: Environment) -> KeptNoise:
    noise = content["noise"]
    return KeptNoise(
        device=content["device"],
        environment_key=environment.key,
        environment=environment_fields(environment),
        measured_unix_s=content["measured_unix_s"],
        runs=content["measured_runs"],
        cases=len(content["cases"]),
        spread_frac=noise["spread_frac"],
        quietest_frac=noise["quietest_frac"],
        noisiest_frac=noise["noisiest_frac"],
        visible=[(each["processes"], each["frac"]) for each in noise["visible"]],
        disturbances=[each["code"] for each in content["disturbances"]],
    )
