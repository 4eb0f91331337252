"""Results whose only plan is damaged: every command that reads them names the file and says what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.cli import cli
from tests.chaos.fake_sweep import FakeLauncher, fake_config, run_fake_sweep
from tests.results import CPU, make_cases, make_results

pytestmark = pytest.mark.usefixtures("sketched")

PLAN = "bad/data/plan-0001.parquet"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="bench")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with results that are whole and a copy of them whose plan is cut short."""
    monkeypatch.chdir(tmp_path)
    make_results(tmp_path / "good" / "data", make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64]), repeats=2)
    shutil.copytree("good", "bad")
    plan = tmp_path / PLAN
    plan.write_bytes(plan.read_bytes()[:-100])
    return tmp_path


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize(
    "command",
    [
        "report bad --out new",
        "check bad",
        "compare bad good",
        "compare good bad",
        "trace 12,300 bad",
        "bundle bad -o new",
    ],
)
def test_every_command_names_the_damaged_plan_and_says_what_to_do(here: Path, command: str) -> None:
    done = run(*command.split())
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: bad: none of 4 runs count without their plan, and {PLAN} is damaged. Restore from a copy, or run the "
        "same bench sweep again on its machine: it plans again and keeps the intact runs"
    )
    assert not (here / "new").exists()


def test_a_merge_refuses_a_damaged_plan_as_it_refuses_a_damaged_run(here: Path) -> None:
    done = run("merge", "both", "good", "bad")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {PLAN}: damaged or not a Parquet file (")
    assert "no copy to restore, delete it and run the same bench sweep again on its machine" in done.stderr
    assert sorted(path.name for path in here.iterdir()) == ["bad", "good"]


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("plan-0001", "delete it and run the same bench sweep again on its machine: it plans again"),
        ("runs", "run the same bench sweep again on its machine: it moves the file aside and runs it again"),
        ("estimates", "run the same bench sweep again on its machine: it moves the file aside and estimates again"),
    ],
)
def test_a_bundle_and_a_merge_of_results_with_one_damaged_part_say_what_to_do(
    here: Path, kind: str, remedy: str
) -> None:
    part = damage(here, kind)
    for command in ("bundle mended -o new", "merge new mended good"):
        done = run(*command.split())
        assert done.exit_code == 2
        assert f"error: {part.relative_to(here)}: damaged or not a Parquet file (" in done.stderr
        assert done.stderr.endswith(
            f"). If there is no copy to restore, {remedy}"
            f"{' and keeps the intact runs' if kind == 'plan-0001' else ''}\n"
        )
        assert not (here / "new").exists()


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("kind", ["plan-0001", "runs", "estimates"])
def test_a_report_names_a_damaged_part_among_several_once_and_cannot_be_published(here: Path, kind: str) -> None:
    part = damage(here, kind)
    named = part.relative_to(here / "mended" / "data").as_posix()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run("report", "mended").exit_code == 0
    assert [str(item.message).split(": damaged")[0] for item in caught] == [f"skipped: mended/data/{named}"]
    text = (here / "mended" / "report.md").read_text()
    first, validity = text.split("\n## ")[0], text.split("\n## Validity\n")[1].split("\n## ")[0]
    assert "Nothing was found against the numbers" not in validity
    assert validity.count("A part was left out: ") == 1
    assert f"A part was left out: {named}: damaged or not a Parquet file (" in validity.replace("\\", "")
    assert "damaged part" in first.split("Not publishable: ")[1].split(". `bench check`")[0]
    assert run("report", "mended", "good", "--out", "both").exit_code == 0
    both = (here / "both" / "report.md").read_text().replace("\\", "")
    assert f"A part was left out: mended/{named}: damaged" in both
    findings = json.loads(run("check", "mended", "--json").stdout)["findings"]
    assert [item["text"].split(": damaged")[0] for item in findings if item["code"] == "damaged_part"] == [
        f"A part was left out: {named}"
    ]
    assert not [item for item in findings if item["code"].startswith(("report", "figure"))]  # wherever it is rendered


def test_a_part_that_a_sweep_has_set_aside_is_no_finding(here: Path) -> None:
    def files(folder: str) -> dict[str, bytes]:
        run("report", "good", "--out", folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}

    before = files("one/out")
    part = next((here / "good" / "data" / "runs").iterdir())
    part.with_suffix(".damaged").write_bytes(part.read_bytes()[:-100])
    assert files("two/out") == before


def damage(here: Path, kind: str) -> Path:
    """Cut short one of several parts of a kind in the folder `mended`; returns where it lies."""
    data = here / "mended" / "data"
    make_results(data, make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64]), repeats=2)
    other = dataclasses.replace(CPU, torch_version="2.14.0+cpu")
    make_results(data, make_cases(["mnist"], ["mlp"], ["sgd"], [16]), repeats=2, environment=other, seed=2)
    part = sorted(data.glob(f"{kind}*/*.parquet"))[0] if kind != "plan-0001" else data / f"{kind}.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    return part


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_plan_that_the_disk_does_not_give_is_not_called_damaged(here: Path) -> None:
    (here / PLAN).unlink()
    (here / PLAN).symlink_to("nowhere")
    done = run("check", "bad")
    assert done.exit_code == 2
    said = f"none of 4 runs count without their plan, and the disk cannot read {PLAN}; fix that and try again"
    assert done.stderr == f"error: bad: {said}\n"


@pytest.mark.filterwarnings("ignore:moved aside", "ignore:skipped")
def test_the_advice_is_true(tmp_path: Path) -> None:
    """The same sweep plans again, runs nothing again, and its report comes out."""
    run_fake_sweep(tmp_path / "bad", fake_config(2, 2), FakeLauncher(failing=False), conclude=False)
    plan = tmp_path / PLAN
    plan.write_bytes(plan.read_bytes()[:-100])
    assert "bench sweep again" in run("report", str(tmp_path / "bad")).stderr
    again = FakeLauncher(failing=False)
    run_fake_sweep(tmp_path / "bad", fake_config(2, 2), again, conclude=False)
    assert again.asked == []
    done = run("report", str(tmp_path / "bad"))
    assert done.exit_code == 0, done.stderr
