"""Plan -> launch -> store: run what is missing, keep what is finished, render a report."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from bench import catalog
from bench.catalog.data_fetch import fetch_dataset
from bench.client import refusals_in_child
from bench.config import SweepConfig
from bench.devices import device_toml
from bench.errors import BenchError, ConfigError, DataError, nearest, nearest_sentence
from bench.folders import data_folder
from bench.launchers import InProcessLauncher, Launcher, LocalLauncher, interrupt_on_terminate
from bench.locks import hold
from bench.plan import build_plan, data_facts, describe, name_planned, reads_images, with_data
from bench.records import Choice, DataFacts, Status
from bench.store import DATA_FOLDER, Store
from bench.sweep.estimates import estimate_planned
from bench.sweep.runs import extend_plan, measure_missing, write_plan
from bench.sweep.session import Session, SweepOptions, device_name, held_device, read_environment
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
        with held_device(options.device, ready=launcher.warm) as choice:
            limit_bytes = config.limits.device_memory
            environment, gpu = read_environment(launcher, choice, options.device_files, limit_bytes)
            environment = replace(environment, in_process=options.in_process or None)
            if "timm" not in _packages(config):
                environment = replace(environment, timm_version=None)
            session = Session(config, options, progress, launcher, store, environment, choice, gpu)
            for remark in (choice.warning, gpu.remark if gpu else None):
                if remark:
                    progress.say(remark)
            _prepare(session)
            estimate_planned(session)
            measure_missing(session)
        return _conclude(session)


def _preloads(config: SweepConfig) -> list[str]:
    """Modules that the fork server should import for the models of a sweep."""
    return [f"bench.catalog.{package}_preload" for package in sorted(_packages(config))]


def _packages(config: SweepConfig) -> set[str]:
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
    _see_to_data(session)
    session.notes = {
        "name": session.config.name,
        "description": session.config.description,
        "config": session.config.as_json(),
        "device": session.options.device,
    }
    _say_data_changes(session)
    if session.gpu is not None:  # the basis of the estimates, so that anybody can repeat them
        session.notes |= {"device_file": device_toml(session.gpu.device), "device_remark": session.gpu.remark or ""}
    extend_plan(session)  # the rounds that an earlier sweep decided
    write_plan(session)
    cases = counted(len({run.case for run in session.plan}), "case")
    runs = counted(len(session.plan), "run")
    session.progress.say(f"{session.config.name}: {cases}, {runs} on {device_name(session.environment)}")


def _see_to_data(session: Session) -> None:
    """Fetch missing data sets that the grid reads from files; report once where images will be synthetic.

    The key of a run that reads images includes what it reads, so that runs on real and synthetic images, or on two data
    sets in one place, never count as repeats of each other. With gradient noise, every run reads images.
    """
    every = session.config.measure.gradient_noise
    planned = [run.case for run in session.plan if run.skip_reason is None]
    reading = {case for case in planned if reads_images(case, gradient_noise=every)}
    root = data_folder(session.config.data.root)
    for dataset in sorted({case.dataset for case in planned if not catalog.is_external("dataset", case.dataset.name)}):
        for note in describe(dataset).notes:
            session.progress.say(f"{dataset}: {note}")
    read = {dataset: _data_read(session, dataset, root) for dataset in sorted({case.dataset for case in reading})}
    session.plan = [with_data(run, *read[run.case.dataset]) if run.case in reading else run for run in session.plan]


def _data_read(session: Session, dataset: Choice, root: Path) -> tuple[DataFacts, str]:
    """What runs read from a data set, and whether it comes from files."""
    if not _has_files(session, dataset, root):
        return data_facts(dataset), "synthetic"
    info = describe(dataset)
    if info.find is None:
        return data_facts(dataset), "files"
    if info.train_samples > MANY_FILES and info.from_files:
        session.progress.say(f"{dataset}: checking {info.train_samples:,} images for changes")
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


def _has_files(session: Session, dataset: Choice, root: Path) -> bool:
    """Whether the data set's files exist, fetching them if needed; reports if they do not."""
    info = describe(dataset)
    if info.open is None or info.on_disk(root):
        return info.open is not None
    why = "fetching is disabled"
    if session.config.data.fetch and info.fetch is not None:
        session.progress.say(f"{dataset}: not on this machine; fetching it to {root}")
        try:
            fetch_dataset(dataset, root)
        except DataError as error:
            why = str(error)
        else:
            return True
    session.progress.say(f"{dataset}: synthetic images of the same shape and type ({why})")
    return False


def _conclude(session: Session) -> SweepOutcome:
    """Load everything back from disk, render the report and count."""
    from bench.analysis import last_attempts
    from bench.report import render_report, summary_lines
    from bench.store import consolidate, load_results

    consolidate(session.store.folder)
    frame = load_results(session.store.folder)
    here = last_attempts(frame[frame["planned"] & (frame["environment_key"] == session.environment.key)])
    report = render_report([session.store.folder], session.options.out) if session.options.report else None
    counts = dict(sorted(Counter(here["status"]).items()))
    failed = any(status not in GOOD for status in counts)
    return SweepOutcome(
        counts, failed, str(report) if report else None, str(session.store.folder), summary_lines(here, report)
    )
