"""How far a number of a site can be trusted: whether it may be published, and whether other hosts agree.

Two bundles are compared as `bench compare --processes 5 --margin 5%` compares them: on the cases that both measured on
the same model of GPU under the same flags, over the first processes of each, with its correction for many cases. A case
agrees where the verdict is `same`: the equivalence test puts the ratio within the margin. `unclear` is no agreement.

Two results of a case are independent if they have no host and no measured time in common. What the same host measures
again is no reproduction, and neither is a copy, a result that does not say where it ran, or one that may not be
published itself.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.analysis import RULES, Weakens
from bench.records import Status
from bench.site.facts import ENERGY, RATE, BundleFacts, CaseFacts
from bench.stats import PUBLISHED_PROCESSES, Verdict, judge_ratios

MARGIN = 0.05
"""How far apart, as a fraction, two hosts may be that agree: boards of one model differ by a few per cent."""

LARGEST = "largest_batch"
"""The largest batch of a series that ran, beside the metrics of `facts`."""

Place = tuple[int, int]
"""A case: the position of its bundle, and its own among the bundle's cases."""

Series = tuple[tuple[str, str | int], ...]
"""The axes of a case but its batch size."""


@dataclass(frozen=True, slots=True)
class Tier:
    """How far one number can be trusted.

    Attributes:
        why_not: Codes of the findings that stand against publishing it; empty where nothing does.
        agreeing: The positions of independent bundles that agree, no two of which share a host.
        differing: Those that were measured well enough to say that they do not.
    """

    why_not: tuple[str, ...] = ()
    agreeing: tuple[int, ...] = ()
    differing: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """One of three: `not publishable`, `reproduced`, `reported`."""
        return "not publishable" if self.why_not else "reproduced" if self.agreeing else "reported"

    @property
    def doubtful(self) -> bool:
        """Whether a finding weakens the number itself, and not its publication alone."""
        return is_doubtful(self.why_not)

    @property
    def standing(self) -> tuple[bool, int]:
        """What sorts the better confirmed number first."""
        return bool(self.why_not), len(self.differing) - len(self.agreeing)

    @property
    def words(self) -> str:
        """The tier as it is shown: `reproduced by 2, contradicted by 1`."""
        if self.why_not:
            return f"not publishable: {', '.join(code.replace('_', ' ') for code in self.why_not)}"
        by = f"reproduced by {len(self.agreeing)}" if self.agreeing else "reported"
        return f"{by}, contradicted by {len(self.differing)}" if self.differing else by


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest batch of a series that ran on a device in one bundle.

    Attributes:
        place: Of the case with that batch.
        batch_size: In samples.
        first_out: The smallest batch above that ran out of memory; None where none was tried.
    """

    place: Place
    batch_size: int
    first_out: int | None


def is_doubtful(codes: Iterable[str]) -> bool:
    """Whether any finding of these weakens the numbers themselves; one of a rule that is not known does."""
    return any(code not in RULES or RULES[code].weakens is Weakens.READING for code in codes)


def series_of(case: CaseFacts) -> Series:
    """The axes of a case but its batch size, in their order."""
    return tuple((axis, value) for axis, value in case.axes.items() if axis != "batch_size")


class Tiers:
    """The tiers of all numbers of a site.

    Attributes:
        margin: How far apart, as a fraction, two hosts may be that agree.
        largest: By bundle, device and series, the largest batch that ran.
    """

    def __init__(self, bundles: Sequence[BundleFacts], margin: float = MARGIN) -> None:
        """Compare every two bundles that are independent."""
        self.margin, self._bundles = margin, bundles
        self._agree: dict[tuple[str, Place], set[int]] = defaultdict(set)
        self._differ: dict[tuple[str, Place], set[int]] = defaultdict(set)
        self.largest = _find_largest(bundles)
        for metric in (RATE, ENERGY):
            self._compare(metric)
        self._compare_largest()

    def of(self, what: str, place: Place) -> Tier:
        """The tier of a number: a metric of a case, or `LARGEST` of the case with the largest batch of its series."""
        case = self._bundles[place[0]].cases[place[1]]
        if case.why_not:
            return Tier(case.why_not)
        differing = self._differ[what, place]
        agreeing = self._agree[what, place] - differing  # a bundle may hold the case in several environments
        return Tier((), self._independent(agreeing), self._independent(differing))

    def others(self, bundle: int) -> list[tuple[int, int, int]]:
        """The independent bundles with cases of this one: position, throughputs that agree, those that do not."""
        agree, differ = Counter[int](), Counter[int]()
        for case in range(len(self._bundles[bundle].cases)):
            place = RATE, (bundle, case)
            agree.update(self._agree[place] - self._differ[place])
            differ.update(self._differ[place])
        return [(other, agree[other], differ[other]) for other in sorted(agree.keys() | differ.keys())]

    def _independent(self, bundles: Iterable[int]) -> tuple[int, ...]:
        """Bundles of which no two share a host; the first of those that do."""
        taken: set[str] = set()
        found = []
        for bundle in sorted(bundles):
            hosts = {host for case in self._bundles[bundle].cases for host in case.hosts}
            if not hosts & taken:
                found.append(bundle)
                taken |= hosts
        return tuple(found)

    def _compare(self, metric: str) -> None:
        meetings: dict[tuple[int, int], list[tuple[Place, Place]]] = defaultdict(list)
        alike: dict[tuple[str, str, str], list[Place]] = defaultdict(list)
        for place, case in _all_cases(self._bundles):
            if not case.why_not and case.hosts and len(case.values[metric]) > 1:
                alike[case.key, case.device, case.work].append(place)
        for places in alike.values():
            for one, two in itertools.combinations(places, 2):
                if self._are_independent(one, two):
                    meetings[one[0], two[0]].append((one, two))
        for pairs in meetings.values():
            sides = [[self._first_values(pair[side], metric) for pair in pairs] for side in (0, 1)]
            for (one, two), judged in zip(pairs, judge_ratios(sides[0], sides[1], margin=self.margin), strict=True):
                if judged.verdict is not Verdict.UNCLEAR:
                    self._note(metric, one, two, agrees=judged.verdict is Verdict.SAME)

    def _compare_largest(self) -> None:
        """A largest batch agrees with a case that ran there and, if a larger one ran out of memory, ran out there."""
        ended: dict[tuple[int, str, str, Series, int], str] = {}
        others: dict[tuple[str, str, Series], set[int]] = defaultdict(set)
        hosts: dict[tuple[int, str, str, Series], set[str]] = defaultdict(set)
        for place, case in _all_cases(self._bundles):
            if not case.why_not and case.hosts:
                key = (case.device, case.work, series_of(case))
                ended[place[0], *key, int(case.axes["batch_size"])] = case.status
                others[key].add(place[0])
                hosts[place[0], *key].update(case.hosts)
        for largest in self.largest.values():
            case = self._bundles[largest.place[0]].cases[largest.place[1]]
            key = (case.device, case.work, series_of(case))
            for other in others[key] if case.hosts else ():
                if other == largest.place[0] or hosts[other, *key] & set(case.hosts):
                    continue
                ran = ended.get((other, *key, largest.batch_size))
                above = None if largest.first_out is None else ended.get((other, *key, largest.first_out))
                if ran == Status.OOM or above == Status.OK:
                    self._differ[LARGEST, largest.place].add(other)
                elif ran == Status.OK and (largest.first_out is None or above == Status.OOM):
                    self._agree[LARGEST, largest.place].add(other)

    def _are_independent(self, one: Place, two: Place) -> bool:
        """Whether two cases are of other hosts, and none is a copy: no two processes took the same time to the bit."""
        cases = [self._bundles[bundle].cases[case] for bundle, case in (one, two)]
        return all(
            set(first).isdisjoint(second)
            for first, second in zip(*((case.hosts, case.values[RATE]) for case in cases), strict=True)
        )

    def _first_values(self, place: Place, metric: str) -> tuple[float, ...]:
        """Which processes count depends on their number alone: a sweep that stops by its intervals may have more."""
        return self._bundles[place[0]].cases[place[1]].values[metric][:PUBLISHED_PROCESSES]

    def _note(self, metric: str, one: Place, two: Place, *, agrees: bool) -> None:
        for place, other in ((one, two), (two, one)):
            (self._agree if agrees else self._differ)[metric, place].add(other[0])


def _all_cases(bundles: Sequence[BundleFacts]) -> Iterable[tuple[Place, CaseFacts]]:
    for number, bundle in enumerate(bundles):
        for place, case in enumerate(bundle.cases):
            yield (number, place), case


def _find_largest(bundles: Sequence[BundleFacts]) -> dict[tuple[int, str, Series], Largest]:
    ran: dict[tuple[int, str, Series], list[tuple[int, Place]]] = defaultdict(list)
    out: dict[tuple[int, str, Series], list[int]] = defaultdict(list)
    for place, case in _all_cases(bundles):
        key, batch = (place[0], case.device, series_of(case)), int(case.axes["batch_size"])
        if case.status == Status.OK:
            ran[key].append((batch, place))
        elif case.status == Status.OOM:
            out[key].append(batch)
    found = {}
    for key, sizes in ran.items():
        batch, place = max(sizes, key=lambda size: (not is_doubtful(_case(bundles, size[1]).why_not), size[0]))
        found[key] = Largest(place, batch, min((size for size in out[key] if size > batch), default=None))
    return found


def _case(bundles: Sequence[BundleFacts], place: Place) -> CaseFacts:
    return bundles[place[0]].cases[place[1]]
