from __future__ import annotations

import pytest

from bench.records import Protocol
from tests.machines import A100, make_machine
from tests.results import GIB, GPU, make_cases

MODELS = ["resnet18", "resnet50", "vit_b_16", "mlp", "vgg16"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_of_a_thousand_cases_stays_under_three_megabytes(tmp_path):
    from bench.report import render_report

    cases = [
        case
        for precision in ("float32", "bf16")
        for case in make_cases(
            ["imagenet", "cifar10"], MODELS, ["sgd", "adam"], [16 << n for n in range(13)], precision=precision
        )
    ][:500]
    folders = [
        make_machine(
            tmp_path / name,
            environment,
            factor,
            seed,
            cases,
            trace=True,
            repeats=1,
            memory_bytes=60 * GIB,
            protocol=Protocol(warmup_steps=3, measured_steps=8),
        )
        for seed, (name, environment, factor) in enumerate([("h200", GPU, 1.0), ("a100", A100, 2.0)])
    ]
    page = render_report(folders, tmp_path / "both")
    assert len(list((tmp_path / "both" / "figures").glob("*.png"))) >= 9
    assert page.stat().st_size < 3_000_000
