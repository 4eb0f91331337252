"""How fast the harness itself is; `nox -s speed` prints the figures, and nothing here asserts one."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.config import SweepConfig, check_config
from bench.launchers import LocalLauncher
from bench.plan import build_plan
from tests.chaos.devices import REPEATS, sweep_slots
from tests.speed.tasks import busy, does_nothing

ROOT = Path(__file__).parents[2]


def grid_of_10_000() -> SweepConfig:
    return check_config(
        {
            "name": "big",
            "grid": {
                "dataset": ["mnist", "cifar10", "cifar100", "imagenet"],
                "model": [
                    "mlp",
                    "mlp:hidden=256",
                    "resnet18",
                    "resnet34",
                    "resnet50",
                    "vgg16",
                    "vit_b_16",
                    "swin_t",
                    "densenet121",
                    "mobilenet_v2",
                ],
                "optimizer": ["sgd", "adam", "adamw", "rmsprop", "adagrad"],
                "batch_size": {"from": 1, "to": 25, "step": 1},
                "precision": ["float32", "bf16"],
            },
            "measure": {"repeats": 1},
        },
        "speed",
    )


def test_help_of_the_command(benchmark: BenchmarkFixture) -> None:
    """Goal: under 150 ms."""
    command = [sys.executable, "-m", "bench", "--help"]
    benchmark.pedantic(lambda: subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL), rounds=15)


def test_planning_10_000_cases(benchmark: BenchmarkFixture) -> None:
    """Goal: under 1 s. Names are looked up once before, as in any session."""
    config = grid_of_10_000()
    plan = benchmark.pedantic(build_plan, args=(config, "cuda"), rounds=5, warmup_rounds=1)
    assert len(plan) == 10_000


@pytest.fixture(scope="module")
def launcher() -> LocalLauncher:
    made = LocalLauncher()
    made.run(does_nothing, None, timeout_s=120)
    return made


def test_a_process_from_a_warm_server(benchmark: BenchmarkFixture, launcher: LocalLauncher) -> None:
    """Goal: under 0.3 s, from asking for the process to its end; importing torch and torchvision takes seconds."""
    benchmark.pedantic(lambda: launcher.run(does_nothing, None, timeout_s=60), rounds=20)


def test_the_parent_while_a_run_measures(benchmark: BenchmarkFixture, launcher: LocalLauncher) -> None:
    """Goal: under 2 % of a core. The share stands in extra_info."""
    shares: list[float] = []

    def measured() -> None:
        before = psutil.Process().cpu_times()
        launcher.run(busy, 3.0, timeout_s=60)
        after = psutil.Process().cpu_times()
        shares.append((after.user + after.system - before.user - before.system) / 3.0)

    benchmark.pedantic(measured, rounds=3)
    benchmark.extra_info["share of a core, median"] = statistics.median(shares)


def test_the_median_step_beside_a_hand_written_loop(benchmark: BenchmarkFixture) -> None:
    """Goal: within 0.5 %. Pairs, in turn A B B A; the median of the pairs' ratios stands in extra_info."""
    import torch

    from bench import catalog
    from bench.plan import image_spec
    from bench.probes.step_timing import time_steps
    from bench.records import Case, Choice, Protocol
    from bench.workload import build_workload
    from bench.workload.inputs import build_inputs

    case = Case(Choice("cifar10"), Choice("resnet18"), Choice("sgd"), 4, image_size=32)
    images, device = image_spec(case.dataset, 0), torch.device("cpu")
    inputs = build_inputs(case, catalog.describe_dataset(case.dataset), Protocol(), device)
    workload = build_workload(case, images, Protocol(), device)
    image_batch, labels = next(inputs)
    step, ratios, same = workload.step, [], itertools.repeat((image_batch, labels))

    def harness() -> float:
        return statistics.median(time_steps(lambda: step(inputs), 10, "cpu").step_times_s)

    def by_hand() -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            step(same)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def pair() -> None:
        first, second, third, fourth = harness(), by_hand(), by_hand(), harness()
        ratios.append((first + fourth) / (second + third))

    pair()
    ratios.clear()
    benchmark.pedantic(pair, rounds=15)
    benchmark.extra_info["median ratio to the hand-written loop"] = statistics.median(ratios)
    benchmark.extra_info["quartiles of the ratio"] = statistics.quantiles(ratios, n=4)


@pytest.mark.parametrize("slots", [1, 4])
def test_the_harness_for_a_run_beside_others(
    benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """Goal: with 4 at once, the parent's processor time for a run is at most 1.2 times that with one; see extra_info."""
    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))
    cases, times_s = 25, list[float]()
    sweep_slots(tmp_path / "warm", 1, slots)  # what is imported late

    def sweep() -> None:
        out, before = tmp_path / f"out-{len(times_s)}", time.process_time()
        sweep_slots(out, cases, slots)
        times_s.append((time.process_time() - before) / (cases * REPEATS))

    benchmark.pedantic(sweep, rounds=3)
    benchmark.extra_info["parent_ms_a_run"] = round(statistics.median(times_s) * 1e3, 2)
