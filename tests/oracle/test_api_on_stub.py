"""The Python interface in a process that has used its GPU, which the stub driver plays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.oracle.stub import StubDriver

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import torch
import bench
from bench.errors import BenchError
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def ask():
    found = bench.estimate(build, dataset="mnist", batch_size=32, device="h200", workspaces=False)
    return found.trace_peak_allocated_bytes, found.estimate_note


before = ask()
held = torch.ones(1 << 20, device="cuda")
allocated = torch.cuda.memory_allocated()
after = ask()
assert (torch.cuda.is_initialized(), torch.cuda.memory_allocated()) == (True, allocated)
(held.requires_grad_() * 2).sum().backward()
try:
    ask()
    refusal = None
except BenchError as error:
    refusal = str(error)
print(json.dumps([before, after, refusal]))
"""


def test_a_process_that_has_initialised_cuda_asks_on_and_one_that_has_trained_is_told_why_not(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="ascii")
    variables = {"PYTHONPATH": str(Path(__file__).parents[2]), "BENCH_TRACE_CACHE": "off"}
    before, after, refusal = json.loads(stub_driver.run_script(script, variables=variables))
    assert before == after
    assert before[0] > 0
    assert before[1] is None
    assert refusal.startswith("torch refuses autograd in forks of a process that has run a backward pass")
