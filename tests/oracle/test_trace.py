"""The trace estimator against torch's real allocator under the stub driver: equal to the byte."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import warm

from .devices import DEVICES
from .stub import Case, StubDriver

HERE = Path(__file__).parent
MNIST, CIFAR, IMAGENET, VOC = (1, 28, 10), (3, 32, 10), (3, 224, 1000), (3, 100, 21)
CASES: list[Case] = [
    ("mlp", MNIST, "sgd", {}, 64, "float32", "contiguous"),
    ("mlp", MNIST, "adam", {}, 1, "float32", "contiguous"),
    ("mlp", CIFAR, "adam", {"foreach": False}, 4096, "float32", "contiguous"),
    ("mlp", CIFAR, "adamw", {"fused": True}, 256, "bf16", "contiguous"),
    ("resnet18", CIFAR, "sgd", {"momentum": 0.9}, 64, "float32", "contiguous"),
    ("resnet18", IMAGENET, "rmsprop", {}, 16, "bf16", "channels_last"),
    ("mobilenet_v2", IMAGENET, "adagrad", {}, 8, "float32", "contiguous"),
    ("squeezenet1_1", IMAGENET, "adafactor", {}, 16, "bf16", "channels_last"),
    ("densenet121", IMAGENET, "adam", {}, 4, "float32", "contiguous"),
    ("convnext_tiny", IMAGENET, "adamw", {}, 4, "float32", "contiguous"),
    ("swin_t", IMAGENET, "adam", {}, 4, "float32", "contiguous"),
    ("vit_b_16", IMAGENET, "adamw", {}, 4, "float32", "contiguous"),
    ("vit_b_16", IMAGENET, "sgd", {}, 4, "bf16", "contiguous"),
    ("fcn_resnet50", VOC, "sgd", {"momentum": 0.9}, 4, "float32", "contiguous"),
    ("fcn_resnet50", VOC, "adam", {}, 2, "bf16", "channels_last"),
    ("deeplabv3_resnet50", VOC, "adagrad", {}, 8, "bf16", "channels_last"),
    ("deeplabv3_mobilenet_v3_large", VOC, "adam", {}, 4, "float32", "channels_last"),
    ("lraspp_mobilenet_v3_large", VOC, "adamw", {}, 4, "float32", "contiguous"),
    ("lraspp_mobilenet_v3_large", (3, 480, 3), "sgd", {}, 4, "bf16", "channels_last"),
]

CAPTURABLE = ("adam", "adamw", "nadam", "radam", "adamax", "adadelta", "asgd", "rmsprop", "rprop")
SWITCHES: list[Case] = (
    [
        ("mlp", MNIST, optimizer, {"capturable": True, "foreach": foreach}, 8, "float32", "contiguous")
        for optimizer in CAPTURABLE
        for foreach in (True, False)
    ]
    + [
        ("mlp", MNIST, optimizer, {"fused": True, "maximize": True}, 8, "float32", "contiguous")
        for optimizer in ("sgd", "adam", "adamw", "adagrad")
    ]
    + [
        ("mlp", MNIST, "adam", {"amsgrad": True, "capturable": True}, 8, "bf16", "contiguous"),
        ("mlp", MNIST, "rmsprop", {"centered": True, "momentum": 0.9, "capturable": True}, 8, "float32", "contiguous"),
        ("resnet18", CIFAR, "adam", {"capturable": True}, 16, "float32", "contiguous"),
    ]
)


def trace_peaks(
    cases: list[Case],
    device: str,
    folder: Path,
    workspaces: str | None = None,
    variables: Mapping[str, str] | None = None,
    settled: bool = False,
) -> list[dict[str, Any]]:
    """The traces of the cases, in a process without the stub that has the variables set."""
    played = DEVICES[device]
    machine = [
        played["multiprocessors"],
        played["threads_per_multiprocessor"],
        [played["capability_major"], played["capability_minor"]],
        played["memory_bytes"],
    ]
    task = folder / "task.json"
    task.write_text(json.dumps({"cases": cases, "device": machine, "workspaces": workspaces, "settled": settled}))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), **(variables or {})}
    done = warm.run([str(task)], environment, script=HERE / "trace_task.py", loaded_with=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("device", ["h200", "a100-40gb"])
def test_peaks_equal_the_real_allocators(stub_driver: StubDriver, tmp_path: Path, device: str) -> None:
    truths = stub_driver.run_cases(CASES, history=False, device=device)
    for case, truth, found in zip(CASES, truths, trace_peaks(CASES, device, tmp_path), strict=True):
        last = truth.memory_stats[3]
        expected = {name: last[f"{name}_bytes.all.peak"] for name in ("requested", "allocated", "reserved")}
        assert found == {**expected, "initialised": False}, case


def test_every_way_in_which_an_optimizer_runs_its_step_is_followed(stub_driver: StubDriver, tmp_path: Path) -> None:
    truths = stub_driver.run_cases(SWITCHES, history=False, device="h200")
    for case, truth, found in zip(SWITCHES, truths, trace_peaks(SWITCHES, "h200", tmp_path), strict=True):
        last = truth.memory_stats[3]
        expected = {name: last[f"{name}_bytes.all.peak"] for name in ("requested", "allocated", "reserved")}
        assert found == {**expected, "initialised": False}, case


CONVOLUTIONS: list[Case] = [
    ("resnet18", IMAGENET, "sgd", {"momentum": 0.9}, 16, "float32", "contiguous"),
    ("resnet18", IMAGENET, "adam", {}, 16, "bf16", "channels_last"),
    ("vgg11", IMAGENET, "sgd", {}, 8, "float32", "contiguous"),
    ("mobilenet_v2", IMAGENET, "sgd", {}, 8, "float32", "contiguous"),
]


def test_peaks_with_cudnns_own_workspaces_are_within_a_percent(stub_driver: StubDriver, tmp_path: Path) -> None:
    without = trace_peaks(CONVOLUTIONS, "h200", tmp_path)
    found = trace_peaks(CONVOLUTIONS, "h200", tmp_path, workspaces="h200")
    truths = stub_driver.run_cases(CONVOLUTIONS, history=False, device="h200", cudnn_workspaces=True)
    assert any(one["reserved"] > other["reserved"] for one, other in zip(found, without, strict=True))
    for case, truth, mine in zip(CONVOLUTIONS, truths, found, strict=True):
        last = truth.memory_stats[3]
        for name in ("allocated", "reserved"):
            assert mine[name] == pytest.approx(last[f"{name}_bytes.all.peak"], rel=0.01), (case, name)
