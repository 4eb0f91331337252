"""`ro-crate-metadata.json` of a bundle, as the library of RO-Crate and other readers find it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from pathlib import Path

import duckdb
import pytest
from rocrate.rocrate import ROCrate

from bench.bundles import BundleError, Credits, bundle_files, verify, write_bundle
from bench.bundles.contents import CRATE
from tests.results import CPU, NOTES, make_cases, make_results

CREDITS = Credits(("Ada Lovelace <0000-0002-1825-0097>", "Bo <https://example.org/bo>", "Cy D"), "CC-BY-4.0")


def bundled(folder: Path, credit: Credits | None = None, **made) -> Path:
    """A bundle of made-up results, unpacked."""
    make_results(folder / "mine" / "data", make_cases(["mnist"], ["mlp"], ["sgd"], [16]), repeats=1, **made)
    (folder / "report").mkdir()
    (folder / "report" / "report.md").write_text("# mine\n")
    write_bundle(folder / "mine.zip", "mine", bundle_files(folder / "mine", folder / "report", "0.1.0", credit))
    with zipfile.ZipFile(folder / "mine.zip") as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked" / "mine"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    return bundled(tmp_path_factory.mktemp("crate"), CREDITS)


@pytest.fixture(scope="module")
def crate(unpacked):
    return ROCrate(unpacked)


def test_the_library_reads_who_what_when_and_under_which_licence(crate):
    root = crate.root_dataset
    assert crate.version == "1.2"
    assert crate.name == "example"
    assert "Founding models, made up." in crate.description and "Example Eight" in crate.description
    assert [(person.id, person["name"]) for person in root["author"]] == [
        ("https://orcid.org/0000-0002-1825-0097", "Ada Lovelace"),
        ("https://example.org/bo", "Bo"),
        ("#author-3", "Cy D"),
    ]
    assert crate.license.id == "https://spdx.org/licenses/CC-BY-4.0"
    assert root["datePublished"] == "2023-11-14"  # of the last run; all start at 1.7e9
    assert root["temporalCoverage"] == "2023-11-14T22:13:20+00:00/2023-11-14T22:13:20+00:00"


def test_every_file_is_there_with_its_size_and_hash(unpacked, crate):
    files = {entity.id: entity for entity in crate.data_entities}
    there = {path.relative_to(unpacked).as_posix(): path.read_bytes() for path in unpacked.rglob("*") if path.is_file()}
    assert set(files) == set(there) - {CRATE}
    for name, content in there.items():
        if name not in (CRATE, "manifest.json"):  # the manifest has the hash of the crate
            assert files[name]["contentSize"] == str(len(content))
            assert files[name]["sha256"] == hashlib.sha256(content).hexdigest()
    manifest = json.loads(there["manifest.json"])
    assert CRATE in {file["path"] for file in manifest["files"]}


def test_software_is_named_with_its_versions(crate):
    used = {(tool["name"], tool["softwareVersion"]) for tool in crate.dereference("#measurement")["instrument"]}
    assert used == {
        ("stepbench", "0.1.0"), ("torch", "2.15.0+cpu"), ("torchvision", "0.30.0"), ("Python", "3.11.9"),
    }  # fmt: skip


def test_every_reference_has_an_entity(unpacked):
    graph = json.loads((unpacked / CRATE).read_text())["@graph"]
    known = {entity["@id"] for entity in graph} | {"https://w3id.org/ro/crate/1.2"}
    assert len({entity["@id"] for entity in graph}) == len(graph)
    for entity in graph:
        for value in entity.values():
            for item in value if isinstance(value, list) else [value]:
                assert not isinstance(item, dict) or (set(item) == {"@id"} and item["@id"] in known), item


def test_a_changed_crate_is_named_by_verify(unpacked, tmp_path):
    import shutil

    folder = shutil.copytree(unpacked, tmp_path / "mine")
    assert verify(folder).differences == ()
    (folder / CRATE).write_text((folder / CRATE).read_text().replace("Ada Lovelace", "Eve"))
    assert [item.path for item in verify(folder).differences] == [CRATE]


def test_nothing_is_said_of_makers_who_say_nothing(tmp_path):
    folder = bundled(tmp_path)
    root = ROCrate(folder).root_dataset
    assert root.get("author") is None
    assert root["license"] == "No licence was stated."


def test_absurd_values_of_results_are_text_or_left_out(tmp_path):
    def change(measured, case, repeat):
        return dataclasses.replace(measured, started_unix_s=1e300)

    environment = dataclasses.replace(CPU, cpu_model="<script>\u202e", torch_version="2 #/../'\\")
    folder = bundled(tmp_path, environment=environment, change=change, notes={**NOTES, "name": "\x1b[31m" * 50})
    assert (folder / CRATE).read_bytes().isascii()
    root = ROCrate(folder).root_dataset
    assert root.get("temporalCoverage") is None
    assert root["description"].startswith("Founding models, made up. Memory and speed of training steps on <script>")


@pytest.mark.parametrize(
    ("credit", "words"),
    [
        (Credits(("Ada <ada>",)), 'author "Ada <ada>": write NAME, or NAME <ADDRESS>'),
        (Credits(("<0000-0002-1825-0097>",)), "write NAME"),
        (Credits(("",)), "write NAME"),
        (Credits((), "CC BY"), 'license "CC BY": give an identifier of SPDX'),
        (Credits((), "javascript:alert(1)"), "give an identifier of SPDX"),
    ],
)
def test_credits_that_nobody_can_read_are_refused(tmp_path, credit, words):
    with pytest.raises(BundleError, match=re.escape(words)):
        bundled(tmp_path, credit)


def test_duckdb_reads_the_parts_in_the_line_of_the_docs(unpacked, monkeypatch):
    """The line in docs/publishing.md, on an unpacked bundle."""
    text = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^duckdb -c \"(.*)\"$", text, re.MULTILINE)
    monkeypatch.chdir(unpacked.parent)
    found = duckdb.sql(line).fetchall()
    assert [row[:3] for row in found] == [("mlp", 16, 1)]
