"""Plan -> launch -> store: runs what is missing, keeps what is finished, ends with a report.

The parent supervises and writes; it imports no torch. Whatever happens to a run becomes a row here, and a run exists
once its part does, so that the same command after any kind of death goes on with what is missing.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import catalog, fingerprint
from bench.catalog.data_fetch import fetch_dataset
from bench.catalog.data_files import default_data_root
from bench.config import SweepConfig
from bench.devices import match_device
from bench.errors import BenchError, ConfigError, DataError, InfrastructureError, UnknownNameError
from bench.launchers import Answer, LocalLauncher, Outcome
from bench.launchers.local import interrupt_on_terminate
from bench.launchers.tasks import environment_task, estimate_task, measure_task
from bench.locks import device_lock_path, hold
from bench.plan import build_plan
from bench.probes.host import available_memory_bytes
from bench.probes.selection import DeviceChoice, usable_device
from bench.records import MEASURED, Environment, Estimate, Measurement, Planned, Status, run_key, stable_hash
from bench.store import DATA_FOLDER, Store
from bench.store.folder import group_of, part_name
from bench.terminal import Progress
from bench.units import format_bytes, format_rate

START_TIMEOUT_S = 120.0  # importing torch from a cold network disk
ESTIMATE_TIMEOUT_S = 3600.0
HOST_MEMORY_SHARE = 0.9  # of what is free, for a worker on the CPU unless the configuration says
GOOD = (Status.OK, Status.SKIPPED)
MAX_ATTEMPTS = 2  # of a run that was throttled: once more, both kept


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """What a sweep needs beside its configuration.

    Attributes:
        out: Folder of the report; the data go below it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        retry: Statuses of finished runs to run once more.
        report: Whether to render the report at the end.
    """

    out: Path
    device: str = "auto"
    retry: frozenset[Status] = frozenset()
    report: bool = True


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """What came of a sweep.

    Attributes:
        counts: Runs by status, over everything planned.
        failed: Whether any case did not end well.
        report: Path of the report, where one was rendered.
        data: Folder of the results.
        summary: Lines for the terminal.
    """

    counts: dict[str, int]
    failed: bool
    report: str | None
    data: str
    summary: list[str]


@dataclass(slots=True)
class _Sweep:
    """A sweep under way."""

    config: SweepConfig
    options: SweepOptions
    progress: Progress
    launcher: LocalLauncher
    store: Store
    environment: Environment
    gpu_uuid: str | None
    plan: list[Planned] = field(default_factory=list)
    starts_failed: int = 0  # in a row, for causes outside the cases


def parse_statuses(text: str | None) -> frozenset[Status]:
    """Statuses from `timeout,crashed`. Raises UnknownNameError."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    allowed = [status.value for status in Status]
    for name in names:
        if name not in allowed:
            raise UnknownNameError("status", name, allowed, list_command="sweep --help")
    return frozenset(Status(name) for name in names)


def run_sweep(config: SweepConfig, options: SweepOptions, progress: Progress) -> SweepOutcome:
    """Run everything that the configuration plans and the results folder does not hold yet.

    Raises:
        BenchError: Device, folder or data are not usable; nothing of what was finished is lost.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, within about two seconds; nothing of what was finished is lost.
    """
    launcher = LocalLauncher()
    launcher.warm()
    store = Store(options.out / DATA_FOLDER)
    store.create()
    with interrupt_on_terminate(), hold(options.out / ".lock", f"the folder {options.out}"):
        choice = usable_device(options.device)
        environment = read_environment(launcher, choice)
        with hold(device_lock_path(environment.gpu_uuid_hash or environment.device), f"the device {_name(environment)}"):
            sweep = _Sweep(config, options, progress, launcher, store, environment, choice.gpu.uuid if choice.gpu else None)
            _prepare(sweep)
            _estimate(sweep)
            _measure(sweep)
        return _conclude(sweep)


def read_environment(launcher: LocalLauncher, choice: DeviceChoice) -> Environment:
    """The environment of a device, read in a process of its own, with the device file that describes it.

    Raises:
        BenchError: The process does not start, or the device cannot be read.
    """
    argument = {"device": choice.kind, "gpu_uuid": choice.gpu.uuid if choice.gpu else None}
    environment = Environment(**_value(launcher.run(environment_task, argument, timeout_s=START_TIMEOUT_S)))
    name = "cpu"
    if choice.kind == "cuda":
        known = match_device(environment.gpu_name or "", environment.gpu_total_bytes)
        name = known.name if known else environment.gpu_name or "unknown"
    return replace(environment, estimate_device=name)


def _value(answer: Answer) -> dict[str, Any]:
    if answer.outcome is Outcome.ANSWERED:
        return answer.value
    if answer.outcome is Outcome.REFUSED:
        raise BenchError(answer.reason)
    raise InfrastructureError(f"the worker process does not start: {answer.reason}. See bench env")


def _prepare(sweep: _Sweep) -> None:
    """Plan, see to the data, and write down what is going to happen."""
    sweep.plan = build_plan(sweep.config, sweep.environment.device)
    if not sweep.plan:
        raise ConfigError(["the configuration plans no case"])
    _see_to_data(sweep)
    notes = {
        "name": sweep.config.name, "description": sweep.config.description,
        "config": sweep.config.model_dump(mode="json", exclude={"data"}, fallback=str), "device": sweep.options.device,
    }  # fmt: skip
    sweep.store.write_plan(sweep.plan, sweep.config.protocol, sweep.environment, notes)
    cases = len({run.case for run in sweep.plan})
    sweep.progress.say(f"{sweep.config.name}: {cases} cases, {len(sweep.plan)} runs on {_name(sweep.environment)}")


def _see_to_data(sweep: _Sweep) -> None:
    """Fetch what the grid reads from files and the disk does not have; say once where images will be synthetic."""
    root = Path(sweep.config.data.root).expanduser() if sweep.config.data.root else default_data_root()
    needed = {run.case.dataset for run in sweep.plan if run.case.input != "synthetic" and run.skip_reason is None}
    for dataset in sorted(needed):
        info = catalog.describe_dataset(dataset)
        if info.open is None or info.on_disk(root):
            continue
        why = "fetching is off"
        if sweep.config.data.fetch and info.fetch is not None:
            sweep.progress.say(f"{dataset}: not on this machine; fetching it to {root}")
            try:
                fetch_dataset(dataset, root)
                continue
            except DataError as error:
                why = str(error)
        sweep.progress.say(f"{dataset}: synthetic images of the same shape and type ({why})")


def _estimate(sweep: _Sweep) -> None:
    """Store the estimates that are missing; an estimator that fails leaves its columns null and says why."""
    key = stable_hash([fingerprint.code_key(fingerprint.ESTIMATE_CODE), sweep.environment.torch_version,
                       sweep.environment.torchvision_version])  # fmt: skip
    device = sweep.environment.estimate_device
    known = sweep.store.estimated(key)
    cases = list(dict.fromkeys(run.case for run in sweep.plan if run.skip_reason is None and (run.case.key, device) not in known))
    if not cases:
        return
    argument = {"cases": cases, "device": device}
    answer = sweep.launcher.run(estimate_task, argument, timeout_s=ESTIMATE_TIMEOUT_S, log=sweep.store.logs_folder / "estimates.log")
    if answer.outcome is not Outcome.ANSWERED:
        sweep.progress.say(f"no estimates: {answer.reason}")
        return
    sweep.store.write_estimates([Estimate(**fields) for fields in answer.value["estimates"]], key)


def _measure(sweep: _Sweep) -> None:
    """Run what is missing, in the plan's order; what was throttled goes to the end of the queue once."""
    queue = deque(_missing(sweep))
    finished = sum(run.skip_reason is None for run in sweep.plan) - len(queue)
    if finished:
        sweep.progress.say(f"{finished} runs are finished already, {len(queue)} to do")
    sweep.progress.start(len(queue))
    while queue:
        run, attempt = queue.popleft()
        sweep.progress.begin(f"{run.case} (repeat {run.repeat + 1})")
        measurement = _measure_one(sweep, run, attempt)
        sweep.store.write_run(run, attempt, sweep.config.protocol, measurement, sweep.environment)
        sweep.progress.finish(_line(run, measurement))
        if measurement.status is Status.THROTTLED and attempt + 1 < MAX_ATTEMPTS:
            queue.append((run, attempt + 1))


def _missing(sweep: _Sweep) -> list[tuple[Planned, int]]:
    """Every run without a part, and those whose status is to be tried again, each with its attempt."""
    names = sweep.store.run_names()
    todo = []
    for run in sweep.plan:
        if run.skip_reason is not None:
            continue
        done = [name for attempt in range(100) if (name := _part(sweep, run, attempt)) in names]
        if not done or (sweep.options.retry and sweep.store.status_of(done[-1]) in sweep.options.retry):
            todo.append((run, len(done)))
    return todo


def _part(sweep: _Sweep, run: Planned, attempt: int) -> str:
    group = group_of(run, sweep.config.protocol, sweep.environment)
    return part_name(run, attempt, run_key(run.case.key, group, run.repeat, attempt))


def _measure_one(sweep: _Sweep, run: Planned, attempt: int) -> Measurement:
    """One run in a fresh process, whatever comes of it."""
    argument = {
        "case": run.case, "protocol": sweep.config.protocol, "device": sweep.environment.device,
        "gpu_uuid": sweep.gpu_uuid, "host_memory_bytes": _host_memory(sweep),
    }  # fmt: skip
    log = sweep.store.logs_folder / f"{_part(sweep, run, attempt)}.log"
    while True:
        answer = sweep.launcher.run(measure_task, argument, timeout_s=sweep.config.limits.run_timeout, log=log)
        if answer.outcome is not Outcome.DIED or answer.phase not in (None, "start"):
            sweep.starts_failed = 0
            break
        sweep.starts_failed += 1  # it never came as far as the case: the cause lies outside
        if sweep.starts_failed >= sweep.config.limits.infrastructure_failures:
            raise InfrastructureError(
                f"{sweep.starts_failed} worker processes in a row died before their case began: {answer.reason}. "
                f"What is finished is kept; see {log} and bench env, then run the same command again"
            )
    if log.exists() and not log.stat().st_size:
        log.unlink()
    return _measurement(answer)


def _host_memory(sweep: _Sweep) -> int | None:
    if sweep.environment.device != "cpu":
        return None
    return sweep.config.limits.host_memory or int(available_memory_bytes() * HOST_MEMORY_SHARE)


def _measurement(answer: Answer) -> Measurement:
    """The answer of a run as a measurement; a process that was killed or died gets its status here."""
    times = {"duration_s": answer.duration_s, "process_start_s": answer.start_s}
    if answer.outcome is Outcome.ANSWERED:
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in answer.value.items()}
        return Measurement(**{**fields, "status": Status(fields["status"]), **times})
    status = {Outcome.TIMED_OUT: Status.TIMEOUT, Outcome.DIED: Status.CRASHED, Outcome.REFUSED: Status.FAILED}
    return Measurement(status=status[answer.outcome], reason=answer.reason, phase=answer.phase, **{**answer.news, **times})


def _line(run: Planned, measurement: Measurement) -> str:
    """One run in one line."""
    what = f"{run.case} #{run.repeat + 1}: {measurement.status}"
    if measurement.status not in MEASURED:
        return f"{what}: {(measurement.reason or '')[:160]}"
    samples_per_s = run.case.batch_size * len(measurement.step_times_s) / (measurement.wall_window_s or float("nan"))
    return f"{what}, {format_rate(samples_per_s, 'samples')}, peak {format_bytes(measurement.peak_allocated_bytes)}"


def _conclude(sweep: _Sweep) -> SweepOutcome:
    """Load everything back from the disk, render the report and count."""
    from bench.report import render_report, summary_lines
    from bench.store import load_results

    frame = load_results(sweep.store.folder)
    here = frame[frame["environment_key"] == sweep.environment.key]
    report = render_report([sweep.store.folder], sweep.options.out) if sweep.options.report else None
    counts = dict(sorted(Counter(here["status"]).items()))
    failed = any(status not in GOOD for status in counts)
    return SweepOutcome(
        counts, failed, str(report) if report else None, str(sweep.store.folder), summary_lines(frame, report)
    )


def _name(environment: Environment) -> str:
    return environment.gpu_name or environment.cpu_model or environment.device
