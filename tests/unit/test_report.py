from __future__ import annotations

import csv
import dataclasses
import io
import re
import sys
import textwrap
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bench
from bench.analysis import RULES, judge, summarise_cases
from bench.config import load_config
from bench.errors import StoreError
from bench.records import Protocol, Status
from tests.results import CPU, GIB, GPU, make_cases, make_results
from tests.sketches import sketching

FIGURES = ("throughput", "memory", "categories", "accuracy", "steps")


@pytest.fixture(scope="module")
def cpu_report(tmp_path_factory):
    """A report of every status on a CPU, made once."""
    from bench.report import render_report

    folder = tmp_path_factory.mktemp("cpu") / "example"
    outcomes = {
        1: Status.FAILED,
        2: Status.SKIPPED,
        3: Status.TIMEOUT,
        4: Status.CRASHED,
        5: Status.NAN_LOSS,
        6: Status.INTERRUPTED,
        7: Status.THROTTLED,
    }
    cases = [*make_cases(), *make_cases(["cifar10"], ["resnet18"], ["sgd"], [8, 16, 32, 64])]
    make_results(folder / "data", cases, outcomes=outcomes, memory_bytes=180 << 20)
    render_report([folder], folder)
    return folder


@pytest.fixture(scope="module")
def gpu_report(tmp_path_factory):
    """A report of a GPU with every estimator, made once."""
    from bench.report import render_report

    folder = tmp_path_factory.mktemp("gpu") / "h200"
    cases = make_cases(["imagenet"], ["resnet50", "vit_b_16"], ["adam"], [16, 64, 256, 1024])
    make_results(folder / "data", cases, environment=GPU, trace=True, data_source="synthetic", memory_bytes=60 * GIB)
    render_report([folder], folder)
    return folder


def contents_of(folder):
    from bench.report.contents import Contents

    frame = bench.load(folder)
    return Contents("x", frame, summarise_cases(frame), judge(frame))


def first_page(folder):
    return (folder / "report.md").read_text().split("\n## ")[0]


def small(folder, **settings):
    """A report of one case, whose figures are not painted."""
    from bench.report import render_report

    cases = settings.pop("cases", make_cases(["mnist"], ["mlp"], ["sgd"], [64]))
    make_results(folder / "data", cases, **settings)
    with sketching():
        render_report([folder], folder)
    return folder


def test_the_page_to_open_is_returned(tmp_path):
    from bench.report import render_report

    make_results(tmp_path / "data", make_cases(["mnist"], ["mlp"], ["sgd"], [64]))
    with sketching():
        assert render_report([tmp_path], tmp_path / "elsewhere") == tmp_path / "elsewhere" / "index.html"


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_its_numbers_and_an_alternative_text(cpu_report, gpu_report, name):
    for folder in (cpu_report, gpu_report):
        assert len(pd.read_csv(folder / "figures" / f"{name}.csv"))
        html, markdown = (folder / "index.html").read_text(), (folder / "report.md").read_text()
        (alt,) = re.findall(rf'<figure id="{name}">.*?alt="([^"]+)"', html, re.DOTALL)
        assert any(mark.isdigit() for mark in alt)
        assert re.search(rf"!\[[^\n]{{40,}}\]\(figures/{name}\.png\)", markdown)


def test_figures_are_pngs_at_150_dpi(cpu_report):
    for name in FIGURES:
        with Image.open(cpu_report / "figures" / f"{name}.png") as image:
            assert round(image.info["dpi"][0]) == 150
            assert image.text == {}


def test_numbers_beside_throughput_are_the_points_drawn(cpu_report):
    from bench.report import theme
    from bench.report.figures import throughput

    contents = contents_of(cpu_report)
    with theme.style():
        drawing = throughput.draw(contents)
    drawn = {
        (round(float(x)), float(y))
        for axes in drawing.figure.axes
        for line in axes.get_lines()
        if line.get_transform() == axes.transData
        for x, y in zip(*line.get_data(), strict=True)
        if len(line.get_xdata()) and line.get_marker() not in ("_", "|")
    }
    written = pd.read_csv(cpu_report / "figures" / "throughput.csv")
    written = written[written["drawn"] & written["samples_per_s"].notna()]
    expected = {(int(row.batch_size), float(row.samples_per_s)) for row in written.itertuples()}
    assert expected <= drawn
    assert expected


def test_numbers_beside_step_times_are_the_raw_ones(cpu_report):
    frame = bench.load(cpu_report)
    written = pd.read_csv(cpu_report / "figures" / "steps.csv")
    raw = {
        float(value)
        for values in (*frame["step_times_s"], *frame["warmup_times_s"])
        if values is not None
        for value in values
    }
    assert set(written["step_time_s"]) <= raw
    assert written.loc[written["warm_up"], "step"].max() == -1
    assert set(written["process"]) == {0, 1, 2}


def test_shares_by_category_are_of_the_measured_peak(gpu_report):
    written = pd.read_csv(gpu_report / "figures" / "categories.csv")
    share = written["bytes"] / written["peak_allocated_bytes"]
    assert np.allclose(written["share_of_measured"], share)
    trace = written[written["estimator"] == "trace"].groupby(["panel", "batch_size"])["share_of_measured"].sum()
    assert np.allclose(trace, 1.0, atol=0.01)


def test_missing_estimates_are_absent_and_not_zero(cpu_report):
    written = pd.read_csv(cpu_report / "figures" / "memory.csv")
    assert set(written["kind"]) == {"measured, allocated", "formula"}
    table = pd.read_csv(cpu_report / "table.csv")
    assert table["trace_peak_allocated_bytes"].isna().all()
    assert (table.loc[table["runs_ok"] == 0, "samples_per_s"].dropna() > 0).all()


def test_shares_of_the_peaks_are_in_a_section_and_in_the_table_of_a_gpu_alone(cpu_report, gpu_report):
    text = (gpu_report / "report.md").read_text()
    section = text.split("## How close to the hardware")[1].split("\n## ")[0]
    table = pd.read_csv(gpu_report / "table.csv")
    best = table.dropna(subset="samples_per_s").sort_values("samples_per_s").drop_duplicates("model", keep="last")
    assert len(best) == 2
    for row in best.to_dict("records"):
        assert f"| 50.0 TFLOP/s | {100 * row['mfu_frac']:.1f} % |" in section
        assert f" | {100 * row['roofline_frac']:.1f} % |" in section
    assert "| MFU | of the roofline |" in text.split("## All cases")[1]
    of_the_cpu = (cpu_report / "report.md").read_text()
    assert "How close to the hardware" not in of_the_cpu and "MFU" not in of_the_cpu


def test_sections_stand_in_the_order_of_the_rules(cpu_report):
    headings = re.findall(r"^## (.+)$", (cpu_report / "report.md").read_text(), re.MULTILINE)
    expected = [
        "Figures",
        "Fastest cases",
        "Validity",
        "All cases",
        "Machine and protocol",
        "Limits",
        "How to reproduce",
    ]
    assert [heading for heading in headings if heading in expected] == expected
    assert re.findall(r'<h2 id="section-\d+">([^<]+)</h2>', (cpu_report / "index.html").read_text()) == headings


def test_the_first_page_says_what_was_measured_on_what_and_how_far_to_trust_it(cpu_report):
    page = first_page(cpu_report)
    for words in (
        "Example Eight 3.0 GHz (CPU)",
        "trains at up to",
        "95 % interval",
        "3 fresh processes",
        "runs ended well",
        "Trust:",
        "failed",
        "interrupted",
    ):
        assert words in page


def test_every_finding_stands_on_one_line_with_one_count_and_its_remedy_is_folded(cpu_report):
    page = (cpu_report / "report.md").read_text()
    found = re.findall(r"^- (.+) `([a-z_]+)`$", page, re.MULTILINE)
    codes = [code for _, code in found]
    assert len(codes) == len(set(codes)) and {"failed", "interrupted", "short_of_repeats", "cpu_only"} <= set(codes)
    folds = "".join(
        re.findall(r"<details>\n<summary>What to do, and which cases</summary>.*?</details>", page, re.DOTALL)
    )
    assert all(f"- `{code}` " in folds for code in codes)
    assert all(RULES[code].remedy in folds.replace("\\", "") for code in codes)


def test_the_most_important_figure_stands_right_after_the_answer(cpu_report, gpu_report):
    for folder in (cpu_report, gpu_report):
        answer, question, picture, caption, verdict, *minded = first_page(folder).split("\n\n")[1:]
        assert answer.startswith("**On ")
        assert re.fullmatch(r"!\[[^\n]+\]\(figures/accuracy\.png\)", picture)
        assert "figures/accuracy.csv" in caption
        assert verdict.startswith("> [!")
        assert question.startswith("### ") and question.endswith("?")
        lines = [line for part in minded for line in part.splitlines()]
        assert len(lines) <= 4 and all(line.startswith("- **") for line in lines)  # with the verdict five
        html = (folder / "index.html").read_text()
        assert 0 < html.index('class="answer"') < html.index('<figure id="accuracy">') < html.index("<h2 id=")
        for page in (html, (folder / "report.md").read_text()):
            assert len(re.findall(r'figures/accuracy\.png|<figure id="accuracy">', page)) == 1


def test_a_figure_has_the_same_bytes_in_a_fork_and_in_this_process(tmp_path, monkeypatch):
    from bench.report import render, render_report

    make_results(tmp_path / "data", make_cases(["mnist"], ["mlp"], ["sgd"], [64, 128]), repeats=2)
    made = {}
    for processors in (3, 1):
        monkeypatch.setattr(render, "_processors", lambda count=processors: count)
        folder = render_report([tmp_path / "data"], tmp_path / str(processors) / "report").parent
        made[processors] = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(made[1]) >= 10
    assert made[3] == made[1]


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise ValueError('in a fork')"])
def test_a_figure_that_a_fork_loses_is_drawn_here(tmp_path, monkeypatch, end):
    from bench.report import figures, render

    _file(
        tmp_path / "more" / "shy.py",
        f"""
        import os
        import pandas as pd
        from bench.report import theme
        from bench.report.contents import FigureKind
        from bench.report.drawing import Drawing
        home = os.getpid()
        def draw(contents):
            if os.getpid() != home:
                {end}
            figure, _ = theme.panels(1, "Shy", "")
            return Drawing("shy", "Shy", "Nothing.", "Nothing at 0.", figure, pd.DataFrame({{"y": [3]}}))
        FIGURE = FigureKind(order=15, draw=draw)
    """,
    )
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path / "more")])
    monkeypatch.setattr(render, "_processors", lambda: 2)
    try:
        folder = small(tmp_path / "shy", repeats=1)
    finally:
        sys.modules.pop("bench.report.figures.shy", None)
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {*FIGURES, "shy"}


def test_what_a_figure_raises_reaches_the_caller(tmp_path, monkeypatch):
    from bench.report.contents import FigureKind
    from bench.report.figures import throughput

    monkeypatch.setattr(throughput, "FIGURE", FigureKind(20, lambda contents: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        small(tmp_path / "raised", repeats=1)


def test_a_report_of_a_cpu_is_no_statement_about_gpus(cpu_report, gpu_report):
    assert "this is no statement about any GPU" in first_page(cpu_report)
    assert "no statement about any GPU" not in (gpu_report / "report.md").read_text()


def test_synthetic_images_are_said_on_the_first_page(cpu_report, gpu_report):
    assert "Synthetic images in all" in first_page(gpu_report)
    assert "Synthetic images" not in first_page(cpu_report)


def test_failures_stand_in_the_table_with_their_reasons(cpu_report):
    markdown = (cpu_report / "report.md").read_text()
    for words in (
        "RuntimeError: the made-up model raised",
        "no answer after 60 s",
        "SIGKILL",
        "out of memory",
        "skipped: excluded by a rule of the example",
    ):
        assert words in markdown
    table = pd.read_csv(cpu_report / "table.csv")
    assert set(table["status"]) == {
        "ok",
        "failed",
        "skipped",
        "timeout",
        "crashed",
        "nan_loss",
        "interrupted",
        "throttled",
        "oom",
    }


def test_absent_disclosures_read_unknown(cpu_report):
    assert re.search(r"CPU governor \| unknown", (cpu_report / "report.md").read_text())


def test_an_absent_protocol_field_is_unknown_where_torch_has_no_default_for_it(cpu_report):
    from bench.report.render import render_markdown
    from bench.report.sections import disclosures

    contents = contents_of(cpu_report)
    earlier = dataclasses.replace(contents, frame=contents.frame.assign(gradient_noise=None, threads=None))
    text = render_markdown("x", [("y", disclosures.build(earlier))])
    assert "| gradient noise | unknown |" in text
    assert "| threads | torch's default |" in text


def test_the_report_says_what_estimates_leave_out(tmp_path, gpu_report):
    protocol = Protocol(warmup_steps=3, measured_steps=8, compiled=True, cudnn_benchmark=True)
    folder = small(tmp_path / "compiled", environment=GPU, trace=True, protocol=protocol)
    said = "Of the estimates: compiled is on, but torch.compile is not modelled; cudnn_benchmark is on, but the memory"
    assert said in (folder / "report.md").read_text()
    assert "torch.compile is not modelled" in pd.read_csv(folder / "table.csv")["estimate_note"][0]
    assert "Of the estimates" not in (gpu_report / "report.md").read_text()


def test_html_needs_nothing_beside_it(cpu_report, gpu_report):
    for folder in (cpu_report, gpu_report):
        html = (folder / "index.html").read_text()
        assert (
            len(re.findall(r"<script(?![^>]*application/json)", html)) == 2
        )  # allowed by their hashes, without a source
        targets = re.findall(r'(?:src|srcset|href)="([^"]+)"', html)
        assert all(target.startswith(("data:image/png;base64,", "#", "figures/", "table.csv")) for target in targets)
        assert "url(" not in html
        assert "@import" not in html
        assert len(html) < 3_000_000


def test_figures_stand_before_tables_and_each_asks_its_question(cpu_report, gpu_report):
    for folder in (cpu_report, gpu_report):
        text, html = (folder / "report.md").read_text(), (folder / "index.html").read_text()
        assert text.rindex("](figures/") < text.index("| --- ")
        assert html.rindex("<figure ") < html.index("<table")
        questions = re.findall(r"^### ([^\n]+)\n\n!\[", text, re.MULTILINE)
        assert len(questions) == len(list((folder / "figures").glob("*.png"))) > 3
        assert all(question.endswith("?") for question in questions)
        assert re.findall(r'<h[23] class="question">([^<]+)</h[23]>\n<figure', html) == questions


def test_the_policy_allows_the_scripts_and_the_style_of_the_page_by_their_hashes_alone(cpu_report):
    import base64
    import hashlib

    def sources(tag):
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]

    html = (cpu_report / "index.html").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules.pop("script-src").split() == sources("script")
    assert rules.pop("style-src").split() == sources("style")
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}


def test_what_the_page_embeds_of_others_is_what_they_published_with_its_licence(cpu_report):
    """uPlot 1.6.32 from the npm registry: `npm pack uplot@1.6.32`."""
    import hashlib

    from bench import report

    folder = Path(report.__file__).parent / "vendored"
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == {
        "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
    html = (cpu_report / "index.html").read_text()
    for name in ("uPlot.LICENSE", "uPlot.iife.min.js", "uPlot.min.css"):
        assert all(line.rstrip() in html for line in (folder / name).read_text().splitlines())


def test_figures_are_readable_on_dark_paper(cpu_report):
    import base64

    from bench.report import theme

    html = (cpu_report / "index.html").read_text()
    (dark,) = re.findall(r'<figure id="memory">.*?srcset="data:image/png;base64,([^"]+)"', html, re.DOTALL)
    (light,) = re.findall(r'<figure id="memory">.*?src="data:image/png;base64,([^"]+)"', html, re.DOTALL)
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")) for text in (dark, light)]
    assert pixels[0].shape == pixels[1].shape
    assert tuple(pixels[0][0, 0]) == (0x0D, 0x11, 0x17)
    assert tuple(pixels[1][0, 0]) == (0xFF, 0xFF, 0xFF)
    ink = tuple(int(theme.INK[start : start + 2], 16) for start in (1, 3, 5))
    assert not (pixels[0] == ink).all(axis=2).any()
    assert (pixels[1] == ink).all(axis=2).any()


def test_the_configuration_in_the_report_is_the_one_that_was_run(tmp_path):
    config = load_config(
        _file(
            tmp_path / "given.toml",
            """
        name = "mine"
        description = 'quotes " and \\ and ü'
        [grid]
        dataset = ["mnist"]
        model = [{ name = "mlp", hidden = [256, 128] }]
        optimizer = ["sgd", { name = "adam", lr = 1e-3 }]
        batch_size = { pow2 = [16, 64] }
        [[exclude]]
        reason = "small"
        batch_size = 16
        [limits]
        run_timeout = "90 s"
    """,
        )
    )
    folder = small(tmp_path / "mine", notes={"name": "mine", "config": config.as_json(), "device": "cuda:1"})
    assert load_config(folder / "config.toml").as_json() == config.as_json()
    assert "bench sweep reports/mine/config.toml --device cuda:1\n" in (folder / "report.md").read_text()


def test_toml_of_odd_texts_reads_back():
    import tomllib

    from bench.report.contents import to_toml

    values = {
        "a b": 'x"\\\n\t\x7f\x01é😀',
        "flag": True,
        "list": [[1, 2.5], ["x"]],
        "none": None,
        "empty": [],
        "table": {"k": {"z": 1}},
        "tables": [{"a": 1}, {"b": [{"c": 2}]}],
    }
    assert tomllib.loads(to_toml(values)) == {key: value for key, value in values.items() if value is not None}


def test_one_run_makes_a_whole_report(tmp_path):
    folder = small(tmp_path / "one", repeats=1)
    assert sorted(path.stem for path in (folder / "figures").glob("*.png")) == sorted(FIGURES)
    assert "screening" in first_page(folder)


def test_nothing_ok_makes_a_report_that_says_so(tmp_path):
    folder = small(tmp_path / "none", outcomes={0: Status.CRASHED})
    assert "none of the 1 planned cases has a measured speed" in first_page(folder)
    assert [path.stem for path in (folder / "figures").glob("*.png")] == ["memory"]
    assert not pd.read_csv(folder / "figures" / "memory.csv")["measured"].any()
    assert "SIGKILL" in (folder / "report.md").read_text()


def test_skipped_cases_only_make_a_report(tmp_path):
    folder = small(tmp_path / "skipped", outcomes={0: Status.SKIPPED})
    assert "excluded by a rule of the example" in (folder / "report.md").read_text()


def test_a_path_without_results_is_refused(tmp_path):
    from bench.report import render_report

    with pytest.raises(StoreError, match="holds no results"):
        render_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_figures_of_an_earlier_rendering_do_not_stay(tmp_path):
    from bench.report import render_report

    folder = small(tmp_path / "again", repeats=1)
    (folder / "figures" / "gone.png").write_bytes(b"")
    (folder / "figures" / "gone.csv").write_bytes(b"")
    with sketching():
        render_report([folder], folder)
    assert not list((folder / "figures").glob("gone*"))
    assert not list(folder.rglob("*.part"))


def test_the_users_settings_of_matplotlib_do_not_matter(tmp_path):
    from bench.report import render_report

    folder = small(tmp_path / "plain", repeats=1)
    render_report([folder], folder)
    before = (folder / "figures" / "throughput.png").read_bytes()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 40, "lines.linewidth": 9}):
        render_report([folder], folder)
        assert mpl.rcParams["font.size"] == 30
    assert (folder / "figures" / "throughput.png").read_bytes() == before


def test_a_section_is_one_new_file(tmp_path, monkeypatch):
    from bench.report import sections
    from bench.report.render import all_sections

    _file(
        tmp_path / "more" / "greeting.py",
        """
        from bench.report.blocks import Paragraph
        from bench.report.contents import Section
        SECTION = Section(order=45, title="Greeting", build=lambda contents: [Paragraph(f"{len(contents.frame)} runs")])
    """,
    )
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path / "more")])
    try:
        assert "Greeting" in [section.title for section in all_sections()]
        folder = small(tmp_path / "greeted", repeats=1)
    finally:
        sys.modules.pop("bench.report.sections.greeting", None)
    assert "## Greeting\n\n1 runs\n\n## All cases" in (folder / "report.md").read_text()
    assert ">Greeting</h2>" in (folder / "index.html").read_text()


def test_a_figure_is_one_new_file(tmp_path, monkeypatch):
    from bench.report import figures

    _file(
        tmp_path / "more" / "dots.py",
        """
        import pandas as pd
        from bench.report import theme
        from bench.report.contents import FigureKind
        from bench.report.drawing import Drawing
        def draw(contents):
            figure, (axes,) = theme.panels(1, "Dots", "")
            axes.plot([1, 2], [3, 4])
            return Drawing("dots", "Dots", "Two dots.", "Dots at 3 and 4.", figure, pd.DataFrame({"y": [3, 4]}))
        FIGURE = FigureKind(order=99, draw=draw)
    """,
    )
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path / "more")])
    try:
        folder = small(tmp_path / "dotted", repeats=1)
    finally:
        sys.modules.pop("bench.report.figures.dots", None)
    assert (folder / "figures" / "dots.csv").read_text() == "y\n3\n4\n"
    assert "![Dots at 3 and 4.](figures/dots.png)" in (folder / "report.md").read_text()


def test_long_tables_are_cut_in_the_text_and_whole_in_the_csv(tmp_path):
    cases = make_cases(["mnist"], ["mlp"], ["sgd"], range(1, 251))
    folder = small(tmp_path / "long", cases=cases, repeats=1, protocol=Protocol(warmup_steps=1, measured_steps=8))
    rows = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("| mlp | mnist |")]
    assert len(rows) == 200 + 1
    assert len(pd.read_csv(folder / "table.csv")) == 250
    assert "The first 200 of 250 cases" in (folder / "report.md").read_text()


def test_more_panels_and_lines_than_fit_are_counted_and_kept_in_the_csv(tmp_path):
    cases = [
        case
        for number in range(12)
        for optimizer in ("sgd", "adam")
        for case in make_cases(["mnist"], [f"model{number:02d}"], [optimizer], [16, 32])
    ]
    folder = small(tmp_path / "many", cases=cases, repeats=1)
    written = pd.read_csv(folder / "figures" / "throughput.csv")
    assert written.loc[written["drawn"], "panel"].nunique() == 9
    assert written["panel"].nunique() == 12
    assert "3 more panels did not fit" in (folder / "report.md").read_text()


def test_two_machines_share_one_report(tmp_path):
    from bench.report import render_report

    make_results(tmp_path / "a", make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64]), environment=GPU)
    make_results(tmp_path / "b", make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64]), environment=CPU)
    with sketching():
        render_report([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    page = (tmp_path / "both" / "report.md").read_text()
    assert "|   | NVIDIA H200 | Example Eight 3.0 GHz (CPU) |" in page
    assert set(pd.read_csv(tmp_path / "both" / "figures" / "curves.csv")["machine"]) == {
        "NVIDIA H200",
        "Example Eight 3.0 GHz (CPU)",
    }
    assert not (tmp_path / "both" / "figures" / "throughput.csv").exists()


def test_no_path_of_the_machine_is_in_a_report(cpu_report):
    for path in cpu_report.rglob("*"):
        if path.suffix in (".md", ".html", ".csv", ".toml"):
            assert str(cpu_report.parent) not in path.read_text()


def test_the_terminal_gets_ten_lines_and_the_path_last(cpu_report):
    from bench.report import summary_lines

    lines = summary_lines(bench.load(cpu_report), cpu_report / "index.html")
    assert len(lines) <= 10
    assert lines[-1] == f"Report: {cpu_report / 'index.html'}"
    text = "\n".join(lines)
    for words in ("runs ok", "samples/s (95 % interval", "the formula is off by", "Validity: failed", "interrupted"):
        assert words in text
    assert "Report" not in "\n".join(summary_lines(bench.load(cpu_report), None))


def test_the_terminal_names_the_first_reason(tmp_path):
    from bench.report import summary_lines

    frame = bench.load(make_results(tmp_path, outcomes={0: Status.FAILED}))
    failed = [line for line in summary_lines(frame, None) if line.startswith("failed 3")]
    assert failed[0].startswith("failed 3: mlp on mnist, batch 16, sgd: RuntimeError: the made-up model raised")


def test_table_csv_has_full_precision(cpu_report):
    summary = summarise_cases(bench.load(cpu_report))
    with (cpu_report / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["samples_per_s"] for row in rows if row["samples_per_s"]] == [
        repr(float(value)) for value in summary["samples_per_s"].dropna()
    ]


def _file(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path
