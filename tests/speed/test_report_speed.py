"""How long a report of 5,000 runs takes: reading every part and drawing every figure, and with both kept."""

from __future__ import annotations

import pytest

from bench.records import Protocol
from bench.report import render_report
from bench.store import consolidate
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
