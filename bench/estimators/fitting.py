"""The largest batch that fits on a GPU, and a recommended one.

Memory is not monotonic in the batch size: sizes are rounded, and blocks may or may not fit in the gaps of earlier ones,
so a batch may fit although a smaller one does not. Hence two results: the largest batch up to which all fit, and the
largest that fits at all. The bytes of the tensors alone are a lower bound on memory that grows with the batch
(`_live_bytes`), so beyond some batch none can fit; between that one and the limit found by bisection every batch is
tried, at most `SCANNED_ABOVE` of them, and `SCANNED_BELOW` on the other side.

What was tried is kept beside the recordings, so that the next search for the case on that device replays only what is
new to it.

The result states whether something other than the GPU ends the search: the size of the data set, or `MAX_BATCH_SIZE`.
Not modelled: kernels that refuse tensors of 2^31 elements or more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench import catalog
from bench.devices import Device
from bench.devices.context import context_of
from bench.devices.vendors import no_trace
from bench.errors import Unsupported
from bench.estimators import kept
from bench.estimators.allocator import Alloc, Event, Free
from bench.estimators.events import TracePeaks
from bench.estimators.kept import Trials, Unlimited
from bench.estimators.memory import Target, trace_events, trace_peaks
from bench.estimators.memory_settings import Verdict, device_interval, judge_fit
from bench.estimators.recording import LEAST_BATCH, TRACED_BATCHES
from bench.records import Case

LADDER_START = 16
MAX_BATCH_SIZE = 1 << 24
"""The end of the search: the largest batch that a configuration accepts."""
MULTIPLE = 8  # of a recommended batch: what tensor cores like
SCANNED_BELOW, SCANNED_ABOVE = 16, 64
"""Batches tried one by one on both sides of the limit that bisection finds."""
SCANNED_UNBOUNDED = 4
"""The same if no bound is known: each batch then needs a separate recording."""

EndedBy = Literal["memory", "images", "search"]
"""What ends the search: the GPU's memory, the images of the data set, or `MAX_BATCH_SIZE`."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One batch size on one device.

    Attributes:
        batch_size: Samples per step.
        fits: Whether every allocation of torch's allocator fits next to the context, after releasing cached blocks.
        verdict: `fits` or `does not fit` where that holds at both ends of the context's interval, else `may not fit`.
        allocated_bytes: Of tensors at the peak, likewise.
        reserved_bytes: At the peak, with nothing released before the device is full.
        device_bytes: Reserved plus context: what the driver will report.
        device_low_bytes: With the least that the context may be; None if its spread is unknown.
        device_high_bytes: With the most that it may be; None if its spread is unknown.
        share_frac: Of the device's memory, `device_bytes` takes.
    """

    batch_size: int
    fits: bool
    verdict: Verdict
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    device_low_bytes: int | None
    device_high_bytes: int | None
    share_frac: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The result; batch sizes are None if not even one sample fits.

    Attributes:
        largest_batch_size: This one and every smaller one fit, with the context's point. Where `ended_by` is not
            `memory` it is where the search ended, and larger ones fit too as far as the GPU is concerned.
        largest_batch_size_low: The same whatever the context is within its interval.
        largest_batch_size_high: The same if the context is as small as its interval allows.
        largest_fitting_batch_size: The largest that fits at all: above `largest_batch_size` where memory has holes.
        batch_sizes_that_do_not_fit: The holes between the two, as `(first, last)`.
        searched_batch_sizes: `(first, last)` between which every batch was tried around the limit; None if the
            memory did not end the search.
        none_fits_from: From this batch on the tensors alone exceed the memory; None if that is not known.
        ended_by: What ended the search.
        dataset_images: Images in the data set's training part; None if they are not known.
        recommended_batch_size: Within `fraction` of the memory, in steps of `MULTIPLE`, never above `dataset_images`.
        ladder: From `LADDER_START` up, doubling, to the first that does not fit or to the end of the search.
        fraction: As requested.
        memory_bytes: Of the device.
        context_bytes: The size of the CUDA context assumed.
        context_low_bytes: Its low end; None if its spread is unknown.
        context_high_bytes: Its high end; None if its spread is unknown.
        context_basis: Where it comes from, as text.
    """

    largest_batch_size: int | None
    largest_batch_size_low: int | None
    largest_batch_size_high: int | None
    largest_fitting_batch_size: int | None
    batch_sizes_that_do_not_fit: tuple[tuple[int, int], ...]
    searched_batch_sizes: tuple[int, int] | None
    none_fits_from: int | None
    ended_by: EndedBy
    dataset_images: int | None
    recommended_batch_size: int | None
    ladder: tuple[Rung, ...]
    fraction: float
    memory_bytes: int
    context_bytes: int
    context_low_bytes: int | None
    context_high_bytes: int | None
    context_basis: str

    @property
    def end_of_search(self) -> int | None:
        """The largest batch worth a real run: where the search ended, unless memory ended it; never beyond the images.

        None where nothing but memory sets an end.
        """
        return self.largest_batch_size if self.ended_by == "search" else self.dataset_images


def read_fit(fields: Mapping[str, Any]) -> Fit:
    """A `Fit` from its fields as JSON carries them."""
    searched = fields["searched_batch_sizes"]
    holes = ((first, last) for first, last in fields["batch_sizes_that_do_not_fit"])
    return Fit(
        **{
            **fields,
            "ladder": tuple(Rung(**rung) for rung in fields["ladder"]),
            "batch_sizes_that_do_not_fit": tuple(holes),
            "searched_batch_sizes": searched and (searched[0], searched[1]),
        }
    )


def fit_batch(
    case: Case, target: Target, fraction: float = 0.8, heard: Callable[[int], None] = lambda batch: None
) -> Fit:
    """Find the largest and a recommended batch size for a case on a GPU, without the GPU.

    Args:
        case: The case; its own batch size does not matter.
        target: The file of its device must state the memory.
        fraction: The share of memory that the recommended batch may use, context included.
        heard: Called with each batch size that is tried.

    Raises:
        Unsupported: The device is not a GPU of NVIDIA, its memory or another figure is unknown, the case cannot be
            traced, or it accumulates.
    """
    trial, memory, images, most = _begin(case, target, heard)
    context = context_of(target.device)
    low, high = (context.point_bytes if end is None else end for end in (context.low_bytes, context.high_bytes))

    ladder = [min(LADDER_START, most)]
    while trial.fits(ladder[-1], context.point_bytes) and ladder[-1] < most:
        ladder.append(min(ladder[-1] * 2, most))
    fits = functools.partial(trial.fits, context_bytes=context.point_bytes)
    bound = trial.none_fits_from(memory - context.point_bytes, ladder[-1])
    found = _search(fits, most, bound, trial.refused)
    ends = {taken: _last(functools.partial(trial.fits, context_bytes=taken), most) for taken in (high, low)}
    ends[context.point_bytes] = found.largest
    answer = Fit(
        largest_batch_size=found.largest,
        largest_batch_size_low=min(ends[high] or 0, found.largest or 0) or None,
        largest_batch_size_high=max(ends[low] or 0, found.largest or 0) or None,
        largest_fitting_batch_size=found.largest_at_all,
        batch_sizes_that_do_not_fit=found.holes,
        searched_batch_sizes=found.searched,
        none_fits_from=bound,
        ended_by="memory" if found.largest != most else "images" if most == images else "search",
        dataset_images=images,
        recommended_batch_size=_recommend(trial, fits, fraction, most),
        ladder=tuple(map(trial.rung, ladder)),
        fraction=fraction,
        memory_bytes=memory,
        context_bytes=context.point_bytes,
        context_low_bytes=context.low_bytes,
        context_high_bytes=context.high_bytes,
        context_basis=context.basis,
    )
    trial.keep()
    return answer


def recommend_batch(case: Case, target: Target, fraction: float = 0.8) -> Rung | None:
    """The recommended batch that `fit_batch` gives, with a tenth of its work; None where not even one sample has room.

    Arguments and errors as there.
    """
    trial, _, _, most = _begin(case, target, lambda batch: None)
    fits = functools.partial(trial.fits, context_bytes=context_of(target.device).point_bytes)
    batch = _recommend(trial, fits, fraction, most)
    found = None if batch is None else trial.rung(batch)
    trial.keep()
    return found


def _begin(case: Case, target: Target, heard: Callable[[int], None]) -> tuple[_Trial, int, int | None, int]:
    """What a search needs: the trial, the memory in bytes, the images of the data set, and the last batch to try."""
    device, memory = target.device, target.device.memory_bytes
    if reason := no_trace(device):
        raise Unsupported(reason)
    if memory is None:
        raise Unsupported(f"{device.name}: its device file lacks memory_bytes")
    if case.accumulation > 1:
        raise Unsupported(
            "the largest batch is that of one forward and backward: leave accumulation out, and multiply what is found "
            "by the micro-batches that a step is to have"
        )
    images = catalog.describe_dataset(case.dataset).train_samples or None
    return _Trial(case, target, memory, heard), memory, images, min(images or MAX_BATCH_SIZE, MAX_BATCH_SIZE)


AIMED = 8
"""Batches that are tried where a line through two others says; memory that follows none is bisected from there on."""


def _recommend(trial: _Trial, fits: Callable[[int], bool], fraction: float, most: int) -> int | None:
    """A multiple of `MULTIPLE` within the share of the memory whose successor is not, or what lies below the first one.

    Memory is almost a line over the batch, so few batches are tried. Each has a replay without limit, which also says
    that the batch fits where it stays within the share.
    """

    def has_room(batch: int) -> bool:
        if batch < LADDER_START and not fits(batch):  # of these the model may refuse some
            return False
        return trial.share_frac(batch) <= fraction and fits(batch)

    low = min(LADDER_START, most)
    if low < LADDER_START or not has_room(low):
        room = _last(has_room, low, MULTIPLE)
        if room is None or room < MULTIPLE:
            return room
        rounded = range(room // MULTIPLE * MULTIPLE, 0, -MULTIPLE)
        return next((batch for batch in rounded if has_room(batch)), None)
    end, high, tried = most // MULTIPLE * MULTIPLE, most + MULTIPLE, 0
    other, shared_by_none = 0, context_of(trial.device).point_bytes / trial.memory_bytes
    while low < end and high - low > MULTIPLE:
        rise = (trial.share_frac(low) - (trial.share_frac(other) if other else shared_by_none)) / (low - other)
        ahead = (fraction - trial.share_frac(low)) / rise if rise > 0 else end - low
        guess = low + ahead if tried < AIMED else (low + min(high, end)) / 2
        batch = int(max(low + MULTIPLE, min(guess, high - MULTIPLE, end))) // MULTIPLE * MULTIPLE
        tried += 1
        if has_room(batch):
            other, low = low if high > most else other, batch
        else:
            other = high = batch
    return low


@dataclass(frozen=True, slots=True)
class _Found:
    """What a search found; see `Fit`."""

    largest: int | None
    largest_at_all: int | None
    holes: tuple[tuple[int, int], ...] = ()
    searched: tuple[int, int] | None = None


def _search(
    fits: Callable[[int], bool], most: int, none_fits_from: int | None, refused: Collection[int] = ()
) -> _Found:
    """The limit by bisection, then every batch around it, above it up to the bound.

    Args:
        fits: Whether a batch does.
        most: The largest to try.
        none_fits_from: See `Fit`.
        refused: Those of them that the model cannot train on, as `fits` finds out; they are not holes in the memory.
    """
    edge = _last(fits, most) or 0
    if edge == most:
        return _Found(most, most)
    below, above = (SCANNED_BELOW, SCANNED_ABOVE) if none_fits_from is not None else (SCANNED_UNBOUNDED,) * 2
    first, last = max(1, edge - below), max(edge, min(edge + above, (none_fits_from or most + 1) - 1, most))
    tried = {batch: fits(batch) for batch in range(first, last + 1)}
    fitting = [batch for batch, held in tried.items() if held]
    failed = [batch for batch, held in tried.items() if not held and batch not in refused]
    at_all = max(fitting, default=None)
    all_below = max((batch for batch in fitting if batch < min(failed, default=last + 1)), default=first - 1)
    holes = _spans(batch for batch in failed if batch < (at_all or 0))
    return _Found(all_below or None, at_all, holes, (first, last))


def _spans(batches: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as `(first, last)` of each run of neighbours."""
    spans: list[tuple[int, int]] = []
    for batch in batches:
        if spans and spans[-1][1] == batch - 1:
            spans[-1] = (spans[-1][0], batch)
        else:
            spans.append((batch, batch))
    return tuple(spans)


class _Trial:
    """A case on a device at batch sizes that are tried; each replay is made once, and kept for the next search."""

    def __init__(self, case: Case, target: Target, memory_bytes: int, heard: Callable[[int], None]) -> None:
        self._case, self._target, self.memory_bytes, self._heard = case, target, memory_bytes, heard
        self._key = kept.trials_key(case, target.device, target.settings, workspaces=target.workspaces)
        found = kept.load(self._key)
        self._trials = found if isinstance(found, Trials) else Trials()
        self._found = self._trials.count

    @property
    def device(self) -> Device:
        """On which the case is tried."""
        return self._target.device

    @property
    def refused(self) -> set[int]:
        """Batches that the model cannot train on."""
        return self._trials.refused

    def keep(self) -> None:
        """Keep what was tried."""
        if self._trials.count > self._found:
            kept.keep(self._key, self._trials)

    def fits(self, batch_size: int, context_bytes: int) -> bool:
        """Whether every allocation fits next to a context of that size.

        A few samples that the model cannot train on, as where a batch norm has one value per channel, do not fit.
        """
        capacity, trials = self.memory_bytes - context_bytes, self._trials
        known = trials.free.get(batch_size)
        if capacity <= 0 or batch_size in self.refused:
            return False
        if known is not None and known.peak_bytes <= self._target.room_bytes(context_bytes):
            return True
        key = (batch_size, capacity)
        if key not in trials.fits:
            try:
                trials.fits[key] = not self._is_too_large(batch_size, capacity) and self._squeezed(batch_size, capacity)
            except Unsupported:
                if batch_size >= LADDER_START or not trials.count:
                    raise
                self.refused.add(batch_size)
                return False
        return trials.fits[key]

    def _squeezed(self, batch_size: int, capacity_bytes: int) -> bool:
        """Whether it fits, with the allocator releasing cached blocks near the limit."""
        self._heard(batch_size)
        case = replace(self._case, batch_size=batch_size)
        peaks = trace_peaks(case, self._target, shared=True, capacity_bytes=capacity_bytes)
        if not peaks.replay.final.num_alloc_retries and not self._target.settings.allocator:
            self._trials.free[batch_size] = _without_limit(peaks)  # by torch's defaults the limit then had no effect
        return peaks.replay.out_of_memory is None

    def _is_too_large(self, batch_size: int, capacity_bytes: int) -> bool:
        """Whether the tensors alone exceed the capacity, which is less work to find out than by a replay."""
        if batch_size <= TRACED_BATCHES[1]:
            return False
        away = batch_size - TRACED_BATCHES[0]
        expected = max((start + slope * away for start, slope in self._lines), default=0)
        return expected > capacity_bytes and max(self._live(batch_size)) > capacity_bytes

    def free(self, batch_size: int) -> Unlimited:
        """The peaks on a device without limit."""
        if batch_size not in self._trials.free:
            case = replace(self._case, batch_size=batch_size)
            self._trials.free[batch_size] = _without_limit(trace_peaks(case, self._target, shared=True))
        return self._trials.free[batch_size]

    def none_fits_from(self, capacity_bytes: int, checked: int) -> int | None:
        """From which batch on the tensors alone exceed the capacity; None if their bytes follow no line.

        Args:
            capacity_bytes: What torch may hold.
            checked: A batch at which the line is compared with what is really asked for.
        """
        if capacity_bytes <= 0:
            return 1
        key = (capacity_bytes, checked)
        if key not in self._trials.bounds:
            self._trials.bounds[key] = self._bound(capacity_bytes, checked)
        return self._trials.bounds[key]

    def _bound(self, capacity_bytes: int, checked: int) -> int | None:
        lines, real = self._lines, self._live(checked)
        away = checked - TRACED_BATCHES[0]
        if len(lines) != len(real):
            return None
        if any(slope < 0 or start + slope * away != live for (start, slope), live in zip(lines, real, strict=True)):
            return None
        ends = [int((capacity_bytes - start) // slope) + TRACED_BATCHES[0] for start, slope in lines if slope > 0]
        return max(LEAST_BATCH, min(ends) + 1) if ends else None  # below that, a batch is recorded by itself

    @functools.cached_property
    def _lines(self) -> list[tuple[int, float]]:
        """The bytes of all tensors after each is made, at the first traced batch and for each sample more.

        Empty if the two traced batches make different numbers of tensors.
        """
        first, second = (self._live(batch) for batch in TRACED_BATCHES)
        distance = TRACED_BATCHES[1] - TRACED_BATCHES[0]
        if len(first) != len(second):
            return []
        return [(before, (after - before) / distance) for before, after in zip(first, second, strict=True)]

    def _live(self, batch_size: int) -> list[int]:
        """The bytes of all tensors after each is made: what must fit with any allocator."""
        case = replace(self._case, batch_size=batch_size)
        return _live_bytes(trace_events(case, replace(self._target, workspaces=False), shared=True))

    def share_frac(self, batch_size: int) -> float:
        """Reserved and context over the device's memory."""
        shown = device_interval(self.free(batch_size).reserved_bytes, self._target.device)
        return shown["estimated_device_bytes"] / self.memory_bytes

    def rung(self, batch_size: int) -> Rung:
        """The result for one batch size."""
        context = context_of(self._target.device)
        verdict = judge_fit(functools.partial(self.fits, batch_size), context)
        free = self.free(batch_size)
        shown = device_interval(free.reserved_bytes, self._target.device)
        return Rung(
            batch_size,
            self.fits(batch_size, context.point_bytes),
            verdict,
            free.allocated_bytes,
            free.reserved_bytes,
            shown["estimated_device_bytes"],
            shown["estimated_device_low_bytes"],
            shown["estimated_device_high_bytes"],
            self.share_frac(batch_size),
        )


def _without_limit(peaks: TracePeaks) -> Unlimited:
    return Unlimited(peaks.allocated_bytes, peaks.reserved_bytes, peaks.replay.peak_reserved_bytes)


def _live_bytes(events: Iterable[Event]) -> list[int]:
    """After each tensor that is made, the bytes of all that are alive; kernels' own temporaries are left out."""
    held: dict[int, int] = {}
    live, found = 0, []
    for event in events:
        if isinstance(event, Alloc) and event.id >= 0 and not event.optional:
            held[event.id] = event.size
            live += event.size
            found.append(live)
        elif isinstance(event, Free):
            live -= held.pop(event.id, 0)
    return found


def _last(holds: Callable[[int], bool], most: int, step: int = 1) -> int | None:
    """The largest batch size up to `most` for which `holds`, by bisection: as if it were true below and false above.

    With a `step` it is exact up to the step, and beyond that to the multiple of it at or below the largest.
    """
    low, high = 0, min(LADDER_START, most)
    while holds(high):
        if high == most:
            return most
        low, high = high, min(high * 2, most)
    while high - low > 1 and (low < step or low // step < (high - 1) // step):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low or None
