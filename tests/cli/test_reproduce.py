"""`bench reproduce` as a user runs it: a small sweep, its bundle, and the same measured again."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench.bundles import bundle_files, write_bundle
from bench.cli import cli
from bench.store import load_notes
from bench.sweep import reproducing
from tests.plugins import bench
from tests.results import CPU, make_cases, make_results

CONFIG = """\
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = 8

[measure]
repeats = 2
warmup_steps = 1
measured_steps = 2
min_window = 0.001
"""


@pytest.fixture
def swept(tmp_path):
    """A bundle of a real sweep, in a folder to work in."""
    (tmp_path / "small.toml").write_text(CONFIG)
    done = bench("sweep", "small.toml", "--device", "cpu", "--out", "mine", "--no-report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "report").mkdir()
    write_bundle(tmp_path / "mine.zip", "mine", bundle_files(tmp_path / "mine", tmp_path / "report", "0.1.0"))
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle of made-up results, in a folder that no test changes."""
    folder = tmp_path_factory.mktemp("made")
    make_results(folder / "mine" / "data", make_cases(["mnist"], ["mlp"], ["sgd"], [16]), repeats=1)
    (folder / "report").mkdir()
    write_bundle(folder / "mine.zip", "mine", bundle_files(folder / "mine", folder / "report", "0.1.0"))
    (folder / "small.toml").write_text(CONFIG)
    return folder


def test_a_bundle_is_measured_again_and_resumed(swept):
    command = ("reproduce", "mine.zip", "--out", "again", "--no-report")
    done = bench(*command, "--json", cwd=swept)
    assert done.returncode in (0, 3), done.stderr  # two processes on a busy machine may say anything of speed
    answer = json.loads(done.stdout)
    assert [case["metrics"]["peak_allocated_bytes"]["answer"] for case in answer["cases"]] == ["same"]
    assert all("in every process" in case["metrics"]["peak_allocated_bytes"]["reason"] for case in answer["cases"])
    assert (answer["counts"]["different"] > 0) == (done.returncode == 3)
    assert answer["differences"] == []
    (note,) = load_notes(swept / "again")
    assert note.values["reproduces"] == answer["reproduces"]

    lost = sorted((swept / "again" / "data" / "runs").iterdir())[0]
    kept = {path.name: path.read_bytes() for path in lost.parent.iterdir() if path != lost}
    lost.unlink()
    for copy in (swept / "again" / "data" / "consolidated").glob("*"):
        copy.unlink()
    done = bench(*command, cwd=swept)
    assert done.returncode in (0, 3), done.stderr
    assert "[1/1] mlp on mnist, sgd, batch" in done.stderr and "left)" in done.stderr
    assert "peak memory same" in done.stdout and "the new results are in again" in done.stdout
    assert {name: (lost.parent / name).read_bytes() for name in kept} == kept

    checked = json.loads(CliRunner().invoke(cli, ["check", str(swept / "again"), "--json"], prog_name="bench").stdout)
    (finding,) = [item for item in checked["findings"] if item["code"] == "reproduction"]
    assert (
        finding["text"]
        == f"Measured by bench reproduce, to repeat mine (bundle {note.values['reproduces']['digest'][:16]})."
    )
    assert not finding["blocks"]


def test_check_only_says_what_differs_and_runs_nothing(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setattr(reproducing, "_here", lambda *given: (replace(CPU, torch_version="2.14.0+cpu"), "cpu"))
    monkeypatch.setattr(reproducing, "run_sweep", lambda *given: pytest.fail("a sweep ran"))
    result = CliRunner().invoke(cli, ["reproduce", "mine.zip", "--check-only"], prog_name="bench")
    assert result.exit_code == 0, result.output
    assert re.search(r"torch_version +2\.15\.0\+cpu +2\.14\.0\+cpu", result.output)
    assert "nothing was run" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "absent: does not exist"),
        (["mine.zip", "--only", "modle=mlp"], 'unknown field "modle". Nearest: model'),
        (["mine.zip", "--only", "model=resnet*"], "no run matches model = resnet*"),
        (["mine.zip", "--device", "gpu"], '"gpu"'),
        (["mine.zip", "--across", "batchsize", "--check-only"], 'unknown field to compare across "batchsize"'),
        (["mine.zip", "--margin", "0", "--check-only"], "margin 0: must be a fraction between 0 and 1"),
        (["mine.zip", "--out", "mine"], "mine: holds other results"),
        (["small.toml"], "not a bundle"),
    ],
)
def test_mistakes_are_answered_in_words(made, monkeypatch, arguments, words):
    monkeypatch.chdir(made)
    result = CliRunner().invoke(cli, ["reproduce", *arguments], prog_name="bench")
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert words in result.output
