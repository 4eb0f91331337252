"""The Python interface: what the commands do, for scripts and notebooks, with frozen dataclasses for answers.

A model, an optimizer and a data set are named as on the command line; torch is then imported in other processes only,
and what was recorded once is kept. A model may also be given as a callable that builds it, an optimizer as a callable
over its parameters, and the images by the shape of one sample. Those are nobody's but the caller's: they run in forks
of this process, so that nothing need be importable or pickled and nothing of torch's state here changes, and nothing of
them is kept.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from bench.errors import BenchError, InfrastructureError, Unsupported

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd
    import torch

    from bench.catalog import Entry, Kind
    from bench.catalog.entries import Loss, Step
    from bench.comparison import Comparison, History
    from bench.devices import Device
    from bench.estimators.choosing import By, Ranking
    from bench.estimators.fitting import Fit
    from bench.estimators.saving import Saving
    from bench.estimators.timeline import Timeline
    from bench.guard import Guarded
    from bench.launchers import Launcher
    from bench.records import Case, Checkpointing, Estimate, ImageSpec, MemoryFormat, Precision, Update, ZeroGrad
    from bench.site import Built
    from bench.sweep.noise import MeasuredNoise
    from bench.sweep.reproducing import Reproduction

    Made = TypeVar("Made")
    Model = str | Callable[..., torch.nn.Module]
    Optimizer = str | Mapping[str, Any] | Callable[..., torch.optim.Optimizer]
    Shape = tuple[int, int, int]
    Results = str | PathLike[str] | Sequence[str | PathLike[str]] | pd.DataFrame


class Switches(TypedDict, total=False):
    """Further keywords of `estimate`, `fit`, `save_memory` and `timeline`: axes of a case that are usually left alone.

    Values are those of a configuration's grid (docs/configuration.md); each defaults as there. Beside them stands a
    training step of the caller's own, for a model that is a callable.

    Attributes:
        step: `(model, optimizer, batch) -> anything`: runs in place of the usual step, and decides on precision,
            zero_grad and what else a step does. What it returns is alive until the next step has ended.
        inputs: The tensors of the batch, each as its type and shape, in place of images and labels:
            `["int64[B,128]", "int64[B,128]"]`. B is the batch size.
    """

    step: Step
    inputs: Sequence[str]

    accumulation: int
    checkpointing: Checkpointing
    compile: bool | str
    update: Update
    allocator: str
    zero_grad: ZeroGrad


DEFAULT_DATASET = "imagenet"
_BAD_FORK = "Unable to handle autograd's threading in combination with fork-based multiprocessing"
"""torch/csrc/autograd/engine.cpp: what a fork is told whose parent ran a backward pass where there is a GPU."""


def load(*paths: str | PathLike[str]) -> pd.DataFrame:
    """Load result folders into one frame, one row per run (see `bench.store.load_results`).

    Args:
        *paths: Folders that `bench sweep` wrote, folders that hold several of them, bundles of `bench bundle`, or
            addresses of either, such as `s3://bucket/mine.zip`.

    Returns:
        One row per run, planned runs that have not happened and skipped cases included; each with its case's axes,
        its measurement, its environment and the estimates for its case. Unknown values are null.

    Raises:
        bench.errors.StoreError: A path holds no results, or was written by a newer version.
    """
    from bench.bundles import open_results
    from bench.store import load_results

    with open_results(paths) as folders:
        return load_results(*folders)


@overload
def estimate(
    model: Model,
    *,
    batch_size: int = ...,
    dataset: str | None = ...,
    sample_shape: Shape | None = ...,
    classes: int | None = ...,
    optimizer: Optimizer = ...,
    loss: Loss | None = ...,
    precision: Precision = ...,
    memory_format: MemoryFormat = ...,
    image_size: int | None = ...,
    device: str | Path | Device = ...,
    memory: int | str | None = ...,
    workspaces: bool = ...,
    **switches: Unpack[Switches],
) -> Estimate: ...


@overload
def estimate(
    model: Model,
    *,
    batch_size: Sequence[int],
    dataset: str | None = ...,
    sample_shape: Shape | None = ...,
    classes: int | None = ...,
    optimizer: Optimizer = ...,
    loss: Loss | None = ...,
    precision: Precision = ...,
    memory_format: MemoryFormat = ...,
    image_size: int | None = ...,
    device: str | Path | Device = ...,
    memory: int | str | None = ...,
    workspaces: bool = ...,
    **switches: Unpack[Switches],
) -> list[Estimate]: ...


def estimate(
    model: Model,
    *,
    batch_size: int | Sequence[int] = 64,
    dataset: str | None = None,
    sample_shape: Shape | None = None,
    classes: int | None = None,
    optimizer: Optimizer = "sgd",
    loss: Loss | None = None,
    precision: Precision = "float32",
    memory_format: MemoryFormat = "contiguous",
    image_size: int | None = None,
    device: str | Path | Device = "h200",
    memory: int | str | None = None,
    workspaces: bool = True,
    **switches: Unpack[Switches],
) -> Estimate | list[Estimate]:
    """Estimate memory and speed of a training step on a device, without the device.

    Args:
        model: A name, with settings where it has any (`"resnet50"`, `"mlp:hidden=256"`,
            `"timm:convnextv2_tiny"`); or a callable that builds a `torch.nn.Module`. A callable that needs an argument
            gets the `bench.records.ImageSpec` of one sample. The module maps float32 images `(B, C, H, W)` to
            `(B, classes)`, or on a data set of masks to `(B, classes, H, W)`, unless `loss` is given.
        batch_size: Samples a step. Of several sizes, two recordings serve all.
        dataset: A name, for the shape of the images and the number of classes; `imagenet` unless given.
        sample_shape: `(C, H, W)` of one sample, in place of a data set.
        classes: How many, with `sample_shape`.
        optimizer: A name with settings (`"adam:foreach=false"`), a mapping of them with the `name`, or a callable
            `(parameters) -> torch.optim.Optimizer`, a class of torch's say.
        loss: `(output, labels) -> scalar tensor` of your own model, if it is not the cross-entropy: of a module that
            gives several outputs in training, say. Labels are int64: classes `(B,)`, or masks `(B, H, W)`.
        precision: `float32`, `tf32`, `bf16` or `fp16`.
        memory_format: `contiguous` or `channels_last`.
        image_size: Side of a data set's images in pixels; unless given its own, or that of a model of timm.
        device: The name of a device, the path of a device file, or a `bench.devices.Device`.
        memory: Of the smaller card that the device plays, in bytes or as text (`"24 GiB"`); its own unless given.
        workspaces: Whether to count cuDNN's workspaces.
        **switches: See `Switches`: `checkpointing="blocks"`, say.

    Returns:
        A `bench.records.Estimate`, or a list of them in the order of several `batch_size`s. What an estimator cannot
        say is None, with the reason in `estimate_note`. The state of an optimizer given as a callable is unknown to the
        formula, which then has no total; the trace has it.

    Raises:
        bench.errors.BenchError: An argument is not valid, the case cannot run, or your own code raises: one line, with
            the place in your code.
    """
    from bench.client import estimates_in_order

    batches = _batches(batch_size)
    axes = {"precision": precision, "memory_format": memory_format, "image_size": image_size, **switches}
    asked = _Asked.of(model, batches, dataset, sample_shape, classes, optimizer, loss, axes)
    lost: list[str] = []

    def heard(reasons: Mapping[str, str]) -> None:
        lost.extend(reasons.values())

    with asked.raising():
        made = estimates_in_order(
            asked.launcher, asked.cases, _known(device, memory), workspaces=workspaces, heard=heard
        )
        if lost and asked.own:
            raise BenchError(lost[0])
    return asked.in_order(made, batch_size)


def fit(
    model: Model,
    *,
    dataset: str | None = None,
    sample_shape: Shape | None = None,
    classes: int | None = None,
    optimizer: Optimizer = "sgd",
    loss: Loss | None = None,
    precision: Precision = "float32",
    memory_format: MemoryFormat = "contiguous",
    image_size: int | None = None,
    device: str | Path | Device = "h200",
    memory: int | str | None = None,
    fraction: float = 0.8,
    workspaces: bool = True,
    **switches: Unpack[Switches],
) -> Fit:
    """Find the largest batch that a GPU holds, a recommended one, and the ladder from 16 up, without the GPU.

    Args:
        model: As for `estimate`, and so are all others but `fraction`.
        dataset: See model. Its training images end the search.
        sample_shape: See model.
        classes: See model.
        optimizer: See model.
        loss: See model.
        precision: See model.
        memory_format: See model.
        image_size: See model.
        device: See model.
        memory: See model.
        fraction: The share of the GPU's memory that the recommended batch may take.
        workspaces: See model.
        **switches: See model.

    Returns:
        A `bench.estimators.fitting.Fit`; bytes are whole numbers, and batch sizes are None where no sample fits.

    Raises:
        bench.errors.BenchError: As `estimate`; and the step cannot be traced, or the device is not a GPU.
    """
    from bench.client import fit_in_child

    _check_fraction(fraction)
    axes = {"precision": precision, "memory_format": memory_format, "image_size": image_size, **switches}
    asked = _Asked.of(model, [64], dataset, sample_shape, classes, optimizer, loss, axes)
    with asked.raising():
        return fit_in_child(
            asked.launcher, asked.cases[0], _known(device, memory), fraction=fraction, workspaces=workspaces
        )


def choose(
    model: Model,
    *,
    dataset: str | None = None,
    sample_shape: Shape | None = None,
    classes: int | None = None,
    optimizer: Optimizer = "sgd",
    loss: Loss | None = None,
    precision: Precision = "float32",
    memory_format: MemoryFormat = "contiguous",
    image_size: int | None = None,
    devices: Sequence[str | Path | Device] | None = None,
    samples: int | None = None,
    by: By = "time",
    prices: Mapping[str, float] | None = None,
    fraction: float = 0.8,
    workspaces: bool = True,
    **switches: Unpack[Switches],
) -> Ranking:
    """Rank GPUs for a training step by time, energy or cost, each at its largest recommended batch, without the GPUs.

    Args:
        model: As for `estimate`, and so are all others but those below.
        dataset: See model. Its training images are an epoch.
        sample_shape: See model; `samples` is then needed.
        classes: See model.
        optimizer: See model.
        loss: See model.
        precision: See model.
        memory_format: See model.
        image_size: See model.
        devices: Each as `device` of `estimate`; every GPU of the package unless given.
        samples: How many to train on; an epoch of the data set unless given.
        by: `time`, `energy` or `cost`, which needs prices.
        prices: Of a GPU for an hour, by name.
        fraction: As for `fit`.
        workspaces: See model.
        **switches: See model.

    Returns:
        A `bench.estimators.choosing.Ranking`: `offers`, the best first, and `left_out` with the reasons. GPUs whose
        intervals overlap are not told apart: see `rank_best`, `rank_worst` and `unclear_with`.

    Raises:
        bench.errors.BenchError: As `fit`; and a price is wrong, or the number of samples is not known.
    """
    from bench import catalog
    from bench.client import placements_in_child
    from bench.estimators.choosing import BYS, check_prices, list_gpus, rank

    _check_fraction(fraction)
    gpus = list_gpus() if devices is None else [_known(device, None) for device in devices]
    known_prices = check_prices([(f"prices[{name!r}]", name, price) for name, price in (prices or {}).items()], gpus)
    if by not in BYS or (by == "cost" and not known_prices):
        given = "needs prices={name: price}" if by == "cost" else f"one of {', '.join(BYS)} is needed"
        raise BenchError(f'by="{by}": {given}')
    if len({gpu.name for gpu in gpus}) < len(gpus):
        raise BenchError("devices: two have the same name; give one of them another")
    axes = {"precision": precision, "memory_format": memory_format, "image_size": image_size, **switches}
    asked = _Asked.of(model, [64], dataset, sample_shape, classes, optimizer, loss, axes)
    own_images = "dataset" in asked.entries
    epoch = 0 if own_images else catalog.describe_dataset(asked.cases[0].dataset).train_samples
    count = epoch if samples is None else samples
    if count < 1:
        raise BenchError("samples: how many to train on, 1 or more, is needed where no data set says it")
    with asked.raising():
        placements = placements_in_child(asked.launcher, asked.cases[0], gpus, fraction=fraction, workspaces=workspaces)
    return rank(placements, by=by, samples=count, fraction=fraction, prices=known_prices)


def save_memory(
    model: Model,
    *,
    batch_size: int = 64,
    dataset: str | None = None,
    sample_shape: Shape | None = None,
    classes: int | None = None,
    optimizer: Optimizer = "sgd",
    loss: Loss | None = None,
    precision: Precision | None = None,
    memory_format: MemoryFormat | None = None,
    image_size: int | None = None,
    device: str | Path | Device = "h200",
    memory: int | str | None = None,
    workspaces: bool = True,
    **switches: Unpack[Switches],
) -> Saving:
    """Find what makes a batch fit on a GPU, and what each way costs, without the GPU.

    Accumulation, checkpointing, updates in the backward and expandable segments are tried alone and together.

    Args:
        model: As for `estimate`, and so are all others but the precision, the memory format and the switches.
        batch_size: See model.
        dataset: See model.
        sample_shape: See model.
        classes: See model.
        optimizer: See model.
        loss: See model.
        precision: As for `estimate`. None is `float32`, and then bf16 and `channels_last` are tried too.
        memory_format: As for `estimate`. None is `contiguous`, and then `channels_last` is tried too.
        image_size: See model.
        device: See model.
        memory: See model.
        workspaces: See model.
        **switches: Those that are kept as given, and not tried: `update="step"`, say.

    Returns:
        A `bench.estimators.saving.Saving`: the answer in one sentence, the best trade-offs of peak memory and
        samples/s, and every way that was tried.

    Raises:
        bench.errors.BenchError: As `fit`.
    """
    from bench.client import saving_in_child

    given = {"precision": precision, "memory_format": memory_format, **switches}
    asked = _Asked.of(
        model, [batch_size], dataset, sample_shape, classes, optimizer, loss, {**given, "image_size": image_size}
    )
    named = {axis for axis, value in given.items() if value is not None}
    lost: list[str] = []

    def heard(reasons: Mapping[str, str]) -> None:
        lost.extend(reasons.values())

    with asked.raising():
        try:
            return saving_in_child(
                asked.launcher, asked.cases[0], _known(device, memory), named=named, workspaces=workspaces, heard=heard
            )
        except Unsupported as error:
            raise BenchError(lost[0]) if lost and asked.own else error from error


@overload
def timeline(
    model: Model,
    *,
    batch_size: int = ...,
    dataset: str | None = ...,
    sample_shape: Shape | None = ...,
    classes: int | None = ...,
    optimizer: Optimizer = ...,
    loss: Loss | None = ...,
    precision: Precision = ...,
    memory_format: MemoryFormat = ...,
    image_size: int | None = ...,
    device: str | Path | Device = ...,
    memory: int | str | None = ...,
    workspaces: bool = ...,
    **switches: Unpack[Switches],
) -> Timeline: ...


@overload
def timeline(
    model: Model,
    *,
    batch_size: Sequence[int],
    dataset: str | None = ...,
    sample_shape: Shape | None = ...,
    classes: int | None = ...,
    optimizer: Optimizer = ...,
    loss: Loss | None = ...,
    precision: Precision = ...,
    memory_format: MemoryFormat = ...,
    image_size: int | None = ...,
    device: str | Path | Device = ...,
    memory: int | str | None = ...,
    workspaces: bool = ...,
    **switches: Unpack[Switches],
) -> list[Timeline]: ...


def timeline(
    model: Model,
    *,
    batch_size: int | Sequence[int] = 64,
    dataset: str | None = None,
    sample_shape: Shape | None = None,
    classes: int | None = None,
    optimizer: Optimizer = "sgd",
    loss: Loss | None = None,
    precision: Precision = "float32",
    memory_format: MemoryFormat = "contiguous",
    image_size: int | None = None,
    device: str | Path | Device = "h200",
    memory: int | str | None = None,
    workspaces: bool = True,
    **switches: Unpack[Switches],
) -> Timeline | list[Timeline]:
    """Follow memory over one training step on a GPU, event by event of its allocator, without the GPU.

    Args:
        model: As for `estimate`, and so are all others.
        batch_size: See model.
        dataset: See model.
        sample_shape: See model.
        classes: See model.
        optimizer: See model.
        loss: See model.
        precision: See model.
        memory_format: See model.
        image_size: See model.
        device: See model.
        memory: See model.
        workspaces: See model.
        **switches: See model.

    Returns:
        A `bench.estimators.timeline.Timeline`, or a list of them in the order of several `batch_size`s.

    Raises:
        bench.errors.BenchError: As `fit`.
    """
    from bench.client import timeline_in_child

    batches = _batches(batch_size)
    axes = {"precision": precision, "memory_format": memory_format, "image_size": image_size, **switches}
    asked = _Asked.of(model, batches, dataset, sample_shape, classes, optimizer, loss, axes)
    known = _known(device, memory)
    with asked.raising():
        made = [timeline_in_child(asked.launcher, case, known, workspaces=workspaces) for case in asked.cases]
    return asked.in_order(made, batch_size)


def outline(
    model: Model,
    *,
    batch_size: int = 64,
    dataset: str | None = None,
    sample_shape: Shape | None = None,
    classes: int | None = None,
    optimizer: Optimizer = "sgd",
    loss: Loss | None = None,
    precision: Precision = "float32",
    memory_format: MemoryFormat = "contiguous",
    image_size: int | None = None,
    device: str | Path | Device = "h100_sxm",
    workspaces: bool = False,
    **switches: Unpack[Switches],
) -> Guarded:
    """Trace a training step for the memory gate: what the pytest plugin compares with a baseline.

    Args:
        model: As for `estimate`, and so are all others.
        batch_size: See model.
        dataset: See model.
        sample_shape: See model.
        classes: See model.
        optimizer: See model.
        loss: See model.
        precision: See model.
        memory_format: See model.
        image_size: See model.
        device: See model.
        workspaces: See model. Off unless asked for, so that torch without cuDNN says the same.
        **switches: See model.

    Raises:
        bench.errors.BenchError: As `fit`.
    """
    from bench.client import ask
    from bench.guard import Guarded
    from bench.tasks import guard_one_task

    if not isinstance(batch_size, int):
        raise BenchError(f"batch_size {batch_size!r}: one whole number is needed")
    axes = {"precision": precision, "memory_format": memory_format, "image_size": image_size, **switches}
    asked = _Asked.of(model, [batch_size], dataset, sample_shape, classes, optimizer, loss, axes)
    argument = {"case": asked.cases[0], "device": _known(device, None), "workspaces": workspaces}
    with asked.raising():
        return Guarded.read(ask(asked.launcher, "guard", guard_one_task, argument))


def compare(
    baseline: Results,
    candidate: Results,
    *,
    margin: float = 0.01,
    confidence: float = 0.95,
    across: Sequence[str] = (),
    only: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    processes: int | None = None,
) -> Comparison:
    """Compare two results case by case: what differs beside them, then each ratio with its interval and verdict.

    Args:
        baseline: A results folder or a bundle, several of them, or a frame that `load` returned.
        candidate: The same.
        margin: The smallest change that counts, as a fraction.
        confidence: Of every interval, and of no false verdict among all the cases of a metric.
        across: Axes and flags that may differ between the sides.
        only: `FIELD=PATTERN` each: only such runs, as with `bench compare --only`.
        metrics: Names in `bench.comparison.METRICS`; throughput and peak memory unless given.
        processes: Only the first so many processes of each case count, on both sides.

    Returns:
        A `bench.comparison.Comparison`: its `cases` is a frame with one row a case and metric.

    Raises:
        bench.errors.BenchError: The sides have no case in common, do different work, or hold no runs.
    """
    from bench.comparison import compare as compare_frames
    from bench.comparison import select_runs

    one, two = (select_runs(_runs(side), list(only)) for side in (baseline, candidate))
    return compare_frames(
        one, two, margin=margin, confidence=confidence, across=across, metrics=metrics, processes=processes
    )


def history(
    *results: str | PathLike[str],
    margin: float = 0.01,
    confidence: float = 0.95,
    only: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
) -> History:
    """Follow each case over results of different dates, commits, drivers or versions, and find where its level changed.

    Args:
        *results: Results folders, folders that hold several of them, bundles, and addresses of any of these, in any
            order: runs say when they ran.
        margin: The smallest change that counts, as a fraction.
        confidence: Of every interval, and of there being no false change among all the cases of a metric.
        only: `FIELD=PATTERN` each: only such runs, as with `bench history --only`.
        metrics: Names in `bench.comparison.METRICS`; throughput and peak memory unless given.

    Returns:
        A `bench.comparison.History`: its `points` is a frame with one row a case, metric and result.

    Raises:
        bench.errors.BenchError: A path holds no results, `only` leaves nothing, or no result measured a metric.
    """
    import pandas as pd

    from bench.comparison import select_runs, trace_history

    sides = [side for path in results for side in _dated_results(path)]
    if not sides:
        raise BenchError("give at least one result to follow")
    if only:
        joined = pd.concat([frame.assign(_side=place) for place, (_, frame) in enumerate(sides)], ignore_index=True)
        chosen = select_runs(joined, list(only))
        sides = [(name, chosen[chosen["_side"] == place]) for place, (name, _) in enumerate(sides)]
    return trace_history(sides, margin=margin, confidence=confidence, metrics=metrics)


def _dated_results(given: str | PathLike[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each results folder in a folder or bundle, or at an address, with its name."""
    from bench.bundles import is_address, open_results, results_name
    from bench.store import read_results, results_folders

    with open_results([given]) as (opened,):
        folders = results_folders([opened])
        for folder in folders:
            loaded = read_results(folder)
            loaded.warn()
            inside = results_name(folder)
            whole = results_name(given) if len(folders) == 1 else f"{results_name(given)}/{inside}"
            yield (whole if is_address(given) or Path(given).is_file() else inside), loaded.frame


def reproduce(
    results: str | PathLike[str],
    *,
    out: str | PathLike[str] | None = None,
    device: str | None = None,
    only: Sequence[str] = (),
    across: Sequence[str] = (),
    margin: float = 0.01,
    confidence: float = 0.95,
    check_only: bool = False,
    report: bool = True,
) -> Reproduction:
    """Measure results again, and say for each case whether it came out the same.

    Runs go to fresh processes, and finished ones are kept: the same call resumes. Nothing that comes with the results
    is run.

    Args:
        results: A bundle, a results folder, or an address of either.
        out: Folder for the new results; `reports/NAME-reproduced` unless given.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; the results' kind of device unless given.
        only: `FIELD=PATTERN` each: only such runs of the results, as with `bench compare --only`.
        across: Axes and flags that may differ here.
        margin: The smallest change of speed that counts, as a fraction.
        confidence: Of every interval, and of no false `different` among the speeds of all cases.
        check_only: Only say what differs from here.
        report: Whether to render a report of the new results.

    Returns:
        A `bench.sweep.reproducing.Reproduction`: `differences`, and an answer for each of its `cases`.

    Raises:
        bench.errors.BenchError: The results cannot be read or planned here, or the device or folder cannot be used.
    """
    from bench.sweep.reproducing import ReproduceOptions
    from bench.sweep.reproducing import reproduce as reproduce_results
    from bench.terminal import Progress

    given = results if isinstance(results, str) else Path(results)
    target = None if out is None else Path(out)
    options = ReproduceOptions(target, device, only, across, margin, confidence, check_only, report)
    return reproduce_results(given, options, Progress(quiet=True))


def measure_noise(
    device: str = "auto",
    *,
    minutes: float = 10.0,
    repeats: int = 40,
    out: str | PathLike[str] | None = None,
    keep: bool = True,
) -> MeasuredNoise:
    """Measure which differences can be seen on this machine, and what disturbs it: `bench noise`.

    Runs go to fresh processes, and finished ones are kept: the same call resumes.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        minutes: What all of it may take.
        repeats: The most processes per case.
        out: Folder for the results; `reports/noise-DEVICE` unless given.
        keep: Whether `bench env` and later sweeps of this account know of it.

    Returns:
        A `bench.sweep.noise.MeasuredNoise`; its `content` is what `bench noise --json` prints.

    Raises:
        bench.errors.BenchError: The device or folder cannot be used.
    """
    from bench.sweep.noise import NoiseOptions
    from bench.sweep.noise import measure_noise as measure
    from bench.terminal import Progress

    target = None if out is None else Path(out)
    return measure(NoiseOptions(target, device, minutes, repeats, None, keep), Progress(quiet=True))


def build_site(
    out: str | PathLike[str],
    *results: str | PathLike[str],
    title: str | None = None,
    url: str | None = None,
    margin: float | None = None,
    only: bool = False,
    whole: bool = False,
) -> Built:
    """Build a static site from many results, or add results to the one that is there.

    Args:
        out: A new or empty folder, or one that this function wrote.
        *results: Bundles of `bench bundle`, folders that `bench sweep` wrote or that hold several of these, and
            addresses of any of these.
        title: Of the site; that of the last time unless given.
        url: Where it will be published, for absolute addresses in the feeds; that of the last time unless given.
        margin: How far apart, as a fraction, two hosts may be that agree; that of the last time, or 5 %.
        only: Whether bundles that the site has and `results` does not name are removed.
        whole: Whether every bundle is read again, whatever was kept.

    Returns:
        A `bench.site.Built`: the page to open, how many bundles and pages there are, and what was read.

    Raises:
        bench.errors.BenchError: `out` holds something else, there is nothing to show, or a bundle was changed.
    """
    from bench.site import build_site as build

    given = [path if isinstance(path, str) else Path(path) for path in results]
    return build(Path(out), given, title=title, url=url, margin=margin, only=only, whole=whole)


def _runs(results: Results) -> pd.DataFrame:
    """The runs of one side."""
    if isinstance(results, str) or hasattr(results, "__fspath__"):
        return planned_runs_of(results)  # type: ignore[arg-type,unused-ignore]
    return planned_runs_of(*results) if isinstance(results, list | tuple) else results  # type: ignore[return-value]


def planned_runs_of(*paths: str | PathLike[str]) -> pd.DataFrame:
    """The runs of results that are to be compared. Raises StoreError where none counts."""
    from bench.bundles import open_results
    from bench.store import planned_runs, read_results

    with open_results(paths) as folders:
        loaded = read_results(*folders)
        loaded.warn()
        planned_runs(loaded)
    return loaded.frame


@dataclass(frozen=True, slots=True)
class _Asked:
    """The cases of a call, and where they are worked on.

    Attributes:
        cases: One a batch size, each once.
        entries: What the caller gave that no catalog has, by kind.
    """

    cases: list[Case]
    entries: dict[Kind, Entry]

    @classmethod
    def of(
        cls,
        model: Model,
        batches: Sequence[int],
        dataset: str | None,
        sample_shape: Shape | None,
        classes: int | None,
        optimizer: Optimizer,
        loss: Loss | None,
        axes: Mapping[str, Any],
    ) -> _Asked:
        """Check all arguments; `axes` are the further ones of the grid, None where not given. Raises BenchError."""
        from bench.catalog import files
        from bench.config import check_config
        from bench.plan import build_cases, refuse_switches
        from bench.records import Choice

        if isinstance(model, str) and files.is_name(model.partition(":")[0] + ":"):
            raise BenchError(f'model "{model}": from Python, give the callable itself: import it, and pass model=build')
        axes = dict(axes)
        own_step, inputs = axes.pop("step", None), axes.pop("inputs", None) or ()
        entries = _own_entries(model, dataset, sample_shape, classes, optimizer, loss, axes["image_size"])
        if own_step is not None or inputs:
            _add_step(entries, own_step, inputs, dataset, sample_shape)
        grid: dict[str, Any] = {
            "dataset": dataset or DEFAULT_DATASET,
            "model": "mlp" if "model" in entries else model,
            "optimizer": "sgd" if "optimizer" in entries else optimizer,
            "batch_size": list(dict.fromkeys(batches)),
            **{axis: value for axis, value in axes.items() if value is not None},
        }
        checked = check_config({"name": "api", "grid": grid}, "bench")
        for axis in ("dataset", "model", "optimizer"):
            if len(named := getattr(checked.grid, axis)) > 1:
                few = ", ".join(map(str, named[:3]))
                raise BenchError(f"{axis}: matches {len(named)} names ({few}, ...); give one")
        reasons = build_cases(checked, "cuda")
        if not entries:
            if refused := next((f"{case}: {reason}" for case, reason in reasons.items() if reason), None):
                raise Unsupported(refused)
            return cls(list(reasons), {})
        own = {kind: Choice(entry.name) for kind, entry in entries.items()}
        if "dataset" in own:
            own["image_size"] = 0  # type: ignore[index,assignment]
        cases = [replace(case, **own) for case in reasons]  # type: ignore[arg-type]
        if refused := next((f"{case}: {reason}" for case in cases if (reason := refuse_switches(case, "cuda"))), None):
            raise Unsupported(refused)
        return cls(cases, entries)

    @property
    def own(self) -> bool:
        """Whether any of it is the caller's."""
        return bool(self.entries)

    @property
    def launcher(self) -> Launcher:
        """Fresh processes, or forks of this one for what is the caller's."""
        from bench.launchers import ForkLauncher, LocalLauncher

        return ForkLauncher(functools.partial(_be_ready, self.entries)) if self.own else LocalLauncher()

    def in_order(self, made: Sequence[Made], batch_size: int | Sequence[int]) -> Made | list[Made]:
        """What was made of each case, as the caller gave the batch sizes."""
        by_batch = {case.batch_size: item for case, item in zip(self.cases, made, strict=True)}
        found = [by_batch[size] for size in _batches(batch_size)]
        return found[0] if isinstance(batch_size, int) else found

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Say what to do where torch refuses to work in a fork of this process."""
        try:
            yield
        except BenchError as error:
            if _BAD_FORK in str(error):
                raise InfrastructureError(
                    "torch refuses autograd in forks of a process that has run a backward pass where there is a GPU, "
                    "and your own model can only be followed in a fork. Ask before the first backward, or in a process "
                    "of its own"
                ) from error
            raise


def _be_ready(entries: Mapping[Kind, Entry]) -> None:
    """Make a fork of the caller's process fit for its task."""
    from bench import catalog

    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # OpenMP's threads are not in a fork, which waits for them (as torch's own loaders do)
    for kind, entry in entries.items():
        catalog.lend(kind, entry)


def _own_entries(
    model: Model,
    dataset: str | None,
    sample_shape: Shape | None,
    classes: int | None,
    optimizer: Optimizer,
    loss: Loss | None,
    image_size: int | None,
) -> dict[Kind, Entry]:
    """What the caller gave that no catalog has. Raises BenchError."""
    from bench.catalog import DatasetEntry, DatasetInfo, ModelEntry, OptimizerEntry
    from bench.records import ImageSpec

    found: dict[Kind, Entry] = {}
    _refuse_built(model, optimizer)
    if callable(model):
        found["model"] = ModelEntry(_name(model, "model"), functools.partial(_build, model), loss=loss, task=None)
    elif loss is not None:
        raise BenchError("loss: goes with a model that is a callable; a model of the catalog has its own")
    if callable(optimizer):
        found["optimizer"] = OptimizerEntry(_name(optimizer, "optimizer"), lambda parameters: optimizer(parameters))
    if sample_shape is None:
        if classes is not None:
            raise BenchError("classes: goes with sample_shape; a data set has its own number of classes")
        return found
    if dataset is not None or image_size is not None:
        raise BenchError("sample_shape: stands in place of dataset and image_size; leave those out")
    sides = sample_shape if isinstance(sample_shape, tuple | list) else ()
    if len(sides) != 3 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise BenchError(f"sample_shape {sample_shape!r}: three whole numbers (C, H, W) above 0 are needed")
    if not isinstance(classes, int) or classes < 1:
        raise BenchError("classes: with sample_shape, the number of classes is needed: classes=10")
    images = ImageSpec(*sample_shape, classes)
    info = DatasetInfo(images, (), (0.0,) * images.channels, (1.0,) * images.channels, 0, 0)
    found["dataset"] = DatasetEntry("x".join(map(str, images.shape)), lambda: info)
    return found


def _refuse_built(model: Model, optimizer: Optimizer) -> None:
    """Raise BenchError where a module or an optimizer stands in place of what makes it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        raise BenchError("model: give what builds the module, such as `lambda: Net()`, not a module that is built")
    if torch is not None and isinstance(optimizer, torch.optim.Optimizer):
        raise BenchError(
            "optimizer: give what builds it of the parameters, such as torch.optim.AdamW, not one that is built"
        )


def _add_step(
    entries: dict[Kind, Entry],
    own_step: Step | None,
    inputs: Sequence[str],
    dataset: str | None,
    sample_shape: Shape | None,
) -> None:
    """Put a step and inputs of the caller's own into the entries. Raises BenchError."""
    from bench.catalog import DatasetEntry, DatasetInfo, ModelEntry
    from bench.records import ImageSpec

    name, model = ("step", own_step) if own_step is not None else ("inputs", None)
    own = entries.get("model")
    if not isinstance(own, ModelEntry):
        raise BenchError(f"{name}: goes with a model that is a callable; a model of the catalog has its own step")
    if model is not None and not callable(model):
        raise BenchError(f"step {model!r}: a function (model, optimizer, batch) is needed")
    entries["model"] = replace(own, step=own_step, inputs=inputs)  # type: ignore[arg-type]  # which it checks
    if not inputs:
        return
    if dataset is not None or sample_shape is not None:
        raise BenchError("inputs: stand in place of dataset and sample_shape; leave those out")
    info = DatasetInfo(ImageSpec(1, 1, 1, 1), (), (0.0,), (1.0,), 0, 0)
    entries["dataset"] = DatasetEntry("inputs", lambda: info)


def _build(model: Callable[..., torch.nn.Module], images: ImageSpec) -> torch.nn.Module:
    """The caller's module. Raises TypeError where it is none."""
    from torch import nn

    built = model(images) if _needs_argument(model) else model()
    if not isinstance(built, nn.Module):
        raise TypeError(f"{_name(model, 'model')} returned {type(built).__name__}, not a torch.nn.Module")
    return built


def _needs_argument(model: Callable[..., Any]) -> bool:
    """Whether it has a parameter that must be given."""
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):  # of C code without a signature
        return False
    given = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(item.kind in given and item.default is inspect.Parameter.empty for item in parameters)


def _name(given: Callable[..., Any], otherwise: str) -> str:
    """What the caller's own goes by in messages."""
    name = str(getattr(given, "__name__", type(given).__name__))
    return name if name.isidentifier() else otherwise


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise BenchError(f"fraction {fraction:g}: a number above 0 and up to 1 is needed; 0.8 is usual")


def _batches(batch_size: int | Sequence[int]) -> list[int]:
    return [batch_size] if isinstance(batch_size, int) else list(batch_size)


def _known(device: str | Path | Device, memory: int | str | None) -> Device:
    """The device, with this account's calibration if it is named; as a smaller card if a memory is given.

    Raises:
        BenchError: The memory or the device is not valid.
    """
    from bench.client import calibrated
    from bench.config.values import read_bytes, shown
    from bench.devices import Device, load_device, with_memory
    from bench.devices.calibration import Calibrations

    try:
        limit_bytes = None if memory is None else read_bytes(memory)
    except ValueError as error:
        raise BenchError(f"memory {shown(memory)}: {error}") from error
    if not isinstance(device, str | Path | Device):
        raise BenchError(
            f"device {device!r}: a name (bench list devices), the path of a device file or a Device is needed"
        )
    found = load_device(str(device) if isinstance(device, Path) else device)
    if isinstance(device, str) and not device.endswith(".toml"):
        found = calibrated(found, Calibrations())
    return with_memory(found, limit_bytes)
