"""`bench merge`: the results of many hosts in one folder, or a refusal that names what contradicts."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import zipfile

import pytest
from click.testing import CliRunner

import bench
from bench.cli import cli
from bench.records import Status
from tests.altered import PROTOCOL, rewrite
from tests.results import CPU, GPU, make_cases, make_results

OTHER = dataclasses.replace(
    GPU, gpu_name="NVIDIA A100", gpu_uuid_hash="a" * 16, host_hash="b" * 16, estimate_device="a100"
)

pytestmark = pytest.mark.usefixtures("sketched")


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="bench")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def results(folder, batches=(16, 64), **settings):
    settings = {"protocol": PROTOCOL, "repeats": 2, "environment": GPU, **settings}
    make_results(folder / "data", make_cases(["mnist"], ["mlp"], ["sgd"], list(batches)), **settings)
    return folder


@pytest.fixture
def hosts(tmp_path):
    return results(tmp_path / "a"), results(tmp_path / "b", environment=OTHER, outcomes={1: Status.INTERRUPTED})


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(frame):
    """The frame's rows in an order of their own, as comparable text."""
    names = sorted(set(frame) - {"position"})
    return sorted(json.dumps(row, default=str) for row in frame[names].to_dict("records"))


def test_a_merged_folder_loads_as_its_sources_do_side_by_side(hosts, tmp_path):
    before = [contents(host) for host in hosts]
    result = run("merge", tmp_path / "both", *hosts)
    assert result.exit_code == 0, result.output
    assert "6 runs and 2 plans from 2 results folders. Next: bench report" in result.output
    assert rows(bench.load(tmp_path / "both")) == rows(bench.load(*hosts))
    assert [contents(host) for host in hosts] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "both"]


def test_a_merged_folder_reports_bundles_and_merges_again(hosts, tmp_path):
    run("merge", tmp_path / "both", *hosts)
    assert run("report", tmp_path / "both").exit_code == 0
    assert "NVIDIA A100" in (tmp_path / "both" / "report.md").read_text()
    assert run("bundle", tmp_path / "both").exit_code == 0
    with zipfile.ZipFile(tmp_path / "both.zip") as opened:
        text = opened.read("both/REPRODUCE.md").decode()
    commands = [shlex.split(line)[4:] for line in text.splitlines() if line.startswith("      bench compare . mine ")]
    assert len(commands) == 2
    mine = results(tmp_path / "mine", environment=dataclasses.replace(GPU, gpu_name="NVIDIA L4"))
    assert run("compare", tmp_path / "both.zip", mine).exit_code == 2
    for command in commands:  # each chooses one machine of the bundle, and yours by its own name
        found = run("compare", tmp_path / "both.zip", mine, *(word.replace("YOURS", "NVIDIA L4") for word in command))
        assert found.exit_code in (0, 3), found.output
    third = results(tmp_path / "c", environment=CPU)
    assert run("merge", tmp_path / "all", tmp_path / "both.zip", third, hosts[0]).exit_code == 0
    assert rows(bench.load(tmp_path / "all")) == rows(bench.load(*hosts, third))


def test_the_same_part_twice_is_one(hosts, tmp_path):
    shutil.copytree(hosts[0], tmp_path / "copy")
    merged = json.loads(run("merge", tmp_path / "both", hosts[0], tmp_path / "copy", "--json").stdout)
    assert (merged["runs"], merged["plans"], merged["duplicates"], merged["duplicate_estimates"]) == (4, 1, 5, 1)
    said = run("merge", tmp_path / "again", hosts[0], tmp_path / "copy").stdout
    assert "from 2 results folders (4 runs and 1 part of estimates found more than once, kept once)" in said
    assert rows(bench.load(tmp_path / "both")) == rows(bench.load(hosts[0]))


def test_two_sweeps_of_one_machine_keep_both_plans(tmp_path):
    one, other = (
        results(tmp_path / "one"),
        results(tmp_path / "other", batches=(64, 256), outcomes={1: Status.INTERRUPTED}, repeats=3),
    )
    shutil.rmtree(other / "data" / "runs")
    (other / "data" / "runs").mkdir()
    assert run("merge", tmp_path / "both", one, other).exit_code == 0
    frame = bench.load(tmp_path / "both")
    assert frame["planned"].all()
    assert frame.groupby("batch_size")["status"].agg(list).to_dict() == {
        16: ["ok"] * 2,
        64: ["ok", "ok", "interrupted"],
        256: ["interrupted"] * 3,
    }


def test_a_run_that_two_plans_name_and_nobody_ran_is_missing_once(tmp_path):
    nothing = {0: Status.INTERRUPTED, 1: Status.INTERRUPTED}
    one, other = results(tmp_path / "one", outcomes=nothing), results(tmp_path / "other", (64, 256), outcomes=nothing)
    assert run("merge", tmp_path / "both", one, other).exit_code == 0
    assert bench.load(tmp_path / "both")["batch_size"].value_counts().to_dict() == {16: 2, 64: 2, 256: 2}


def test_parts_that_contradict_each_other_are_refused_by_name(hosts, tmp_path):
    changed = shutil.copytree(hosts[0], tmp_path / "changed")
    (key,) = rewrite(changed / "data", lambda row: {"wall_window_s": 1.0} if row["batch_size"] == 64 else {}, "-r1-")
    result = run("merge", tmp_path / "both", hosts[0], changed)
    assert result.exit_code == 2
    assert f"two different runs under one key ({key})" in result.output
    assert str(changed / "data" / "runs") in result.output
    assert str(hosts[0] / "data" / "runs") in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "changed"]


def test_a_damaged_part_is_refused_by_name_and_nothing_is_left(hosts, tmp_path):
    part = sorted((hosts[1] / "data" / "runs").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-200])
    result = run("merge", tmp_path / "both", *hosts)
    assert result.exit_code == 2
    assert part.name in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_disk_that_refuses_leaves_nothing(hosts, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    result = run("merge", tmp_path / "both", *hosts)
    assert result.exit_code == 2
    assert "No space left on device" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_mistake_is_answered_with_what_to_do(hosts, tmp_path):
    for arguments, message in (
        ((hosts[0], hosts[1]), "exists; nothing was changed. Name a new folder"),
        ((hosts[0] / "data" / "in", *hosts), "which must not be changed; name a folder outside it"),
        ((tmp_path / "new", tmp_path / "nowhere"), "nowhere: does not exist"),
        ((tmp_path / "new",), "Missing argument 'RESULTS...'"),
    ):
        result = run("merge", *arguments)
        assert result.exit_code == 2
        assert message in result.output
