"""Which GPU: one step on many GPUs, each at the batch that `bench fit` recommends there, by time, energy or cost.

`place_apart` asks the estimators about each GPU, `rank` computes what follows and puts it in order. A GPU whose
interval overlaps with another's is not told from it: its rank is a range.

Time is that of the steps alone, on images that lie on the device. Energy is that of the board alone: time x the power
limit of the device's file x the share of it that training draws, `POWER_SHARE`. Left out: reading and decoding images,
evaluation, more GPUs than one, the host's own power, and clocks that a card cannot hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args

from bench.devices import Device, list_devices, load_device
from bench.errors import BenchError, ConfigError, Unsupported
from bench.estimators import kept
from bench.estimators.collector import collector_off
from bench.estimators.fitting import LADDER_START, recommend_batch
from bench.estimators.kept import NotKept
from bench.estimators.memory import Target
from bench.estimators.memory_settings import Verdict
from bench.estimators.roofline import estimate_speed
from bench.forks import Lost, Work, work_apart
from bench.records import Case

By = Literal["time", "energy", "cost"]
"""What GPUs are ranked by."""
BYS: tuple[By, ...] = get_args(By)


class Bounded(NamedTuple):
    """A figure with the ends that hold nine of ten measurements of it."""

    point: float
    low: float
    high: float

    def times(self, other: Bounded | float) -> Bounded:
        """The product with a figure above 0, whose ends may come together with its own."""
        factors = other if isinstance(other, Bounded) else Bounded(other, other, other)
        return Bounded(self.point * factors.point, self.low * factors.low, self.high * factors.high)


POWER_SHARE = Bounded(0.845, 0.607, 0.913)
"""Of its power limit, what a board drew on average in training: the median of four GPUs' medians, and the extremes.

From 29 rows of `power_resnet50_zeus.csv` (ml-energy/zeus) whose limit was not lowered: ResNet-50 in float32 at batches
of 8 to 512 on V100 PCIe (0.89 in the median), Quadro RTX 6000 (0.89), A40 (0.80) and P100 (0.64).
`tools/fit_power_share.py` prints these figures. No other model, no 16-bit type and no card under 250 W or over 300 W
has been checked.
"""

POWER_BASIS = (
    f"power limit x {POWER_SHARE.point:g} ({POWER_SHARE.low:g} to {POWER_SHARE.high:g}), the share that ResNet-50 in "
    "float32 drew on V100, A40, P100 and Quadro RTX 6000 (ml-energy/zeus); of the GPU alone"
)

LEAST_CAPABILITY = {"bf16": (8, 0), "tf32": (8, 0)}
"""From which compute capability on a GPU has it (CUDA C++ Programming Guide, arithmetic per compute capability)."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A step on one GPU at the recommended batch, as the estimators see it.

    Attributes:
        device: Name of the GPU.
        power_limit_w: Of its file; None if unknown.
        batch_size: The recommended one; None where no batch has room, or the step could not be traced.
        verdict: Whether that batch fits: `may not fit` where the ends of the context's interval disagree.
        allocated_bytes: The peak of torch's tensors.
        reserved_bytes: The peak of torch's allocator.
        device_bytes: Reserved and the context: what the driver will report.
        device_low_bytes: With the least that the context may be; None if its spread is unknown.
        device_high_bytes: With the most that it may be; None if its spread is unknown.
        share_frac: Of the GPU's memory, `device_bytes` takes.
        samples_per_s: As estimated; None if unknown.
        samples_per_s_low: Nine of ten measurements are above this end and below the other.
        samples_per_s_high: See samples_per_s_low.
        speed_basis: What the speed rests on and how far off it was known to be.
        reason: Why a figure is missing; None where none is.
    """

    device: str
    power_limit_w: float | None = None
    batch_size: int | None = None
    verdict: Verdict | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    device_low_bytes: int | None = None
    device_high_bytes: int | None = None
    share_frac: float | None = None
    samples_per_s: float | None = None
    samples_per_s_low: float | None = None
    samples_per_s_high: float | None = None
    speed_basis: str | None = None
    reason: str | None = None


def place(case: Case, device: Device, *, fraction: float, workspaces: bool) -> Placement:
    """A step on one GPU; a refusal is an answer too. Its name is that of `device`.

    Args:
        case: The step; its batch size does not matter.
        device: Any.
        fraction: Of the GPU's memory that the batch may take.
        workspaces: Whether to count cuDNN's workspaces.

    Raises:
        NotKept: Something would have to be recorded, and is not to be.
        Exception: Whatever the case's model, optimizer or data set raises.
    """
    known = load_placement(case, device, fraction=fraction, workspaces=workspaces)
    if known is not None:
        return known
    found = Placement(device.name, device.power_limit_w)
    least, own = LEAST_CAPABILITY.get(case.precision), device.compute_capability
    if least and own and own < least:
        has = ".".join(map(str, own))
        return replace(
            found, reason=f"no {case.precision}: it needs compute capability {least[0]}.{least[1]}, not {has}"
        )
    try:
        with collector_off():
            target = Target.of(device, workspaces=workspaces, allocator=case.allocator)
            rung = recommend_batch(case, target, fraction)
            if rung is None:
                return replace(
                    found, reason=f"does not fit: no batch stays within {fraction * 100:.0f} % of its memory"
                )
            names = {field.name for field in fields(Placement)}
            found = replace(found, **{name: value for name, value in asdict(rung).items() if name in names})
            at = replace(case, batch_size=rung.batch_size)
            speed = estimate_speed(kept.recording_of(at, target.machine, shared=True), at, device)
    except BenchError as error:
        return replace(found, reason=str(error))
    found = replace(
        found,
        samples_per_s=speed.samples_per_s,
        samples_per_s_low=speed.samples_per_s_low,
        samples_per_s_high=speed.samples_per_s_high,
        speed_basis=speed.basis,
    )
    kept.keep(_key_of(case, target, fraction), asdict(found))
    return found


def load_placement(case: Case, device: Device, *, fraction: float, workspaces: bool) -> Placement | None:
    """What `place` found earlier where it could fill all fields; None if that is not kept."""
    try:
        held = kept.load(_key_of(case, Target.of(device, workspaces=workspaces, allocator=case.allocator), fraction))
    except BenchError:  # which `place` says
        return None
    if not isinstance(held, dict) or held.keys() != {field.name for field in fields(Placement)}:
        return None
    return Placement(**held)


def _key_of(case: Case, target: Target, fraction: float) -> str | None:
    if target.device.compute_capability is None:
        return None
    return kept.placement_key(case, target.device, target.settings, workspaces=target.workspaces, fraction=fraction)


def place_apart(
    case: Case, devices: Sequence[Device], *, fraction: float, workspaces: bool, workers: int, timeout_s: float
) -> Iterator[Placement]:
    """The step on each GPU, in an order of their own, made in forks of this process from one recording.

    What would have to be recorded, and is not to be (`kept.only_kept`), is left out.

    Args:
        case: As for `place`.
        devices: GPUs, each once.
        fraction: As for `place`.
        workspaces: As for `place`.
        workers: How many forks at a time.
        timeout_s: For one GPU.

    Raises:
        NotKept: As `place`, where nothing at all is kept.
        Unsupported: The step cannot be traced, whatever the GPU.
        Exception: Whatever the case's model, optimizer or data set raises when it is recorded.
    """
    left = list[Device]()
    for device in devices:
        known = load_placement(case, device, fraction=fraction, workspaces=workspaces)
        if known is None:
            left.append(device)
        else:
            yield known
    refused = _record_first(case, left, workspaces=workspaces)
    for device in refused:
        yield Placement(device.name, device.power_limit_w, reason=refused[device])

    def do(device: Device, alone: bool) -> Placement | None:
        try:
            return place(case, device, fraction=fraction, workspaces=workspaces)
        except NotKept:
            return None

    work: Work[Device] = Work(
        do, lambda device: False, lambda device: case.model, lambda device: f"{case} on {device}", timeout_s
    )
    open_ = [device for device in left if device not in refused]
    for device, answer in work_apart(work, [open_[first::workers] for first in range(workers)], workers):
        if answer is not None:
            yield answer if not isinstance(answer, Lost) else Placement(device.name, reason=answer.reason)


def _record_first(case: Case, devices: Sequence[Device], *, workspaces: bool) -> dict[Device, str]:
    """Record the step once for GPUs that answer alike, so that forks share it; those that refuse it, and why."""
    start = replace(case, batch_size=LADDER_START)
    reasons: dict[tuple[int, int], str] = {}
    seen: set[tuple[int, int]] = set()
    for device in devices:
        capability = device.compute_capability
        if capability is None or capability in seen:
            continue
        seen.add(capability)
        try:
            target = Target.of(device, workspaces=workspaces, allocator=case.allocator)
            kept.recording_of(start, target.machine, shared=True)
        except Unsupported as error:
            reasons[capability] = str(error)
        except BenchError:  # of this device's file, which `place` says
            seen.discard(capability)
    if reasons and len(reasons) == len(seen) and len(set(reasons.values())) == 1:
        raise Unsupported(next(iter(reasons.values())))
    return {device: reasons[device.compute_capability] for device in devices if device.compute_capability in reasons}


@dataclass(frozen=True, slots=True)
class Offer:
    """A GPU in the ranking; of each interval, nine of ten measurements are between its ends.

    Attributes:
        device: Name of the GPU.
        rank: From 1 on, by the point of what is asked.
        rank_best: The first rank that it may have: those before it are better whatever is true within the intervals.
        rank_worst: The last rank that it may have.
        unclear_with: The GPUs whose interval overlaps with its own.
        placement: Batch, memory and speed.
        time_s: Seconds for the samples.
        energy_j: Joules of the board for the samples; None where the power limit is unknown.
        price_per_h: As given; None where no price is.
        cost: Of the samples, in the currency of the prices; None where no price is given.
    """

    device: str
    rank: int
    rank_best: int
    rank_worst: int
    unclear_with: tuple[str, ...]
    placement: Placement
    time_s: Bounded
    energy_j: Bounded | None
    price_per_h: float | None
    cost: Bounded | None

    @property
    def is_clear(self) -> bool:
        """Whether its rank is certain within the intervals."""
        return not self.unclear_with

    @property
    def rank_words(self) -> str:
        """`3`, or `2–4` where it is not told from others."""
        return f"{self.rank}" if self.is_clear else f"{self.rank_best}–{self.rank_worst}"

    def figure(self, by: By) -> Bounded | None:
        """What it is ranked by: seconds, joules, or money."""
        return {"time": self.time_s, "energy": self.energy_j, "cost": self.cost}[by]


@dataclass(frozen=True, slots=True)
class Ranking:
    """GPUs in order, and those that have no place in it.

    Attributes:
        by: What they are ranked by.
        samples: How many samples time, energy and cost are for.
        fraction: Of each GPU's memory that its batch may take.
        offers: The ranking, the best first.
        left_out: The others, with what is known of them; `reason` says why.
        power_basis: What energy rests on.
    """

    by: By
    samples: int
    fraction: float
    offers: tuple[Offer, ...]
    left_out: tuple[Placement, ...]
    power_basis: str = POWER_BASIS

    @property
    def sentence(self) -> str:
        """The answer in a sentence."""
        if not self.offers:
            return "no GPU can be ranked"
        best = {"time": "fastest", "energy": "most frugal", "cost": "cheapest"}[self.by]
        first = self.offers[0]
        if len(self.offers) == 1:
            return f"{first.device} is the only GPU that can be ranked"
        if first.is_clear:
            return f"{first.device} is the {best}"
        others = len(first.unclear_with)
        alike = (
            f"{first.unclear_with[0]}, whose interval overlaps"
            if others == 1
            else f"{others} others, whose intervals overlap"
        )
        return f"{first.device} is estimated to be the {best}, but cannot be told from {alike} with its own"

    @property
    def unclear_from(self) -> int | None:
        """The first rank that is not certain; None where all are."""
        return next((offer.rank for offer in self.offers if not offer.is_clear), None)

    @property
    def speed_bases(self) -> dict[str, list[str]]:
        """What the speeds rest on, without the GPU's name, each with its GPUs."""
        found: dict[str, list[str]] = {}
        for offer in self.offers:
            basis = (offer.placement.speed_basis or "").replace(f" on {offer.device},", ",")
            found.setdefault(basis, []).append(offer.device)
        return found


def rank(
    placements: Sequence[Placement], *, by: By, samples: int, fraction: float, prices: Mapping[str, float]
) -> Ranking:
    """Time, energy and cost of some samples on each GPU, in order.

    Args:
        placements: Each GPU once.
        by: What to rank by.
        samples: How many; at least 1.
        fraction: As it was for the placements.
        prices: Of a GPU for an hour, by name; those without one have no cost.
    """
    asked: list[Offer] = []
    left_out: list[Placement] = []
    for placement in placements:
        offer = _offer(placement, samples, prices.get(placement.device))
        if offer is not None and offer.figure(by) is not None:
            asked.append(offer)
        elif offer is not None:
            missing = "power_limit_w is unknown" if by == "energy" else "no price is given"
            left_out.append(replace(placement, reason=f"no {by}: {missing}"))
        else:
            left_out.append(placement)
    return Ranking(by, samples, fraction, tuple(_ordered(asked, by)), tuple(sorted(left_out, key=lambda x: x.device)))


def _offer(placement: Placement, samples: int, price: float | None) -> Offer | None:
    """The figures of a GPU, not ranked yet; None where its speed is unknown."""
    rate, low, high = placement.samples_per_s, placement.samples_per_s_low, placement.samples_per_s_high
    if rate is None or low is None or high is None:
        return None
    time = Bounded(samples / rate, samples / high, samples / low)
    limit = placement.power_limit_w
    energy = None if limit is None else time.times(POWER_SHARE).times(limit)
    return Offer(
        placement.device,
        0,
        0,
        0,
        (),
        placement,
        time,
        energy,
        price,
        None if price is None else time.times(price / 3600),
    )


def _ordered(offers: Sequence[Offer], by: By) -> Iterator[Offer]:
    figures = {offer.device: figure for offer in offers if (figure := offer.figure(by)) is not None}
    in_order = sorted(offers, key=lambda offer: (figures[offer.device].point, offer.device))
    for place, offer in enumerate(in_order, start=1):
        own = figures[offer.device]
        before = sum(other.high < own.low for other in figures.values())
        after = sum(other.low > own.high for other in figures.values())
        alike = tuple(
            other.device
            for other in in_order
            if other is not offer and figures[other.device].low <= own.high and own.low <= figures[other.device].high
        )
        yield replace(offer, rank=place, rank_best=before + 1, rank_worst=len(figures) - after, unclear_with=alike)


def list_gpus() -> list[Device]:
    """Every GPU of the package."""
    return [device for device in map(load_device, list_devices()) if device.is_gpu]


def check_prices(given: Sequence[tuple[str, str, object]], own: Sequence[Device] = ()) -> dict[str, float]:
    """Prices for an hour by the GPUs' names; of two for one GPU the later counts.

    Args:
        given: `(place, name, price)`: where it stands, for messages, a name as `load_device` takes it, and a number.
        own: Devices that go by a name of their own.

    Raises:
        ConfigError: With every fault: a name that no device has, a price that is not a number above 0.
    """
    names = {device.name: device.name for device in own}
    prices: dict[str, float] = {}
    faults: list[str] = []
    for place, name, price in given:
        try:
            known = names.get(name) or load_device(name).name
        except BenchError as error:
            faults.append(f"{place}: {error}")
            continue
        number = isinstance(price, int | float) and not isinstance(price, bool)
        if not number or not 0 < price < math.inf:  # type: ignore[operator]  # a number, as the line above says
            faults.append(f"{place}: the price of {name} must be a number above 0 for an hour, not {price}")
        else:
            prices[known] = float(price)  # type: ignore[arg-type]
    if faults:
        raise ConfigError(faults)
    return prices


def read_placement(values: Mapping[str, Any]) -> Placement:
    """A `Placement` from its fields as JSON carries them."""
    return Placement(**values)
