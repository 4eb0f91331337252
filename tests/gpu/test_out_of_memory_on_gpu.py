"""Memory of a real GPU that runs out in every way that can be had: each is told from a fault of the code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.each import each

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

HEAD = """
import json, sys, torch
from bench.probes.oom import is_out_of_memory, may_hide_out_of_memory, parse_out_of_memory
from bench.probes.torch_memory import CudaMemory

def told(act):
    try:
        act()
        torch.cuda.synchronize()
    except Exception as error:
        hidden = may_hide_out_of_memory(error) and CudaMemory().is_exhausted()
        kind = "oom" if is_out_of_memory(error) else "oom, hidden" if hidden else "other"
        return {"kind": kind, "asked": parse_out_of_memory(error), "said": f"{type(error).__name__}: {error}"[:600]}
    return {"kind": "worked", "asked": None, "said": ""}

HUGE = 1 << 42
def take(): torch.empty(HUGE, dtype=torch.uint8, device="cuda")
"""

WAYS = {
    "caching allocator": ("take", {}),
    "expandable segments": ("take", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
    "cudaMallocAsync": ("take", {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}),
    "without the allocator": ("take", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
    "share of the device": (
        "lambda: (torch.cuda.set_per_process_memory_fraction(0.01), torch.empty(4 << 30, dtype=torch.uint8, device='cuda'))",
        {},
    ),
    "torch.compile": (
        "lambda: torch.compile(lambda x: x[:, None] * x[None, :] + 1)(torch.ones(1 << 20, device='cuda'))",
        {},
    ),
    "a fault of the code": ("lambda: torch.ones(3, device='cuda') @ torch.ones(4, device='cuda')", {}),
    "no such kernel shape": ("lambda: torch.empty(-1, device='cuda')", {}),
}
"""What is done in a process of its own, and with which variables of torch's allocator, which it reads once."""

NO_COMPILER = ("C compiler", "TritonMissing", "working triton", "ImportError", "CalledProcessError", "Python.h")


def start(script: str, variables: dict[str, str]) -> subprocess.Popen[str]:
    unwanted = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), env.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + script],
        env={**env, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, dict[str, object]]:
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err[-3000:]
    found: dict[str, dict[str, object]] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, object]]:
    """What came of each of `WAYS`; all at once, as none of them leaves anything on the device."""
    started = {
        name: start(f"print(json.dumps({{'it': told({act})}}))", variables) for name, (act, variables) in WAYS.items()
    }
    return {name: finish(process)["it"] for name, process in started.items()}


@each("name", [name for name in WAYS if name not in ("torch.compile", "a fault of the code", "no such kernel shape")])
def test_memory_that_no_device_has_is_out_of_memory_whoever_is_asked(
    name: str, told: dict[str, dict[str, object]]
) -> None:
    assert told[name]["kind"] == "oom", told[name]


def test_the_amount_is_that_of_the_tensor_where_torch_says_one(told: dict[str, dict[str, object]]) -> None:
    for name in ("caching allocator", "expandable segments"):
        assert told[name]["asked"] in (1 << 42, None), told[name]  # no amount where NVML did not answer torch


def test_a_compiled_graph_that_needs_too_much_is_out_of_memory(told: dict[str, dict[str, object]]) -> None:
    found = told["torch.compile"]
    if any(text in str(found["said"]) for text in NO_COMPILER):
        pytest.skip(f"torch.compile does not work here: {found['said']}")
    assert found["kind"] == "oom", found


@each("name", ["a fault of the code", "no such kernel shape"])
def test_a_fault_of_the_code_is_not_out_of_memory(name: str, told: dict[str, dict[str, object]]) -> None:
    assert told[name]["kind"] == "other", told[name]


FULL = """
held, size = [], 1 << 30
images = torch.ones(8, 16, 32, 32, device="cuda", requires_grad=True)
weights = torch.ones(32, 16, 3, 3, device="cuda")
square = torch.rand(64, 64, device="cuda")
while size >= 2 << 20:  # leaves less than the driver needs for anything
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
acts = {
    "convolution": lambda: torch.nn.functional.conv2d(images, weights).sum().backward(),
    "matrix product": lambda: square @ square,
    "factorisation": lambda: torch.linalg.svd(square),
    "Fourier transform": lambda: torch.fft.fft(square),
    "a kernel's module": lambda: torch.special.bessel_j0(square),
    "the allocator": lambda: torch.empty(64 << 20, dtype=torch.uint8, device="cuda"),
}
found = {name: told(act) for name, act in acts.items()}
found["exhausted"] = {"kind": str(CudaMemory().is_exhausted())}
held.clear()
torch.cuda.empty_cache()
found["afterwards"] = told(lambda: square @ square)
print(json.dumps(found))
"""


def test_on_a_full_device_every_library_works_or_says_so_in_words_that_are_known() -> None:
    found = finish(start(FULL, {}))
    print(json.dumps(found, indent=1))  # pytest -s shows who said what
    assert found["the allocator"]["kind"] == "oom"
    acts = [name for name in found if name not in ("exhausted", "afterwards")]
    assert not {name: found[name] for name in acts if found[name]["kind"] == "other"}
    assert found["exhausted"]["kind"] == "True"
