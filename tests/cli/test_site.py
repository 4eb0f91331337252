"""`bench site` as a user runs it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench.cli import cli
from tests.bundled import pack
from tests.results import make_cases

pytestmark = pytest.mark.usefixtures("sketched")


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="bench")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("bundle"), "mine", cases=make_cases(["mnist"], ["mlp"], ["sgd"], [16]))


def test_a_site_is_built_and_said_where(bundle, tmp_path):
    result = run("site", tmp_path / "site", bundle)
    assert result.exit_code == 0, result.output
    assert "reading mine.zip (1 of 1)" in result.output
    assert "1 bundle, 4 pages" in result.output
    assert result.output.splitlines()[-1] == str(tmp_path / "site" / "index.html")
    told = json.loads(run("site", tmp_path / "site", "--json").stdout)
    assert told["page"] == str(tmp_path / "site" / "index.html")
    assert (told["bundles"], told["read"], told["written"]) == (1, [], 0)
    assert sum(told["tiers"].values()) == 1


def test_mistakes_are_answered_in_a_line(bundle, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("x")
    for words, said in (
        (["site", tmp_path / "site"], "no results to show"),
        (["site", tmp_path / "mine", bundle], "is not a site"),
        (["site", tmp_path / "mine" / "a.txt", bundle], "is not a folder"),
        (["site", tmp_path / "site", tmp_path / "absent"], "does not exist"),
        (["site", tmp_path / "site", tmp_path / "mine" / "a.txt"], "not a bundle"),
        (["site", tmp_path / "site", bundle, "--url", "ftp://x"], "https://"),
        (["site", tmp_path / "site", bundle, "--margin", "200%"], "between 0 and 1"),
        (["site", tmp_path / "site", bundle, "--margin", "some"], "not a valid fraction"),
    ):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert said in result.output
    assert not (tmp_path / "site").exists()


def test_the_example_of_a_workflow_calls_the_command_as_it_is_and_has_no_secret():
    text = (Path(__file__).parents[2] / "configs" / "pages.yml").read_text()
    (line,) = re.findall(r"run: (bench site .+)$", text, re.MULTILINE)
    known = {option for parameter in cli.get_command(click.Context(cli), "site").params for option in parameter.opts}
    options = {word for word in shlex.split(line) if word.startswith("--")}
    assert options
    assert options <= known
    assert "secrets." not in text
