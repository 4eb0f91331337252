"""`bench fit --verify` on a small device that the stub driver plays: real steps of torch's own allocator."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bench.devices import render_device_toml
from bench.locks import device_lock_path, hold
from tests import plugins
from tests.oracle.stub import StubDriver

MEMORY, CONTEXT = 1 << 30, 200 << 20
CASE = ("fit", "--model", "resnet18", "--dataset", "cifar10", "--optimizer", "adam")
MLP = ("fit", "--model", "mlp", "--dataset", "cifar10", "--optimizer", "adam")

pytestmark = pytest.mark.slow


def device_file(folder: Path, **changes: Any) -> Path:
    """A file for the device that the stub plays in these tests."""
    values = {
        "gpu_name": "NVIDIA H200",
        "kind": "cuda",
        "memory_bytes": MEMORY,
        "multiprocessors": 132,
        "max_threads_per_multiprocessor": 2048,
        "compute_capability": [9, 0],
        "context_bytes": CONTEXT,
        **changes,
    }
    path = folder / "small.toml"
    sources = dict.fromkeys(set(values) - {"gpu_name", "kind"}, "the stub")
    path.write_text(render_device_toml(values, sources), encoding="utf-8")
    return path


@pytest.fixture
def small(stub_driver: StubDriver) -> dict[str, str]:
    """The environment of a process that sees a GPU with little memory."""
    env = {**os.environ, **stub_driver.environment("h200", memory_bytes=MEMORY, context_bytes=CONTEXT)}
    env["BENCH_CUDNN_WORKSPACES"] = "off"  # the stub's cuDNN asks for none
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    return env


def test_real_steps_end_where_the_estimate_says(small: dict[str, str], tmp_path: Path) -> None:
    done = plugins.bench(*CASE, "--device", device_file(tmp_path), "--verify", "--json", env=small)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    runs = {run["batch_size"]: run["status"] for run in found["verify_runs"]}
    largest = found["verified_largest_batch_size"]
    assert (runs[largest], runs[largest + 1]) == ("ok", "oom")
    assert found["verified_exactly"] and found["verified_smallest_oom"] == largest + 1
    # 2.3 % too many in November 2026: the estimate is exact for three steps, and five break memory up further.
    assert abs(found["verified_error_frac"]) <= 0.03
    assert found["verified_error_batches"] == found["largest_batch_size"] - largest
    assert abs(found["verified_at_largest"]["peak_allocated_bytes"]["relative_error"]) <= 0.01
    assert len(runs) <= 12


def test_real_steps_end_where_the_data_set_does(small: dict[str, str], tmp_path: Path) -> None:
    mlp = ("fit", "--model", "mlp", "--dataset", "mnist", "--optimizer", "sgd", "--device", device_file(tmp_path))
    done = plugins.bench(*mlp, "--verify", "--json", env=small)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["largest_batch_size"], found["ended_by"]) == (60_000, "images")
    assert [run["batch_size"] for run in found["verify_runs"]] == [60_000]
    assert (found["verified_largest_batch_size"], found["verified_error_batches"]) == (60_000, 0)


def test_a_context_that_is_wrong_in_the_file_shows_in_the_verdict(small: dict[str, str], tmp_path: Path) -> None:
    path = device_file(tmp_path, context_bytes=CONTEXT // 2)
    # Thousands off: more than 12 runs. CIFAR-10 itself has too few images for so small a model.
    mlp = ("fit", "--model", "mlp", "--dataset", "imagenet", "--image-size", "32", "--optimizer", "adam")
    done = plugins.bench(*mlp, "--device", path, "--verify", env=small)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"verified: the largest batch that ran is (\d+), and (\d+) did not fit; the estimate is off by \+\d+ "
        r"\(\+\d+\.\d %\) \(12 runs\)",
        done.stdout,
    ), done.stdout
    assert "[12/12] batch" in done.stderr


def test_a_batch_that_fits_again_above_one_that_does_not_is_run_too(stub_driver: StubDriver, tmp_path: Path) -> None:
    memory, context = 145 << 20, 1 << 20  # where the trace finds a hole at batch 92
    settings = stub_driver.environment("h200", memory_bytes=memory, context_bytes=context)
    env = {**os.environ, **settings, "BENCH_CUDNN_WORKSPACES": "off", "PYTHONPATH": str(Path(__file__).parents[2])}
    path = device_file(tmp_path, memory_bytes=memory, context_bytes=context)
    sgd = ("fit", "--model", "resnet18", "--dataset", "cifar10", "--optimizer", "sgd", "--cudnn-workspaces", "off")
    done = plugins.bench(*sgd, "--device", path, "--verify", "--json", env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    largest, again = found["largest_batch_size"], found["largest_fitting_batch_size"]
    assert largest < again
    assert found["batch_sizes_that_do_not_fit"][0][0] == largest + 1
    assert again in {run["batch_size"] for run in found["verify_runs"]}
    assert found["verified_largest_fitting_batch_size"] >= found["verified_largest_batch_size"]
    assert len(found["verify_runs"]) <= 12


def test_the_best_trade_offs_are_run(small: dict[str, str], tmp_path: Path) -> None:
    asked = (*CASE, "--batch-size", "1536", "--precision", "float32", "--device", device_file(tmp_path))
    done = plugins.bench(*asked, "--save-memory", "--verify", "--json", env=small)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    estimated = {option["label"]: option for option in found["pareto"]}
    assert found["cheapest"]["label"] != "as it is"
    assert [run["label"] for run in found["verify_runs"]] == list(estimated)
    for run in found["verify_runs"]:
        made = estimated[run["label"]]
        assert run["status"] == "ok", run
        assert run["peak_allocated_bytes"] == pytest.approx(made["allocated_bytes"], rel=0.01), run
        assert run["samples_per_s"] > 0


def test_another_gpu_than_the_one_here_is_refused(small: dict[str, str]) -> None:
    done = plugins.bench(*CASE, "--device", "a100_40gb", "--verify", env=small)
    assert done.returncode == 2
    assert "a100_40gb does not describe this machine's NVIDIA H200" in done.stderr
    assert "tracing" not in done.stderr


def test_a_gpu_that_no_file_is_for_is_fitted_by_its_own_properties(small: dict[str, str], tmp_path: Path) -> None:
    done = plugins.bench(*MLP, "--device", "auto", "--json", env=small)  # a real H200 has more memory
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["device"], found["memory_bytes"]) == ("NVIDIA H200 (read from the GPU)", MEMORY)
    of_file = plugins.bench(*MLP, "--device-file", device_file(tmp_path), "--json", env=small)
    assert of_file.returncode == 0, of_file.stderr
    assert json.loads(of_file.stdout)["largest_batch_size"] >= found["largest_batch_size"]  # whose context is known


def test_a_gpu_that_a_sweep_holds_is_refused(small: dict[str, str], tmp_path: Path) -> None:
    with hold(device_lock_path("cuda-0"), "the device"):  # the stub has no NVML, which would give a UUID
        done = plugins.bench(*CASE, "--device", device_file(tmp_path), "--verify", env=small)
    assert done.returncode == 2
    assert "the device cuda is in use by process" in done.stderr
