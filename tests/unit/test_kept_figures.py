"""Kept figures: a second report draws nothing and is the same to the byte, and nothing stale or damaged is ever shown."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records import Measurement
from tests.results import make_cases, make_results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_FIGURES", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return make_results(tmp_path / "results" / "data", make_cases(["mnist"], batch_sizes=(16, 64)), repeats=2)


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What figures are drawn from, once for each time that they are; one quick figure stands for all."""
    from bench.report import render
    from bench.report.blocks import Picture

    seen: list[Any] = []

    def draw(contents: Any) -> list[Any]:
        seen.append(contents)
        shown = f"{contents.frame['wall_window_s'].sum()}".encode()
        png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0" + shown
        return [render._Drawn(Picture("throughput", "How fast?", "é", "alt"), render.Image(png, png[::-1]), shown)]

    monkeypatch.setattr(render, "_draw_anew", draw)
    return seen


def report(results: Path, target: Path, **settings: Any) -> dict[str, bytes]:
    """Every file of a report."""
    from bench.report import render_report

    render_report([results], target, **settings)
    return {str(path.relative_to(target)): path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()}


def test_a_second_report_draws_nothing_and_is_the_same(results, tmp_path, kept, drawings):
    first = report(results, tmp_path / "one" / "report")
    assert len(drawings) == 1 and "figures/throughput.png" in first
    assert report(results, tmp_path / "one" / "report") == first
    assert report(results, tmp_path / "other" / "report") == first
    assert len(drawings) == 1


def test_kept_figures_are_those_that_would_be_drawn(results, tmp_path, kept, sketched, monkeypatch):
    first = report(results, tmp_path / "one" / "report")
    assert sum(name.endswith(".png") for name in first) >= 4
    monkeypatch.setattr("bench.report.render._draw_anew", None)
    assert report(results, tmp_path / "two" / "report") == first


def test_a_deleted_or_altered_output_comes_back(results, tmp_path, kept, drawings):
    first = report(results, tmp_path / "report")
    (tmp_path / "report" / "figures" / "throughput.png").write_bytes(b"altered")
    (tmp_path / "report" / "figures" / "throughput.csv").unlink()
    (tmp_path / "report" / "index.html").write_text("altered")
    assert report(results, tmp_path / "report") == first and len(drawings) == 1


def test_figures_are_drawn_again_where_a_run_changed(results, tmp_path, kept, drawings):
    first = report(results, tmp_path / "report")

    def slower(measurement: Measurement, *_: Any) -> Measurement:
        window = measurement.wall_window_s
        return dataclasses.replace(measurement, wall_window_s=None if window is None else 1.01 * window)

    shutil.rmtree(results)
    make_results(results, make_cases(["mnist"], batch_sizes=(16, 64)), repeats=2, change=slower)
    second = report(results, tmp_path / "report")
    assert len(drawings) == 2 and second["figures/throughput.png"] != first["figures/throughput.png"]


@pytest.mark.parametrize("which", ["code", "library", "python"])
def test_figures_are_drawn_again_by_other_code_and_libraries(results, tmp_path, kept, drawings, monkeypatch, which):
    from bench.report import render

    report(results, tmp_path / "report")
    if which == "code":
        monkeypatch.setattr(render, "code_key", lambda places: "another")
    elif which == "library":
        monkeypatch.setattr(render.importlib.metadata, "version", lambda name: "0.0.1")
    else:
        monkeypatch.setattr(sys, "version", "4.0")
    report(results, tmp_path / "report")
    assert len(drawings) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1] + b" ]",
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x00" * 64 + b"\n[]",
        lambda data: data.partition(b"\n")[2],
    ],
    ids=["altered", "cut", "empty", "foreign", "without its hash"],
)
def test_a_kept_file_that_is_not_as_it_was_written_is_drawn_again(results, tmp_path, kept, drawings, damage):
    first = report(results, tmp_path / "report")
    (file,) = kept.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert report(results, tmp_path / "report") == first and len(drawings) == 2
    assert report(results, tmp_path / "report") == first and len(drawings) == 2  # it was replaced


def test_reading_the_consolidated_file_gives_the_same_key(results, tmp_path, kept, drawings, monkeypatch):
    from bench.store import consolidate, consolidated

    monkeypatch.setattr(consolidated, "WORTH_IT", 1)
    report(results, tmp_path / "report")
    assert consolidate(results) is not None
    report(results, tmp_path / "report")
    assert len(drawings) == 1


def test_another_baseline_is_another_key(results, tmp_path, kept, drawings):
    from bench.report.hardware import Hardware
    from bench.report.render import _drawing_key

    report(results, tmp_path / "report")
    keys = [
        _drawing_key(dataclasses.replace(drawings[0], hardware=Hardware(name, {}, {}, pd.DataFrame()))) for name in "ab"
    ]
    assert len({*keys, _drawing_key(drawings[0])}) == 3


def test_figures_see_nothing_that_the_key_leaves_out(results, tmp_path, kept, drawings):
    report(results, tmp_path / "report")
    (contents,) = drawings
    seen = {field.name for field in dataclasses.fields(contents) if getattr(contents, field.name) is not None}
    in_key = {"frame", "summary", "hardware"}
    for name in seen - in_key:
        assert not getattr(contents, name) or not list(getattr(contents, name)), name


def test_a_folder_that_cannot_be_written_costs_time_only(results, tmp_path, drawings, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("BENCH_FIGURES", str(tmp_path / "file"))
    first = report(results, tmp_path / "report")
    assert report(results, tmp_path / "report") == first and len(drawings) == 2


def test_the_oldest_reports_are_forgotten(results, tmp_path, kept, drawings, monkeypatch):
    from bench.report import render

    monkeypatch.setattr(render, "_MOST_KEPT", 2)
    for code in ("a", "b", "c"):
        monkeypatch.setattr(render, "code_key", lambda places, code=code: code)
        report(results, tmp_path / "report")
        for age, file in enumerate(sorted(kept.iterdir(), key=lambda file: -file.stat().st_mtime)):
            os.utime(file, (1e9 - age, 1e9 - age))
    assert len(list(kept.iterdir())) == 2
    report(results, tmp_path / "report")
    assert len(drawings) == 3


def test_another_process_finds_them_and_imports_nothing_that_draws(results, tmp_path, kept, drawings):
    first = report(results, tmp_path / "one" / "report")
    code = (
        "import sys; from pathlib import Path; from bench.report import render_report; "
        f"render_report([Path({str(results)!r})], Path({str(tmp_path / 'two' / 'report')!r})); "
        "print([name for name in ('matplotlib', 'seaborn', 'PIL', 'scipy.stats') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert (tmp_path / "two" / "report" / "index.html").read_bytes() == first["index.html"]


def test_the_style_is_seaborns_below_ours():
    import matplotlib as mpl
    import seaborn as sns

    from bench.report import theme

    seaborns = {**sns.plotting_context("notebook"), **sns.axes_style("whitegrid")}
    elsewhere = {"image.cmap", "font.sans-serif"}  # nothing is drawn by a map, and the font is named itself
    with theme.style():
        for name in seaborns.keys() - theme._RC.keys() - elsewhere:
            assert mpl.rcParams[name] == mpl.RcParams({name: seaborns[name]})[name], name
