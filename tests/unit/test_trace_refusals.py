"""What the trace refuses, in words, rather than give a number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import folders
from bench.devices import load_device
from bench.errors import BenchError, ReadsValues, Unsupported
from bench.estimators.memory import Target, trace_peaks
from bench.estimators.recording import Asks, StepEnd
from bench.records import Case, Choice

CASE = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 16)


def branching() -> torch.nn.Module:
    """A model that takes another way by what it sees."""

    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layer(images)
            return found * 2 if found.sum().item() > 0 else found

    return Branching()


class Training:
    """A step of a model."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.model = model.to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.batch = (torch.zeros(3, 4).to(device),)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.batch[0]).sum().backward()
        self.optimizer.step()


def test_a_model_that_reads_its_values() -> None:
    from bench.estimators.record import record_training

    with pytest.raises(
        ReadsValues,
        match=r"^the step reads values from the device \(aten::_local_scalar_dense in test_trace_refusals\.py:\d+\), "
        r"so it cannot be traced without running it$",
    ):
        record_training(lambda device: Training(branching(), device))
    plain = record_training(lambda device: Training(torch.nn.Linear(4, 2), device))
    assert [entry.step for entry in plain.entries if isinstance(entry, StepEnd)] == [0, 1, 2, 3]


def asking(name: str, heard: list[Any]) -> torch.nn.Module:
    """A layer that asks the GPU what it is."""

    class Asking(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            heard.append(getattr(torch.cuda.get_device_properties(images.device), name))
            return super().forward(images)

    return Asking(4, 2)


def test_the_gpus_properties_are_those_of_the_device_file() -> None:
    """Some of timm's optimizers go through the parameters in parts that fit in the cache."""
    from bench.estimators.kept import machine_of
    from bench.estimators.memory_settings import MemorySettings
    from bench.estimators.record import record_training

    machine = machine_of(load_device("h200"), MemorySettings("2.15.0"))
    expected = {
        "L2_cache_size": 62_914_560,
        "multi_processor_count": 132,
        "major": 9,
        "name": "NVIDIA H200",
        "total_memory": load_device("h200").memory_bytes,
    }
    for name, value in expected.items():
        heard: list[Any] = []
        model = asking(name, heard)
        recording = record_training(lambda device, model=model: Training(model, device), 3, (9, 0), machine.properties)
        assert set(heard) == {value}
        assert recording.asks is Asks.PROPERTIES
    assert record_training(lambda device: Training(torch.nn.Linear(4, 2), device)).asks is Asks.NOTHING
    with pytest.raises(Unsupported, match="asks for pci_bus_id of the GPU, which is not known of this device"):
        record_training(lambda device: Training(asking("pci_bus_id", []), device), 3, (9, 0), machine.properties)


def test_a_torch_without_the_private_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.estimators.record import record_training

    monkeypatch.delattr(torch._C, "_from_dlpack")
    with pytest.raises(Unsupported, match=r"cannot run on torch .*: torch\._C\._from_dlpack is missing.*torch 2\.6"):
        record_training(lambda device: Training(torch.nn.Linear(4, 2), device))


def test_a_device_that_is_no_gpu() -> None:
    with pytest.raises(Unsupported, match="no memory trace for cpu"):
        trace_peaks(CASE, Target.of(load_device("cpu")))


def test_a_folder_of_an_account_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TRACE_CACHE", "~nobody-of-this-name/traces")
    with pytest.raises(BenchError, match="BENCH_TRACE_CACHE=~nobody-of-this-name/traces"):
        folders.trace_cache_folder()


def test_what_fits_by_fit_fits_by_estimate_and_one_more_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the limit the allocator gives back what it caches: both commands must know."""
    from dataclasses import replace

    from bench.estimators.fitting import fit_batch
    from bench.estimators.memory import estimate_trace

    small: Any = replace(
        load_device("rtx4090"),
        memory_bytes=1 << 30,
        context_bytes=100 << 20,
        context_low_bytes=None,
        context_high_bytes=None,
    )
    case = Case(Choice("cifar10"), Choice("resnet18"), Choice("adam"), 16)
    target = Target.of(small, workspaces=False)
    largest = fit_batch(case, target).largest_batch_size
    assert largest is not None
    found, more = (
        estimate_trace(replace(case, batch_size=size), target, shared=True) for size in (largest, largest + 1)
    )
    assert (found["estimated_fit"], more["estimated_fit"]) == ("fits", "does not fit")
    assert found["estimated_device_bytes"] <= 1 << 30 < more["estimated_device_bytes"]


def test_the_cache_of_traces_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BENCH_TRACE_CACHE")
    assert folders.trace_cache_folder() == tmp_path / ".cache" / "bench" / "traces"


DECORATED = """
import sys, torch
from bench.estimators.fake_cuda import FakeCuda

class Nobody:
    def called(self, *what): pass
    def freed(self, block): pass

assert "torch._dynamo" not in sys.modules
with FakeCuda(Nobody()):
    torch.optim.SGD(torch.nn.Linear(2, 2).to("cuda").parameters(), lr=0.1)
    light = not hasattr(sys.modules["torch._dynamo"], "__file__")
    decorated = torch._dynamo.assume_constant_result(lambda: 7)
print(light, decorated(), sys.modules["torch._dynamo"].__file__ is not None)
"""


@pytest.mark.slow
def test_a_package_imported_in_a_trace_may_decorate_for_the_compiler_which_is_not_loaded_otherwise() -> None:
    done = subprocess.run([sys.executable, "-c", DECORATED], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "7", "True"], done.stderr
