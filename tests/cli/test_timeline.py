"""`bench estimate --timeline` as a user runs it."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.cli import cli
from bench.records import TRACE_PARTS

CASE = ("estimate", "--model", "mlp", "--dataset", "mnist", "--optimizer", "adam", "--device", "h200")


def bench(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="bench")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_picture_numbers_and_peak_are_written(tmp_path: Path) -> None:
    picture = tmp_path / "mlp.png"
    done = bench(*CASE, "--timeline", picture, "--json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    said = row["timeline"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (said["picture"], said["numbers"]) == (str(picture), str(tmp_path / "mlp.csv"))
    assert said["peak_allocated_bytes"] == row["trace_peak_allocated_bytes"]
    assert list(said["phases"]) == ["zero_grad", "forward", "backward", "optimizer"]
    names = [(tensor["category"], tensor["name"], tensor["made_by"]) for tensor in said["tensors"]]
    assert ("parameters", "1.weight", None) in names
    assert ("optimizer_state", "1.weight", "exp_avg") in names
    assert ("gradients", "1.weight", None) in names
    assert ("batch", "images", None) in names
    rows = list(csv.DictReader((tmp_path / "mlp.csv").open(encoding="utf-8")))
    assert max(int(item["allocated_bytes"]) for item in rows) == said["peak_allocated_bytes"]
    assert all(sum(int(item[f"{part}_bytes"]) for part in TRACE_PARTS) == int(item["allocated_bytes"]) for item in rows)
    assert int(rows[-1]["event"]) == said["events"]


def test_the_text_names_the_biggest_tensors_and_the_file(tmp_path: Path) -> None:
    picture = tmp_path / "mlp.svg"
    done = bench(*CASE, "--timeline", picture)
    assert done.exit_code == 0, done.output
    assert "1.weight exp_avg (128, 784) float32" in done.stdout
    assert f"timeline: {picture} (numbers: {tmp_path / 'mlp.csv'})" in done.stdout
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        (["--batch-size", "8", "--batch-size", "16"], "a.png", "these axes give 2 cases on 1 device"),
        (["--device", "rtx4090"], "a.png", "these axes give 1 case on 2 devices"),
        ([], "a.gif", 'unsupported format ".gif"; use .png, .svg, .pdf'),
        ([], "picture", "the name has no suffix; use"),
        ([], "nowhere/a.png", "does not exist; create it"),
        ([], "folder.png", "is a folder; name a file"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_the_work(
    tmp_path: Path, arguments: list[str], name: str, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    done = bench(*CASE, *arguments, "--timeline", tmp_path / name)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be written by root")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = bench(*CASE, "--timeline", tmp_path / "a.png")
    tmp_path.chmod(0o755)
    assert done.exit_code == 2
    assert "is not writable; choose another file" in done.stderr


def test_a_case_that_cannot_be_traced_has_no_picture(tmp_path: Path) -> None:
    arguments = ("estimate", "--model", "mlp", "--dataset", "mnist", "--device", "cpu")
    done = bench(*arguments, "--timeline", tmp_path / "a.png")
    assert done.exit_code == 2
    assert "no memory trace for cpu: it needs torch's CUDA allocator" in done.stderr
    assert list(tmp_path.iterdir()) == []
