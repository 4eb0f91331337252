"""`bench calibrate`: ceilings, some twenty steps, recordings, a fit and what they say, within a time budget.

The steps are an ordinary sweep into the same folder, so that a calibration that was killed goes on with what is
missing. The order is: ceilings, runs until their share of the time is spent, on a GPU recordings of as many cases as
there is time for, then the fit. Nothing that was finished is measured again; a complete calibration is only fitted
again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.client import ask, counts_workspaces, this_cpu
from bench.config import TARGETS_FRAC, SweepConfig, check_config
from bench.devices import PRECISIONS, Device, device_toml, load_device
from bench.devices.calibration import NONE, keep_calibration, slug
from bench.devices.schema import CHECKS
from bench.errors import ConfigError, DeviceError
from bench.launchers import Launcher, LocalLauncher, interrupt_on_terminate
from bench.plan import build_plan
from bench.probes.ceilings import MOST_S
from bench.records import Case, Environment
from bench.store import load_results
from bench.store.parts import typed_errors
from bench.sweep.record import RecordOptions, record_cases
from bench.sweep.session import Budget, SweepOptions, device_name, gpu_of, held_device, read_environment
from bench.sweep.stages import SweepOutcome, run_sweep
from bench.tasks import calibration_task, ceilings_task
from bench.terminal import Progress
from bench.units import counted, format_duration

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.calibration import ContextSpread, Settings

RUNS_SHARE, RUNS_END, RECORDINGS_END, ONE_RUN = 0.6, 0.7, 0.85, 0.1
"""Of the time: what runs may take in all, when they end, when recordings end, and what one of either may take. The fit
and the report take the rest."""
CEILING_SHARE = 0.01
"""Of the time, for each ceiling; some eight of them."""
MIN_RECORDING_S, LEAST_TIMEOUT_S = 2.0, 10.0
FEWEST_KEPT, WORST_KEPT = 5, 0.5
"""A calibration from fewer cases, or with a larger median error on cases left out, is not kept for other estimates."""
CASES_PER_MINUTE, FEWEST_CASES = 3, 6
"""A shorter calibration measures the first of its cases only; any beginning of the list has some of each kind."""

_GPU_CASES = (
    # model, data set, optimizer, batch, precision, layout. `half` is bf16 where the GPU has it, else fp16.
    ("resnet50", "imagenet", "sgd_momentum", 32, "float32", "contiguous"),
    ("mlp", "mnist", "adam", 64, "float32", "contiguous"),
    ("resnet50", "imagenet", "sgd_momentum", 64, "fp16", "channels_last"),
    ("vit_b_16", "imagenet", "adam", 32, "half", "contiguous"),
    ("mobilenet_v2", "imagenet", "sgd_momentum", 64, "tf32", "contiguous"),
    ("mlp", "cifar10", "adam", 4096, "float32", "contiguous"),
    ("resnet50", "imagenet", "sgd_momentum", 64, "tf32", "contiguous"),
    ("convnext_tiny", "imagenet", "adam", 32, "fp16", "contiguous"),
    ("resnet18", "cifar10", "sgd_momentum", 128, "half", "channels_last"),
    ("vit_b_16", "imagenet", "adam", 16, "float32", "contiguous"),
    ("resnet50", "imagenet", "sgd_momentum", 64, "half", "channels_last"),
    ("vit_b_16", "imagenet", "adam", 32, "tf32", "contiguous"),
    ("mobilenet_v2", "imagenet", "sgd_momentum", 64, "fp16", "channels_last"),
    ("resnet18", "cifar10", "sgd_momentum", 128, "float32", "contiguous"),
    ("densenet121", "imagenet", "sgd_momentum", 32, "fp16", "contiguous"),
    ("vgg16", "imagenet", "sgd_momentum", 32, "tf32", "contiguous"),
    ("efficientnet_b0", "imagenet", "sgd_momentum", 64, "half", "channels_last"),
    ("mobilenet_v2", "imagenet", "sgd_momentum", 32, "float32", "contiguous"),
    ("resnet50", "imagenet", "adam", 8, "half", "channels_last"),
    ("swin_t", "imagenet", "adam", 32, "fp16", "contiguous"),
)
_CPU_CASES = tuple(
    (*case, "float32", "contiguous")
    for case in (
        ("mlp", "mnist", "sgd", 64),
        ("resnet18", "cifar10", "sgd_momentum", 8),
        ("mlp", "cifar10", "adam", 1024),
        ("mobilenet_v3_small", "cifar10", "sgd_momentum", 16),
        ("mlp:hidden=1024", "cifar10", "sgd", 256),
        ("shufflenet_v2_x0_5", "cifar10", "sgd_momentum", 32),
        ("swin_t", "cifar10", "adam", 8),
        ("mlp", "mnist", "adam", 1024),
        ("resnet18", "cifar10", "adam", 32),
        ("mobilenet_v2", "cifar10", "sgd_momentum", 16),
        ("mlp", "cifar10", "sgd", 16),
        ("squeezenet1_1", "cifar10", "sgd_momentum", 16),
        ("mlp:hidden=1024", "mnist", "adam", 4096),
        ("resnet34", "cifar10", "sgd_momentum", 16),
        ("mobilenet_v3_small", "cifar10", "adam", 64),
        ("densenet121", "cifar10", "sgd_momentum", 8),
        ("shufflenet_v2_x0_5", "cifar10", "adam", 128),
        ("mlp", "mnist", "sgd_momentum", 16),
        ("resnet18", "cifar10", "sgd_momentum", 64),
        ("efficientnet_b0", "cifar10", "sgd_momentum", 8),
    )
)


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """How to calibrate.

    Attributes:
        out: The folder of the results; None for one named after the device below `reports`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        minutes: What all of it may take.
        repeats: Processes per case, where the time allows.
        config: The steps; None for those of this module.
        keep: Whether this account's estimates use the calibration from now on.
    """

    out: Path | None = None
    device: str = "auto"
    minutes: float = 10.0
    repeats: int = 10
    config: SweepConfig | None = None
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The outcome.

    Attributes:
        folder: Of the results.
        content: What `calibration.json` holds.
        device: The calibrated device; None if too few steps were measured.
        kept: Where estimates will find it; None if they will not.
        failed: Whether a case or the calibration failed.
    """

    folder: Path
    content: dict[str, Any]
    device: Device | None
    kept: Path | None
    failed: bool


@dataclass(frozen=True, slots=True)
class _Machine:
    """What is calibrated: where it runs, and the device as estimates have it without a calibration."""

    environment: Environment
    device: Device
    ceilings: dict[str, Any]
    folder: Path


def calibrate_machine(options: CalibrateOptions, progress: Progress) -> Calibrated:
    """Calibrate a device of this machine.

    Raises:
        BenchError: The device, folder or configuration cannot be used; finished runs are kept.
        KeyboardInterrupt: On Ctrl-C or SIGTERM; finished runs are kept.
    """
    began, seconds = time.monotonic(), 60.0 * options.minutes
    launcher = LocalLauncher()
    with interrupt_on_terminate():
        machine = _look(launcher, options, progress)
        config = repeat_within(
            options.config or _own_config(machine, options.minutes), options.repeats, options.minutes
        )
        cases = _cases(config, machine.environment.device)
        progress.deadline = began + RUNS_END * seconds
        outcome = run_sweep(
            config,
            SweepOptions(
                out=machine.folder,
                device=options.device,
                calibrations=NONE,
                budget=Budget(RUNS_SHARE * seconds, progress.deadline),
            ),
            progress,
        )
        frame = load_results(machine.folder)
        frame = frame[frame["planned"] & (frame["environment_key"] == machine.environment.key)]
        progress.deadline = began + RECORDINGS_END * seconds
        recorded = _record(frame, cases, options, machine, progress)
        progress.say(f"fitting; {format_duration(max(0.0, began + seconds - time.monotonic()))} left")
        return _conclude(launcher, options, machine, cases, outcome, frame, recorded)


def _look(launcher: Launcher, options: CalibrateOptions, progress: Progress) -> _Machine:
    """Describe the device and measure its ceilings, unless the folder has those of the same environment."""
    with held_device(options.device, ready=launcher.warm) as choice:
        environment, gpu = read_environment(launcher, choice)
        if choice.kind != "cpu" and gpu is None:
            raise DeviceError(f"{device_name(environment)} is not an NVIDIA GPU, and the estimates follow NVIDIA's")
        device = gpu.device if gpu else replace(load_device("cpu"), gpu_name=this_cpu().gpu_name)
        folder = options.out or Path("reports") / f"calibration-{slug(device_name(environment))}"
        with typed_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / "ceilings.json"
        found = _read_json(path)
        if found.get("environment_key") != environment.key:
            progress.say(f"measuring what {device_name(environment)} reaches")
            most_s = min(MOST_S, CEILING_SHARE * 60.0 * options.minutes)
            argument = {"device": choice.kind, "most_s": most_s, **gpu_of(choice)}
            found = ask(launcher, "calibrate", ceilings_task, argument)
            found["environment_key"] = environment.key
            write_whole(path, json.dumps(found, indent=1) + "\n")
        return _Machine(environment, _with_ceilings(device, found), found, folder)


def _with_ceilings(device: Device, ceilings: Mapping[str, Any]) -> Device:
    """The device with its measured ceilings."""
    values = {key: value for key, value in ceilings["values"].items() if key in ceilings["sources"]}
    sources = dict(device.sources) | dict(ceilings["sources"])
    return replace(device, **values, sources=tuple((key, sources[key]) for key in CHECKS if key in sources))


def _own_config(machine: _Machine, minutes: float) -> SweepConfig:
    """The steps of this module that the time allows and the device computes."""
    has = machine.ceilings["precisions"]
    listed = _GPU_CASES if machine.device.kind == "cuda" else _CPU_CASES
    half = "bf16" if "bf16" in has else "fp16"
    cases = [(*case[:4], half if case[4] == "half" else case[4], case[5]) for case in listed]
    cases = list(dict.fromkeys(case for case in cases if case[4] in has))
    count = min(len(cases), max(FEWEST_CASES, round(CASES_PER_MINUTE * minutes)))
    measure = {"warmup_steps": 8, "measured_steps": 15}
    return config_of(cases[:count], "calibration", "Steps that a calibration is fitted to", measure)


def config_of(
    cases: Sequence[tuple[str | int, ...]], name: str, description: str, measure: Mapping[str, Any]
) -> SweepConfig:
    """A configuration of cases that are no grid.

    Args:
        cases: Model, data set, optimizer, batch size, precision and layout of each.
        name: Of the configuration.
        description: What it is.
        measure: How, as far as not by default.
    """
    names = ("model", "dataset", "optimizer", "batch_size", "precision", "memory_format")
    grids = [{name: [value] for name, value in zip(names, case, strict=True)} for case in cases]
    values = {
        "name": name,
        "description": description,
        "grid": grids[0],
        "include": [{"reason": f"a further step of the {name}", **grid} for grid in grids[1:]],
        "measure": dict(measure),
        "data": {"fetch": False},
    }
    return check_config(values, name)


def repeat_within(config: SweepConfig, repeats: int, minutes: float) -> SweepConfig:
    """The configuration in rounds of one run of every case, as many as `repeats` and the time of the command allow."""
    if config.limits.device_memory is not None:
        raise ConfigError(["limits.device_memory: this measures the whole GPU. Remove it"])
    measure = config.measure.model_copy(
        update={"repeats": repeats, "target_interval": None, "time_budget": None, "order": "interleaved"}
    )
    timeout = min(config.limits.run_timeout, max(LEAST_TIMEOUT_S, ONE_RUN * 60.0 * minutes))
    limits = config.limits.model_copy(update={"run_timeout": timeout})
    return config.model_copy(update={"measure": measure, "limits": limits})


def _record(
    frame: pd.DataFrame, cases: Sequence[Case], options: CalibrateOptions, machine: _Machine, progress: Progress
) -> dict[str, int]:
    """Record as many of the measured cases as there is time for, on a GPU; a recording takes about as long as a run.

    Returns:
        The recordings by status; those that were there already count.
    """
    took_s = frame["duration_s"].dropna()
    if machine.device.kind != "cuda" or took_s.empty:
        return {}
    out = machine.folder / "recordings"
    there = len(list(out.glob("*.parquet"))) if out.is_dir() else 0
    left = int(max(0.0, progress.deadline - time.monotonic()) / max(float(took_s.median()), MIN_RECORDING_S))
    measured = set(frame.loc[frame["status"].isin(["ok", "throttled", "oom"]), "case_key"])
    chosen = [case for case in cases if case.key in measured][: max(left, there)]
    wanted = RecordOptions(
        out=out, device=options.device, timeout_s=max(LEAST_TIMEOUT_S, ONE_RUN * 60 * options.minutes)
    )
    return record_cases(chosen, wanted, progress).counts if chosen else {}


def _cases(config: SweepConfig, kind: str) -> list[Case]:
    """The cases of a configuration in its order."""
    listed = config.model_copy(update={"measure": config.measure.model_copy(update={"order": "sequential"})})
    return list(dict.fromkeys(run.case for run in build_plan(listed, kind) if run.skip_reason is None))


def _conclude(
    launcher: Launcher,
    options: CalibrateOptions,
    machine: _Machine,
    cases: Sequence[Case],
    outcome: SweepOutcome,
    frame: pd.DataFrame,
    recorded: dict[str, int],
) -> Calibrated:
    """Fit, say how good it is, and write the files."""
    from bench.analysis import summarise_cases
    from bench.analysis.calibration import context_of_runs, measured_runs, memory_errors, rates_of_cases, recommend
    from bench.report.calibration import render_calibration
    from bench.stats import geometric_interval, noise_floor

    runs = measured_runs(frame)
    rates = rates_of_cases(runs)
    known = [case for case in cases if case.key in rates]
    steps = [(case, case.batch_size / geometric_interval(rates[case.key]).middle) for case in known]
    argument = {"steps": steps, "device": machine.device, "workspaces": counts_workspaces()}
    fitted = ask(launcher, "calibrate", calibration_task, argument)
    noise, context = noise_floor(list(rates.values())), context_of_runs(runs)
    reached = {name: rate for name in PRECISIONS if (rate := _reached(machine.device, name))}
    settings = recommend(runs, noise, TARGETS_FRAC[machine.environment.device], reached)
    content: dict[str, Any] = {
        "device": {"name": machine.device.name, "gpu_name": _name(machine), "kind": machine.device.kind},
        "environment": {name: getattr(machine.environment, name) for name in _DISCLOSED},
        "ceilings": {key: machine.ceilings["values"][key] for key in machine.ceilings["sources"]},
        "precisions": machine.ceilings["precisions"],
        "workspaces": machine.ceilings["workspaces"],
        "context": asdict(context) if context else None,
        "fit": {name: fitted[name] for name in ("values", "factors")},
        "speed": _speed_errors(fitted["predicted"]),
        "memory": memory_errors(summarise_cases(frame), runs),
        "noise": asdict(noise) if noise else None,
        "settings": {**asdict(settings), "overrides": overrides_of(settings)},
        "cases": [_case(case, found, rates[case.key]) for case, found in zip(known, fitted["predicted"], strict=True)],
        "runs": outcome.counts,
        "recordings": recorded,
    }
    device = _calibrated(machine, content, context) if fitted["values"] else None
    content["device"]["calibration"] = device.calibration if device else None
    content["not_kept"] = _why_not_kept(content["speed"])
    write_whole(machine.folder / "calibration.json", json.dumps(content, indent=1) + "\n")
    write_whole(machine.folder / "calibration.md", render_calibration(content))
    kept = None
    if device is not None:
        write_whole(machine.folder / f"{slug(device.gpu_name)}.toml", device_toml(device))
        kept = keep_calibration(device) if options.keep and not content["not_kept"] else None
    return Calibrated(machine.folder, content, device, kept, outcome.failed or device is None)


_DISCLOSED = (
    *("torch_version", "cuda_version", "cudnn_version", "driver_version", "cpu_model", "cpu_cores_usable"),
    *("gpu_uuid_hash", "power_limit_w", "bench_version"),
)


def _name(machine: _Machine) -> str:
    return machine.environment.gpu_name or machine.device.gpu_name


def _reached(device: Device, precision: str) -> float | None:
    rate: float | None = getattr(device, f"reachable_{precision}_flop_per_s")
    return rate


def _speed_errors(predicted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Errors of samples/s, before and after the fit, each with its number of steps."""
    from bench.analysis.calibration import describe_errors

    return {
        name: describe_errors([step["measured_s"] / step[f"{name}_s"] - 1 for step in predicted if step[f"{name}_s"]])
        for name in ("before", "fitted", "left_out", "model_left_out")
    }


def _why_not_kept(speed: Mapping[str, Any]) -> str | None:
    """Why a calibration should not serve other estimates; None if it should."""
    before, after = speed["before"], speed["left_out"]
    if after is None or after["n"] < FEWEST_KEPT:
        return f"it takes at least {FEWEST_KEPT} cases. Allow more --minutes"
    if before and before["median_abs"] < after["median_abs"]:
        return f"without it, the median error is {before['median_abs']:.0%}; with it {after['median_abs']:.0%}"
    if after["median_abs"] > WORST_KEPT:
        return f"the median error on cases left out, {after['median_abs']:.0%}, is above {WORST_KEPT:.0%}"
    return None


def _case(case: Case, found: Mapping[str, Any], rates: Sequence[float]) -> dict[str, Any]:
    """One case: its axes, the measured rate, and the estimates of it in samples/s."""
    names = ("before", "fitted", "left_out", "model_left_out")
    estimates = {name: case.batch_size / time_s if (time_s := found[f"{name}_s"]) else None for name in names}
    measured = case.batch_size / found["measured_s"]
    return {**case.axes, "case_key": case.key, "processes": len(rates), "measured": measured, **estimates} | {
        "reason": found["reason"]
    }


def overrides_of(settings: Settings) -> list[str]:
    """The settings as `--set` takes them."""
    named = {name: getattr(settings, name) for name in ("repeats", "warmup_steps", "measured_steps")}
    return [f"measure.{name}={value}" for name, value in named.items() if value is not None]


def _calibrated(machine: _Machine, content: Mapping[str, Any], context: ContextSpread | None) -> Device:
    """The device with what was fitted and measured, each value with its source."""
    errors, torch = content["speed"]["left_out"], machine.environment.torch_version
    threads = machine.environment.torch_threads if machine.device.kind == "cpu" else None
    on = _name(machine) + (f" ({counted(threads, 'thread')})" if threads else "")
    steps = sum(case["fitted"] is not None for case in content["cases"])
    said = f"calibrated with {counted(steps, 'step')} measured on {on}, torch {torch}"
    if errors:
        size = f"median {errors['median_abs']:.0%}, p90 {errors['p90_abs']:.0%}"
        said += f"; error of samples/s on cases left out of the fit: {size} (n = {errors['n']})"
    values: dict[str, Any] = dict(content["fit"]["values"])
    sources = dict(machine.device.sources) | dict.fromkeys(values, said)
    if context is not None:
        spread = {"context_bytes": context.median_bytes}
        spread |= {"context_low_bytes": context.low_bytes, "context_high_bytes": context.high_bytes}
        over = f"measured: median, least and most over {counted(context.cases, 'case')} (torch {torch})"
        values, sources = values | spread, sources | dict.fromkeys(spread, over)
    return replace(
        machine.device,
        gpu_name=_name(machine),
        gpu_uuid_hash=machine.environment.gpu_uuid_hash,
        sources=tuple((key, sources[key]) for key in CHECKS if key in sources),
        **values,
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file that this module wrote; empty if there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"values", "sources"} <= found.keys() else {}


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises StoreError if the folder cannot be written."""
    with typed_errors(path):
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)
