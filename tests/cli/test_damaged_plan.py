"""Results whose only plan is damaged: every command that reads them names the file and says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.cli import cli
from tests.chaos.fake_sweep import FakeLauncher, fake_config, run_fake_sweep
from tests.results import make_cases, make_results

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


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(
    "command", ["report bad --out new", "check bad", "compare bad good", "compare good bad", "trace 12,300 bad",
                "bundle bad -o new"],
)  # fmt: skip
def test_every_command_names_the_damaged_plan_and_says_what_to_do(here: Path, command: str) -> None:
    done = run(*command.split())
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: bad: none of 4 runs counts without its plan, and {PLAN} is damaged. Restore from a copy, or run the "
        "same bench sweep again on its machine: it plans anew and keeps the runs that are whole"
    )
    assert not (here / "new").exists()


def test_a_merge_refuses_a_damaged_plan_as_it_refuses_a_damaged_run(here: Path) -> None:
    done = run("merge", "both", "good", "bad")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {PLAN}: damaged or no Parquet file (")
    assert sorted(path.name for path in here.iterdir()) == ["bad", "good"]


@pytest.mark.filterwarnings("ignore:left out")
def test_a_plan_that_the_disk_does_not_give_is_not_called_damaged(here: Path) -> None:
    (here / PLAN).unlink()
    (here / PLAN).symlink_to("nowhere")
    done = run("check", "bad")
    assert done.exit_code == 2
    said = f"none of 4 runs counts without its plan, and the disk does not give {PLAN}; mend that, and try again"
    assert done.stderr == f"error: bad: {said}\n"


@pytest.mark.filterwarnings("ignore:set aside", "ignore:left out")
def test_the_advice_is_true(tmp_path: Path) -> None:
    """The same sweep plans anew, runs nothing again, and its report comes out."""
    run_fake_sweep(tmp_path / "bad", fake_config(2, 2), FakeLauncher(failing=False), conclude=False)
    plan = tmp_path / PLAN
    plan.write_bytes(plan.read_bytes()[:-100])
    assert "bench sweep again" in run("report", str(tmp_path / "bad")).stderr
    again = FakeLauncher(failing=False)
    run_fake_sweep(tmp_path / "bad", fake_config(2, 2), again, conclude=False)
    assert again.asked == []
    done = run("report", str(tmp_path / "bad"))
    assert done.exit_code == 0, done.stderr
