"""Results at addresses: read through the one door, from a real web server and fsspec's own file systems."""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from click.testing import CliRunner

import bench
from bench.bundles import bundle_files, is_address, open_results, remote, results_name, write_bundle
from bench.cli import cli
from bench.errors import BenchError, StoreError
from tests.results import make_cases, make_results

CASES = make_cases(["mnist"], ["mlp"], ["sgd"], [16])


class Served(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; notes each request, and says nothing of it."""

    asked: list[str]
    length = True

    def log_message(self, *given) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Content-Length" or self.length:
            super().send_header(keyword, value)

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        super().do_GET()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with results `mine` and their bundle `mine.zip`; changed by no test."""
    folder = tmp_path_factory.mktemp("served")
    make_results(folder / "mine" / "data", CASES)
    (folder / "mine" / "data" / "logs" / "a.log").write_text("a log\n")
    (folder / "report").mkdir()
    write_bundle(folder / "mine.zip", "mine", bundle_files(folder / "mine", folder / "report", "0.1.0"))
    (folder / "empty").mkdir()
    return folder


@contextlib.contextmanager
def serving(folder):
    """The address of a web server on this machine that has the folder, what is asked of it, and its handler."""
    asked: list[str] = []
    handler = type("Here", (Served,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked, handler
        server.shutdown()


@pytest.fixture
def web(made):
    with serving(made) as served:
        yield served


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_REMOTE", str(tmp_path / "remote"))
    return tmp_path / "remote"


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="bench")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_bundle_and_a_folder_on_a_web_server_load_like_their_files(made, web):
    at, asked, _ = web
    here = bench.load(made / "mine")
    pd.testing.assert_frame_equal(bench.load(f"{at}/mine.zip"), here)
    pd.testing.assert_frame_equal(bench.load(f"{at}/mine/"), here)
    assert bench.compare(f"{at}/mine.zip", made / "mine").notes == ["Both sides contain the same runs."]
    assert not any("a.log" in line for line in asked)


@pytest.mark.parametrize("kind", ["memory", "file", "zip"])
def test_whatever_fsspec_reads_is_read(made, tmp_path, kind):
    if kind == "memory":
        fsspec.filesystem("memory").put(str(made / "mine"), "/mine", recursive=True)
        address = "memory://mine"
    elif kind == "file":
        address = f"file://{made}/mine"
    else:
        shutil.make_archive(str(tmp_path / "packed"), "zip", made, "mine")  # compressed, unlike a bundle
        address = f"zip://mine::file://{tmp_path}/packed.zip"
    pd.testing.assert_frame_equal(bench.load(address), bench.load(made / "mine"))
    assert results_name(address) == "mine"


def test_a_copy_serves_again_until_the_file_changes(made, tmp_path):
    own = shutil.copytree(made, tmp_path / "own")
    with serving(own) as (at, asked, _):
        bench.load(f"{at}/mine.zip")
        assert asked.count("GET /mine.zip") == 1
        bench.load(f"{at}/mine.zip")
        assert asked.count("GET /mine.zip") == 1
        make_results(own / "other" / "data", CASES, repeats=2)
        write_bundle(own / "mine.zip", "mine", bundle_files(own / "other", own / "report", "0.1.0"), force=True)
        assert len(bench.load(f"{at}/mine.zip")) == 2


def test_the_oldest_copies_make_room(made, cache, monkeypatch):
    size = (made / "mine.zip").stat().st_size
    monkeypatch.setattr(remote, "CACHE_BYTES", 2 * size + 100)
    for name in ("a", "b", "c"):
        shutil.copy(made / "mine.zip", made / f"{name}.zip")
        bench.load(f"file://{made}/{name}.zip")
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) == 2 * size


def test_a_cache_that_cannot_be_written_costs_only_the_copy(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BENCH_REMOTE", str(tmp_path / "file" / "below"))
    assert len(bench.load(f"file://{made}/mine.zip")) == 3


@pytest.mark.parametrize("length", [True, False])
def test_more_than_a_bundle_may_hold_is_refused_whatever_the_server_says(web, monkeypatch, length):
    at, _, handler = web
    handler.length = length
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    with pytest.raises(StoreError, match=rf"^{at}/mine.zip: more than 0 GiB, the limit for results"):
        bench.load(f"{at}/mine.zip")


def test_too_many_files_are_refused_while_they_are_listed(made, monkeypatch):
    monkeypatch.setattr(remote, "MAX_FILES", 2)
    with pytest.raises(StoreError, match="more than 2 files"):
        bench.load(f"file://{made}/mine")


def test_names_that_no_bundle_has_are_left_out(made, tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        for path in (made / "mine").rglob("*.parquet"):
            archive.write(path, f"mine/{path.relative_to(made / 'mine')}")
        for name in (
            "mine/../../escaped.parquet",
            "/mine/data/runs/absolute.parquet",
            "mine/.hidden",
            "mine/data/a\\b.csv",
        ):
            archive.writestr(name, b"")
    with open_results([f"zip://mine::file://{tmp_path}/odd.zip"]) as (folder,):
        names = {path.name for path in folder.rglob("*") if path.is_file()}
        assert not list(folder.parent.parent.glob("escaped*"))
    assert names == {path.name for path in (made / "mine").rglob("*.parquet") if "consolidated" not in path.parts}


def test_parts_of_a_folder_elsewhere_are_read_in_a_child(made, tmp_path):
    """A damaged part is refused with the address, as in a bundle, and is never read in this process."""
    folder = shutil.copytree(made / "mine", tmp_path / "mine")
    part = sorted((folder / "data" / "runs").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-300] + b"\0" * 300)
    with pytest.raises(StoreError, match=rf"file://{folder}/data/runs/{part.name}: "):
        bench.load(f"file://{folder}")
    with pytest.warns(UserWarning, match="skipped"):
        bench.load(folder)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("{at}/absent.zip", "does not exist"),
        ("{at}/mine", "not a bundle .*. The address of a folder ends in /"),
        ("{at}/empty/", "holds no results; give a bundle, or a folder"),
        ("http://127.0.0.1:9/mine.zip", "cannot be reached or read from here .*127.0.0.1:9"),
        ("s4://bucket/mine.zip", '"s4" is not a kind of address that fsspec reads. Examples: https://HOST/mine.zip'),
        ("ftp://", "names no file and no folder. Examples: https://HOST/mine.zip"),
        ("memory://absent", "does not exist"),
        ("zip://::file:///dev/null", "cannot be read"),
    ],
)
def test_addresses_that_cannot_be_read_are_answered_in_words(web, address, words):
    given = address.format(at=web[0])
    result = run("check", given)
    assert result.exit_code == 2
    assert given in result.output
    assert re.search(words, result.output), result.output


@pytest.mark.parametrize(
    ("module", "address", "extra"),
    [
        ("fsspec.core", "https://example.org/mine.zip", "stepbench[remote]"),
        ("aiohttp", "https://example.org/mine.zip", "stepbench[remote]"),
        ("s3fs", "s3://bucket/mine.zip", "stepbench[s3]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, address, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    for protocol in ("https", "s3"):  # fsspec keeps what it has imported once
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    result = run("report", address, "--out", "never")
    assert result.exit_code == 2
    assert f"pip install '{extra}'" in result.output
    assert not Path("never").exists()


@pytest.mark.usefixtures("sketched")
def test_every_command_that_reads_results_takes_an_address(made, web, tmp_path):
    at = f"{web[0]}/mine.zip"
    assert run("verify", at).exit_code == 0
    assert run("verify", at, "--digest", "0" * 64).exit_code == 1
    assert run("report", at).exit_code == 2
    assert run("report", at, "--out", tmp_path / "report").exit_code == 0
    assert (tmp_path / "report" / "index.html").exists()
    assert run("compare", at, made / "mine").exit_code == 0
    assert run("merge", tmp_path / "merged", at).exit_code == 0
    assert f"{at}/data/runs/" in run("trace", "mlp", at).output
    assert run("check", at, "--json").exit_code == 4
    assert "1  mine (2023-11-14" in run("history", at, f"{web[0]}/mine/").output
    for address, name in ((at, "from-bundle"), (f"{web[0]}/mine/", "from-folder")):
        assert run("site", tmp_path / name, address).exit_code == 0
        (archive,) = (tmp_path / name / "bundles").glob("mine-*.zip")
        assert run("verify", archive).exit_code == 0


def test_an_error_names_the_results_that_it_is_about(made, web, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    told = run("site", tmp_path / "site", f"{web[0]}/mine.zip", tmp_path / "a.txt").output
    assert "a.txt: not a bundle" in told and "The address of a folder" not in told
    assert f"{web[0]}/mine: not a bundle" in (told := run("site", tmp_path / "site", f"{web[0]}/mine").output)
    assert "The address of a folder ends in /" in told
    assert f"{web[0]}/absent.zip: does not exist" in run("history", f"{web[0]}/absent.zip").output


@pytest.mark.parametrize(
    ("given", "known", "name"),
    [
        ("s3://bucket/results/mine.zip", True, "mine"),
        ("https://example.org/records/1/files/mine%20b.zip?download=1", True, "mine b"),
        ("https://example.org/", True, "example.org"),
        ("zip://inner/mine::https://example.org/all.zip", True, "mine"),
        ("simplecache::s3://bucket/mine", True, "mine"),
        ("reports/mine.zip", False, "mine"),
        ("reports/mine/data", False, "mine"),
        ("C:/results/mine", False, "mine"),
    ],
)
def test_addresses_are_told_from_paths_and_named(given, known, name):
    assert is_address(given) is known
    assert results_name(given) == name


def test_a_path_is_never_an_address():
    assert not is_address(Path("https://example.org/mine.zip"))
    with pytest.raises(BenchError, match="does not exist"):
        bench.load(Path("https://example.org/mine.zip"))
