"""A configuration becomes an ordered list of runs, without torch and without touching a device.

Cases are the product of the axes, each once, in the file's order. A case that cannot run stays in the plan with its
reason. Repeats of different cases are interleaved: each repeat is a block that holds every case once, shuffled with the
stored seed, so that a slow drift of the machine does not become a difference between cases. Repeats beyond those that
every case takes come in rounds (`order_round`), each shuffled in the same way; `bench.sweep.runs` says which.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench import catalog, fingerprint
from bench.catalog import DatasetInfo
from bench.catalog.optimizer_state import refuse_device
from bench.config import Grid, Include, SweepConfig
from bench.errors import ConfigError, DataError
from bench.folders import data_folder
from bench.records import AXES, Case, Choice, DataFacts, ImageSpec, Planned, stable_hash


def build_plan(config: SweepConfig, device: str) -> list[Planned]:
    """Every run in the order of execution, skipped cases first.

    Args:
        config: The sweep.
        device: `cpu` or `cuda`; some cases exist on one of them only.

    Returns:
        One item a run; a skipped case appears once, as repeat 0.
    """
    cases = build_cases(config, device)
    facts = {dataset: data_facts(dataset) for dataset in {case.dataset for case in cases}}
    skipped = [case for case, reason in cases.items() if reason is not None]
    runnable = [case for case, reason in cases.items() if reason is None]
    turns = [(case, 0) for case in skipped] + list(_ordered(runnable, config))
    return [
        with_data(Planned(case, repeat, position, cases[case], _code_key(case)), facts[case.dataset])
        for position, (case, repeat) in enumerate(turns)
    ]


def order_round(last: Sequence[Planned], config: SweepConfig, planned: int) -> list[Planned]:
    """The order in which one more run of each case is made.

    Args:
        last: The last run so far of every case that the round may hold, in the order of the plan.
        config: The sweep: `order` and `seed` are read.
        planned: How many runs are planned so far; with the seed it decides the order.

    Returns:
        `last` itself, shuffled where repeats are interleaved.
    """
    if config.measure.order == "sequential":
        return list(last)
    return random.Random(f"{config.measure.seed}/{planned}").sample(last, len(last))


def _code_key(case: Case) -> str:
    """Of the worker's code and the three entries that a case names."""
    entries = (("model", case.model), ("dataset", case.dataset), ("optimizer", case.optimizer))
    return stable_hash(
        [fingerprint.code_key(fingerprint.RUN_CODE), *(catalog.code_key(kind, choice.name) for kind, choice in entries)]
    )


def data_facts(dataset: Choice) -> DataFacts:
    """What of a data set's files decides the model, where anything does. Raises DataError."""
    if catalog.is_external("dataset", dataset.name):  # it is described in the worker only
        return DataFacts()
    info = describe(dataset)
    return DataFacts(data_classes=info.images.classes) if info.from_files else DataFacts()


def with_data(run: Planned, data: DataFacts, source: str | None = None) -> Planned:
    """A run whose key holds what it depends on of its data, so that other data make another run.

    Args:
        run: As planned; its key is of the code alone.
        data: What was found.
        source: `files` or `synthetic`, for a run that reads images.
    """
    parts = [source] * (source is not None) + [data.known] * bool(data.known)
    return replace(run, data=data, code_key=stable_hash([run.code_key, *parts]) if parts else run.code_key)


def build_cases(config: SweepConfig, device: str) -> dict[Case, str | None]:
    """Every case of the grid and its includes, each with the reason why it will not run, or `None`.

    Folders of data sets are looked at anew.

    Raises:
        ConfigError: One of them is not there, or cannot be read.
    """
    describe.cache_clear()
    _check_folders(config)
    cases: dict[Case, str | None] = {}
    for case in _product(_axes(config.grid)):
        cases.setdefault(case, _excluded(config, case, device) or skip_reason(case, device))
    for include in config.include:
        for case in _product(_axes(config.grid, include)):
            if cases.get(case) is not None or case not in cases:
                cases[case] = skip_reason(case, device)
    _check_images(config, cases)
    return cases


def _check_folders(config: SweepConfig) -> None:
    """Refuse data sets whose folders are not there: a mistyped path must not become a sweep of skipped cases."""
    named = dict.fromkeys(
        [*config.grid.dataset, *(item for include in config.include for item in include.dataset or ())]
    )
    faults = []
    for dataset in named:
        try:
            if not catalog.is_external("dataset", dataset.name):
                describe(dataset)
        except DataError as error:
            faults.append(f"grid.dataset: {error}")
    if faults:
        raise ConfigError(faults)


def reads_images(case: Case, *, gradient_noise: bool) -> bool:
    """Whether a run of the case reads its data set's images; all do where the gradient noise is measured."""
    return gradient_noise or case.input != "synthetic"


def _check_images(config: SweepConfig, cases: Mapping[Case, str | None]) -> None:
    """Refuse data sets that cannot be read, where a case reads them: each of its runs would fail."""
    every = config.measure.gradient_noise
    runnable = (case for case, reason in cases.items() if reason is None)
    root = data_folder(config.data.root)
    faults = []
    for dataset in dict.fromkeys(case.dataset for case in runnable if reads_images(case, gradient_noise=every)):
        if catalog.is_external("dataset", dataset.name):
            continue
        info = describe(dataset)
        check = info.check or info.find
        try:
            if check is not None and info.on_disk(root):
                check(root)
        except DataError as error:
            faults.append(f"grid.dataset: {error}")
    if faults:
        raise ConfigError(faults)


def skip_reason(case: Case, device: str) -> str | None:
    """Why the case cannot run on this kind of device, as far as that is known without building it."""
    if case.precision == "tf32" and device == "cpu":
        return "tf32 is a mode of NVIDIA's tensor cores; the CPU has none"
    if catalog.is_external("dataset", case.dataset.name):
        return None
    images = image_spec(case.dataset, case.image_size)
    if not catalog.is_external("optimizer", case.optimizer.name):
        if reason := refuse_device(case.optimizer.options, device):
            return reason
        refuse = catalog.optimizer(case.optimizer.name).refuse_reason
        if refuse is not None and (reason := refuse((), case.optimizer.options)):
            return reason
    if catalog.is_external("model", case.model.name):
        return None
    return catalog.model(case.model.name).skip_reason(images, case.model.options)


def image_spec(dataset: Choice, image_size: int) -> ImageSpec:
    """The shape of one sample at `image_size`; 0 keeps the data set's own. Raises DataError for a folder not there."""
    images = describe(dataset).images
    side = image_size or images.height
    return images if not image_size else ImageSpec(images.channels, side, side, images.classes)


@functools.lru_cache(maxsize=1024)
def describe(dataset: Choice) -> DatasetInfo:
    """What is known of a data set without reading its images; asked once a plan, and once a process without one."""
    return catalog.describe_dataset(dataset)


def _axes(grid: Grid, include: Include | None = None) -> dict[str, tuple[Any, ...]]:
    """The values of every axis; an include's own before the grid's."""
    return {axis: tuple(getattr(include, axis, None) or getattr(grid, axis) or (0,)) for axis in AXES}


def _product(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[Case]:
    for values in itertools.product(*axes.values()):
        case = Case(**dict(zip(axes, values, strict=True)))
        yield _sized(case)


def _sized(case: Case) -> Case:
    """The case with its image size in pixels, so that a size given and the same size by default are one case."""
    if case.image_size:
        return case
    if catalog.is_external("dataset", case.dataset.name):
        return case  # its own size is known in the worker only
    return replace(case, image_size=describe(case.dataset).images.height)


def _excluded(config: SweepConfig, case: Case, device: str) -> str | None:
    if not config.exclude:
        return None
    values = {**case.axes, "device": device}
    return next((rule.reason for rule in config.exclude if rule.matches(values)), None)


def _ordered(cases: list[Case], config: SweepConfig) -> Iterator[tuple[Case, int]]:
    if config.measure.order == "sequential":
        yield from ((case, repeat) for case in cases for repeat in range(config.measure.least_repeats))
        return
    generator = random.Random(config.measure.seed)
    for repeat in range(config.measure.least_repeats):
        yield from ((case, repeat) for case in generator.sample(cases, len(cases)))
