from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

import bench
from bench.analysis import judge, summarise_cases
from bench.comparison import compare
from bench.errors import BenchError
from bench.records import Protocol
from bench.stats import geometric_interval
from tests.machines import A100, make_machine, make_machines
from tests.results import CPU, GIB, GPU, make_cases, make_results

pytestmark = pytest.mark.usefixtures("sketched")

ENDS = ("start", "end")
FIGURES = ("speedup", "curves", "headroom", "energy", "pareto")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_machines(tmp_path_factory.mktemp("machines"))


@pytest.fixture(scope="module")
def report(folders, sketched):
    """Three GPUs in one report, held against the second."""
    from bench.report import render_report

    target = folders[0].parent / "both"
    render_report(folders, target, baseline="a100")
    return target


@pytest.fixture(scope="module")
def contents(folders):
    return contents_of(*folders)


def contents_of(*folders, baseline=0):
    from bench.report.contents import Contents
    from bench.report.hardware import compare_machines

    frame = bench.load(*folders)
    summary = summarise_cases(frame)
    machines = list(dict.fromkeys(summary["machine"]))
    hardware = compare_machines(frame, summary, machines[baseline]) if len(machines) > 1 else None
    return Contents("x", frame, summary, judge(frame), hardware=hardware)


def csv_of(report, name):
    return pd.read_csv(report / "figures" / f"{name}.csv")


def drawn(kind, contents):
    from bench.report import theme

    with theme.style():
        return kind.FIGURE.draw(contents)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_machines_has_numbers_and_an_alternative_text(report, name):
    assert len(csv_of(report, name))
    html, markdown = (report / "index.html").read_text(), (report / "report.md").read_text()
    (alt,) = re.findall(rf'<figure id="{name}">.*?alt="([^"]+)"', html, re.DOTALL)
    assert "NVIDIA" in alt
    assert any(mark.isdigit() for mark in alt)
    assert re.search(rf"!\[[^\n]{{40,}}\]\(figures/{name}\.png\)", markdown)


def test_ratios_in_the_heat_map_are_those_of_the_comparison(report, folders):
    from bench.report.hardware import SPEED

    written = csv_of(report, "speedup").query("machine == 'NVIDIA H200'").dropna(subset=["ratio"])
    cases = compare(bench.load(folders[1]), bench.load(folders[0])).cases
    expected = cases[(cases["metric"] == SPEED) & cases["ratio"].notna()]
    assert len(expected)
    for column in ("ratio", "low", "high"):
        assert sorted(written[column]) == pytest.approx(sorted(expected[column]))
    assert sorted(written["verdict"]) == sorted(expected["verdict"])
    assert written["ratio"].between(1.8, 2.2).all()


def test_every_ratio_has_its_interval(report):
    written = csv_of(report, "speedup").dropna(subset=["ratio"])
    assert (written["low"] < written["ratio"]).all()
    assert (written["ratio"] < written["high"]).all()


def test_a_missing_cell_is_empty_and_says_why(report):
    written = csv_of(report, "speedup")
    empty = written[written["ratio"].isna()]
    assert not (written["ratio"] == 0).any()
    by = {(row.machine, row.panel, row.detail, row.batch_size): row.outcome for row in empty.itertuples()}
    assert by["NVIDIA GeForce RTX 4090", "resnet50 on imagenet", "adam", 512] == "out of memory"
    assert by["NVIDIA GeForce RTX 4090", "resnet18 on cifar10", "adam", 64] == "not planned"
    assert by["NVIDIA H200", "resnet50 on imagenet", "sgd_momentum", 32] == "baseline: failed"


def test_unclear_cells_are_hatched_and_no_others(contents):

    from matplotlib.patches import Rectangle

    from bench.report.figures import speedup

    cells = contents.hardware.cells
    known = cells.index[cells["ratio"].notna()]
    cells.loc[known, "verdict"] = ["unclear" if place % 3 == 0 else "faster" for place in range(len(known))]
    drawing = drawn(speedup, contents)
    patches = [patch for patch in drawing.figure.axes[0].patches if isinstance(patch, Rectangle)]
    shown = drawing.numbers[drawing.numbers["drawn"]]
    assert sum(bool(patch.get_hatch()) for patch in patches) == int((shown["verdict"] == "unclear").sum()) > 0
    empty = [patch for patch in patches if patch.get_facecolor()[3] == 0 and not patch.get_hatch()]
    assert len(empty) == int(shown["ratio"].isna().sum()) > 0


def test_the_mean_is_hatched_where_every_case_under_it_is_unclear(contents):
    from matplotlib.patches import Rectangle

    from bench.report.figures import speedup

    cells = contents.hardware.cells
    for verdicts, hatched in ((["unclear"], True), (["faster", "unclear"], False)):
        known = cells.index[cells["ratio"].notna()]
        cells.loc[known, "verdict"] = [verdicts[place % len(verdicts)] for place in range(len(known))]
        figure = drawn(speedup, contents).figure
        patches = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
        lowest = max(patch.get_y() for patch in patches)
        means = [patch for patch in patches if patch.get_y() == lowest]
        assert any(patch.get_hatch() for patch in means) is hatched


def test_colours_are_symmetric_around_one_on_a_log_scale():
    from bench.report import theme
    from bench.report.figures import speedup

    scale = speedup._scale(pd.Series([0.5, 3.0]))
    assert scale(np.log(1.0)) == 0.5
    assert scale(np.log(2.0)) + scale(np.log(0.5)) == pytest.approx(1.0)
    middle = speedup._SCALE(0.5)
    assert [round(255 * part) for part in middle[:3]] == [
        int(theme.DIVERGING[1][start : start + 2], 16) for start in (1, 3, 5)
    ]
    assert float(speedup._scale(pd.Series([1.0001])).vmax) == pytest.approx(np.log(1.25))


def test_the_knee_is_the_smallest_batch_with_nine_tenths_of_the_best():
    from bench.report.hardware import knees

    rates = [100.0, 500.0, 899.0, 900.0, 1000.0, 950.0]
    frame = pd.DataFrame(
        {"panel": "p", "detail": "", "machine": "m", "batch_size": [1, 2, 4, 8, 16, 32], "samples_per_s": rates}
    ).sample(frac=1, random_state=3)
    assert frame.loc[knees(frame), "batch_size"].tolist() == [8]
    assert not knees(frame.assign(samples_per_s=np.nan)).any()


def test_the_edge_of_memory_lies_between_the_last_that_ran_and_the_first_that_did_not():
    from bench.report.hardware import boundary

    line = pd.DataFrame(
        {
            "batch_size": [16, 64, 256, 1024],
            "status": ["ok", "ok", "oom", "oom"],
            "peak_allocated_bytes": [1, 2, None, None],
        }
    )
    assert boundary(line) == (256, 128.0)
    assert boundary(line.head(2)) is None


def test_uprights_at_one_place_take_turns():
    from bench.report.hardware import edge_dashes

    dashes = edge_dashes({"a": 10.0, "b": 10.0, "c": 20.0})
    assert dashes["a"][1] == dashes["b"][1] == (2.0, 2.0)
    assert dashes["a"][0] != dashes["b"][0]


def test_knees_in_the_report_are_those_of_the_curves(report):
    curves = csv_of(report, "curves")
    assert curves.groupby(["panel", "detail", "machine"])["knee"].sum().eq(1).all()
    knee = curves[curves["knee"] & (curves["machine"] == "NVIDIA H200") & (curves["detail"] == "adam")].iloc[0]
    table = (report / "report.md").read_text().split("## Machines compared")[1].split("\n## ")[0]
    assert re.search(rf"\| {knee['panel']} \| adam \| NVIDIA H200 \| {knee['batch_size']:,} \|", table)


def test_headroom_is_of_the_devices_own_memory(report, contents):
    from bench.report.figures import headroom

    written = csv_of(report, "headroom").dropna(subset=["memory_share"])
    assert set(written["memory_of"]) == {"device memory of the process (NVML)"}
    sizes = written.groupby("machine")["limit_bytes"].first().to_dict()
    assert sizes == {"NVIDIA H200": 141 * GIB, "NVIDIA A100-SXM4-80GB": 80 * GIB, "NVIDIA GeForce RTX 4090": 24 * GIB}
    assert (written["memory_bytes"] + written["headroom_bytes"] == written["limit_bytes"]).all()
    assert "out of memory" in drawn(headroom, contents).caption


def test_headroom_ends_at_the_smaller_card_that_a_gpu_played(tmp_path):
    from bench.report.hardware import with_memory_shares

    protocol = Protocol(device_memory_bytes=24 * GIB)
    frame = bench.load(make_results(tmp_path, make_cases(["mnist"]), environment=GPU, protocol=protocol))
    assert set(with_memory_shares(summarise_cases(frame))["limit_bytes"]) == {24 * GIB}


def test_one_level_of_memory_serves_all_gpus(contents):
    from bench.report.hardware import with_memory_shares

    summary = contents.summary.copy()
    summary.loc[summary["samples_per_s"].notna().idxmax(), "device_used_bytes"] = pd.NA
    assert set(with_memory_shares(summary)["memory_of"]) == {"peak reserved by torch, without the context"}


def test_energy_is_that_of_each_process_with_an_interval(contents):
    from bench.report.figures import energy

    numbers = drawn(energy, contents).numbers.dropna(subset=["joules_per_sample"])
    frame = contents.frame
    row = numbers[numbers["machine"] == "NVIDIA H200"].iloc[0]
    runs = frame[
        (frame["gpu_name"] == "NVIDIA H200") & (frame["batch_size"] == row["batch_size"]) & (frame["status"] == "ok")
    ]
    runs = runs[(runs["model"] + " on " + runs["dataset"] == row["panel"]) & (runs["optimizer"] == row["detail"])]
    each = [run.energy_window_j / run.batch_size / len(run.step_times_s) for run in runs.itertuples()]
    interval = geometric_interval(each)
    assert row[["joules_per_sample", "joules_per_sample_low", "joules_per_sample_high"]].tolist() == pytest.approx(
        [interval.middle, interval.low, interval.high]
    )
    assert row["energy_processes"] == 5


def test_a_machine_without_a_counter_has_no_energy_rather_than_none(tmp_path):
    from bench.report.figures import energy

    cases = make_cases(["imagenet"], ["resnet50"], ["adam"], [8, 32])
    make_results(tmp_path / "a" / "data", cases, environment=GPU)
    make_results(tmp_path / "b" / "data", cases, environment=CPU)
    drawing = drawn(energy, contents_of(tmp_path / "a", tmp_path / "b"))
    assert "Unknown, and not zero, on Example Eight 3.0 GHz (CPU)." in drawing.caption
    assert set(drawing.numbers["machine"]) == {"NVIDIA H200"}


def test_the_front_is_beaten_by_no_case(contents):
    from bench.report.figures import pareto

    numbers = drawn(pareto, contents).numbers
    for _, rows in numbers.groupby("panel"):
        points = rows[["peak_allocated_bytes", "samples_per_s"]].to_numpy(dtype=float)
        for (memory, rate), on_front in zip(points, rows["on_front"], strict=True):
            beaten = ((points[:, 0] <= memory) & (points[:, 1] > rate)) | (
                (points[:, 0] < memory) & (points[:, 1] >= rate)
            )
            assert on_front == (not beaten.any())


def test_the_answer_is_the_speed_up_with_its_interval(report):
    page = (report / "report.md").read_text().split("\n## ")[0]
    words = r"\d\.\d+× \(\d\.\d+ to \d\.\d+\)"
    found = re.search(
        rf"Against NVIDIA A100-SXM4-80GB: NVIDIA H200 trains at {words} its throughput, in the geometric mean of (\d+) of "
        r"12 cases \((\d+) of \1 called different\)",
        page,
    )
    verdicts = csv_of(report, "speedup").query("machine == 'NVIDIA H200'")["verdict"]
    assert found
    assert int(found[2]) == verdicts.isin(["faster", "slower"]).sum() > 0


def test_the_machines_are_held_side_by_side_and_what_differs_stands_out(report):
    markdown, html = (report / "report.md").read_text(), (report / "index.html").read_text()
    assert "| **driver version** | **570.86.10** | **570.86.10** | **565.57.01** |" in markdown
    assert "| **ECC** | **yes** | **yes** | **unknown** |" in markdown
    assert "| CUDA version | 12.8 | 12.8 | 12.8 |" in markdown
    row = html.split("<strong>driver version</strong>")[0].rsplit("<tr", 1)[1]
    assert 'class="differs"' in row


def test_the_command_that_makes_the_report_names_every_folder_and_the_baseline(report):
    command = "bench report reports/h200 reports/a100 reports/rtx4090 --out reports/both --baseline NVIDIA\\ A100"
    text = (report / "report.md").read_text().replace("'NVIDIA A100-SXM4-80GB'", "NVIDIA\\ A100")
    assert command in text


def test_one_machine_has_no_comparison(tmp_path):
    from bench.report import render_report

    make_results(tmp_path / "data", make_cases(["imagenet"], ["resnet50"], ["adam"], [8, 32]), environment=GPU)
    render_report([tmp_path], tmp_path)
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert names & set(FIGURES) == {"energy"}
    assert "Machines compared" not in (tmp_path / "report.md").read_text()


def test_work_that_is_not_the_same_is_named_and_not_compared(tmp_path):
    from bench.report import render_report

    cases = make_cases(["imagenet"], ["resnet50"], ["adam"], [8, 32])
    make_machine(tmp_path / "a", GPU, 1.0, 1, cases)
    make_machine(
        tmp_path / "b", A100, 2.0, 2, cases, protocol=Protocol(warmup_steps=3, measured_steps=8, compiled=True)
    )
    render_report([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    text = (tmp_path / "both" / "report.md").read_text()
    assert re.search("NVIDIA A100-SXM4-80GB could not be compared with NVIDIA H200: .*compiled", text)
    assert not (tmp_path / "both" / "figures" / "speedup.png").exists()
    assert (tmp_path / "both" / "figures" / "curves.png").exists()


def test_machines_beyond_the_hues_stay_in_the_numbers(tmp_path):
    from bench.report import theme
    from bench.report.figures import headroom, speedup

    cases = make_cases(["imagenet"], ["resnet50"], ["adam"], [8, 32])
    folders = [
        make_machine(
            tmp_path / f"m{n}",
            dataclasses.replace(GPU, gpu_name=f"GPU {n}", host_hash=f"{n}" * 16),
            1.0 + n / 9,
            n,
            cases,
            repeats=2,
        )
        for n in range(9)
    ]
    contents = contents_of(*folders)
    numbers = drawn(speedup, contents).numbers
    assert numbers.loc[numbers["drawn"], "machine"].nunique() == 6
    assert numbers["machine"].nunique() == 8
    written = drawn(headroom, contents)
    assert written.numbers.loc[written.numbers["drawn"], "machine"].nunique() == len(theme.HUES)
    assert "3 more machines did not fit" in written.caption


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(None, "NVIDIA H200"), ("NVIDIA H200", "NVIDIA H200"), ("a100", "NVIDIA A100"), ("reports/left/", "NVIDIA A100")],
)
def test_a_baseline_is_found_by_name_part_or_folder(wanted, expected):
    from bench.report.hardware import find_baseline

    machines = ["NVIDIA H200", "NVIDIA A100", "NVIDIA A100, driver 2"]
    if wanted == "a100":
        machines = machines[:2]
    assert find_baseline(wanted, machines, {"left": ["NVIDIA A100"]}) == expected


def test_a_baseline_that_is_none_or_several_is_refused_with_what_is_allowed():
    from bench.report.hardware import find_baseline

    machines = ["NVIDIA H200", "NVIDIA H100"]
    with pytest.raises(
        BenchError, match=r'^--baseline: "NVIDIA H20O" is no machine of these results. Nearest: NVIDIA H200'
    ):
        find_baseline("NVIDIA H20O", machines, {})
    with pytest.raises(BenchError, match=r'"nvidia" means more than one machine. .*: NVIDIA H200; NVIDIA H100$'):
        find_baseline("nvidia", machines, {})


def test_ratios_print_three_digits():
    from bench.report.words import ratio_words, times

    assert [times(value) for value in (0.972, 2.128, 13.54, 135.4, 0.0123)] == [
        "0.972×",
        "2.13×",
        "13.5×",
        "135×",
        "0.012×",
    ]
    assert ratio_words(2.0, 1.9, 2.1) == "2.00× (1.90 to 2.10)"
    assert ratio_words(2.0, float("nan"), float("nan")) == "2.00× (no interval)"


def test_sums_of_energy_do_not_depend_on_the_version_of_python(tmp_path):

    cases = make_cases(["imagenet"], ["resnet50"], ["adam"], [8])
    make_results(
        tmp_path / "data",
        cases,
        environment=GPU,
        change=lambda run, case, repeat: dataclasses.replace(run, energy_window_j=(0.1, 0.2, 0.3)[repeat]),
    )
    frame = bench.load(tmp_path)
    steps = sum(len(times) for times in frame["step_times_s"])
    assert summarise_cases(frame)["joules_per_sample"].tolist() == [
        0.6 / (8 * steps)
    ]  # plain sum() gives 0.6000000000000001


def test_two_cards_of_one_model_say_which_differences_clocks_can_explain(tmp_path):
    from bench.report import render_report

    cases = make_cases(datasets=["mnist"], optimizers=("sgd",), batch_sizes=(64, 256))

    def at(clock_hz, factor):
        def change(measurement, case, repeat):
            slower = factor if case.batch_size == 64 else factor**3
            return dataclasses.replace(
                measurement,
                wall_window_s=8 * (1 + repeat / 1e4) / slower,
                step_times_s=((1 + repeat / 1e4) / slower,) * 8,
                **{f"{kind}_clock_{end}_hz": hz for kind, hz in (("sm", clock_hz), ("memory", 2.6e9)) for end in ENDS},
            )

        return change

    capped = dataclasses.replace(GPU, power_limit_w=400.0, gpu_uuid_hash="b" * 16)
    folders = [
        make_results(tmp_path / "full", cases, environment=GPU, repeats=5, change=at(2e9, 1.0)),
        make_results(tmp_path / "capped", cases, environment=capped, repeats=5, change=at(1.8e9, 0.9)),
    ]
    target = tmp_path / "both"
    render_report(folders, target)
    written = csv_of(target, "speedup").set_index("batch_size")
    assert written["clocks"].to_dict() == {64: "can_explain", 256: "cannot_explain"}
    assert written["clock_ratio"].tolist() == pytest.approx([0.9, 0.9])
    text = (target / "report.md").read_text()
    assert "1 of 2: clocks can explain the difference (none in cycles)" in text
    assert "1 of 2: clocks cannot explain it (the same direction in cycles)" in text
    assert "The clocks of the two sides differ" in text
    (data,) = re.findall(
        r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', (target / "index.html").read_text()
    )
    assert '"clocks"' in data and "cannot explain" in data
