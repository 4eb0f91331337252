"""Turns a configuration into an ordered list of runs, without torch and without touching a device.

Cases are the product of the axes, each once, in the file's order. A case that cannot run stays in the plan with its
reason. Repeats of different cases are interleaved: each repeat is a block with every case once, shuffled with the
stored seed, so that a slow drift of the machine does not become a difference between cases. Further repeats come in
rounds (`order_round`), each shuffled in the same way; `bench.sweep.runs` decides them.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench import catalog, fingerprint
from bench.catalog import DatasetInfo
from bench.catalog.entries import ModelEntry
from bench.catalog.optimizer_state import refuse_device
from bench.errors import ConfigError, DataError
from bench.folders import data_folder
from bench.records import AXES, Case, Choice, DataFacts, ImageSpec, Planned, name_cases, stable_hash

if TYPE_CHECKING:
    from bench.config import Grid, Include, SweepConfig


Trial = tuple[Choice, ImageSpec]
"""A model, and images that it may not take."""

Try = Callable[[Sequence[Trial]], Mapping[Trial, str]]
"""Why models cannot take images, of those that cannot: `client.refusals_in_child`."""


def try_none(trials: Sequence[Trial]) -> Mapping[Trial, str]:
    """No model is tried: whether it takes its images shows in its run."""
    return {}


def build_plan(config: SweepConfig, device: str, try_models: Try = try_none) -> list[Planned]:
    """Every run in the order of execution, skipped cases first.

    Args:
        config: The sweep.
        device: `cpu` or `cuda`; some cases run on one of them only.
        try_models: Asked about models whose entries cannot tell whether they take the images.

    Returns:
        One item per run; a skipped case appears once, as repeat 0.
    """
    cases = build_cases(config, device, try_models)
    facts = {dataset: data_facts(dataset) for dataset in {case.dataset for case in cases}}
    skipped = [case for case, reason in cases.items() if reason is not None]
    runnable = [case for case, reason in cases.items() if reason is None]
    turns = [(case, 0) for case in skipped] + list(_ordered(runnable, config))
    return [
        with_data(Planned(case, repeat, position, cases[case], case_code_key(case)), facts[case.dataset])
        for position, (case, repeat) in enumerate(turns)
    ]


def order_round(last: Sequence[Planned], config: SweepConfig, planned: int) -> list[Planned]:
    """The order of one more run of each case.

    Args:
        last: The last run so far of every case that may be in the round, in the order of the plan.
        config: The sweep: `order` and `seed` are read.
        planned: How many runs are planned so far; with the seed it decides the order.

    Returns:
        `last` itself, shuffled where repeats are interleaved.
    """
    if config.measure.order == "sequential":
        return list(last)
    return random.Random(f"{config.measure.seed}/{planned}").sample(last, len(last))


def case_code_key(case: Case) -> str:
    """The key of the worker's code and the three entries that a case names."""
    entries: tuple[tuple[catalog.Kind, Choice], ...]
    entries = (("model", case.model), ("dataset", case.dataset), ("optimizer", case.optimizer))
    return stable_hash(
        [fingerprint.code_key(fingerprint.RUN_CODE), *(catalog.code_key(kind, choice.name) for kind, choice in entries)]
    )


def name_planned(cases: Collection[Case]) -> dict[Case, str]:
    """What the cases of one plan are called: by `name_cases`; a size that is not the data set's own is said too."""
    sizes = {(case.dataset, case.image_size) for case in cases if not catalog.is_external("dataset", case.dataset.name)}
    resized = any(size not in (0, describe(dataset).images.height) for dataset, size in sizes)
    return name_cases(cases, ("image_size",) if resized else ())


def data_facts(dataset: Choice) -> DataFacts:
    """What a data set's files determine about the model, if anything. Raises DataError."""
    if catalog.is_external("dataset", dataset.name):  # it is described in the worker only
        return DataFacts()
    info = describe(dataset)
    return DataFacts(data_classes=info.images.classes) if info.from_files else DataFacts()


def with_data(run: Planned, data: DataFacts, source: str | None = None) -> Planned:
    """A run whose key includes the data it depends on, so that other data make another run.

    Args:
        run: The planned run; its key covers the code alone.
        data: The facts found.
        source: `files` or `synthetic`, for a run that reads images.
    """
    parts = [source] * (source is not None) + [data.known] * bool(data.known)
    return replace(run, data=data, code_key=stable_hash([run.code_key, *parts]) if parts else run.code_key)


def build_cases(config: SweepConfig, device: str, try_models: Try = try_none) -> dict[Case, str | None]:
    """Every case of the grid and its includes, each with the reason why it will not run, or `None`.

    Folders of data sets are read again.

    Raises:
        ConfigError: One of them does not exist or cannot be read.
    """
    _check_folders([*config.grid.dataset, *(item for include in config.include for item in include.dataset or ())])
    cases: dict[Case, str | None] = {}
    for case in _product(_axes(config.grid)):
        cases.setdefault(case, _excluded(config, case, device) or skip_reason(case, device))
    for include in config.include:
        for case in _product(_axes(config.grid, include)):
            if cases.get(case) is not None or case not in cases:
                cases[case] = skip_reason(case, device)
    _check_images(config, cases)
    return cases | _refused(cases, try_models)


def _refused(cases: Mapping[Case, str | None], try_models: Try) -> dict[Case, str]:
    """The cases whose models turn out not to take their images, with the reasons."""
    trials: dict[Case, Trial] = {}
    for case, reason in cases.items():
        external = catalog.is_external("model", case.model.name) or catalog.is_external("dataset", case.dataset.name)
        if reason is None and not external:
            images = image_spec(case.dataset, case.image_size)
            if catalog.model(case.model.name).is_tried(images):
                trials[case] = (case.model, images)
    found = try_models(list(dict.fromkeys(trials.values()))) if trials else {}
    return {case: found[trial] for case, trial in trials.items() if trial in found}


def cross_axes(axes: Mapping[str, Sequence[Any]], device: str) -> dict[Case, str | None]:
    """Every case of some axes, each with the reason why it will not run, or `None`; otherwise as `build_cases`.

    Args:
        axes: Values that were checked, by names of `AXES`; what is left out is as usual.
        device: As for `build_cases`.
    """
    _check_folders(axes["dataset"])
    return {case: skip_reason(case, device) for case in _product({axis: axes[axis] for axis in AXES if axis in axes})}


def _check_folders(named: Iterable[Choice]) -> None:
    """Refuse data sets whose folders do not exist: a mistyped path must not become a sweep of skipped cases.

    Folders are read again from here on.
    """
    describe.cache_clear()
    faults = []
    for dataset in dict.fromkeys(named):
        try:
            if not catalog.is_external("dataset", dataset.name):
                describe(dataset)
        except DataError as error:
            faults.append(f"grid.dataset: {error}")
    if faults:
        raise ConfigError(faults)


def reads_images(case: Case, *, gradient_noise: bool) -> bool:
    """Whether a run of the case reads its data set's images; all do if the gradient noise is measured."""
    return gradient_noise or case.input != "synthetic"


def _check_images(config: SweepConfig, cases: Mapping[Case, str | None]) -> None:
    """Refuse unreadable data sets that a case reads: each of its runs would fail."""
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
    """Why the case cannot run on this kind of device, as far as known without building it."""
    if case.precision == "tf32" and device != "cuda":
        where = {"cpu": "the CPU", "xpu": "Intel GPUs by bench", "mps": "Apple GPUs"}[device]
        return f"tf32 needs NVIDIA's tensor cores; it is not available on {where}"
    if reason := refuse_switches(case, device):
        return reason
    if catalog.is_external("dataset", case.dataset.name):
        return None
    images = image_spec(case.dataset, case.image_size)
    if not catalog.is_external("optimizer", case.optimizer.name):
        if reason := refuse_device(case.optimizer.options, device):
            return reason
        optimizer = catalog.optimizer(case.optimizer.name)
        if optimizer.refuse_reason and (reason := optimizer.refuse_reason((), case.optimizer.options)):
            return reason
        if optimizer.takes_closure and (reason := refuse_closure(case)):
            return reason
    if catalog.is_external("model", case.model.name):
        return None
    model = catalog.model(case.model.name)
    return model.refusal(images, case.model.options) or _too_few(case, images, model)


def refuse_switches(case: Case, device: str) -> str | None:
    """Why the switches of the case exclude each other, or what they are to change, or `None`."""
    count, batch = case.accumulation, case.batch_size
    if batch % count:
        divisors = [number for number in range(1, min(batch, 1024) + 1) if batch % number == 0]
        near = sorted(sorted(divisors, key=lambda number: abs(number - count))[:4])
        return (
            f"accumulation {count} does not divide the batch of {batch}; nearest that do: {', '.join(map(str, near))}"
        )
    if case.allocator != "default" and device != "cuda":
        where = {"cpu": "the CPU", "xpu": "Intel GPUs", "mps": "Apple GPUs"}[device]
        return f"allocator {case.allocator} is of torch's allocator for CUDA and ROCm; it is not used on {where}"
    if case.update == "in_backward":
        if count > 1:
            return "update in_backward spends each gradient at once, so that accumulation has nothing to add up"
        if case.zero_grad != "none":
            return "update in_backward drops each gradient at once; zero_grad zeros keeps them"
        if case.precision == "fp16":
            return "update in_backward cannot train in fp16: the gradient scaler looks at all gradients before a step"
    return None


def refuse_closure(case: Case) -> str | None:
    """Why an optimizer whose step evaluates the model again cannot train the case, or `None`."""
    again = f"{case.optimizer.name} evaluates the model several times a step"
    if case.precision == "fp16":
        return f"{again}, which torch's gradient scaler for fp16 does not support; use bf16 or float32"
    if case.update == "in_backward":
        return f"{again}, for all parameters together; use update step"
    return None


def _too_few(case: Case, images: ImageSpec, model: ModelEntry) -> str | None:
    """Why the batch is too small for the model's norms, or `None`."""
    least = model.smallest_batch(images, case.model.options)
    if case.micro_batch_size >= least:
        return None
    batches = "batches" if case.accumulation == 1 else "micro-batches"
    return (
        f"{case.model} needs {batches} of at least {least} on images of {images.height} x {images.width}: a batch norm "
        "in it needs more than one value per channel; use a larger batch_size or image_size"
    )


def image_spec(dataset: Choice, image_size: int) -> ImageSpec:
    """The shape of one sample at `image_size`; 0 keeps the data set's own. Raises DataError for a missing folder."""
    images = describe(dataset).images
    return replace(images, height=image_size, width=image_size) if image_size else images


@functools.lru_cache(maxsize=1024)
def describe(dataset: Choice) -> DatasetInfo:
    """What is known about a data set without reading its images; read once per plan or process."""
    return catalog.describe_dataset(dataset)


def _axes(grid: Grid, include: Include | None = None) -> dict[str, tuple[Any, ...]]:
    """The values of every axis; those of an include take precedence over the grid's."""
    return {axis: tuple(getattr(include, axis, None) or getattr(grid, axis) or (0,)) for axis in AXES}


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterator[Case]:
    for values in itertools.product(*axes.values()):
        case = Case(**dict(zip(axes, values, strict=True)))
        yield _sized(case)


def _sized(case: Case) -> Case:
    """The case with its image size in pixels, so that an explicit and an equal default size give one case.

    The default is the size that the model was made for, where it has one (timm's do), else the data set's own.
    """
    if case.image_size:
        return case
    if catalog.is_external("dataset", case.dataset.name):
        return case  # its own size is known in the worker only
    return replace(case, image_size=default_side(case.dataset, case.model))


def default_side(dataset: Choice, model: Choice) -> int:
    """Side in pixels of the images of a case that has no image size. Raises DataError for a missing folder."""
    return catalog.own_side(model) or describe(dataset).images.height


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
