"""The site: tiers by who agrees with whom, the same bytes however it was built, and strings that stay data."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import re
import urllib.parse
import xml.etree.ElementTree
from pathlib import Path
from unittest import mock

import pytest

from bench.records import Case, Choice, Status
from tests.altered import PROTOCOL, honest, rewrite
from tests.bundled import CASES, HOSTILE, build, host, pack, steady
from tests.each import each
from tests.results import CPU, GIB, make_cases
from tests.sketches import sketching


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """What is read from equal bundles is equal: each is read once for all tests of this file."""
    import hashlib

    import bench.site

    real, known = bench.site.read_facts, {}

    def read(path: Path):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in known:
            known[digest] = real(path)
        return known[digest]

    with mock.patch.object(bench.site, "read_facts", read):
        yield


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Five results of one GPU and one of another: by name, the bundle."""
    root = tmp_path_factory.mktemp("bundles")
    made = {
        "first": {},
        "agrees": {"environment": host(2), "change": steady(1.02, 1.7001e9)},
        "again": {"change": steady(1.01, 1.7002e9), "protocol": dataclasses.replace(PROTOCOL, seed=7)},
        "differs": {"environment": host(3), "change": steady(1.3, 1.7003e9)},
        "noisy": {"environment": host(4), "change": steady(1.0, 1.7004e9, spread=60)},
        "other": {
            "environment": dataclasses.replace(host(5), gpu_name="NVIDIA GeForce RTX 4090", gpu_total_bytes=24 * GIB)
        },
    }
    return {name: pack(root, name, seed=number, **settings) for number, (name, settings) in enumerate(made.items())}


@pytest.fixture(scope="module")
def site(tmp_path_factory, bundles):
    """A site of all of them; not changed by tests."""
    folder = tmp_path_factory.mktemp("site") / "site"
    build(folder, bundles.values())
    return folder


def facts_of(folder: Path):
    """By name, the facts that a site keeps."""
    from bench.site.facts import BundleFacts

    found = [BundleFacts.parse(path.read_bytes()) for path in sorted((folder / "bundles").glob("*.json"))]
    return {facts.name: facts for facts in found}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiers_of(folder: Path, *names: str, **settings):
    """The tier of the first throughput of some bundles among each other, in words."""
    from bench.site.facts import RATE
    from bench.site.tiers import Tiers

    every = facts_of(folder)
    tiers = Tiers([every[name] for name in names], **settings)
    return [tiers.of(RATE, (number, 0)).words for number in range(len(names))]


def test_a_number_is_reproduced_by_another_host_that_agrees(site):
    assert tiers_of(site, "first") == ["reported"]
    assert tiers_of(site, "first", "agrees") == ["reproduced by 1"] * 2
    assert tiers_of(site, "first", "agrees", margin=0.005) == ["reported, contradicted by 1"] * 2


def test_the_same_host_reproduces_nothing_however_often_it_measures(site):
    assert tiers_of(site, "first", "again") == ["reported"] * 2
    assert tiers_of(site, "first", "again", "agrees") == ["reproduced by 1", "reproduced by 1", "reproduced by 1"]


def test_what_differs_contradicts(site):
    assert tiers_of(site, "first", "differs") == ["reported, contradicted by 1"] * 2
    assert tiers_of(site, "first", "agrees", "differs")[0] == "reproduced by 1, contradicted by 1"


def test_what_is_not_publishable_says_why_and_confirms_nothing(site):
    assert tiers_of(site, "first", "noisy") == ["reported", "not publishable: noisy"]


def test_another_gpu_is_no_reproduction(site):
    assert tiers_of(site, "first", "other") == ["reported"] * 2


def test_a_host_that_is_not_known_is_nobody(site):
    from bench.site.facts import RATE
    from bench.site.tiers import Tiers

    every = facts_of(site)
    unknown = dataclasses.replace(
        every["agrees"], cases=tuple(dataclasses.replace(case, hosts=()) for case in every["agrees"].cases)
    )
    tiers = Tiers([every["first"], unknown])
    assert [tiers.of(RATE, (number, 0)).words for number in (0, 1)] == ["reported", "reported"]


def test_a_copy_under_another_host_is_no_reproduction(site):
    from bench.site.facts import RATE
    from bench.site.tiers import Tiers

    first = facts_of(site)["first"]
    copied = tuple(dataclasses.replace(case, hosts=("f" * 16,)) for case in first.cases)
    assert Tiers([first, dataclasses.replace(first, cases=copied)]).of(RATE, (0, 0)).words == "reported"


def test_other_work_is_another_case(site):
    from bench.site.facts import RATE
    from bench.site.tiers import Tiers

    every = facts_of(site)
    other = dataclasses.replace(
        every["agrees"], cases=tuple(dataclasses.replace(case, work="compiled") for case in every["agrees"].cases)
    )
    assert Tiers([every["first"], other]).of(RATE, (0, 0)).words == "reported"


@each("pair", [("first", "agrees"), ("first", "differs"), ("agrees", "differs")])
def test_agreement_is_the_verdict_of_bench_compare(site, bundles, pair):
    from bench.api import compare
    from bench.site.facts import RATE
    from bench.site.tiers import Tiers

    every = facts_of(site)
    tiers = Tiers([every[name] for name in pair])
    folders = (bundles[name].parent / "results" / name for name in pair)
    compared = compare(*folders, margin=0.05, processes=5, metrics=[RATE]).cases
    verdicts = dict(zip(compared["case_key"], compared["verdict"], strict=True))
    for place, case in enumerate(every[pair[0]].cases):
        tier = tiers.of(RATE, (0, place))
        told = "same" if tier.agreeing else "different" if tier.differing else "unclear"
        assert told == {"same": "same", "unclear": "unclear"}.get(verdicts[case.key], "different")


def test_a_largest_batch_is_reproduced_where_the_next_one_ran_out_there_too(site):
    from bench.site.facts import BundleFacts, CaseFacts
    from bench.site.tiers import LARGEST, Tiers

    every = facts_of(site)

    def ended(name: str, *statuses: Status) -> BundleFacts:
        facts = every[name]
        cases: list[CaseFacts] = []
        for case, status in zip(facts.cases, statuses, strict=True):
            cases.append(dataclasses.replace(case, status=str(status)))
        return dataclasses.replace(facts, cases=tuple(cases))

    def largest(*bundles: BundleFacts):
        tiers = Tiers(bundles)
        (found,) = [item for item in tiers.largest.values() if item.place[0] == 0]
        return found.batch_size, found.first_out, tiers.of(LARGEST, found.place).words

    first = ended("first", Status.OK, Status.OK, Status.OOM)
    assert largest(first) == (64, 256, "reported")
    assert largest(first, ended("agrees", Status.OK, Status.OK, Status.OOM)) == (64, 256, "reproduced by 1")
    assert largest(first, ended("agrees", Status.OK, Status.OK, Status.OK)) == (64, 256, "reported, contradicted by 1")
    assert largest(first, ended("agrees", Status.OK, Status.OOM, Status.OOM)) == (
        64,
        256,
        "reported, contradicted by 1",
    )
    assert largest(first, ended("agrees", Status.OK, Status.OK, Status.FAILED)) == (64, 256, "reported")


def test_numbers_have_their_interval_tier_and_bundle(site):
    page = " ".join((site / "index.html").read_text().split())
    cell = re.search(r'data-label="NVIDIA H200">(.*?)</td>', page)
    assert cell is not None
    assert re.search(r"998 samples/s</span> <span class=\"range\">\(997 to 999, 5 processes\)", cell[1]), cell[1]
    assert "reproduced by 1, contradicted by 1" in cell[1]
    assert re.search(r'href="bundles/first-[0-9a-f]{16}\.html">first</a>', cell[1])
    noisy = next((site / "bundles").glob("noisy-*.html")).read_text()
    assert "not publishable: noisy" in noisy
    assert "Use more repeats or a quieter machine." in noisy


def test_a_doubtful_number_is_not_the_fastest_of_a_model(site, bundles, tmp_path):
    fast = pack(tmp_path, "fast", environment=host(9), change=steady(0.5), seed=9)
    lied = tmp_path / "results" / "fast"
    rewrite(lied / "data", lambda row: {"wall_window_s": row["wall_window_s"] / 50})
    from bench import __version__
    from bench.bundles import bundle_files, write_bundle

    write_bundle(fast, "fast", bundle_files(lied, tmp_path / "no report", __version__), force=True)
    build(tmp_path / "site", [fast, bundles["first"]])
    page = " ".join((tmp_path / "site" / "models" / "mlp.html").read_text().split())
    assert re.search(r"Fastest: <strong>99\d samples/s", page), page
    (told,) = (tmp_path / "site" / "bundles").glob("fast-*.html")
    assert "not publishable: skewed steps, inconsistent rate and 1 more" in told.read_text()
    assert ">fast</a>" not in page.partition("<h2>Bundles</h2>")[0]


def test_the_same_bundles_give_the_same_bytes_in_any_order_and_in_any_steps(site, bundles, tmp_path):
    first, *rest = reversed(bundles.values())
    assert build(tmp_path / "site", [first]).read == ("other",)
    built = build(tmp_path / "site", rest)
    assert (built.bundles, len(built.read)) == (6, 5)
    assert content(tmp_path / "site") == content(site)
    again = build(tmp_path / "site", [], whole=True)
    assert (again.written, len(again.read)) == (0, 6)
    assert content(tmp_path / "site") == content(site)


def test_one_more_bundle_reads_that_bundle_and_one_to_test_what_is_kept(site, bundles, tmp_path, monkeypatch):
    import bench.site

    names = list(bundles)
    build(tmp_path / "site", [bundles[name] for name in names[:4]])
    read = []
    real = bench.site.read_facts
    monkeypatch.setattr(bench.site, "read_facts", lambda path: read.append(path.name) or real(path))
    assert build(tmp_path / "site", [bundles[names[4]]]).read == (names[4],)
    assert len(read) == 2
    assert read[1] == f"{names[4]}.zip"


def doctor(folder: Path, change, *, manifest: bool) -> None:
    """Change the kept facts of the only bundle, and where asked its hash in the manifest too."""
    import hashlib

    (path,) = (folder / "bundles").glob("*.json")
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if manifest:
        site = json.loads((folder / "site.json").read_text())
        ((key, (slug, _)),) = site["kept"].items()
        site["kept"][key] = [slug, hashlib.sha256(path.read_bytes()).hexdigest()]
        (folder / "site.json").write_text(json.dumps(site))


@each("manifest", [False, True])
def test_kept_facts_that_were_changed_are_not_believed(bundles, tmp_path, manifest):
    build(tmp_path / "site", [bundles["noisy"]])
    before = content(tmp_path / "site")

    def embellish(found):
        for case in found["cases"]:
            case["why_not"] = []

    doctor(tmp_path / "site", embellish, manifest=manifest)
    assert build(tmp_path / "site", []).read == ("noisy",)
    assert content(tmp_path / "site") == before


def test_facts_that_other_code_kept_are_read_again(bundles, tmp_path):
    build(tmp_path / "site", [bundles["first"]])
    manifest = json.loads((tmp_path / "site" / "site.json").read_text())
    (tmp_path / "site" / "site.json").write_text(json.dumps({**manifest, "code": "0" * 16}))
    assert build(tmp_path / "site", []).read == ("first",)
    assert build(tmp_path / "site", []).read == ()


@each("text", ["", "{", "[]", '{"format": 1, "settings": 3}', "null", "[" * 100_000])
def test_a_damaged_manifest_costs_time_and_no_more(bundles, tmp_path, text):
    build(tmp_path / "site", [bundles["first"]])
    before = content(tmp_path / "site")
    (tmp_path / "site" / "site.json").write_text(text)
    assert build(tmp_path / "site", []).read == ("first",)
    assert content(tmp_path / "site") == before


def test_pages_that_were_changed_are_made_again(bundles, tmp_path):
    build(tmp_path / "site", [bundles["first"]])
    before = content(tmp_path / "site")
    (tmp_path / "site" / "index.html").write_text("we are the fastest")
    (tmp_path / "site" / "models" / "mlp.html").unlink()
    assert build(tmp_path / "site", []).written == 2
    assert content(tmp_path / "site") == before


def test_a_manifest_cannot_delete_what_is_not_of_the_site(bundles, tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    build(tmp_path / "site", [bundles["first"]])
    manifest = json.loads((tmp_path / "site" / "site.json").read_text())
    manifest["files"] += ["../precious.txt", str(tmp_path / "precious.txt"), "models/../../precious.txt"]
    (tmp_path / "site" / "site.json").write_text(json.dumps(manifest))
    build(tmp_path / "site", [])
    assert (tmp_path / "precious.txt").exists()


def test_a_changed_bundle_is_refused_and_the_site_is_as_it_was(bundles, tmp_path):
    from bench.errors import StoreError

    build(tmp_path / "site", [bundles["first"]])
    before = content(tmp_path / "site")
    data = bytearray(bundles["agrees"].read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.zip").write_bytes(data)
    with pytest.raises(StoreError, match=r"changed\.zip"):
        build(tmp_path / "site", [tmp_path / "changed.zip"])
    assert content(tmp_path / "site") == before


def test_a_folder_of_somebody_else_is_refused(bundles, tmp_path):
    from bench.errors import BenchError

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("x")
    with pytest.raises(BenchError, match="is not a site"):
        build(tmp_path / "photos", [bundles["first"]])
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.txt"]


def test_bundles_are_kept_unless_only_the_named_ones_are_asked_for(bundles, tmp_path):
    build(tmp_path / "site", [bundles["first"], bundles["agrees"]])
    assert build(tmp_path / "site", [bundles["first"]]).bundles == 2
    built = build(tmp_path / "site", [bundles["first"]], only=True)
    assert built.bundles == 1
    assert [name.rpartition("-")[0] for name in built.removed] == ["bundles/agrees"]
    build(tmp_path / "alone", [bundles["first"]])
    assert content(tmp_path / "site") == content(tmp_path / "alone")


def test_a_later_state_of_a_folder_replaces_the_earlier_and_nobody_elses(tmp_path, monkeypatch):
    import shutil

    import bench.site
    from bench import __version__
    from bench.bundles import bundle_files, write_bundle

    def pack_plainly(folder, made):
        made.mkdir()
        return write_bundle(made / "bundle.zip", "mine", bundle_files(folder, made, __version__)).path

    monkeypatch.setattr(bench.site, "_pack", pack_plainly)
    later = pack(tmp_path, "mine")
    folder, early = tmp_path / "results" / "mine", tmp_path / "early" / "mine"
    shutil.copytree(folder, early)
    for path in sorted((early / "data" / "runs").iterdir())[:3]:
        path.unlink()
    assert build(tmp_path / "site", [early]).bundles == 1
    built = build(tmp_path / "site", [folder])
    assert (built.bundles, built.left_out) == (1, ("mine",))
    assert build(tmp_path / "site", []).bundles == 1
    build(tmp_path / "alone", [folder])
    assert content(tmp_path / "site") == content(tmp_path / "alone")
    earlier = write_bundle(tmp_path / "e.zip", "mine", bundle_files(early, tmp_path / "no report", __version__)).path
    assert build(tmp_path / "others", [earlier, later]).bundles == 2


def test_a_folder_is_bundled_as_bench_bundle_does_and_once(tmp_path):
    from click.testing import CliRunner

    from bench.cli import cli

    with sketching():
        honest(tmp_path / "mine" / "data", cases=CASES[:1], change=steady(1.0))
        assert CliRunner().invoke(cli, ["bundle", str(tmp_path / "mine")]).exit_code == 0
        lines = []
        build(tmp_path / "site", [tmp_path / "mine"], progress=lines.append)
        assert sum(line.startswith("packing") for line in lines) == 1
        (archive,) = (tmp_path / "site" / "bundles").glob("*.zip")
        assert archive.read_bytes() == (tmp_path / "mine.zip").read_bytes()
        lines.clear()
        assert build(tmp_path / "site", [tmp_path / "mine"], progress=lines.append).read == ()
        assert lines == []


def test_what_the_site_remembers_is_its_title_address_and_margin(bundles, tmp_path):
    build(tmp_path / "site", [bundles["first"]], title="Our GPUs", url="https://example.org/b", margin=0.1)
    build(tmp_path / "site", [])
    assert "<h1>Our GPUs</h1>" in (tmp_path / "site" / "index.html").read_text()
    assert "within 10 %" in (tmp_path / "site" / "index.html").read_text()
    assert "https://example.org/b/bundles/first-" in (tmp_path / "site" / "feed.xml").read_text()


@each("setting", [{"margin": 0.0}, {"margin": 1.0}, {"url": "javascript:alert(1)"}, {"url": "//x"}, {"title": " "}])
def test_settings_that_are_not_valid_are_refused(bundles, tmp_path, setting):
    from bench.errors import BenchError

    with pytest.raises(BenchError, match=next(iter(setting))):
        build(tmp_path / "site", [bundles["first"]], **setting)
    assert not (tmp_path / "site").exists()


class Tags(html.parser.HTMLParser):
    """Every tag, attribute and address of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("href", "src")]
        self.ids += [value for name, value in attrs if name == "id"]


def parsed(page: Path) -> Tags:
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    return tags


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A site in which every text of the results is hostile, and one of its models has a name of a megabyte."""
    root = tmp_path_factory.mktemp("hostile")
    dataset, models = Choice.of(f"d{HOSTILE}"), [f"={HOSTILE}", "../../index", "w" * 1_000_000, "CON", "Mlp", "mlp"]
    cases = [Case(dataset, Choice.of(model), Choice.of(f"@o{HOSTILE}"), 16, image_size=28) for model in models]
    environment = dataclasses.replace(
        CPU, cpu_model=HOSTILE, kernel=HOSTILE, torch_version=f"-{HOSTILE}", host_hash=HOSTILE, git_commit=HOSTILE
    )

    def change(measurement, case, repeat):
        reason = None if measurement.status == Status.OK else HOSTILE
        return dataclasses.replace(measurement, reason=reason, flags=(HOSTILE,), data_source=HOSTILE)

    notes = {"name": HOSTILE, "description": HOSTILE, "config": {"name": HOSTILE}, "device": HOSTILE}
    settings = {"environment": environment, "outcomes": {1: Status.FAILED}, "notes": notes, "change": change}
    bundle = pack(root, "mine", cases=cases, repeats=2, **settings)
    build(root / "site", [bundle], title=HOSTILE)
    return root / "site"


def test_no_tag_and_no_attribute_comes_from_results(hostile, site):
    ours = [parsed(page) for page in site.rglob("*.html")]
    allowed = set().union(*(page.tags for page in ours)) | {"details", "summary", "svg", "rect", "ul", "li"}
    names = set().union(*(page.attributes for page in ours))
    pages = list(hostile.rglob("*.html"))
    assert len(pages) == 9
    for page in pages:
        found = parsed(page)
        assert found.tags <= allowed, (page, found.tags - allowed)
        assert found.attributes <= names, (page, found.attributes - names)
        assert "script" not in found.tags


def test_no_direction_mark_and_no_control_reaches_a_reader(hostile):
    for page in (*hostile.rglob("*.html"), *hostile.rglob("*.xml")):
        text = page.read_text(encoding="utf-8")
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\x00-\x08\x0e-\x1f]", text), page
        assert len(text) < 60_000, page


@each("which", ["site", "hostile"])
def test_every_address_leads_to_a_file_of_the_site(request, which):
    folder = request.getfixturevalue(which)
    for page in folder.rglob("*.html"):
        found = parsed(page)
        assert len(set(found.ids)) == len(found.ids)
        for address in found.addresses:
            parts = urllib.parse.urlsplit(address)
            assert not parts.scheme
            assert not parts.netloc
            target = (page.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page.resolve()
            assert target.is_relative_to(folder.resolve())
            assert target.is_file(), address
            assert not parts.fragment or parts.fragment in parsed(target).ids, address


def test_names_of_pages_are_plain_and_their_own(hostile):
    names = [path.relative_to(hostile).as_posix() for path in hostile.rglob("*") if path.is_file()]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"(\.nojekyll|([a-z]+/)?[a-z0-9._-]{1,100}\.[a-z]+)", name), name
    assert {"models/mlp.html"} < {name for name in names if name.startswith("models/")}


@each("which", ["site", "hostile"])
def test_feeds_are_atom_with_the_dates_of_the_runs(request, which):
    folder = request.getfixturevalue(which)
    atom = "{http://www.w3.org/2005/Atom}"
    feeds = list(folder.rglob("*.xml"))
    assert len(feeds) == 1 + len(list((folder / "models").glob("*.html"))) + len(
        list((folder / "devices").glob("*.html"))
    )
    ids = set()
    for path in feeds:
        root = xml.etree.ElementTree.fromstring(path.read_bytes())
        assert root.tag == f"{atom}feed"
        entries = root.findall(f"{atom}entry")
        assert entries
        for item in (root, *entries):
            for name in ("title", "id", "updated"):
                assert item.findtext(f"{atom}{name}"), (path, name)
            assert re.fullmatch(r"2023-11-\d\dT\d\d:\d\d:\d\dZ", item.findtext(f"{atom}updated") or "")
            assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", item.findtext(f"{atom}id") or "")
        ids.add(root.findtext(f"{atom}id"))
        for link in root.iter(f"{atom}link"):
            assert (path.parent / link.attrib["href"]).is_file()
    assert len(ids) == len(feeds)


def test_absurd_numbers_in_every_field_are_shown_or_left_out(tmp_path):
    import pyarrow as pa

    from bench import __version__
    from bench.bundles import bundle_files, write_bundle
    from bench.store import schema

    floats, wholes = (math.inf, -math.inf, math.nan, 1e308, -1.0, 0.0, 5e-324), (-1, 0, 2**63 - 1, -(2**63))
    kept = ("repeat", "attempt", "position", "batch_size", "image_size", "accumulation", "schema_version")
    cases = make_cases(["mnist"], ["mlp"], ["sgd"], range(1, len(floats) + len(wholes) + 1))

    def change(row):
        place = row["batch_size"] - 1
        if place < len(floats):
            values = {pa.float64(): floats[place], pa.list_(pa.float64()): [floats[place]] * 3}
        else:
            values = {pa.int64(): wholes[place - len(floats)]}
        return {item.name: values[item.type] for item in schema.RUN if item.type in values and item.name not in kept}

    folder = honest(tmp_path / "mine" / "data", cases=cases, repeats=2).parent
    assert len(rewrite(folder / "data", change)) == 2 * len(cases)
    (tmp_path / "none").mkdir()
    bundle = write_bundle(tmp_path / "m.zip", "mine", bundle_files(folder, tmp_path / "none", __version__)).path
    build(tmp_path / "site", [bundle])
    assert len(facts_of(tmp_path / "site")["mine"].cases) == len(cases)
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r">\s*-?(inf|nan)\b", page.read_text()), page
