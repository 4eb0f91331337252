"""How long a report of 5,000 runs takes, with figures drawn and with kept ones, and how long its reader waits (goal: 2 s)."""

from __future__ import annotations

import pytest

from bench.records import Protocol
from bench.report import render_report
from bench.store import consolidate
from tests.browser import CHROMIUM, browser
from tests.machines import A100, make_machine
from tests.results import GIB, GPU, make_cases, make_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """1,667 cases of a GPU, three processes each."""
    cases = [
        case
        for precision in ("float32", "tf32", "bf16", "fp16")
        for case in make_cases(
            ["imagenet", "cifar10"],
            ["resnet18", "resnet50", "vit_b_16", "mlp", "vgg16", "swin_t"],
            ["sgd", "sgd_momentum", "adam", "adamw"],
            [16 << power for power in range(9)],
            precision=precision,
        )
    ][:1667]
    folder = tmp_path_factory.mktemp("speed")
    protocol = Protocol(warmup_steps=10, measured_steps=30)
    return make_results(folder / "data", cases, environment=GPU, trace=True, memory_bytes=60 * GIB, protocol=protocol)


def test_report_of_5000_runs(benchmark, results, tmp_path):
    page = benchmark.pedantic(render_report, args=([results], tmp_path), rounds=1, warmup_rounds=0)
    assert page.stat().st_size < 5_000_000


def test_second_report_of_5000_runs(benchmark, results, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_FIGURES", str(tmp_path / "kept"))
    consolidate(results)
    first = render_report([results], tmp_path / "report").read_bytes()
    page = benchmark.pedantic(render_report, args=([results], tmp_path / "report"), rounds=1, warmup_rounds=0)
    assert page.read_bytes() == first


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_opening_and_filtering_a_page_of_1000_cases_on_two_machines(benchmark, tmp_path):
    """From the request to a filtered table: the page is loaded, its script has run, and a first search was answered."""
    cases = [
        case
        for precision in ("float32", "tf32", "bf16", "fp16")
        for case in make_cases(
            ["imagenet", "cifar10"],
            ["resnet18", "resnet50", "vit_b_16", "mlp", "vgg16"],
            ["sgd", "adam"],
            [16 << power for power in range(13)],
            precision=precision,
        )
    ][:1000]
    settings = {"trace": True, "repeats": 1, "memory_bytes": 60 * GIB}
    folders = [
        make_machine(tmp_path / name, environment, factor, seed, cases, **settings)
        for seed, (name, environment, factor) in enumerate([("h200", GPU, 1.0), ("a100", A100, 2.0)])
    ]
    page = render_report(folders, tmp_path / "both")
    assert page.stat().st_size < 3_000_000

    def use(tab):
        tab.open(page)
        tab.value(
            "(() => { const find = document.getElementById('find'); find.value = 'resnet50 a100 bf16';"
            "find.dispatchEvent(new Event('input')); return document.body.offsetHeight })()"
        )
        assert tab.value("document.getElementById('count').textContent") == "52 of 2000 cases"

    with browser(tmp_path / "profile") as tab:
        benchmark.pedantic(use, args=(tab,), rounds=10, warmup_rounds=1)
