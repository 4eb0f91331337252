"""The pages and feeds of a site, as bytes by path: the same bundles give the same bytes, in whatever order they came.

Every text of a bundle is data: templates escape it and spell out what is not seen, and the names of pages are made of
plain letters and hashes. Pages have no scripts, load one style sheet beside them, and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2

from bench import __version__
from bench.bundles import safe_name
from bench.bundles.bundle import name_fault
from bench.records import AXES, USUAL, Status, axis_words
from bench.report.escape import plain
from bench.report.words import listed
from bench.site.facts import ENERGY, RATE, BundleFacts, CaseFacts
from bench.site.tiers import LARGEST, Place, Tier, Tiers, series_of
from bench.stats import Interval, geometric_interval
from bench.units import MISSING, counted, format_bytes, format_energy, format_rate

NEWEST = 10
"""Bundles that the start page lists; the feeds have `_IN_FEEDS` of them."""

_IN_FEEDS = 50
_TITLES = {RATE: "Samples per second", LARGEST: "Largest batch", ENERGY: "Energy per sample"}
_LESS_IS_BETTER = (ENERGY,)
_CODES_NAMED = 2
_PLAIN_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
_MAX_PLAIN_NAME = 60


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a page.

    Attributes:
        text: With its unit.
        range: Its interval in words, or what bounds it.
        tier: How far to trust it.
        place: The case that it is of.
        setting: How that case was run, beside what the row says.
        value: For sorting and bars.
    """

    text: str
    range: str
    tier: Tier
    place: Place
    setting: str
    value: float


@dataclass(frozen=True, slots=True)
class Row:
    """A series of cases on a device, with the best of its numbers by what they are."""

    model: str
    dataset: str
    device: str
    numbers: Mapping[str, Number]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One quantity of every model on every device: `rows` have a label, the model, and a number or None for each."""

    name: str
    title: str
    rows: Sequence[tuple[str, str, Sequence[Number | None]]]


@dataclass(frozen=True)
class Site:
    """Everything that the pages are made of.

    Attributes:
        title: Of the site.
        url: Where it will be published, ending in `/`; empty if unknown. Feeds then have absolute addresses.
        bundles: In the order that they are listed in, the newest first.
        tiers: Of their numbers.
    """

    title: str
    url: str
    bundles: Sequence[BundleFacts]
    tiers: Tiers
    slugs: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        """Name the bundles' pages."""
        object.__setattr__(self, "slugs", [bundle_slug(facts) for facts in self.bundles])

    def case(self, place: Place) -> CaseFacts:
        """The case at a place."""
        return self.bundles[place[0]].cases[place[1]]

    @functools.cached_property
    def devices(self) -> list[str]:
        """GPUs, then CPUs, by name."""
        found = {case.device: not case.gpu for facts in self.bundles for case in facts.cases}
        return sorted(found, key=lambda device: (found[device], device))

    @functools.cached_property
    def models(self) -> list[str]:
        """By name."""
        return sorted({str(case.axes["model"]) for facts in self.bundles for case in facts.cases})

    @functools.cached_property
    def rows(self) -> list[Row]:
        """Every series on every device that has a number, the fastest first within a model and data set."""
        groups: dict[Any, list[Place]] = defaultdict(list)
        for number, facts in enumerate(self.bundles):
            for place, case in enumerate(facts.cases):
                groups[case.device, series_of(case)].append((number, place))
        rows = []
        for (device, series), places in groups.items():
            if numbers := self.best(places):
                axes = dict(series)
                rows.append(Row(str(axes["model"]), str(axes["dataset"]), device, numbers))
        return sorted(rows, key=_reading_order)

    def best(self, places: Sequence[Place], said: Sequence[str] = ()) -> dict[str, Number]:
        """The best number of each kind.

        A doubtful one counts where there is no other. Of numbers within the site's margin of the best, which may
        well be equal, the one that most others confirm is taken, and one that may be published before others.

        Args:
            places: The cases to choose from.
            said: Axes that a reader knows already.
        """
        found = {}
        for what, numbers in self._numbers(places, said).items():
            sign = 1 if what in _LESS_IS_BETTER else -1
            believed = [number for number in numbers if not number.tier.doubtful] or numbers
            best = min(sign * number.value for number in believed)
            near = [number for number in believed if sign * number.value <= best + abs(best) * self.tiers.margin]
            found[what] = min(near, key=lambda one: (*one.tier.standing, sign * one.value, one.place))
        return found

    def number(self, what: str, place: Place, said: Sequence[str] = ()) -> Number | None:
        """A metric of one case; None where it was not measured."""
        values = self.case(place).values[what]
        if not values:
            return None
        interval = geometric_interval(values)
        words = _rate if what == RATE else format_energy
        low_high = _range(interval, words, "host" if len(self.case(place).hosts) > 1 else "process")
        setting, tier = self.setting(self.case(place), said), self.tiers.of(what, place)
        return Number(words(interval.middle), low_high, tier, place, setting, interval.middle)

    def setting(self, case: CaseFacts, said: Sequence[str] = ()) -> str:
        """How a case was run: batch, optimizer, and every axis that is not as usual, but those that are `said`."""
        words = [f"batch {int(case.axes['batch_size']):,}"] if "batch_size" not in said else []
        told = [axis for axis in AXES if axis not in ("model", "dataset", "batch_size", *said)]
        if len(self._sizes[case.axes["model"], case.axes["dataset"]]) == 1:
            told.remove("image_size")
        return ", ".join(
            [*words, *(axis_words(axis, case.axes[axis]) for axis in told if _unusual(axis, case.axes[axis]))]
        )

    @functools.cached_property
    def _sizes(self) -> dict[tuple[object, object], set[object]]:
        """The sizes of the images that a model was trained on, by model and data set."""
        found: dict[tuple[object, object], set[object]] = defaultdict(set)
        for case in (case for facts in self.bundles for case in facts.cases):
            found[case.axes["model"], case.axes["dataset"]].add(case.axes["image_size"])
        return found

    def _numbers(self, places: Sequence[Place], said: Sequence[str]) -> dict[str, list[Number]]:
        found: dict[str, list[Number]] = defaultdict(list)
        for what in (RATE, ENERGY):
            for place in places:
                if (number := self.number(what, place, said)) is not None:
                    found[what].append(number)
        for key in dict.fromkeys((place[0], (case := self.case(place)).device, series_of(case)) for place in places):
            if (largest := self.tiers.largest.get(key)) is not None:
                size, out = largest.batch_size, largest.first_out
                bound = "the largest that was tried" if out is None else f"{out:,} ran out of memory"
                tier, case = self.tiers.of(LARGEST, largest.place), self.case(largest.place)
                setting = self.setting(case, (*said, "batch_size"))
                found[LARGEST].append(Number(f"{size:,}", bound, tier, largest.place, setting, size))
        return dict(found)

    @functools.cached_property
    def matrices(self) -> list[Matrix]:
        """Of each quantity that anything is known of, the best of each model, data set, precision and input."""
        said = ("model", "dataset", "precision", "input")
        cells: dict[tuple[str, ...], dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
        for number, facts in enumerate(self.bundles):
            for place, case in enumerate(facts.cases):
                cells[tuple(str(case.axes[axis]) for axis in said)][case.device].append((number, place))
        best = {key: {device: self.best(places, said) for device, places in row.items()} for key, row in cells.items()}
        matrices = []
        for what, title in _TITLES.items():
            rows = [
                (_task_words(key), key[0], [best[key].get(device, {}).get(what) for device in self.devices])
                for key in sorted(best)
            ]
            if rows := [row for row in rows if any(row[2])]:
                matrices.append(Matrix(what, title, rows))
        return matrices

    @functools.cached_property
    def tier_counts(self) -> dict[str, int]:
        """How many throughputs there are of each tier."""
        counts = {"reproduced": 0, "reported": 0, "not publishable": 0}
        for number, facts in enumerate(self.bundles):
            for place, case in enumerate(facts.cases):
                if case.values[RATE]:
                    counts[self.tiers.of(RATE, (number, place)).name] += 1
        return counts


def bundle_slug(facts: BundleFacts) -> str:
    """What the files of a bundle are called: its name as far as it is plain, and 16 digits of its digest."""
    return f"{safe_name(facts.name).lower()}-{facts.digest[:16]}"


def slug(text: str) -> str:
    """The name of a page: the text itself where it is plain and short, else what is plain of it, and a hash."""
    if len(text) <= _MAX_PLAIN_NAME and _PLAIN_NAME.fullmatch(text) and name_fault(text) is None:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return f"{safe_name(text[:200]).lower()[:40].strip('._-')}--{digest[:16]}"


def _unusual(axis: str, value: object) -> bool:
    return axis not in USUAL or value != USUAL[axis]


def _task_words(key: Sequence[str]) -> str:
    model, dataset, precision, source = key
    told = {"precision": precision, "input": source}
    return ", ".join(
        [f"{model} on {dataset}", *(axis_words(axis, value) for axis, value in told.items() if _unusual(axis, value))]
    )


def render_site(site: Site) -> dict[str, bytes]:
    """Every page, feed and the style sheet, by path."""
    files = {"style.css": _source("style.css").encode(), ".nojekyll": b""}
    newest = range(len(site.bundles))
    files["index.html"] = _page(site, "start.html.j2", "", coverage=_coverage(site))
    files["feed.xml"] = _feed(site, "feed.xml", site.title, newest)
    kinds: tuple[tuple[str, Sequence[str], Callable[[Row], str]], ...] = (
        ("models", site.models, lambda row: row.model),
        ("devices", site.devices, lambda row: row.device),
    )
    for kind, names, name_of in kinds:
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in site.rows:
            rows[name_of(row)].append(row)
        holding: dict[str, list[int]] = defaultdict(list)
        for number, facts in enumerate(site.bundles):
            held = {case.device if kind == "devices" else str(case.axes["model"]) for case in facts.cases}
            for name in held:
                holding[name].append(number)
        for name in names:
            path = f"{kind}/{slug(name)}"
            sections = _sections(rows[name], kind)
            files[f"{path}.html"] = _page(
                site,
                "group.html.j2",
                "../",
                kind=kind,
                name=name,
                sections=sections,
                holding=holding[name],
                feed=f"{slug(name)}.xml",
            )
            files[f"{path}.xml"] = _feed(site, f"{path}.xml", f"{site.title}: {name}", holding[name])
    for number, facts in enumerate(site.bundles):
        files[f"bundles/{site.slugs[number]}.html"] = _page(
            site, "bundle.html.j2", "../", number=number, facts=facts, others=site.tiers.others(number)
        )
        files[f"bundles/{site.slugs[number]}.json"] = facts.text
    return files


def _sections(rows: Sequence[Row], kind: str) -> list[tuple[str, str, list[Row], float]]:
    """Rows that may be compared with each other: their heading, its link, and the largest throughput among them."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        head = (
            (f"{row.model} on {row.dataset}", f"models/{slug(row.model)}.html")
            if kind == "devices"
            else (f"On {row.dataset}", "")
        )
        groups[head].append(row)
    return [(*head, found, max(_value(row, RATE) for row in found)) for head, found in groups.items()]


def _value(row: Row, what: str) -> float:
    return row.numbers[what].value if what in row.numbers else 0.0


def _reading_order(row: Row) -> tuple[Any, ...]:
    doubtful = RATE in row.numbers and row.numbers[RATE].tier.doubtful
    return (row.model, row.dataset, doubtful, -_value(row, RATE), row.device, _settings(row))


def _settings(row: Row) -> list[tuple[str, Place]]:
    return [(number.setting, number.place) for number in row.numbers.values()]


def _coverage(site: Site) -> list[tuple[str, int, int, int, int]]:
    """Of each device: how many bundles, hosts, models and cases the site has."""
    found = []
    for device in site.devices:
        cases = [
            (number, case) for number, facts in enumerate(site.bundles) for case in facts.cases if case.device == device
        ]
        hosts = {host for _, case in cases for host in case.hosts}
        found.append(
            (
                device,
                len({number for number, _ in cases}),
                len(hosts),
                len({case.axes["model"] for _, case in cases}),
                len(cases),
            )
        )
    return found


def _rate(value: float) -> str:
    return format_rate(value, "samples")


def _range(interval: Interval, words: Callable[[float], str], unit: str) -> str:
    if interval.low is None or interval.high is None:
        return f"one {unit}: no interval"
    low, high = (words(end).removesuffix(" samples/s") for end in (interval.low, interval.high))
    return f"{low} to {high}, {counted(interval.n, unit)}"


def _why(tier: Tier) -> str:
    """A tier in a few words: the first reasons, and how many more there are."""
    if not tier.why_not:
        return tier.words
    return f"not publishable: {listed((code.replace('_', ' ') for code in tier.why_not), _CODES_NAMED)}"


def _day(unix_s: int | None) -> str:
    return MISSING if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")


def _feed(site: Site, path: str, title: str, bundles: Iterable[int]) -> bytes:
    """An Atom feed (RFC 4287). Its dates are those of the runs, so that the same bundles give the same feed."""
    chosen = list(bundles)[:_IN_FEEDS]
    up = "" if site.url or "/" not in path else "../"
    page = path.removesuffix(".xml") + ".html" if "/" in path else "index.html"
    entries = [
        {
            "title": site.bundles[number].name,
            "id": uuid.uuid5(uuid.NAMESPACE_OID, site.bundles[number].digest).urn,
            "updated": _instant(site.bundles[number].ended_unix_s),
            "href": f"{site.url or up}bundles/{site.slugs[number]}.html",
            "summary": summary_words(site.bundles[number]),
        }
        for number in chosen
    ]
    updated = max((entry["updated"] for entry in entries), default=_instant(None))
    own = {
        "self_href": f"{site.url}{path}" if site.url else path.rpartition("/")[2],
        "page_href": f"{site.url or up}{page}",
    }
    about = {
        "title": title,
        "author": site.title,
        "id": uuid.uuid5(uuid.NAMESPACE_URL, f"{site.url or site.title}#{path}").urn,
    }
    return _rendered("feed.xml.j2", entries=entries, updated=updated, version=__version__, **own, **about)


def summary_words(facts: BundleFacts) -> str:
    """What a bundle holds, in two sentences."""
    models = dict.fromkeys(str(case.axes["model"]) for case in facts.cases)
    devices = dict.fromkeys(case.device for case in facts.cases)
    blocking = [finding.code.replace("_", " ") for finding in facts.findings if finding.blocks]
    verdict = f"Not publishable as a whole: {listed(blocking, 4)}." if blocking else "Publishable."
    return f"{counted(len(facts.cases), 'case')} of {listed(models, 4)} on {listed(devices, 3)}. {verdict}"


def _instant(unix_s: int | None) -> str:
    return datetime.fromtimestamp(unix_s or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _page(site: Site, template: str, root: str, **values: Any) -> bytes:
    return _rendered(template, site=site, root=root, version=__version__, newest=NEWEST, **values)


def _rendered(template: str, **values: Any) -> bytes:
    text = _environment().get_template(template).render(**values)
    return ("\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n").encode()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_source),
    )
    environment.filters |= {"plain": plain, "slug": slug, "day": _day, "why": _why, "bytes": format_bytes}
    environment.globals |= {
        "RATE": RATE,
        "ENERGY": ENERGY,
        "LARGEST": LARGEST,
        "OK": str(Status.OK),
        "TITLES": _TITLES,
        "counted": counted,
        "summary_words": summary_words,
    }
    return environment


def _source(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
