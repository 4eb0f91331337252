"""How long estimates take: a cold case, further batch sizes, a grid of a thousand cases; printed, not asserted.

Nothing is kept on disk here (tests/conftest.py turns that off), and cuDNN is asked for its workspaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.devices import load_device
from bench.records import Case, Choice, Precision

ROOT = Path(__file__).parents[2]
CASE = Case(Choice("imagenet"), Choice("resnet50"), Choice("adam"), 64)
MODELS = (
    "mlp",
    "resnet18",
    "resnet50",
    "vgg11",
    "mobilenet_v2",
    "vit_b_16",
    "convnext_tiny",
    "efficientnet_b0",
    "swin_t",
    "densenet121",
)
OPTIMIZERS = ("sgd", "sgd_momentum", "adam", "adamw", "rmsprop")
BATCHES = (4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
_COLD = """
import torch, torchvision, time
from bench.devices import load_device
from bench.estimators.memory import Target, estimate_trace
from bench.records import Case, Choice
started = time.perf_counter()
estimate_trace(Case(Choice("imagenet"), Choice("resnet50"), Choice("adam"), 64), Target.of(load_device("h200")))
print(time.perf_counter() - started)
"""


def test_one_case_cold(benchmark: BenchmarkFixture) -> None:
    """Goal: under 3 s, the start of torch's fake tensors included; importing torch is not. Seconds in extra_info."""
    seconds: list[float] = []

    def cold() -> None:
        command = [sys.executable, "-c", _COLD]
        seconds.append(float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))

    benchmark.pedantic(cold, rounds=5)
    benchmark.extra_info["seconds after the imports"] = sorted(seconds)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_further_batch_size(benchmark: BenchmarkFixture, precision: Precision) -> None:
    """Goal: 2.5 times faster than version 9b563e3 on the same machine (93 ms there)."""
    from bench.estimators.memory import Target, estimate_trace

    target, batches = Target.of(load_device("h200")), iter(range(64, 4096))

    def further() -> None:
        estimate_trace(replace(CASE, batch_size=next(batches), precision=precision), target, shared=True)

    benchmark.pedantic(further, rounds=20, warmup_rounds=1)


_OPTIMIZERS = """
import torch, torchvision, time
from dataclasses import replace
from bench.devices import load_device
from bench.estimators.kept import recording_of
from bench.estimators.memory import Target
from bench.records import Case, Choice
case, machine = Case(Choice("imagenet"), Choice("resnet50"), Choice("sgd"), 64), Target.of(load_device("h200")).machine
for optimizer in ("sgd", "adam", "sgd_momentum", "adamw", "rmsprop"):
    started = time.perf_counter()
    recording_of(replace(case, optimizer=Choice(optimizer)), machine, shared=True)
    print(time.perf_counter() - started)
"""


def test_a_further_optimizer(benchmark: BenchmarkFixture) -> None:
    """Recordings that serve all batch sizes, of one optimizer after the other. Seconds of each in extra_info."""
    seconds: list[list[float]] = []

    def record() -> None:
        command = [sys.executable, "-c", _OPTIMIZERS]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        seconds.append([float(line) for line in done.stdout.split()])

    benchmark.pedantic(record, rounds=5)
    benchmark.extra_info["seconds of each optimizer, by round"] = seconds


def test_a_thousand_cases(benchmark: BenchmarkFixture) -> None:
    """As the command runs it: formula, trace with workspaces, and speed.

    Goal: 3 times faster than version 9b563e3 on the same machine (66 s on two cores there).
    """
    command = [sys.executable, "-m", "bench", "estimate", "--json", "--device", "h200"]
    for option, values in (("--model", MODELS), ("--optimizer", OPTIMIZERS), ("--batch-size", BATCHES)):
        command += [word for value in values for word in (option, str(value))]
    environment = {**os.environ, "BENCH_TRACE_CACHE": "off"}

    def estimate() -> None:
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        rows = json.loads(done.stdout)
        assert len(rows) == 1000
        assert all(row["trace_peak_reserved_bytes"] for row in rows)

    benchmark.pedantic(estimate, rounds=1)
