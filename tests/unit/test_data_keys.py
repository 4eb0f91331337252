"""Runs of other data are other runs: what of a data set is part of a run's key, and who says that it changed."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bench
from bench.analysis import judge
from bench.catalog import idx_files
from bench.config import SweepConfig, check_config
from bench.errors import BenchError, DataError
from bench.plan import build_plan, describe
from bench.probes.selection import DeviceChoice
from bench.records import Case, Choice, DataFacts, Environment, Planned, stable_hash
from bench.store import Store
from bench.sweep.estimates import estimate_key
from bench.sweep.record import RecordOptions, recording_key
from bench.sweep.runs import measure_missing
from bench.sweep.session import Session, SweepOptions
from bench.sweep.stages import _prepare
from bench.terminal import Progress
from tests.unit.test_sweep_runs import Scripted
from tests.unit.written_files import colour_images, damage, grey_images, write_cifar10, write_idx, write_tree

if TYPE_CHECKING:
    from bench.worker import MeasureTask

CPU = Environment(device="cpu", estimate_device="cpu")
PATHS = ["synthetic", "cached", "loader"]


class Heard(Progress):
    """What a sweep said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def no_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx_files, "DEBIAN_FOLDERS", {})


def config(root: Path, dataset: str, paths: Iterable[str] = PATHS, **sections: Any) -> SweepConfig:
    grid = {"dataset": dataset, "model": "mlp", "optimizer": "sgd", "batch_size": 2, "input": list(paths)}
    sections = {"measure": {"repeats": 1}, "data": {"root": str(root), "fetch": False}, **sections}
    return check_config({"name": "n", "grid": grid, **sections}, "test")


def prepared(out: Path, settings: SweepConfig) -> tuple[Session, list[str]]:
    """A sweep as far as its plan is written, and what it said."""
    store, progress = Store(out / "data"), Heard()
    store.create()
    choice = DeviceChoice("cpu", "told")
    session = Session(settings, SweepOptions(out), progress, Scripted(), store, CPU, choice)
    _prepare(session)
    return session, progress.lines


def keys(out: Path, settings: SweepConfig) -> dict[str, str]:
    return {run.case.input: run.code_key for run in prepared(out, settings)[0].plan}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


# what is part of the key


def test_other_images_in_place_of_mnists_are_other_runs_where_they_are_read(tmp_path: Path) -> None:
    settings = config(tmp_path, "mnist")
    write_idx(tmp_path / "MNIST/raw", *grey_images(20))
    first, again = keys(tmp_path / "out", settings), keys(tmp_path / "out", settings)
    write_idx(tmp_path / "MNIST/raw", *grey_images(20, seed=1))
    other = keys(tmp_path / "out", settings)
    assert changed(first, again) == set()
    assert changed(first, other) == {"cached", "loader"}
    write_idx(tmp_path / "MNIST/raw", grey_images(20)[0], grey_images(20)[1][::-1].copy())
    assert changed(first, keys(tmp_path / "out", settings)) == {"cached", "loader"}


def test_plain_and_gzipped_files_of_the_same_images_are_the_same_data(tmp_path: Path) -> None:
    found = []
    for name, gzipped in (("plain", False), ("gzipped", True)):
        write_idx(tmp_path / name / "MNIST/raw", *grey_images(20), gzipped=gzipped)
        found.append(keys(tmp_path / "out", config(tmp_path / name, "mnist")))
    assert found[0] == found[1]
    damage(
        tmp_path / "gzipped/MNIST/raw/train-images-idx3-ubyte.gz",
        lambda content: gzip.compress(gzip.decompress(content), 1),
    )
    assert keys(tmp_path / "out", config(tmp_path / "gzipped", "mnist")) == found[0]


def test_other_images_in_place_of_cifars_are_other_runs_however_they_are_pickled(tmp_path: Path) -> None:
    settings = config(tmp_path, "cifar10")
    write_cifar10(tmp_path, *colour_images(12))
    first = keys(tmp_path / "out", settings)
    write_cifar10(tmp_path, *colour_images(12), protocol=4)
    assert keys(tmp_path / "out", settings) == first
    write_cifar10(tmp_path, *colour_images(12, seed=1))
    assert changed(first, keys(tmp_path / "out", settings)) == {"cached", "loader"}


def test_a_sets_key_is_what_it_was_where_no_files_are_read(tmp_path: Path) -> None:
    settings = config(tmp_path, "mnist")
    of_code = {run.case.input: run.code_key for run in build_plan(settings, "cpu")}
    wanted = {
        path: of_code[path] if path == "synthetic" else stable_hash([of_code[path], "synthetic"]) for path in PATHS
    }
    assert keys(tmp_path / "out", settings) == wanted
    assert len(set(of_code.values())) == 1


@pytest.mark.parametrize("dataset", ["folder:{root}/tree", "imagenet:folder={root}/tree"])
def test_a_trees_images_count_where_they_are_read_and_its_classes_everywhere(tmp_path: Path, dataset: str) -> None:
    settings = config(tmp_path, dataset.format(root=tmp_path))
    write_tree(tmp_path / "tree")
    first = keys(tmp_path / "out", settings)
    damage(tmp_path / "tree/dog/1.jpg", lambda content: (tmp_path / "tree/cat/1.jpg").read_bytes())
    assert changed(first, keys(tmp_path / "out", settings)) == {"cached", "loader"}
    write_tree(tmp_path / "tree")
    assert keys(tmp_path / "out", settings) == first
    write_tree(tmp_path / "tree", classes=("eel",))
    more = (
        {"cached", "loader"} if dataset.startswith("imagenet") else set(PATHS)
    )  # ImageNet has 1,000 whatever is there
    assert changed(first, keys(tmp_path / "out", settings)) == more


def test_a_held_out_part_is_no_part_of_the_key(tmp_path: Path) -> None:
    settings = config(tmp_path, f"folder:{tmp_path}/tree")
    write_tree(tmp_path / "tree/train")
    first = keys(tmp_path / "out", settings)
    write_tree(tmp_path / "tree/val")
    assert keys(tmp_path / "out", settings) == first


def test_where_the_gradient_noise_is_measured_every_run_reads_images(tmp_path: Path) -> None:
    settings = config(tmp_path, "mnist", measure={"repeats": 1, "gradient_noise": True})
    write_idx(tmp_path / "MNIST/raw", *grey_images(20))
    first = keys(tmp_path / "out", settings)
    write_idx(tmp_path / "MNIST/raw", *grey_images(20, seed=1))
    assert changed(first, keys(tmp_path / "out", settings)) == set(PATHS)


def test_estimates_and_recordings_of_other_classes_are_others(tmp_path: Path) -> None:
    settings = config(tmp_path, f"folder:{tmp_path}/tree")

    def found() -> tuple[str, str]:
        plan = build_plan(settings, "cpu")
        return estimate_key(CPU, plan), recording_key(plan[0].case, CPU, RecordOptions())

    write_tree(tmp_path / "tree")
    first, again = found(), found()
    write_tree(tmp_path / "tree", classes=("eel",))
    other = found()
    assert first == again
    assert first[0] != other[0] and first[1] != other[1]
    assert estimate_key(CPU, build_plan(config(tmp_path, "mnist"), "cpu")) == estimate_key(CPU)


def test_damaged_files_stop_a_sweep_before_its_first_run(tmp_path: Path) -> None:
    write_cifar10(tmp_path, *colour_images(12))
    damage(tmp_path / "cifar-10-batches-py/data_batch_2", lambda content: content[:100])
    with pytest.raises(BenchError, match="data_batch_2: not a pickle of arrays"):
        prepared(tmp_path / "out", config(tmp_path, "cifar10"))


# who says it


def test_a_sweep_names_what_changed_and_the_report_what_is_left_out(tmp_path: Path) -> None:
    settings, out = config(tmp_path, f"folder:{tmp_path}/tree"), tmp_path / "out"
    write_tree(tmp_path / "tree")
    session, said = prepared(out, settings)
    measure_missing([session])
    assert not any("changed" in line for line in [*said, *prepared(out, settings)[1]])
    write_tree(tmp_path / "tree", classes=tuple("abcdef"))
    session, said = prepared(out, settings)
    (line,) = [line for line in said if "changed" in line]
    assert line.startswith(f"folder:path={tmp_path}/tree: the data set changed since {out} was last planned ")
    assert "(classes 2 -> 8, training images 6 -> 24)" in line
    measure_missing([session])
    frame = bench.load(out)
    assert frame.groupby("planned")["data_classes"].agg(set).to_dict() == {False: {2}, True: {8}}
    assert frame.groupby("input")["data_hash"].nunique().to_dict() == {"cached": 2, "loader": 2, "synthetic": 0}
    (finding,) = [finding for finding in judge(frame) if finding.code == "earlier_plans"]
    assert finding.text.endswith(
        f"changed since: folder:path={tmp_path}/tree (classes 2 -> 8, training images 6 -> 24)."
    )


def test_other_content_is_named_as_such(tmp_path: Path) -> None:
    settings, out = config(tmp_path, "mnist"), tmp_path / "out"
    write_idx(tmp_path / "MNIST/raw", *grey_images(20))
    prepared(out, settings)
    write_idx(tmp_path / "MNIST/raw", *grey_images(20, seed=1))
    said = prepared(out, settings)[1]
    assert [line for line in said if "mnist: the data set changed" in line and "(the content of its files)" in line]


def test_data_that_are_as_before_again_take_up_their_runs(tmp_path: Path) -> None:
    settings, out = config(tmp_path, f"folder:{tmp_path}/tree"), tmp_path / "out"
    write_tree(tmp_path / "tree")
    measure_missing([prepared(out, settings)[0]])
    write_tree(tmp_path / "tree", classes=("eel",))
    measure_missing([prepared(out, settings)[0]])
    for path in (tmp_path / "tree/eel").iterdir():
        path.unlink()
    (tmp_path / "tree/eel").rmdir()
    session, _ = prepared(out, settings)
    assert session.journal.missing(session.plan) == []


def test_a_worker_refuses_a_tree_that_changed_since_its_run_was_planned(tmp_path: Path) -> None:
    from bench.worker import measure_case

    write_tree(tmp_path / "tree")
    runs = build_plan(config(tmp_path, f"folder:{tmp_path}/tree", ["synthetic"]), "cpu")
    write_tree(tmp_path / "tree", classes=("eel",))
    describe.cache_clear()  # a worker is a fresh process
    found = measure_case(_task(runs[0]), lambda news: None)
    assert found["status"] == "failed"
    assert "changed since the run was planned (classes 2 -> 3)" in found["reason"]


def _task(run: Planned) -> MeasureTask:
    from bench.worker import MeasureTask

    protocol = config(Path("/nowhere"), "mnist").protocol
    return MeasureTask(run.case, protocol, "cpu", data=run.data)


def test_sides_of_other_classes_are_not_compared_and_older_parts_that_name_none_are(tmp_path: Path) -> None:
    import pandas as pd

    from bench.comparison.differences import refuse_flags

    def side(classes: int | None) -> Any:
        return pd.DataFrame({"pair": ["one"], "data_classes": pd.array([classes], "Int64"), "input": ["synthetic"]})

    with pytest.raises(BenchError, match="data_classes differs: 2 in the baseline, 8 in the candidate"):
        refuse_flags(side(2), side(8), ())
    refuse_flags(side(None), side(8), ())
    refuse_flags(side(8), side(8), ())


def test_facts_that_one_side_lacks_are_no_change() -> None:
    assert DataFacts(8, 24, "b").changes_since(DataFacts(2, 6, "a")) == ["classes 2 -> 8", "training images 6 -> 24"]
    assert DataFacts(8, 24, "b").changes_since(DataFacts(8, 24, "a")) == ["the content of its files"]
    assert DataFacts(8, 24, "b").changes_since(DataFacts()) == DataFacts().changes_since(DataFacts(8)) == []


def test_a_set_whose_folder_is_gone_is_refused(tmp_path: Path) -> None:
    settings = config(tmp_path, f"folder:{tmp_path}/tree")
    write_tree(tmp_path / "tree")
    build_plan(settings, "cpu")
    (tmp_path / "tree").rename(tmp_path / "elsewhere")
    with pytest.raises((DataError, BenchError), match="No such file"):
        build_plan(settings, "cpu")


def test_a_recording_of_a_smaller_card_has_a_key_of_its_own() -> None:
    case = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 8)
    keys = {recording_key(case, CPU, RecordOptions(limit_bytes=limit)) for limit in (None, 1 << 30, 2 << 30)}
    assert len(keys) == 3
