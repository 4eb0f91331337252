"""The ways to save memory in one step: which switches make a batch fit on a GPU, and what each costs.

`list_ways` names the combinations that are worth a try, `choose` reads their estimates. Peak memory is what the device
holds at the peak, the CUDA context included, since that decides what fits; the allocator's settings change nothing
else. Speed is the roofline's. A change of precision or of the memory format changes the numbers or the kernels of the
model, so these ways stand apart from the switches, which leave both alone.

Left out: `compile`, which no estimator models; `zero_grad`, whose default saves more; fp16, whose gradient scaler
changes the training loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.errors import UnknownNameError, Unsupported
from bench.estimators.memory_settings import Verdict
from bench.plan import skip_reason
from bench.records import SWITCHES, Case, Estimate, axis_words
from bench.units import format_bytes, format_frac, format_rate

FIRST_COUNTS = (2, 4)
"""Micro-batches of a step that are tried at once; `list_more_ways` has the rest."""
MOST_MICRO_BATCHES = 32
"""Recordings grow with the micro-batches of a step."""
LEAST_SAVING_FRAC = 0.05
"""A smaller saving of memory is not worth another change: the context alone is known no better."""
FULL_FRAC = 0.97
"""Of the device's memory: above, a step has no room to be a little larger than estimated."""
LEAST_LOSS_FRAC = 0.01
"""Ways whose speeds differ by less count as equally fast."""

PRECISION_AXES = ("precision", "memory_format")
VARIED = (*SWITCHES, *PRECISION_AXES)
"""The axes that are tried, unless the user named a value."""

Way = dict[str, int | str]
"""Axes with the values that they are changed to; empty for the step as it is."""

_BLOCKS: Way = {"checkpointing": "blocks"}
_UPDATE: Way = {"update": "in_backward"}
_EXPANDABLE: Way = {"allocator": "expandable"}
_BF16: Way = {"precision": "bf16"}
_CHANNELS_LAST: Way = {"memory_format": "channels_last"}


def list_ways(case: Case, named: Collection[str] = ()) -> dict[Case, Way]:
    """The cases to try first with what each changes, the case itself before all; what the plan refuses is left out.

    Args:
        case: The step as it is.
        named: Axes that are kept at the case's value, as the user named one. If the precision is among them, the memory
            format is kept too.
    """
    split: list[Way] = [{"accumulation": count} for count in FIRST_COUNTS]
    same: list[Way] = [{}, _BLOCKS, _UPDATE, _BLOCKS | _UPDATE, *split, *(way | _BLOCKS for way in split)]
    expandable, other = [way | _EXPANDABLE for way in same], [way | _BF16 for way in (same[0], _BLOCKS, split[0])]
    return _possible(case, named, [*same, *expandable, *other, _CHANNELS_LAST, _BF16 | _CHANNELS_LAST])


def list_more_ways(saving: Saving, named: Collection[str] = ()) -> dict[Case, Way]:
    """Those with twice the micro-batches, where that may make them fit; none if no more are worth a try.

    Each doubling saves half of what the one before did. So all further ones together save at most what the last one
    did, and where more than that is missing no number of micro-batches fits.
    """
    found: list[Way] = []
    enough = saving.cheapest is not None and saving.cheapest.fits and not saving.cheapest.changes_precision
    for base in ({},) if enough else ({}, _BLOCKS):
        alike = {
            option.case.accumulation: option
            for option in saving.tried
            if {axis: value for axis, value in option.changes.items() if axis != "accumulation"} == base
        }
        last = max(alike, default=0)
        if last // 2 in alike and not alike[last].fits and last < MOST_MICRO_BATCHES:
            saved = alike[last // 2].device_bytes - alike[last].device_bytes
            if alike[last].device_bytes - saving.memory_bytes <= saved:
                way: Way = {"accumulation": 2 * last, **base}
                found += [way, way | _EXPANDABLE]
    return _possible(saving.plain.case, named, found)


def _possible(case: Case, named: Collection[str], ways: Sequence[Way]) -> dict[Case, Way]:
    """The ways that change only what is free, each to another value, and that the plan accepts."""
    fixed = {*named, *(PRECISION_AXES if "precision" in named else ())}
    found: dict[Case, Way] = {}
    for way in ways:
        other = replace(case, **way)  # type: ignore[arg-type]
        changes = all(getattr(case, axis) != value for axis, value in way.items())
        if changes and not fixed & set(way) and not (way and _is_refused(other)):
            found[other] = way
    return found


def _is_refused(case: Case) -> bool:
    try:
        return skip_reason(case, "cuda") is not None
    except UnknownNameError:  # a caller's own model, which no catalog has; its switches were checked before that
        return False


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run the step, as estimated.

    Attributes:
        case: The case with its changes.
        changes: Axes of the step as it is that are changed, with their new values; empty for the step as it is.
        gives_up: What each change costs beside speed, in words, by its axis.
        verdict: Whether it fits on the device: `may not fit` where the ends of the context's interval disagree.
        allocated_bytes: The peak of torch's tensors.
        reserved_bytes: The peak of torch's allocator.
        device_bytes: Reserved and the context: what the driver will report.
        share_frac: Of the device's memory, `device_bytes` takes.
        samples_per_s: As estimated; None if the device's file lacks what the roofline needs.
        speed_ratio: `samples_per_s` over that of the step as it is; None if unknown.
    """

    case: Case
    changes: Way
    gives_up: dict[str, str]
    verdict: Verdict
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    share_frac: float
    samples_per_s: float | None
    speed_ratio: float | None

    @property
    def label(self) -> str:
        """The changes in words: `2 micro-batches, checkpointed blocks`."""
        return label_of(self.changes)

    @property
    def fits(self) -> bool:
        """Whether it fits for sure, as far as the estimate goes."""
        return self.verdict == "fits"

    @property
    def changes_precision(self) -> bool:
        """Whether the numbers or the kernels of the model are others."""
        return any(axis in self.changes for axis in PRECISION_AXES)


def label_of(changes: Mapping[str, int | str]) -> str:
    """Changes in words, the step as it is included."""
    return ", ".join(axis_words(axis, value) for axis, value in changes.items()) or "as it is"


@dataclass(frozen=True, slots=True)
class Saving:
    """The answer: every way that was tried on one device, and the best ones.

    Attributes:
        plain: The step as it is.
        pareto: Of the ways that fit or may fit, those that no other one beats in memory and speed, from the fastest to
            the smallest; see `pareto_set`.
        others: The other ways that fit or may fit, the fastest first.
        other_precisions: As `pareto`, of the ways with another precision or memory format.
        cheapest: What fits with the least loss of speed; among equals the one with the fewest changes. If only another
            precision fits, one of these; None if nothing fits or may fit.
        nearest: The way with the smallest peak, which is the one to look at if nothing fits.
        tried: Every way that was estimated, in the order of the search.
        unknown: Why a way could not be estimated, by its label.
        memory_bytes: Of the device.
        speed_basis: What the estimate of the speed rests on, in words; None if there is none.
    """

    plain: Option
    pareto: tuple[Option, ...]
    others: tuple[Option, ...]
    other_precisions: tuple[Option, ...]
    cheapest: Option | None
    nearest: Option
    tried: tuple[Option, ...]
    unknown: dict[str, str]
    memory_bytes: int
    speed_basis: str | None

    @property
    def missing_bytes(self) -> int:
        """What the nearest way lacks; 0 if something fits or may fit."""
        return 0 if self.cheapest else max(0, self.nearest.device_bytes - self.memory_bytes)

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        best = self.cheapest
        if best is None:
            missing = format_bytes(self.missing_bytes)
            return f"Nothing that was tried fits. Nearest: {_costs(self.nearest, self)}; {missing} are missing."
        if not best.changes:
            may, doubt = ("fits", "") if best.fits else ("may fit", "; nothing that was tried fits for sure")
            return f"It {may} as it is: {_costs(best, self)}{doubt}."
        doubt = "" if best.fits else " It may not fit: nothing that was tried fits for sure."
        only = "Only another precision or memory format fits" if best.changes_precision else "Cheapest way to fit"
        return f"{only}: {_costs(best, self)}; {'; '.join(best.gives_up.values())}.{doubt}"


def _costs(option: Option, saving: Saving) -> str:
    """`checkpointed blocks, 4.29 GiB of 23.6 GiB (18 %), 84.9 samples/s (-19.1 %)`."""
    words = [option.label] if option.changes else []
    share = f"{option.share_frac * 100:.0f} %"
    words.append(f"{format_bytes(option.device_bytes)} of {format_bytes(saving.memory_bytes)} ({share})")
    if option.samples_per_s is not None:
        change = f" ({format_frac(option.speed_ratio - 1)})" if option.changes and option.speed_ratio else ""
        words.append(f"{format_rate(option.samples_per_s, 'samples')}{change}")
    return ", ".join(words)


def choose(
    ways: Mapping[Case, Way], estimates: Sequence[Estimate], memory_bytes: int, *, batch_norm: bool = False
) -> Saving:
    """The answer from the estimates of `ways`, in their order.

    Args:
        ways: From `list_ways`, the step as it is first.
        estimates: One for each.
        memory_bytes: Of the device.
        batch_norm: Whether the model normalises over the batch, which other micro-batches and a second forward change.

    Raises:
        Unsupported: The step as it is could not be estimated.
    """
    (plain, first), *_ = zip(ways, estimates, strict=True)
    if first.trace_peak_reserved_bytes is None or first.estimated_fit is None:
        raise Unsupported(first.estimate_note or f"{plain}: no estimate of its memory")
    options: list[Option] = []
    unknown: dict[str, str] = {}
    for (case, way), made in zip(ways.items(), estimates, strict=True):
        if made.trace_peak_reserved_bytes is None:
            unknown[label_of(way)] = _why_untraced(made)
            continue
        speed, usual = made.estimated_samples_per_s, first.estimated_samples_per_s
        sizes: dict[str, Any] = {
            "allocated_bytes": made.trace_peak_allocated_bytes,
            "reserved_bytes": made.trace_peak_reserved_bytes,
            "device_bytes": made.estimated_device_bytes,
            "share_frac": (made.estimated_device_bytes or 0) / memory_bytes,
        }
        options.append(
            Option(
                case,
                way,
                {axis: what_it_gives_up(case, axis, batch_norm=batch_norm) for axis in way},
                made.estimated_fit,  # type: ignore[arg-type]  # the column is text
                samples_per_s=speed,
                speed_ratio=speed / usual if speed and usual else None,
                **sizes,
            )
        )
    same = [option for option in options if not option.changes_precision]
    others = [option for option in options if option.changes_precision]
    fitting, fitting_others = ([item for item in some if item.verdict != "does not fit"] for some in (same, others))
    pareto = pareto_set(fitting)
    return Saving(
        plain=options[0],
        pareto=pareto,
        others=tuple(item for item in _by_speed(fitting) if item not in pareto),
        other_precisions=pareto_set(fitting_others),
        cheapest=_cheapest(options[0], fitting) or _cheapest(options[0], fitting_others),
        nearest=min(options, key=lambda item: item.device_bytes),
        tried=tuple(options),
        unknown=unknown,
        memory_bytes=memory_bytes,
        speed_basis=first.estimated_speed_basis,
    )


def _why_untraced(made: Estimate) -> str:
    """The note without what it says of the formula, which is not used here."""
    notes = [note for note in (made.estimate_note or "").split("; ") if note and not note.startswith("no formula for")]
    return "; ".join(notes) or "no estimate"


def pareto_set(options: Sequence[Option]) -> tuple[Option, ...]:
    """Those that no other one beats in memory and speed, from the fastest to the smallest.

    A slower one must save `LEAST_SAVING_FRAC` of the peak of every faster one; of equally fast ones the one with the
    fewest changes counts as faster.
    """
    found: list[Option] = []
    for option in _by_speed(options):
        if not found or option.device_bytes < found[-1].device_bytes * (1 - LEAST_SAVING_FRAC):
            found.append(option)
    return tuple(found)


def _by_speed(options: Sequence[Option]) -> list[Option]:
    return sorted(options, key=lambda item: (-(item.samples_per_s or 0.0), len(item.changes), item.device_bytes))


def _cheapest(plain: Option, options: Sequence[Option]) -> Option | None:
    """What fits with the least loss of speed, the step as it is before all; what may fit only if nothing does.

    What fills the device fits only because the allocator gives cached blocks back; it counts where nothing else fits.
    """
    sure = [option for option in options if option.fits] or list(options)
    if not sure or plain in sure:
        return plain if sure else None
    sure = [option for option in sure if option.share_frac <= FULL_FRAC] or sure
    most = max(option.samples_per_s or 0.0 for option in sure)
    near = [option for option in sure if (option.samples_per_s or 0.0) >= most * (1 - LEAST_LOSS_FRAC)]
    return min(near, key=lambda item: (len(item.changes), item.device_bytes))


def what_it_gives_up(case: Case, axis: str, *, batch_norm: bool = False) -> str:
    """What one changed axis of a case costs beside speed, in words.

    Args:
        case: With the change.
        axis: One of `VARIED`.
        batch_norm: See `choose`.
    """
    if axis == "accumulation":
        if batch_norm:
            return f"batch norm sees {case.micro_batch_size} samples at a time, not {case.batch_size}"
        return f"{case.accumulation} smaller forwards and backwards"
    if axis == "checkpointing":
        twice = ", and updates the running statistics of their batch norms twice" if batch_norm else ""
        return f"computes the blocks twice{twice}"
    if axis == "update":
        return "each gradient is gone after its update: no clipping by the global norm"
    if axis == "allocator":
        return "an experimental option of torch's allocator"
    if axis == "precision":
        return f"{case.precision} autocast: another precision"
    return "another layout of images and weights, with other kernels"
