"""Plan -> launch -> store: run what is missing, keep what is finished, render a report."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import catalog
from bench.catalog.data_fetch import fetch_dataset
from bench.client import refusals_in_child
from bench.config import SweepConfig
from bench.devices import Device, device_toml
from bench.devices.kept_noise import find_noise
from bench.errors import BenchError, ConfigError, DataError, nearest, nearest_sentence
from bench.folders import data_folder
from bench.launchers import InProcessLauncher, Launcher, LocalLauncher, interrupt_on_terminate
from bench.locks import hold
from bench.plan import build_plan, data_facts, describe, name_planned, reads_images, with_data
from bench.probes.selection import DeviceChoice
from bench.records import Choice, DataFacts, Planned, Status
from bench.store import DATA_FOLDER, Store
from bench.sweep.estimates import estimate_planned
from bench.sweep.neighbours import settle, spelled
from bench.sweep.runs import extend_plan, measure_missing, write_plan
from bench.sweep.session import Seat, Session, SweepOptions, device_name, held_devices, read_environment
from bench.sweep.standing import PART_FOLDER, find_orders
from bench.sweep.unit import MOST_RUNS, write_order
from bench.terminal import Progress
from bench.units import counted

GOOD = (Status.OK, Status.SKIPPED)
MANY_FILES = 50_000  # in a tree; reading through more of them takes seconds

_NEVER_FINISHED = {
    Status.SKIPPED: "cannot be retried: a skipped case never ran, because a rule excludes it or it cannot run",
    Status.INTERRUPTED: "need not be retried: the same command runs unfinished cases anyway",
}


RETRIED = frozenset(status for status in Status if status not in _NEVER_FINISHED)
"""The statuses that can be tried again."""


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """The outcome of a sweep.

    Attributes:
        counts: Runs by status, over everything planned.
        failed: Whether any case failed.
        report: Path of the report, if one was rendered.
        data: Folder of the results.
        summary: Lines for the terminal.
    """

    counts: dict[str, int]
    failed: bool
    report: str | None
    data: str
    summary: list[str]


def parse_statuses(text: str | None) -> frozenset[Status]:
    """Statuses from `timeout,crashed`. Raises BenchError for unknown ones and those that cannot be retried."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    allowed = [status.value for status in Status if status in RETRIED]
    for name in names:
        if name in _NEVER_FINISHED:
            raise BenchError(f"--retry: {name} {_NEVER_FINISHED[Status(name)]}. Available: {', '.join(allowed)}")
        if name not in allowed:
            near = nearest_sentence(nearest(name, allowed))
            raise BenchError(f'--retry: unknown status "{name}". {near}Available: {", ".join(allowed)}')
    return frozenset(Status(name) for name in names)


def run_sweep(
    config: SweepConfig, options: SweepOptions, progress: Progress, launcher: Launcher | None = None
) -> SweepOutcome:
    """Run every planned run that the results folder does not hold yet.

    Args:
        config: The sweep.
        options: What it needs beside that.
        progress: Hears of it.
        launcher: Where runs go; to fresh processes of this machine, or with `in_process` to this one, unless given.

    Raises:
        BenchError: The device, folder or data cannot be used; finished runs are kept.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, within about two seconds; finished runs are kept.
    """
    store = Store(options.out / DATA_FOLDER)
    if options.in_process:
        config = _once(config)
    launcher = launcher or (InProcessLauncher() if options.in_process else LocalLauncher(_preloads(config)))
    store.create()
    with interrupt_on_terminate(), hold(options.out / ".lock", f"the folder {options.out}"):
        store.clear_leftovers()
        with held_devices(options.device or config.launcher.device, ready=launcher.warm) as choices:
            sessions, parallel = _open_sessions(config, options, progress, launcher, store, choices)
            for session in sessions:
                _prepare(session)
                estimate_planned(session)
            measure_missing(sessions, parallel)
        return conclude(store, options, {session.environment.key for session in sessions})


def _open_sessions(
    config: SweepConfig,
    options: SweepOptions,
    progress: Progress,
    launcher: Launcher,
    store: Store,
    choices: Sequence[DeviceChoice],
) -> tuple[list[Session], int | None]:
    """A session for each kind of device, and the most runs at one time.

    Devices are of one kind, and share one plan, where their environments differ in nothing but the device's identity.
    Each kind runs the whole plan, as each device does where that is asked for.
    """
    if options.in_process and len(choices) > 1:
        raise ConfigError(["--in-process runs its case on one device"])
    read = functools.partial(
        read_environment,
        launcher,
        files=options.device_files,
        limit_bytes=config.limits.device_memory,
        host_limit_bytes=config.limits.host_memory,
        calibrations=options.calibrations,
    )

    def open_session(seats: list[Seat], notes: dict[str, Any]) -> Session:
        first = seats[0]
        about = (first.environment, first.choice, first.gpu)
        return Session(config, options, progress, launcher, store, *about, seats=seats, notes=notes)

    seats = []
    for choice in choices:
        environment, gpu = read(choice)
        if "timm" not in packages_of(config):
            environment = replace(environment, timm_version=None)
        seats.append(Seat(choice, replace(environment, in_process=options.in_process or None), gpu))
    for remark in dict.fromkeys(words for seat in seats for words in seat.remarks):
        progress.say(remark)
    if len(seats) == 1:
        return [open_session(seats, {})], None
    together = settle(seats, open_session(seats, {}), options.parallel or config.launcher.parallel)
    for seat, cpus in zip(seats, together.cpus, strict=True):
        seat.cpus = cpus
        seat.environment = replace(
            seat.environment if cpus is None else read(seat.choice, cpus=cpus)[0],
            parallel=together.parallel,
            pinned_cpus=spelled(cpus),
            neighbour_slowdown_frac=together.slowdown_frac,
        )
    per_device = config.launcher.per_device if options.per_device is None else options.per_device
    kinds = [[seat] for seat in seats] if per_device else _equal_seats(seats)
    for kind in kinds:
        names = ", ".join(seat.name for seat in kind)
        progress.say(f"{device_name(kind[0].environment)}: {counted(len(kind), 'device')} ({names})")
    note = together.note(seats)
    sessions = [open_session(kind, {"together": note}) for kind in kinds]
    for session in sessions:
        session.beside = [other.environment for other in sessions]
    return sessions, together.parallel


def _equal_seats(seats: Sequence[Seat]) -> list[list[Seat]]:
    """Devices by kind; repeats are spread over those of one kind, and their environments say so."""
    kinds: dict[str, list[Seat]] = {}
    for seat in seats:
        kinds.setdefault(replace(seat.environment, spread="gpus").key, []).append(seat)
    for kind in kinds.values():
        for seat in kind if len(kind) > 1 else ():
            seat.environment = replace(seat.environment, spread="gpus")
    return list(kinds.values())


def _preloads(config: SweepConfig) -> list[str]:
    """Modules that the fork server should import for the models of a sweep."""
    return [f"bench.catalog.{package}_preload" for package in sorted(packages_of(config))]


def packages_of(config: SweepConfig) -> set[str]:
    """The distributions that a sweep's models come from, where their versions are not part of every key."""
    models = [*config.grid.model, *(model for include in config.include for model in include.model or ())]
    return {package for model in models if (package := catalog.package_of(model.name))}


def _once(config: SweepConfig) -> SweepConfig:
    """The configuration with one run a case: a second one in the same process would be no repeat."""
    once = config.measure.model_copy(update={"repeats": 1, "target_interval": None, "time_budget": None})
    return config.model_copy(update={"measure": once})


def _prepare(session: Session) -> None:
    """Plan, fetch the data, and store the plan."""
    try_models = functools.partial(refusals_in_child, session.launcher, say=session.progress.say)
    session.plan = build_plan(session.config, session.environment.device, try_models)
    if session.options.cases is not None:
        session.plan = [run for run in session.plan if run.case.key in session.options.cases]
    if not session.plan:
        raise ConfigError(["the configuration plans no cases"])
    if session.options.in_process and len(session.plan) > 1:
        raise ConfigError(
            [
                f"--in-process runs one case, and the configuration plans {len(session.plan)}. Leave one: "
                "--set 'grid.batch_size=[64]', --set 'grid.model=[\"mlp\"]', ..."
            ]
        )
    session.names = name_planned(dict.fromkeys(run.case for run in session.plan))
    session.plan, _ = _see_to_data(session.config, session.plan, session.progress)
    session.notes = {
        **session.notes,
        **_notes(session.config, session.options.device or session.config.launcher.device),
        **session.options.notes,
    }
    _say_data_changes(session)
    if session.gpu is not None:  # the basis of the estimates, so that anybody can repeat them
        session.notes |= {"device_file": device_toml(session.gpu.device), "device_remark": session.gpu.remark or ""}
    kept = find_noise(session.environment)
    if kept is not None and not kept.changes(session.environment):
        session.notes |= {"noise": kept.note}
    extend_plan(session)  # the rounds that an earlier sweep decided
    write_plan(session)
    cases = counted(len({run.case for run in session.plan}), "case")
    runs = counted(len(session.plan), "run")
    session.progress.say(f"{session.config.name}: {cases}, {runs} on {device_name(session.environment)}")


def _notes(config: SweepConfig, device: str) -> dict[str, Any]:
    """What readers of results are told of a sweep."""
    return {"name": config.name, "description": config.description, "config": config.as_json(), "device": device}


def store_orders(
    config: SweepConfig,
    out: Path,
    device: str,
    progress: Progress,
    *,
    spread: str | None = "hosts",
    device_files: Sequence[Device] = (),
) -> list[Path]:
    """Plan a sweep for machines to come, and store its runs in their order: `bench.sweep.unit` does them.

    Every process that does a run reads its order. So a plan of more than `MOST_RUNS` runs becomes several orders of as
    many, each with a results folder of its own, `part-000` and so on; whoever reads results reads all of them.

    Args:
        config: The sweep; its repeats are fixed, as nobody waits for the results.
        out: Folder for the report; the data go below it.
        device: `cpu` or `cuda`.
        progress: Hears what the data sets lack.
        spread: As for `write_order`.
        device_files: The user's own device files.

    Returns:
        The paths of the orders, one by default.

    Raises:
        BenchError: The folder or the data cannot be used, nothing is planned, or the folder holds another plan and one
            of the two has several orders.
    """
    plan = build_plan(config, device, functools.partial(refusals_in_child, LocalLauncher(), say=progress.say))
    if not plan:
        raise ConfigError(["the configuration plans no cases"])
    plan, sources = _see_to_data(config, plan, progress)
    notes = _notes(config, device)
    data, orders = out / DATA_FOLDER, list[Path]()
    starts = range(0, len(plan), MOST_RUNS)
    folders = [data] if len(starts) == 1 else [data / f"{PART_FOLDER}{number:03d}" for number in range(len(starts))]
    if strangers := {path.parent.parent for path in find_orders(data)} - {*folders}:
        raise BenchError(
            f"{out}: holds runs of another plan ({min(strangers)}), and plans of more than {MOST_RUNS:,} runs share no "
            "folder with others. Choose another --out, or run the configuration that was begun there"
        )
    for folder, start in zip(folders, starts, strict=True):
        store, runs = Store(folder), plan[start : start + MOST_RUNS]
        store.create()
        runs = [replace(run, position=position) for position, run in enumerate(runs)]
        orders.append(
            write_order(
                store, runs, config, device, sources=sources, spread=spread, device_files=device_files, notes=notes
            )
        )
        if len(folders) > 1 and len(find_orders(folder)) > 1:
            raise BenchError(
                f"{folder}: holds runs of another plan of more than {MOST_RUNS:,} runs. Choose another --out"
            )
    return orders


def _see_to_data(
    config: SweepConfig, plan: Sequence[Planned], progress: Progress
) -> tuple[list[Planned], dict[str, str]]:
    """Fetch missing data sets that the grid reads from files; report once where images will be synthetic.

    The key of a run that reads images includes what it reads, so that runs on real and synthetic images, or on two data
    sets in one place, never count as repeats of each other. With gradient noise, every run reads images.

    Returns:
        The plan with what its runs read; and where the images of each case that reads some come from, by case key.
    """
    planned = [run.case for run in plan if run.skip_reason is None]
    reading = {case for case in planned if reads_images(case, gradient_noise=config.measure.gradient_noise)}
    root = data_folder(config.data.root)
    for dataset in sorted({case.dataset for case in planned if not catalog.is_external("dataset", case.dataset.name)}):
        for note in describe(dataset).notes:
            progress.say(f"{dataset}: {note}")
    names = sorted({case.dataset for case in reading})
    read = {dataset: _data_read(config, progress, dataset, root) for dataset in names}
    found = [with_data(run, *read[run.case.dataset]) if run.case in reading else run for run in plan]
    return found, {case.key: read[case.dataset][1] for case in reading}


def _data_read(config: SweepConfig, progress: Progress, dataset: Choice, root: Path) -> tuple[DataFacts, str]:
    """What runs read from a data set, and whether it comes from files."""
    if not _has_files(config, progress, dataset, root):
        return data_facts(dataset), "synthetic"
    info = describe(dataset)
    if info.find is None:
        return data_facts(dataset), "files"
    if info.train_samples > MANY_FILES and info.from_files:
        progress.say(f"{dataset}: checking {info.train_samples:,} images for changes")
    found = info.find(root)
    return replace(data_facts(dataset), data_samples=found.samples, data_hash=found.hash), "files"


def _say_data_changes(session: Session) -> None:
    """Report data sets that changed since the folder was last planned for this environment."""
    before = session.store.planned_data(session.environment.key)
    now = {(str(run.case.dataset), run.case.input): run.data for run in session.plan}
    changes: dict[str, list[str]] = {}
    for (name, path), data in now.items():
        words = data.changes_since(before.get((name, path), DataFacts()))
        changes[name] = max(words, changes.get(name, []), key=len)  # runs that read images know more about it
    for name, words in changes.items():
        if words:
            session.progress.say(
                f"{name}: the data set changed since {session.options.out} was last planned ({', '.join(words)}). "
                "New runs are stored separately; restore the data set to resume the old ones"
            )


def _has_files(config: SweepConfig, progress: Progress, dataset: Choice, root: Path) -> bool:
    """Whether the data set's files exist, fetching them if needed; reports if they do not."""
    info = describe(dataset)
    if info.open is None or info.on_disk(root):
        return info.open is not None
    why = "fetching is disabled"
    if config.data.fetch and info.fetch is not None:
        progress.say(f"{dataset}: not on this machine; fetching it to {root}")
        try:
            fetch_dataset(dataset, root)
        except DataError as error:
            why = str(error)
        else:
            return True
    progress.say(f"{dataset}: synthetic images of the same shape and type ({why})")
    return False


def conclude(store: Store, options: SweepOptions, keys: Collection[str] | None = None) -> SweepOutcome:
    """Load everything back from disk, render the report and count.

    Args:
        store: The results folder.
        options: Of the sweep.
        keys: Of the environments whose runs count; all by default.
    """
    from bench.analysis import last_attempts
    from bench.report import render_report, summary_lines
    from bench.store import consolidate, load_results, results_folders

    for folder in results_folders([store.folder]):
        consolidate(folder)
    frame = load_results(store.folder)
    counted_here = frame["planned"] if keys is None else frame["planned"] & frame["environment_key"].isin(keys)
    here = last_attempts(frame[counted_here])
    report = render_report([store.folder], options.out) if options.report else None
    counts = dict(sorted(Counter(here["status"]).items()))
    failed = any(status not in GOOD for status in counts)
    return SweepOutcome(counts, failed, str(report) if report else None, str(store.folder), summary_lines(here, report))
