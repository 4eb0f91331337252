"""What the documents say is there, is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link.partition("#")[0]).exists()]
    assert missing == []


def test_the_commands_of_the_readme_are_those_that_exist() -> None:
    from bench.cli import cli

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `bench ([a-z]+)", text, re.MULTILINE))
    assert named == set(cli.list_commands(click.Context(cli)))


def test_every_key_of_the_configuration_is_documented_and_no_other() -> None:
    from bench.config import Data, Grid, LauncherSettings, Limits, Measure

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    sections = {"grid": Grid, "measure": Measure, "limits": Limits, "data": Data, "launcher": LauncherSettings}
    for section, model in sections.items():
        table = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
        documented = set(re.findall(rf"`{section}\.([a-z_]+)`", table))
        if section == "measure":
            documented |= {"deterministic", "compiled"}  # on one line with cudnn_benchmark
        assert documented == set(model.model_fields), section


def test_every_variable_of_the_environment_is_documented_and_no_other() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bench").rglob("*.py"))
    assert set(re.findall(r"^\| `(BENCH_[A-Z_]+)` \|", text, re.MULTILINE)) == set(re.findall(r"\bBENCH_[A-Z_]+", code))


def test_every_flag_of_a_run_is_documented() -> None:
    from bench.analysis.findings import FLAGS

    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = text.split("| flag | meaning |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)) == {*FLAGS}


def test_every_finding_is_documented_with_what_it_weakens_and_its_remedy() -> None:
    from bench.analysis import RULES

    text = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    rows = {}
    for weakens in ("reading", "publishing", "nothing"):
        table = text.split(f"weakens `{weakens}` |")[1].split("\n\n")[0]
        for code, remedy in re.findall(r"^\| `([a-z_]+)` \|.*\| ([^|]+) \|$", table, re.MULTILINE):
            rows[code] = (weakens, remedy)
    assert rows == {code: (rule.weakens.value, rule.remedy) for code, rule in RULES.items()}


def test_every_status_is_documented() -> None:
    from bench.records import Status

    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)) >= {status.value for status in Status}


def test_the_two_commands_of_the_readme_are_marked_for_ci_and_say_what_they_run() -> None:
    script = "awk -v mark='<!-- command: %s -->' '$0 == mark { on = 1; next } on && /^```/ { if (seen++) exit; next } on' README.md"
    for name in ("sweep", "tests"):
        done = subprocess.run(["bash", "-c", script % name], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.strip().endswith(f".venv/bin/nox -s {name}")
        assert len(done.stdout.strip().splitlines()) == 1


def test_the_readmes_figures_of_exactness_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start, end = readme.index("<!-- from docs/accuracy.md -->"), readme.index("<!-- end -->")
    rows = [line for line in readme[start:end].splitlines() if line.startswith("| ") and "held against" not in line]
    assert len(rows) > 10
    for row in rows:
        assert row in page, row
    assert "@@" not in readme


def test_the_examples_of_the_python_interface_run_as_they_stand(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "examples.py").write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "examples.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BENCH_TRACE_CACHE": str(tmp_path / "kept")},
    )
    assert done.returncode == 0, done.stderr


def test_the_functions_of_the_python_interface_are_documented_and_no_other() -> None:
    import bench

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `bench\.(\w+)\(", text, re.MULTILINE)) == set(bench.__all__)


def test_the_constraints_without_the_line_that_s3fs_does_not_take_lack_one_line() -> None:
    page = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`(grep -v '[^`]*? constraints\.txt)", page)
    kept = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition("==")[0] for line in lines if line not in kept.splitlines()] == ["python-dateutil"]
