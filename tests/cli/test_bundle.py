"""`bench bundle` and `bench verify`, and bundles wherever results are taken."""

from __future__ import annotations

import json
import zipfile

import pandas as pd
import pytest
from click.testing import CliRunner

import bench
from bench.cli import cli
from tests.altered import honest
from tests.results import make_cases

pytestmark = pytest.mark.usefixtures("sketched")


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="bench")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory, sketched):
    """A results folder and its bundle; neither is changed by tests."""
    from bench.report import render_report

    folder = tmp_path_factory.mktemp("bundled") / "mine"
    honest(folder / "data", cases=make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64]))
    (folder / "data" / "logs" / "a.log").write_text("/home/somebody\n")
    render_report([folder], folder)
    result = run("bundle", folder)
    assert result.exit_code == 0, result.output
    return folder, folder.with_name("mine.zip")


def test_a_bundle_holds_data_report_manifest_environment_and_how_to_reproduce(made):
    folder, bundle = made
    with zipfile.ZipFile(bundle) as opened:
        inside = {name.removeprefix("mine/"): opened.read(name) for name in opened.namelist()}
    expected = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not {"logs", "consolidated"} & set(path.parts)
    }
    assert {name: inside[name] for name in expected} == expected
    assert set(inside) - set(expected) == {
        "manifest.json",
        "environment.json",
        "REPRODUCE.md",
        "ro-crate-metadata.json",
    }
    (environment,) = json.loads(inside["environment.json"])
    assert environment["environment"]["gpu_name"] == "NVIDIA H200"
    assert environment["protocol"]["measured_steps"] == 12
    assert b"bench verify" in inside["REPRODUCE.md"]


def test_the_same_results_give_the_same_bundle(made, tmp_path):
    folder, bundle = made
    assert run("bundle", folder / "data", "-o", tmp_path / "again.zip").exit_code == 0
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_the_report_in_a_bundle_is_what_its_data_make(made, tmp_path):
    import shutil

    folder = shutil.copytree(made[0], tmp_path / "mine")
    (folder / "report.md").write_text("# we are the fastest\n")
    run("bundle", folder)
    with zipfile.ZipFile(tmp_path / "mine.zip") as opened:
        assert opened.read("mine/report.md") == (made[0] / "report.md").read_bytes()


def test_nothing_is_overwritten_without_force(made):
    folder, bundle = made
    before = bundle.stat().st_mtime_ns
    result = run("bundle", folder)
    assert result.exit_code == 2
    assert "mine.zip: already exists; nothing was changed. Replace it with --force" in result.output
    assert bundle.stat().st_mtime_ns == before


def test_verify_says_that_nothing_changed_and_names_what_did(made, tmp_path):
    bundle = made[1]
    result = run("verify", bundle, "--json")
    assert result.exit_code == 0
    same = json.loads(result.stdout)
    assert same["same"] and same["differences"] == []
    assert run("verify", bundle, "--digest", same["digest"]).exit_code == 0
    assert run("verify", bundle, "--digest", "0" * 64).exit_code == 1
    with zipfile.ZipFile(bundle) as opened:
        opened.extractall(tmp_path)
    assert run("verify", tmp_path / "mine").exit_code == 0
    (tmp_path / "mine" / "table.csv").write_text("changed")
    (tmp_path / "mine" / "\x1b[31mred.md").write_text("added")
    result = run("verify", tmp_path / "mine")
    assert result.exit_code == 1
    assert "changed: table.csv (7 bytes instead of " in result.output
    assert "added: " in result.output
    assert "\x1b" not in result.output


def test_a_changed_byte_of_the_archive_is_exit_code_1(made, tmp_path):
    whole = bytearray(made[1].read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "bad.zip").write_bytes(whole)
    result = run("verify", tmp_path / "bad.zip")
    assert result.exit_code == 1
    assert "1 difference;" in result.output
    for command in (["report", "--out", tmp_path / "out"], ["check"], ["merge", tmp_path / "out"], ["trace", "mlp"]):
        result = run(*command, tmp_path / "bad.zip")
        assert result.exit_code == 2
        assert "see bench verify" in result.output


def test_a_bundle_loads_reports_checks_and_traces_like_its_folder(made, tmp_path):
    folder, bundle = made
    pd.testing.assert_frame_equal(bench.load(bundle), bench.load(folder))
    assert run("report", bundle).exit_code == 2
    assert run("report", bundle, "--out", tmp_path / "mine").exit_code == 0
    assert (tmp_path / "mine" / "report.md").read_bytes() == (folder / "report.md").read_bytes()
    assert json.loads(run("check", bundle, "--interval", "0.05", "--json").stdout)["publishable"]
    (first, *_) = json.loads(run("trace", "mlp batch 64", bundle, "--json").stdout)
    assert first["sources"][0]["part"].startswith(f"{bundle}/data/runs/")


def test_two_bundles_compare(made):
    result = run("compare", made[1], made[0], "--json")
    assert result.exit_code == 0, result.output
    assert {case["ratio"] for case in json.loads(result.stdout)["cases"]} == {1.0}


def test_a_damaged_part_is_named_rather_than_bundled(made, tmp_path):
    import shutil

    folder = shutil.copytree(made[0], tmp_path / "mine")
    part = sorted((folder / "data" / "runs").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-300] + b"\0" * 300)
    result = run("bundle", folder)
    assert result.exit_code == 2
    assert part.name in result.output
    assert not (tmp_path / "mine.zip").exists()


def test_several_results_are_to_be_merged_first(made, tmp_path):
    import shutil

    shutil.copytree(made[0], tmp_path / "all" / "a")
    shutil.copytree(made[0], tmp_path / "all" / "b")
    result = run("bundle", tmp_path / "all")
    assert result.exit_code == 2
    assert "contains 2 results folders, but a bundle has one. Merge them first: bench merge" in result.output


@pytest.mark.parametrize("command", ["bundle", "verify", "check", "merge", "trace"])
def test_help_has_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output


def test_a_mistake_is_answered(tmp_path):
    assert "does not exist" in run("bundle", tmp_path / "nowhere").output
    assert "holds no results" in run("bundle", tmp_path).output
    assert "has no manifest.json" in run("verify", tmp_path).output
    assert run("verify", tmp_path / "nowhere.zip").exit_code == 2
