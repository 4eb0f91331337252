"""A GPU that plays a smaller card (`--memory`), with the stub driver under an unmodified torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import bench
from tests import plugins
from tests.oracle.stub import StubDriver
from tests.oracle.test_fit_on_stub import CASE, CONTEXT, MEMORY, device_file

WHOLE = 8 << 30
CONFIG = """
name = "card"
[grid]
dataset = "cifar10"
model = "resnet18"
optimizer = "adam"
batch_size = [8, 4096]
[measure]
repeats = 1
warmup_steps = 2
measured_steps = 3
min_window = "1 ms"
[data]
fetch = false
"""

pytestmark = pytest.mark.slow


def environment(stub_driver: StubDriver, memory_bytes: int = WHOLE, **settings: Any) -> dict[str, str]:
    """The environment of a process that sees a GPU with that much memory."""
    stub = stub_driver.environment("h200", memory_bytes=memory_bytes, context_bytes=CONTEXT, **settings)
    return {**os.environ, **stub, "BENCH_CUDNN_WORKSPACES": "off", "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_case_that_fits_the_whole_card_runs_out_of_memory_and_the_estimate_says_so(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    config, env = tmp_path / "c.toml", environment(stub_driver)
    config.write_text(CONFIG, encoding="utf-8")
    sweep = ("sweep", config, "--device", "cuda", "--device-file", device_file(tmp_path, memory_bytes=WHOLE))
    whole = plugins.bench(*sweep, "--out", tmp_path / "whole", "--no-report", env=env)
    assert whole.returncode == 0, whole.stderr
    card = plugins.bench(*sweep, "--out", tmp_path / "card", "--memory", "1GiB", env=env)
    assert card.returncode == 1, card.stderr
    one, two = (bench.load(tmp_path / name).set_index("batch_size") for name in ("whole", "card"))
    assert one["status"].to_dict() == {8: "ok", 4096: "ok"}
    assert one["estimated_fit"].to_dict() == {8: "fits", 4096: "fits"}
    assert one[["device_memory_bytes", "device_memory_allowed_bytes"]].isna().all(axis=None)
    assert two["status"].to_dict() == {8: "ok", 4096: "oom"}
    assert two["estimated_fit"].to_dict() == {8: "fits", 4096: "does not fit"}
    assert set(two["device_memory_bytes"]) == {MEMORY}
    assert set(two["device_memory_allowed_bytes"]) == {MEMORY - CONTEXT}
    assert set(two["estimate_device"]) == {"small as a card of 1 GiB"}
    assert two["not_in_force"].isna().all()
    assert two.loc[4096, "reason"].startswith("as a card of 1 GiB, which leaves torch 824 MiB: CUDA out of memory")
    assert (two["peak_reserved_bytes"] <= MEMORY - CONTEXT).all()
    text = (tmp_path / "card" / "report.md").read_text(encoding="utf-8")
    assert "NVIDIA H200 as a card of 1 GiB" in text
    assert "The GPU played a smaller card in" in text

    refused = plugins.bench("compare", tmp_path / "whole", tmp_path / "card")
    assert refused.returncode == 2
    assert "device_memory_bytes differs: the whole card in the baseline, 1073741824 in the candidate" in refused.stderr
    again = plugins.bench(*sweep, "--out", tmp_path / "card", "--set", 'limits.device_memory="1 GiB"', env=env)
    assert "2 runs already finished, 0 to do" in again.stderr


def test_a_limit_above_the_card_is_refused_with_both_figures(stub_driver: StubDriver, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG + '[limits]\ndevice_memory = "80 GiB"\n', encoding="utf-8")
    for command in (
        ("sweep", config, "--device", "cuda", "--out", tmp_path / "out"),
        ("record", config, "--out", tmp_path / "recordings"),
        (*CASE, "--device", "auto", "--memory", "80GiB"),
    ):
        done = plugins.bench(*command, env=environment(stub_driver))
        assert done.returncode == 2
        assert "the memory limit of 80 GiB is above the 8.00 GiB (8,589,934,592 B) of " in done.stderr


def test_a_card_that_is_played_holds_what_a_card_of_that_size_holds(stub_driver: StubDriver, tmp_path: Path) -> None:
    fit = (*CASE, "--verify", "--json", "--device")
    real = plugins.bench(*fit, device_file(tmp_path), env=environment(stub_driver, MEMORY))
    played = plugins.bench(
        *fit, device_file(tmp_path, memory_bytes=WHOLE), "--memory", "1 GiB", env=environment(stub_driver)
    )
    assert (real.returncode, played.returncode) == (0, 0), played.stderr
    one, two = json.loads(real.stdout), json.loads(played.stdout)
    assert two["device"] == "small as a card of 1 GiB"
    assert one["verified_exactly"]
    kept = {"device", "verify_runs"}
    assert {key: value for key, value in one.items() if key not in kept} == {
        key: value for key, value in two.items() if key not in kept
    }
    compared = ("batch_size", "status", "peak_allocated_bytes", "peak_reserved_bytes", "alloc_retries")
    assert [[run[key] for key in compared] for run in one["verify_runs"]] == [
        [run[key] for key in compared] for run in two["verify_runs"]
    ]


def test_the_limit_follows_the_context_and_the_allocators_own_share(stub_driver: StubDriver, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import ctypes, json, sys, torch\n"
        "from bench.probes.torch_memory import CudaMemory\n"
        "torch.cuda.synchronize()\n"
        "memory, found = CudaMemory(), []\n"
        "found.append((memory.play_card(1 << 30), memory.read_allowed()))\n"
        "del_me = torch.empty(int(sys.argv[1]) << 20, dtype=torch.uint8, device='cuda')\n"
        "del del_me\n"
        "taken = ctypes.c_void_p()\n"
        "assert not ctypes.CDLL(None).cudaMalloc(ctypes.byref(taken), ctypes.c_size_t(512 << 20))\n"
        "found.append((memory.play_card(1 << 30), memory.read_allowed()))\n"
        "print(json.dumps([*found, torch.cuda.memory_reserved()]))\n",
        encoding="utf-8",
    )
    first, second = MEMORY - CONTEXT, MEMORY - CONTEXT - (512 << 20)
    settings = {
        "memory_bytes": WHOLE,
        "context_bytes": CONTEXT,
        "variables": {"PYTHONPATH": str(Path(__file__).parents[2])},
    }
    found = json.loads(stub_driver.run_script(script, [600], device="h200", **settings))
    assert found == [[first, first], [second, second], 0]  # what was cached did not fit beside the larger context
    quarter = {**settings, "allocator": "per_process_memory_fraction:0.25"}
    found = json.loads(stub_driver.run_script(script, [100], device="h200", **quarter))
    assert found == [[MEMORY // 4, MEMORY // 4]] * 2 + [100 << 20]


def test_a_run_measures_its_context_before_the_case_and_after_each_step_of_the_warm_up(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json\n"
        "from bench.probes.torch_memory import CudaMemory\n"
        "from bench.records import Case, Choice, Protocol\n"
        "from bench.worker import MeasureTask, measure_case\n"
        "phases, calls, play = [None], [], CudaMemory.play_card\n"
        "CudaMemory.play_card = lambda self, *limits: (calls.append((phases[-1], limits[0])), play(self, *limits))[1]\n"
        "case = Case(Choice('mnist'), Choice('mlp'), Choice('sgd'), 8)\n"
        "protocol = Protocol(warmup_steps=2, measured_steps=3, min_window_s=0.0, device_memory_bytes=1 << 30)\n"
        "found = measure_case(MeasureTask(case, protocol, 'cuda'), lambda news: phases.append(news.get('phase')))\n"
        "print(json.dumps([found['status'], calls]))\n",
        encoding="utf-8",
    )
    settings = {"memory_bytes": WHOLE, "variables": {"PYTHONPATH": str(Path(__file__).parents[2])}}
    status, calls = json.loads(stub_driver.run_script(script, [], device="h200", **settings))
    assert (status, calls) == ("ok", [[None, MEMORY], ["warm-up", MEMORY], ["warm-up", MEMORY]])


def test_torch_without_a_cache_is_flagged(stub_driver: StubDriver, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.replace("[8, 4096]", "8"), encoding="utf-8")
    env = environment(stub_driver, variables={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    arguments = ("--device", "cuda", "--memory", "1GiB", "--out", tmp_path / "out", "--no-report")
    done = plugins.bench("sweep", config, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    (row,) = bench.load(tmp_path / "out").to_dict("records")
    assert "switch_not_in_force" in row["flags"]
    assert row["not_in_force"] == "device_memory: torch's allocator has no cache and keeps to no limit"


def test_a_recording_of_a_smaller_card_replays_to_where_its_memory_ends(
    stub_driver: StubDriver, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.replace("[8, 4096]", "4096"), encoding="utf-8")
    env = environment(stub_driver)
    done = plugins.bench("record", config, "--memory", "1GiB", "--out", tmp_path / "r", "--json", env=env)
    (case,) = json.loads(done.stdout)["cases"]
    assert case["status"] == "oom", done.stderr
    assert case["peak_reserved_bytes"] <= MEMORY - CONTEXT
    explained = plugins.bench("estimate", "--explain-difference", case["file"], "--cudnn-workspaces", "off", "--json")
    found = json.loads(explained.stdout)
    assert found["replay"]["exact"], found["replay"]
    assert found["recorded"]["reserved_bytes"] == found["trace"]["reserved_bytes"]
