"""What cases are called: no two of one list alike, however they differ and however little room there is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import bench
from bench.analysis import CaseLabels, headline, summarise_cases
from bench.analysis.labels import SERIES_AXES, cut_apart, protocol_labels
from bench.comparison.joining import halve, label_pairs
from bench.plan import name_planned
from bench.records import Case, Choice, Protocol, Status, name_cases
from tests import plugins
from tests.results import make_results

_choices = st.builds(
    Choice.of,
    st.sampled_from(["mlp", "resnet18", "folder:/data/pictures/of/2026/summer/a/train", "folder:" + "/x" * 90 + "/b"]),
    st.dictionaries(st.sampled_from(["hidden", "lr", "aux"]), st.sampled_from([1, 2, True, "a", 0.5]), max_size=3),
)
_cases = st.builds(
    Case,
    _choices,
    _choices,
    _choices,
    st.sampled_from([1, 8]),
    st.sampled_from(["float32", "bf16"]),
    st.sampled_from(["contiguous", "channels_last"]),
    st.sampled_from(["synthetic", "loader"]),
    st.sampled_from([0, 32, 224]),
)

MNIST = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 16, image_size=28)
SIZES = [replace(MNIST, image_size=side) for side in (32, 64, 224)]


@given(st.lists(_cases, unique=True, max_size=8))
@example(SIZES)
def test_no_two_cases_of_a_list_are_called_alike(cases: list[Case]) -> None:
    names = name_cases(cases)
    assert list(names) == cases
    assert len(set(names.values())) == len(cases)
    assert all(str(case).split(", ")[0] in name for case, name in names.items())


_rows = st.fixed_dictionaries(
    {
        "model": _choices.map(str),
        "dataset": _choices.map(str),
        "optimizer": _choices.map(str),
        "batch_size": st.sampled_from([1, 8]),
        "image_size": st.sampled_from([32, 224]),
        **{axis: st.sampled_from(["", "one", "two"]) for axis in ("machine", "protocol", "code")},
        **{axis: st.sampled_from(["one", "two"]) for axis in ("precision", "memory_format", "input")},
    }
)


@given(st.lists(_rows, min_size=1, max_size=8, unique_by=lambda row: tuple(row.values())))
def test_no_two_rows_of_a_summary_have_one_label(rows: list[dict[str, object]]) -> None:
    labels = CaseLabels(pd.DataFrame(rows))
    assert len({labels.case(row) for row in rows}) == len(rows)


@given(st.sets(st.text("ab/,:", max_size=40), max_size=6), st.integers(8, 20))
@example({"folder:/long/path/to/one/train", "folder:/long/path/to/two/train"}, 20)
@example({"mlp:hidden=[16],seed=1,width=9999", "mlp:hidden=[32],seed=1,width=9999"}, 20)
def test_texts_that_are_cut_stay_apart(texts: set[str], characters: int) -> None:
    cut = cut_apart(texts, characters)
    assert len(set(cut.values())) == len(texts)
    assert all(cut[text] == text for text in texts if len(text) <= characters)


def test_paths_that_share_their_ends_are_cut_to_what_differs() -> None:
    paths = [f"folder:/mnt/very/long/way/to/{name}/and/on/for/a/while/to/the/train" for name in ("cats", "dogs")]
    cut = cut_apart(paths, 40)
    assert ["cats" in cut[paths[0]], "dogs" in cut[paths[1]]] == [True, True]
    assert all(len(text) <= 41 for text in cut.values())


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three cases that differ in the size of their images alone; the first failed."""
    folder = tmp_path_factory.mktemp("sized") / "data"
    return make_results(folder, cases=SIZES, outcomes={0: Status.FAILED})


def test_every_listing_of_results_names_what_differs(sized: Path) -> None:
    from bench.report import summary_lines
    from bench.report.layout import lay_out, with_details

    frame = bench.load(sized)
    summary = summarise_cases(frame)
    text = "\n".join(summary_lines(frame, None))
    assert "failed 3: mlp on mnist, batch 16, 32 px: " in text
    assert any(f"at batch 16, {side} px, peak" in text for side in (64, 224))
    assert "at batch 16, " in headline(summary)
    assert len(set(lay_out(summary, [], 6).frame["series"])) == len(set(with_details(summary)["detail"])) == 3
    half = halve(frame, "baseline", ())
    assert sorted(label_pairs([half]).values()) == [f"mlp on mnist, batch 16, sgd, {side} px" for side in (224, 32, 64)]


def test_a_size_that_only_the_other_side_has_is_said_on_both(sized: Path, tmp_path: Path) -> None:
    other = make_results(tmp_path / "data", cases=[replace(MNIST, image_size=96)])
    halves = [halve(bench.load(folder), side, ()) for folder, side in ((sized, "baseline"), (other, "candidate"))]
    assert len(set(label_pairs(halves).values())) == 4


def test_the_plan_and_the_sweep_name_what_differs(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        'name = "c"\n[grid]\ndataset = "mnist"\nmodel = "mlp"\noptimizer = "sgd"\nbatch_size = 4\n'
        'image_size = [8, 12]\n[measure]\nrepeats = 1\nwarmup_steps = 1\nmeasured_steps = 2\nmin_window = "1 ms"\n'
        "[data]\nfetch = false\n",
        encoding="utf-8",
    )
    planned = plugins.bench("plan", config, "--device", "cpu")
    swept = plugins.bench("sweep", config, "--device", "cpu", "--no-report", "--out", tmp_path / "out")
    assert (planned.returncode, swept.returncode) == (0, 0), swept.stderr
    for side in (8, 12):
        assert f"mlp on mnist, sgd, batch 4, {side} px" in planned.stdout
        assert f"mlp on mnist, sgd, batch 4, {side} px #1: ok" in swept.stderr


def test_a_size_that_is_not_the_data_sets_own_is_said_even_of_a_single_case() -> None:
    resized, own = (replace(MNIST, image_size=side) for side in (32, 28))
    assert name_planned([resized]) == {resized: "mlp on mnist, sgd, batch 16, 32 px"}
    assert name_planned([own]) == {own: "mlp on mnist, sgd, batch 16"}
    assert str(own) == "mlp on mnist, sgd, batch 16, 28 px"  # what is said alone is complete
    assert str(replace(own, image_size=0)) == "mlp on mnist, sgd, batch 16"


def test_protocols_that_no_single_field_tells_apart_are_told_by_several() -> None:
    protocols = [Protocol(threads=threads, compiled=on) for threads, on in itertools.product((1, 2), (False, True))]
    rows = [{"protocol_key": item.key, **{name: getattr(item, name) for name in item.__slots__}} for item in protocols]
    labels = protocol_labels(pd.DataFrame(rows[:3]))
    assert list(labels.values()) == [
        "threads 1, compiled False",
        "threads 1, compiled True",
        "threads 2, compiled False",
    ]
    assert len(set(protocol_labels(pd.DataFrame(rows)).values())) == 4


def test_axes_of_labels_are_those_of_cases_and_of_how_they_ran() -> None:
    assert set(SERIES_AXES) >= {*MNIST.axes} - {"model", "dataset", "batch_size"}
