"""Bundles: the same bytes for the same files, every changed byte named, and nothing that a stranger put in one gets out."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest

from bench.bundles import BundleError, open_bundle, safe_name, verify, write_bundle
from bench.bundles import bundle as bundle_module
from bench.bundles.bundle import MANIFEST, Manifest, clashes, name_fault, write_archive

FILES = {
    "report.md": b"# a report\n",
    "data/plan-0001.dat": b"PAR1 plan",
    "data/runs/a-r0.dat": bytes(range(256)) * 40,
    "empty.csv": b"",
}


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "mine.zip", "mine", FILES).path


def packed(path, contents, *, manifest=None):
    """An archive as ours with these files, whatever they are called; a manifest that fits them unless given."""
    import hashlib

    sums = {name: (len(text), hashlib.sha256(text).hexdigest()) for name, text in contents.items()}
    contents = {**contents, MANIFEST: Manifest("mine", "0", sums).text if manifest is None else manifest}
    path.write_bytes(raw({f"mine/{name}": text for name, text in contents.items()}))
    return path


def raw(contents):
    """The bytes of an archive, names unchecked."""
    out = io.BytesIO()
    write_archive(out, {name: (len(text), partial(io.BytesIO, text)) for name, text in contents.items()})
    return out.getvalue()


def end(count, length, start):
    """An end record. (PKWARE APPNOTE 6.3.10, section 4.3.16)"""
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, start, 0)


def refused(path, *words):
    """Nothing of it opens, nothing is written beside, and verify names it."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(BundleError) as error, open_bundle(path):
        pass
    assert sorted(path.parent.rglob("*")) == before
    assert all(word in str(error.value) for word in words), str(error.value)
    found = verify(path)
    assert found.differences
    return found


def test_the_same_files_are_the_same_bytes_whatever_their_order(tmp_path, bundle):
    again = write_bundle(tmp_path / "again.zip", "mine", dict(reversed(FILES.items()))).path
    assert again.read_bytes() == bundle.read_bytes()
    other = write_bundle(tmp_path / "other.zip", "mine", {**FILES, "report.md": b"# another\n"})
    assert other.digest != verify(bundle).digest


def test_any_unzip_program_opens_it(tmp_path, bundle):
    with zipfile.ZipFile(bundle) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == sorted(opened.namelist())
        assert {
            info.filename.removeprefix("mine/"): opened.read(info) for info in opened.infolist()
        }.items() >= FILES.items()
        assert {(info.external_attr >> 16, info.date_time) for info in opened.infolist()} == {
            (0o100644, (1980, 1, 1, 0, 0, 0))
        }


def test_opening_gives_the_files_back_for_the_time_of_the_context(bundle):
    with open_bundle(bundle) as folder:
        assert folder.name == "mine"
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found.items() >= FILES.items()
        assert verify(folder).differences == ()
    assert not folder.exists()


def test_an_archive_of_that_name_is_kept_unless_forced(tmp_path, bundle):
    before = bundle.read_bytes()
    with pytest.raises(BundleError, match="exists; nothing was changed"):
        write_bundle(bundle, "mine", {"a.md": b"a"})
    assert bundle.read_bytes() == before
    write_bundle(bundle, "mine", {"a.md": b"a"}, force=True)
    assert bundle.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.zip"]


def test_a_file_that_goes_away_leaves_nothing_behind(tmp_path):
    with pytest.raises(BundleError, match=r"gone\.parquet: cannot be read"):
        write_bundle(tmp_path / "new.zip", "mine", {"gone.parquet": tmp_path / "gone.parquet"})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    source = tmp_path / "source.parquet"
    source.write_bytes(b"one")

    class Changing(type(source)):
        def open(self, mode="r"):
            text = source.read_bytes()
            source.write_bytes(text + b"!")
            return io.BytesIO(text)

    with pytest.raises(BundleError, match="changed while it was bundled"):
        write_bundle(tmp_path / "new.zip", "mine", {"source.parquet": Changing(source)})
    assert not (tmp_path / "new.zip").exists()


def test_every_single_byte_of_a_bundle_is_held(tmp_path):
    """Whatever byte changes, verify says so: in contents, headers, directory, manifest and end."""
    small = write_bundle(tmp_path / "small.zip", "m", {"a.md": b"alpha", "b/c.csv": b"1,2\n"}).path
    whole = small.read_bytes()
    unseen = []
    for place in range(len(whole)):
        small.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        if not verify(small).differences:
            unseen.append(place)
    assert unseen == []
    for cut in (whole[:-1], whole + b"\0", b"\0" + whole, whole[: len(whole) // 2], whole[:4]):
        small.write_bytes(cut)
        assert verify(small).differences
    small.write_bytes(whole)
    assert verify(small).differences == ()


def test_a_changed_content_is_named_by_its_file(bundle):
    whole = bundle.read_bytes()
    bundle.write_bytes(whole.replace(b"PAR1 plan", b"PAR1 plaN"))
    found = refused(bundle, "data/plan-0001.dat was changed")
    assert ("data/plan-0001.dat", "changed") in {(item.path, item.what) for item in found.differences}


def test_a_changed_missing_and_added_file_of_a_folder_is_named(bundle, tmp_path):
    with zipfile.ZipFile(bundle) as opened:
        opened.extractall(tmp_path / "out")
    folder = tmp_path / "out" / "mine"
    assert verify(folder).differences == ()
    (folder / "report.md").write_bytes(b"# A report\n")
    (folder / "empty.csv").unlink()
    (folder / "data" / "consolidated").mkdir()
    (folder / "data" / "consolidated" / "runs.parquet").write_bytes(b"made by a report of this folder")
    (folder / "data" / "more.parquet").write_bytes(b"more")
    assert [(item.path, item.what) for item in verify(folder).differences] == [
        ("data/consolidated/runs.parquet", "added"),
        ("data/more.parquet", "added"),
        ("empty.csv", "missing"),
        ("report.md", "changed"),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_in_a_folder_is_named_and_not_followed(bundle, tmp_path):
    with zipfile.ZipFile(bundle) as opened:
        opened.extractall(tmp_path / "out")
    folder = tmp_path / "out" / "mine"
    (tmp_path / "elsewhere").write_bytes(FILES["report.md"])
    (folder / "report.md").unlink()
    (folder / "report.md").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert [(item.path, item.what) for item in verify(folder).differences] == [
        ("loop", "added"),
        ("report.md", "changed"),
    ]


def test_a_changed_manifest_is_named(bundle, tmp_path):
    with zipfile.ZipFile(bundle) as opened:
        opened.extractall(tmp_path / "out")
    manifest = tmp_path / "out" / "mine" / MANIFEST
    found = json.loads(manifest.read_text())
    for change in ({"name": "other"}, {"digest": "0" * 64}, {"files": found["files"][1:]}, {"more": 1}, {"format": 2}):
        manifest.write_text(json.dumps({**found, **change}, indent=1, sort_keys=True) + "\n")
        assert [item.path for item in verify(manifest.parent).differences] == [MANIFEST], change
    for text in (
        "",
        "[]",
        "null",
        '{"format": "1"}',
        "[" * 100_000,
        '{"format": 1e999, "files": []}',
        '{"format": 1, "files": 3}',
    ):
        manifest.write_text(text)
        assert [item.path for item in verify(manifest.parent).differences] == [MANIFEST], text[:20]


@pytest.mark.parametrize(
    "name",
    [
        *("../up.md", "/etc/passwd", "a/../../up.md", "a//b.md", "./a.md", "C:/a.md", "a\\b.md", ".hidden", "a/.b"),
        *("a\0b", "a b.md", "a\nb.md", "ä.md", "\u202e.md", "con", "AUX.txt", "a.", "a/", "", "x" * 300),
        *("a/" * 9 + "a", "-o", "~/a", "a:b"),
    ],
)
def test_a_name_that_could_lead_elsewhere_is_none_for_a_file(name):
    assert name_fault(name)


def test_names_of_real_results_are_allowed():
    for name in (
        "report.md",
        "data/runs/f28011d15ecfb5d8-r0-a0-e3c973499e256177.parquet",
        "config-1.toml",
        "figures/a_b.png",
    ):
        assert name_fault(name) is None
    assert clashes(["a", "A", "b/c", "b"]) == ["A", "b/c"]
    assert clashes(["a/b", "a/c"]) == []


@pytest.mark.parametrize("name", ["größe", "../..", "", "a b/c", "con", "x" * 400, "…", "mine"])
def test_any_folder_s_name_becomes_one_that_is_allowed(name):
    assert name_fault(safe_name(name)) is None
    assert "/" not in safe_name(name)


@pytest.mark.parametrize("name", ["../up.md", "a/../../../up.md", "a/.b", "con.md"])
def test_an_archive_with_such_a_name_is_refused_before_anything_is_written(tmp_path, name):
    path = packed(tmp_path / "bad.zip", {name: b"x"})
    refused(path, "not a valid name in a bundle")
    assert not (tmp_path.parent / "up.md").exists()


def test_an_absolute_name_is_refused(tmp_path):
    (tmp_path / "bad.zip").write_bytes(raw({f"{tmp_path}/out.md": b"x"}))
    refused(tmp_path / "bad.zip")
    assert not (tmp_path / "out.md").exists()


@pytest.mark.parametrize("mode", [0o120777, 0o060644, 0o020644, 0o010644, 0o140644, 0o040755, 0o104755, 0o100755])
def test_links_devices_pipes_folders_and_programs_are_refused(tmp_path, bundle, mode):
    """As zipfile writes them, with the mode of another kind of file."""
    whole = bundle.read_bytes()
    honest_mode = struct.pack("<L", 0o100644 << 16)
    place = whole.index(b"PK\1\2") + 38
    assert whole[place : place + 4] == honest_mode
    bundle.write_bytes(whole[:place] + struct.pack("<L", mode << 16) + whole[place + 4 :])
    refused(bundle, "is not stored as bench bundle stores it (it is not a plain file)")


def zipped(path, write, **settings):
    with zipfile.ZipFile(path, "w", **settings) as out:
        write(out)
    return path


def test_a_bomb_of_compressed_zeros_is_refused_unread(tmp_path):
    path = zipped(
        tmp_path / "bomb.zip",
        lambda out: out.writestr("mine/manifest.json", b"\0" * (64 << 20)),
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 1 << 20
    refused(path, "it is compressed", "unpack it and run bench verify on the folder")


def test_a_header_that_claims_more_than_the_archive_has_is_refused(tmp_path):
    whole = bytearray(raw({"mine/manifest.json": b"{}"}))
    place = whole.index(b"PK\1\2")
    for header, offset in ((0, 18), (place, 20)):
        whole[header + offset : header + offset + 8] = struct.pack("<2L", 1 << 31, 1 << 31)
    (tmp_path / "claims.zip").write_bytes(whole)
    refused(tmp_path / "claims.zip", "the sizes of its files exceed the archive")


def test_entries_over_each_other_are_refused(tmp_path):
    """Fifield's bomb: many directory entries for one content."""
    whole = raw({"mine/a.md": b"x" * 1000, "mine/b.md": b"x" * 1000, "mine/c.md": b"x" * 9000})
    start = whole.index(b"PK\1\2")
    directory = bytearray(whole[start:-22])
    second = directory.index(b"PK\1\2", 1)
    directory[second + 42 : second + 46] = bytes(4)  # where its header begins
    (tmp_path / "over.zip").write_bytes(whole[:start] + directory + whole[-22:])
    refused(tmp_path / "over.zip")
    claims = b"".join(bytes(directory[:second]).replace(b"mine/a", f"mine/{n}".encode()) for n in range(9))
    bomb = whole[:1040] + claims + end(9, len(claims), 1040)
    (tmp_path / "bomb.zip").write_bytes(bomb)
    refused(tmp_path / "bomb.zip", "the sizes of its files exceed the archive")


@pytest.mark.parametrize("count", [65_535, 3])
def test_an_end_that_counts_more_files_than_there_are_is_refused(tmp_path, count):
    whole = raw({"mine/manifest.json": b"{}"})
    start = whole.index(b"PK\1\2")
    (tmp_path / "count.zip").write_bytes(whole[:-22] + end(count, len(whole) - 22 - start, start))
    refused(tmp_path / "count.zip")


def test_a_bundle_of_too_many_files_or_bytes_is_not_written(tmp_path, monkeypatch):
    with pytest.raises(BundleError, match="65,536 files"):
        write_bundle(tmp_path / "new.zip", "m", {f"a{n}": b"" for n in range(65_535)})
    monkeypatch.setattr(bundle_module, "MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="more than"):
        write_bundle(tmp_path / "new.zip", "m", {"a": b"x" * 600, "b": b"x" * 600})
    assert list(tmp_path.iterdir()) == []


def test_what_another_program_packed_is_refused(tmp_path):
    path = zipped(tmp_path / "other.zip", lambda out: out.writestr("mine/manifest.json", b"{}"))
    refused(path, "it is not a plain file", "unpack it and run bench verify on the folder")


def test_an_encrypted_file_is_refused(tmp_path, bundle):
    whole = bytearray(bundle.read_bytes())
    whole[whole.index(b"PK\1\2") + 8] |= 1
    bundle.write_bytes(whole)
    refused(bundle, "it is encrypted")


def directory_of(whole):
    return whole.index(b"PK\1\2")


ALTERED = {
    "bytes behind": lambda whole: whole + b"more",
    "bytes in front": lambda whole: b"#!/bin/sh\n" + whole,
    "a comment": lambda whole: whole[:-2] + struct.pack("<H", 5) + b"hello",
    "another date": lambda whole: whole.replace(b"\x21\0", b"\x22\0"),
    "a date in one place": lambda whole: whole.replace(b"\x21\0", b"\x22\0", 1),
    "a gap": lambda whole: whole[: directory_of(whole)] + b"extra" + whole[directory_of(whole) :],
    "files that are not counted": lambda whole: whole[:-14] + struct.pack("<2H", 7, 7) + whole[-10:],
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_archive_that_changed_around_files_that_did_not_is_told_from_changed_files(bundle, name):
    bundle.write_bytes(ALTERED[name](bundle.read_bytes()))
    found = refused(bundle)
    (difference,) = found.differences
    in_a_header = name in ("another date", "a date in one place")
    assert difference.path == ("data/plan-0001.dat" if in_a_header else bundle.name)
    assert difference.what == "damaged"
    if name != "a gap":  # zipfile looks for the headers behind it
        assert "all files are unchanged, but the archive itself was changed" in difference.detail


def test_files_in_another_order_are_another_archive(tmp_path, bundle):
    path = tmp_path / "order.zip"
    with zipfile.ZipFile(bundle) as opened, zipfile.ZipFile(path, "w") as out:
        for info in reversed(opened.infolist()):
            out.writestr(info, opened.read(info))
    assert "the archive itself was changed" in refused(path).differences[0].detail


@pytest.mark.parametrize("gap", ["before", "behind"])
def test_bytes_between_contents_and_end_that_belong_to_no_file_are_refused(tmp_path, gap):
    whole = packed(tmp_path / "gap.zip", {"a.md": b"x"}).read_bytes()
    start = directory_of(whole)
    contents, directory = whole[:start], whole[start:-22]
    if gap == "before":
        changed = contents + b"extra" + directory + end(2, len(directory), start + 5)
    else:
        changed = contents + directory + b"extra" + end(2, len(directory) + 5, start)
    (tmp_path / "gap.zip").write_bytes(changed)
    refused(tmp_path / "gap.zip")


def test_a_directory_larger_than_that_of_any_bundle_is_not_read(bundle, monkeypatch):
    monkeypatch.setattr(bundle_module, "_MAX_DIRECTORY_BYTES", 100)
    refused(bundle, "its directory is larger than a bundle's can be")


def test_large_bundles_of_this_version_and_of_earlier_ones_verify(tmp_path, monkeypatch):
    """Beyond 2 GiB zipfile writes ZIP64 fields, which earlier versions did not; the limits are lowered to see it."""
    files = {f"data/{number}.dat": bytes([number]) * 1000 for number in range(20)}
    earlier = write_bundle(tmp_path / "earlier.zip", "mine", files).path
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 5_000)
    assert "the archive itself was changed" in verify(earlier).differences[0].detail
    monkeypatch.setattr(bundle_module, "_PLAIN_ZIP_BYTES", 5_000)
    now = write_bundle(tmp_path / "now.zip", "mine", files).path
    assert now.stat().st_size > earlier.stat().st_size
    for path in (earlier, now):
        assert verify(path).differences == ()
        with open_bundle(path) as folder:
            assert (folder / "data" / "19.dat").read_bytes() == files["data/19.dat"]
        path.write_bytes(path.read_bytes().replace(bytes([7]) * 9, bytes([8]) * 9, 1))
        assert [(item.path, item.what) for item in verify(path).differences] == [("data/7.dat", "changed")]


def test_names_twice_or_in_two_folders_are_refused(tmp_path):
    refused(packed(tmp_path / "case.zip", {"a.md": b"x", "A.md": b"y"}), "clashes with the name of another file")
    (tmp_path / "two.zip").write_bytes(raw({"mine/manifest.json": b"{}", "other/a.md": b"x"}))
    refused(tmp_path / "two.zip", "not in one folder")
    (tmp_path / "none.zip").write_bytes(raw({}))
    refused(tmp_path / "none.zip")


def test_a_file_that_the_manifest_does_not_name_and_one_that_is_not_there_are_refused(tmp_path):
    import hashlib

    sums = {"a.md": (1, hashlib.sha256(b"x").hexdigest())}
    path = packed(tmp_path / "added.zip", {"a.md": b"x", "evil.md": b"y"}, manifest=Manifest("mine", "0", sums).text)
    found = refused(path, "evil.md is not in the manifest")
    assert [(item.path, item.what) for item in found.differences] == [("evil.md", "added")]
    path = packed(tmp_path / "missing.zip", {}, manifest=Manifest("mine", "0", sums).text)
    found = refused(path, "a.md is missing")
    assert [(item.path, item.what) for item in found.differences] == [("a.md", "missing")]


def test_a_manifest_cannot_make_verify_read_outside_the_folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / MANIFEST).write_bytes(Manifest("mine", "0", {"../secret": (1, "0" * 64)}).text)
    (difference,) = verify(folder).differences
    assert "names '../secret'" in difference.detail


@pytest.mark.parametrize("name", ["mine/report.md", "mine/manifest.json"])
def test_a_wrong_checksum_of_an_untouched_file_is_named(bundle, name):
    whole = bytearray(bundle.read_bytes())
    first, last = whole.index(name.encode()) - 30, whole.rindex(name.encode()) - 46
    for place in (first + 14, last + 16):
        whole[place] ^= 1
    bundle.write_bytes(whole)
    assert [(item.path, item.what) for item in verify(bundle).differences] == [(name.removeprefix("mine/"), "damaged")]


def test_other_files_are_not_bundles(tmp_path):
    for name, text in {
        "a.md": b"# text\n" * 10,
        "b.zip": b"",
        "c.parquet": b"PAR1" * 100,
        "d.toml": b"a = 1\n" * 9,
    }.items():
        (tmp_path / name).write_bytes(text)
        for read in (verify, lambda path: open_bundle(path).__enter__()):
            with pytest.raises(BundleError, match=r"not a bundle \("):
                read(tmp_path / name)
    with pytest.raises(BundleError, match="does not exist"):
        verify(tmp_path / "nowhere.zip")
    with pytest.raises(BundleError, match="has no manifest"):
        verify(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(BundleError, match="not a regular file"), open_bundle(tmp_path / "pipe.zip"):
        pass
    for path in (tmp_path / "pipe.zip", Path(os.devnull)):
        with pytest.raises(BundleError, match=r"not a bundle \(not a regular file"):
            verify(path)


def test_a_bundle_that_lost_its_beginning_or_its_end_is_damaged_and_no_other_file(bundle):
    whole = bundle.read_bytes()
    for changed in (whole[:-40], b"\0\0\0\0" + whole[4:], whole[:100]):
        bundle.write_bytes(changed)
        assert [item.what for item in verify(bundle).differences] == ["damaged"]


def test_noise_never_ends_otherwise_than_refused(bundle):
    whole, generator = bundle.read_bytes(), random.Random(5)
    for _ in range(300):
        noisy = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            noisy[generator.randrange(len(noisy))] = generator.randrange(256)
        if bytes(noisy) == whole:
            continue
        bundle.write_bytes(
            noisy[: generator.randint(len(noisy) // 9, len(noisy))] if generator.random() < 0.2 else noisy
        )
        with pytest.raises(BundleError), open_bundle(bundle):
            pass
        assert verify(bundle).differences


def test_the_bundle_s_own_folder_cannot_be_a_way_out(tmp_path):
    for top in ("..", ".", "~", "-rf"):
        path = tmp_path / "top.zip"
        path.write_bytes(raw({f"{top}/manifest.json": b"{}"}))
        refused(path)
    assert not Path(tmp_path.parent / MANIFEST).exists()
