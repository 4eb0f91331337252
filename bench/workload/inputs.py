"""The data path of a run: where each step's batch comes from. Imports torch.

Three paths, one an `input` of the grid:

- `synthetic`: one random batch on the device, handed out again and again. No data path at all.
- `cached`: a few batches of decoded and normalised images in host memory; each step copies one to the device. On the
  CPU too, where the copy stays in host memory: a step takes in one batch of its own on every device.
- `loader`: a torch DataLoader with its workers over the training part, shuffled.

What is alive: between two calls of `next`, the `synthetic` path keeps its one batch on the device, the others keep
nothing there; the batch belongs to the caller, and the one before may still be alive while the next is copied.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from bench import catalog
from bench.catalog import DatasetInfo
from bench.catalog.entries import InputSpec
from bench.errors import DataError, Unsupported
from bench.folders import data_folder
from bench.records import Case, Protocol
from bench.workload.images import TransformedSamples, build_target_transform, build_transform, image_shape, open_samples
from bench.workload.shared_memory import is_shared_memory_full, shared_memory_advice
from bench.workload.targets import draw_targets

Batch = tuple[torch.Tensor, ...]
"""Images and labels, or the tensors that a model declares."""
Made = tuple[Batch, float | None]
"""A batch, and the seconds that a loader took to make it."""

PINNED = ("cuda", "xpu")
"""Kinds of devices that batches are held in page-locked memory for; on MPS torch has none that speeds up a copy."""

CACHED_BATCHES = 8
CACHED_BYTES = 256 << 20
CACHED_SAMPLES = 4096
"""The `cached` path holds as many batches as stay within all three, and at least one."""


class Inputs:
    """Endless batches `(images, labels)` on the device: micro-batches, where a step accumulates several.

    Images are float32 `(B, C, H, W)` in the case's memory format, labels int64 `(B,)`, and masks in their place int64
    `(B, H, W)`.

    Attributes:
        data_source: `files`, or `synthetic`.
        note: Why images are synthetic though files were requested, in one line; else `None`.
        made_s: What reading, decoding, transforming and collating the last batch took one worker of a loader (or this
            process, where there are none), in seconds; `None` on the other paths.
    """

    def __init__(self, batches: Iterator[Made], source: str, note: str | None, close: Callable[[], None]) -> None:
        """Hand out `batches`; `close` ends whatever makes them."""
        self.data_source, self.note = source, note
        self.made_s: float | None = None
        self._batches, self._close = batches, close

    def __iter__(self) -> Self:
        """Itself."""
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: An image cannot be decoded, or the workers have no shared memory left.
        """
        batch, self.made_s = next(self._batches)
        return batch

    def close(self) -> None:
        """End the loader's workers; a second call does nothing."""
        self._batches = iter(())
        close, self._close = self._close, lambda: None
        close()

    def __enter__(self) -> Self:
        """Itself; closed when the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def build_inputs(case: Case, info: DatasetInfo, protocol: Protocol, device: torch.device) -> Inputs:
    """The inputs of a case; the same seed gives the same batches, whatever the number of workers.

    Call it from the process's main thread: the loader's workers end when the thread that made them does.

    Args:
        case: Its data set, micro-batch size, image size, memory format and input path are read.
        info: The description of its data set.
        protocol: Its seed, number of workers and data root are read.
        device: Where the batches go.

    Raises:
        DataError: Files are there and damaged.
        Unsupported: PIL has no images of so many channels, or no masks of so many classes (`cached` and `loader`); or
            the model declares inputs of its own, which are `synthetic`.
    """
    if declared := catalog.model(case.model.name).input_specs:
        if case.input != "synthetic":
            raise Unsupported(f"{case.model} declares inputs of its own, which are synthetic; leave input={case.input}")
        return _declared(case, declared, protocol.seed, device)
    if case.input == "synthetic":
        return _synthetic(case, info, protocol.seed, device)
    root = data_folder(protocol.data_root)
    samples, source, note = open_samples(case.dataset, info, root, train=True, seed=protocol.seed)
    transforms = build_transform(info, case.image_size), build_target_transform(info, case.image_size)
    transformed = TransformedSamples(samples, *transforms)
    build = _cached if case.input == "cached" else _loaded
    batches, close = build(case, transformed, protocol, device)
    return Inputs(batches, source, note, close)


def _memory_format(case: Case) -> torch.memory_format:
    return torch.channels_last if case.memory_format == "channels_last" else torch.contiguous_format


def _synthetic(case: Case, info: DatasetInfo, seed: int, device: torch.device) -> Inputs:
    """Made and laid out on the CPU, so that every device gets the same values and never holds two copies."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = image_shape(info, case.image_size)
    images = torch.randn(case.micro_batch_size, channels, height, width, generator=generator)
    labels = draw_targets(replace(info.images, height=height, width=width), case.micro_batch_size, generator)
    images, labels = images.contiguous(memory_format=_memory_format(case)).to(device), labels.to(device)

    def repeated() -> Iterator[Made]:
        while True:
            yield (images, labels), None

    return Inputs(repeated(), "synthetic", None, lambda: None)


def _declared(case: Case, declared: Sequence[InputSpec], seed: int, device: torch.device) -> Inputs:
    """One batch of the tensors that a model declares: normal random numbers, and zeros for whole numbers.

    A zero is a valid index, class and mask whatever their number is.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for spec in declared:
        shape, dtype = spec.sized(case.micro_batch_size), getattr(torch, spec.dtype)
        is_random = dtype.is_floating_point or dtype.is_complex
        made.append(
            torch.randn(shape, generator=generator, dtype=dtype) if is_random else torch.zeros(shape, dtype=dtype)
        )
    batch = tuple(tensor.to(device) for tensor in made)
    return Inputs(itertools.repeat((batch, None)), "synthetic", None, lambda: None)


class EndlessShuffle(Sampler[int]):
    """Indices of one random order of the data set after another, without end.

    Epochs join without a gap: a batch may hold the end of one and the beginning of the next, so no image is dropped, a
    batch may be larger than the data set, and the workers never run dry. The refilling of the loader between epochs,
    which depends on how large the data set is and not on the case, is thereby left out of what is measured.
    """

    def __init__(self, length: int, seed: int) -> None:
        """Orders of `length` indices, drawn from `seed`."""
        self._length, self._seed = length, seed

    def __iter__(self) -> Iterator[int]:
        """From the seed's first order on."""
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            yield from torch.randperm(self._length, generator=generator).tolist()


def _cached(
    case: Case, samples: TransformedSamples, protocol: Protocol, device: torch.device
) -> tuple[Iterator[Made], Callable[[], None]]:
    order = iter(EndlessShuffle(len(samples), protocol.seed))
    held: list[Batch] = []
    with _one_thread():
        while not held or _another_fits(held):
            images, labels = _gather(samples, order, case)
            held.append((images.pin_memory(), labels.pin_memory()) if device.type in PINNED else (images, labels))

    def copies() -> Iterator[Made]:
        while True:
            for images, labels in held:
                yield (_copy(images, device), _copy(labels, device)), None

    return copies(), held.clear


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device, non_blocking=True, copy=True)


def _gather(samples: TransformedSamples, order: Iterator[int], case: Case) -> Batch:
    """One batch in host memory. Room for all of it is asked for at once, so that too large a batch fails at once."""
    image, label = samples[next(order)]
    count = case.micro_batch_size
    images = image.new_empty((count, *image.shape))
    labels = torch.empty((count, *torch.as_tensor(label).shape), dtype=torch.int64)
    for index in range(count):
        image, label = (image, label) if index == 0 else samples[next(order)]
        images[index], labels[index] = image, label
    return images.contiguous(memory_format=_memory_format(case)), labels


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread for torch, as in a loader's worker: sharing one image among threads costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _another_fits(held: list[Batch]) -> bool:
    count, batch = len(held) + 1, held[0]
    held_bytes = count * sum(each.nbytes for each in batch if each.dim() > 1)  # images and masks
    return count <= CACHED_BATCHES and count * len(batch[0]) <= CACHED_SAMPLES and held_bytes <= CACHED_BYTES


def _loaded(
    case: Case, samples: TransformedSamples, protocol: Protocol, device: torch.device
) -> tuple[Iterator[Made], Callable[[], None]]:
    workers = protocol.loader_workers
    context = "fork" if workers and sys.platform == "linux" else None  # workers touch the CPU only, never CUDA
    in_main = threading.current_thread() is threading.main_thread()
    loader = DataLoader(
        _TimedSamples(samples),
        batch_size=case.micro_batch_size,
        sampler=EndlessShuffle(len(samples), protocol.seed),
        num_workers=workers,
        collate_fn=_Collate(_memory_format(case)),
        pin_memory=device.type in PINNED,
        drop_last=True,
        worker_init_fn=_end_with_parent if context and in_main else None,
        multiprocessing_context=multiprocessing.get_context(context) if context else None,
        generator=torch.Generator().manual_seed(protocol.seed),  # else it draws from torch's own, as the model does
        persistent_workers=workers > 0,
    )
    iterator = iter(loader)

    def moved() -> Iterator[Made]:
        while True:
            (images, labels), made_s = _next_batch(iterator, workers)
            yield (images.to(device, non_blocking=True), labels.to(device, non_blocking=True)), made_s

    # torch ends the workers when the iterator is collected; a traceback may hold it for longer than the run wants
    return moved(), getattr(iterator, "_shutdown_workers", lambda: None)


class _TimedSamples(Dataset[Any]):
    """A data set whose batches say when their making began."""

    def __init__(self, samples: TransformedSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: Sequence[int]) -> tuple[float, list[tuple[torch.Tensor, Any]]]:
        """What torch's loader takes in place of single samples, where a data set has it."""
        started = time.perf_counter()
        return started, [self.samples[index] for index in indices]


class _Collate:
    """torch's own collating, then the memory format: laid out on the host, so that the device holds one copy only."""

    def __init__(self, memory_format: torch.memory_format) -> None:
        self.memory_format = memory_format

    def __call__(self, timed: Any) -> Made:
        started, samples = timed  # as `_TimedSamples` gives them, not in a list
        images, labels = default_collate(samples)
        images = images.contiguous(memory_format=self.memory_format)
        return (images, labels), time.perf_counter() - started


def _next_batch(iterator: Iterator[Any], workers: int) -> Made:
    try:
        batch, made_s = next(iterator)
    except DataError as error:  # from a worker, torch wraps it in the worker's traceback: the message is its last line
        message = str(error).rstrip().rpartition(f"{DataError.__module__}.{DataError.__qualname__}: ")[2]
        raise DataError(message) from None
    except RuntimeError as error:
        if is_shared_memory_full(error):
            raise DataError(f"the loader's {workers} workers: {shared_memory_advice()}") from error
        raise
    return batch, made_s


def _end_with_parent(worker: int) -> None:
    """Have Linux kill this worker the moment the run dies, even by SIGKILL; torch's own watchdog takes five seconds."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
