"""The replay of the caching allocator against torch's own, which runs on a device that does not exist."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.estimators.allocator import (
    AllocatorConfig,
    CachingAllocator,
    OutOfMemoryError,
    events_from_history,
    parse_allocator_config,
    replay,
    rounds_fraction,
    tie_rule,
)
from bench.estimators.allocator.caching import Block

from .streams_task import ALLOCATE, EMPTY_CACHE, FREE, random_operations
from .stub import DEVICES, Case, StubDriver, torch_version

pytestmark = pytest.mark.slow

MIB = 1 << 20
TORCH = tuple(int(part) for part in torch_version().split(".")[:2])


@dataclass(frozen=True)
class Scenario:
    """Settings under which a random stream runs."""

    name: str
    seed: int
    settings: str = ""
    streams: int = 1
    largest_bytes: int = 64 * MIB
    memory_bytes: int = int(DEVICES["h200"]["memory_bytes"])
    fraction: float = 1.0
    empty_share: float = 0.0
    driver: dict[str, Any] = field(default_factory=dict)
    since: tuple[int, int] = (2, 6)


SCENARIOS = [
    Scenario("default", 1),
    Scenario("three streams", 2, streams=3),
    Scenario("descending addresses", 3, driver={"addresses": "descending"}),
    Scenario("reused addresses", 4, driver={"addresses": "lowest"}, memory_bytes=1200 * MIB, empty_share=0.003),
    Scenario("max_split_size", 5, "max_split_size_mb:64", largest_bytes=256 * MIB),
    Scenario("roundup by intervals", 6, "roundup_power2_divisions:[1:2,4:4,16:8,>:16]"),
    Scenario("roundup everywhere", 7, "roundup_power2_divisions:16"),
    Scenario("expandable", 8, "expandable_segments:True"),
    Scenario("expandable, three streams", 9, "expandable_segments:True", streams=3),
    Scenario("little memory", 10, memory_bytes=1000 * MIB, empty_share=0.001),
    Scenario("little memory, expandable", 11, "expandable_segments:True", 2, memory_bytes=900 * MIB, empty_share=0.001),
    Scenario(
        "little memory, max_split_size",
        12,
        "max_split_size_mb:32,max_non_split_rounding_mb:40",
        largest_bytes=200 * MIB,
        memory_bytes=3500 * MIB,
        empty_share=0.001,
    ),
    Scenario("garbage collection", 13, "garbage_collection_threshold:0.6", fraction=0.5, memory_bytes=3000 * MIB),
    Scenario("memory fraction", 14, fraction=0.3, memory_bytes=3000 * MIB),
    Scenario("large segments", 15, "large_segment_size_mb:50,max_split_size_mb:100", since=(2, 13)),
    Scenario("large pages", 16, "large_segment_size_mb:64,expandable_segments:True", since=(2, 13)),
]


def run_real(driver: StubDriver, scenario: Scenario, operations: list[list[int]], folder: Path) -> np.ndarray:
    task = {"operations": operations, "streams": scenario.streams, "memory_fraction": scenario.fraction}
    (folder / "task.json").write_text(json.dumps(task))
    driver.run_script(
        Path(__file__).with_name("streams.py"),
        [folder / "task.json", folder / "figures.npz"],
        fresh=False,
        allocator=scenario.settings,
        memory_bytes=scenario.memory_bytes,
        **scenario.driver,
    )
    with np.load(folder / "figures.npz") as arrays:
        return arrays["figures"]


def configure(scenario: Scenario) -> AllocatorConfig:
    base = AllocatorConfig(
        capacity_bytes=scenario.memory_bytes,
        device_total_bytes=scenario.memory_bytes,
        memory_fraction=scenario.fraction,
        ties=tie_rule(torch_version()),
        rounds_fraction=rounds_fraction(torch_version()),
        addresses=scenario.driver.get("addresses", "ascending"),
    )
    return parse_allocator_config(scenario.settings, base, rest_overwrites=TORCH <= (2, 6))


def figures_after_each(config: AllocatorConfig, operations: list[list[int]]) -> Iterator[list[int]]:
    allocator, live = CachingAllocator(config), dict[int, Block | None]()
    for operation, name, size, stream in operations:
        if operation == ALLOCATE:
            try:
                live[name] = allocator.allocate(size, stream) if size else None
            except OutOfMemoryError:
                live[name] = None
        elif operation == FREE:
            block = live.pop(name)
            if block is not None:
                allocator.free(block)
        elif operation == EMPTY_CACHE:
            allocator.empty_cache()
        a = allocator
        yield [
            a.requested,
            a.allocated,
            a.active,
            a.reserved,
            a.peak_requested,
            a.peak_allocated,
            a.peak_active,
            a.peak_reserved,
            a.num_alloc_retries,
            a.num_ooms,
        ]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_figure_agrees_after_every_operation_of_a_random_stream(
    stub_driver: StubDriver, scenario: Scenario, tmp_path: Path
) -> None:
    if scenario.since > TORCH:
        pytest.skip(f"torch {torch_version()} does not know these settings")
    operations = random_operations(
        random.Random(scenario.seed), 10_000, scenario.streams, scenario.largest_bytes, scenario.empty_share
    )
    real = run_real(stub_driver, scenario, operations, tmp_path)
    for index, (mine, row) in enumerate(zip(figures_after_each(configure(scenario), operations), real, strict=True)):
        assert mine == row.tolist(), f"operation {index}: {operations[index]}"
    if "little memory" in scenario.name:
        assert real[-1][8] > 0, "the scenario was meant to run out of cached memory"


@pytest.mark.parametrize("segments", [27, 50, 101, 392])
def test_a_share_of_whole_segments_holds_as_many_as_torch_says(
    stub_driver: StubDriver, tmp_path: Path, segments: int
) -> None:
    asked, total = segments * 2 * MIB, 3000 * MIB
    scenario = Scenario("share", 0, fraction=asked / total, memory_bytes=total)
    assert int(scenario.fraction * total) == asked - (segments != 50)  # the nearest double may lie below
    operations = [[ALLOCATE, 0, asked, 0], [FREE, 0, 0, 0], [ALLOCATE, 1, asked + 2 * MIB, 0]]
    real = run_real(stub_driver, scenario, operations, tmp_path)
    assert list(figures_after_each(configure(scenario), operations)) == real.tolist()


IMAGENET = (3, 224, 1000)
CASES: list[Case] = [
    ("mlp", (1, 28, 10), "sgd", {}, 64, "float32", "contiguous"),
    ("mlp", (3, 32, 10), "adam", {}, 4096, "float32", "contiguous"),
    ("resnet18", (3, 32, 10), "sgd", {"momentum": 0.9}, 256, "float32", "contiguous"),
    ("resnet18", IMAGENET, "adamw", {"foreach": False}, 16, "float32", "contiguous"),
    ("resnet50", IMAGENET, "sgd", {"momentum": 0.9}, 16, "bf16", "channels_last"),
    ("vit_b_16", IMAGENET, "adamw", {"fused": True}, 4, "float32", "contiguous"),
    ("vit_b_16", IMAGENET, "adam", {}, 4, "bf16", "contiguous"),
    ("convnext_tiny", IMAGENET, "rmsprop", {}, 4, "bf16", "channels_last"),
    ("densenet121", IMAGENET, "adagrad", {}, 4, "float32", "contiguous"),
    ("mobilenet_v2", IMAGENET, "adafactor", {}, 8, "float32", "contiguous"),
]


@pytest.mark.parametrize(("device", "settings"), [("h200", ""), ("rtx3090", "expandable_segments:True")])
def test_histories_of_training_steps_replay_to_the_measured_figures(
    stub_driver: StubDriver, device: str, settings: str
) -> None:
    total = int(DEVICES[device]["memory_bytes"])
    base = AllocatorConfig(capacity_bytes=total, device_total_bytes=total, ties=tie_rule(torch_version()))
    for case, run in zip(CASES, stub_driver.run_cases(CASES, device=device, allocator=settings), strict=True):
        assert run.events is not None and run.record["status"] == "ok"
        columns = (run.events[name].tolist() for name in ("action", "address", "bytes"))
        result = replay(events_from_history(*columns), parse_allocator_config(settings, base))
        for mark, stats in zip(result.marks, run.memory_stats, strict=True):
            replayed = {
                "requested_bytes.all.current": mark.requested,
                "requested_bytes.all.peak": mark.peak_requested,
                "allocated_bytes.all.current": mark.allocated,
                "allocated_bytes.all.peak": mark.peak_allocated,
                "active_bytes.all.peak": mark.peak_active,
                "reserved_bytes.all.current": mark.reserved,
                "reserved_bytes.all.peak": mark.peak_reserved,
            }
            assert replayed == {name: stats[name] for name in replayed}, f"{case}, mark {mark.label}"


def test_a_step_that_does_not_fit_ends_in_the_same_place(stub_driver: StubDriver) -> None:
    case: Case = ("resnet50", IMAGENET, "adam", {}, 64, "float32", "contiguous")
    whole = stub_driver.run_case(case)
    tight = 5 << 30
    cut = stub_driver.run_case(case, memory_bytes=tight)
    assert cut.record["status"] == "oom" and whole.events is not None
    columns = (whole.events[name].tolist() for name in ("action", "address", "bytes"))
    result = replay(
        events_from_history(*columns), AllocatorConfig(capacity_bytes=tight, ties=tie_rule(torch_version()))
    )
    assert result.out_of_memory is not None
    at_oom = cut.record["at_oom"]
    assert result.final.peak_allocated == at_oom["allocated_bytes.all.peak"]
    assert result.final.peak_reserved == at_oom["reserved_bytes.all.peak"]
    assert (result.final.num_alloc_retries, result.final.num_ooms) == (at_oom["num_alloc_retries"], at_oom["num_ooms"])
