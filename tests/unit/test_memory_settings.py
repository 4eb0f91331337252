"""What of the environment decides memory is read as torch reads it, and is part of what makes estimates the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench.catalog import parse_choice
from bench.devices import Device, load_device, with_memory
from bench.errors import BenchError, ConfigError, Unsupported
from bench.estimators import cases as estimating
from bench.estimators import fitting, memory
from bench.estimators.allocator import AllocatorConfig
from bench.estimators.memory_settings import (
    ALLOCATOR_VARIABLES,
    MEMORY_VARIABLES,
    MemorySettings,
    read_settings,
    workspace_bytes,
)
from bench.estimators.recording import Call, Phase
from bench.estimators.temporaries import Machine, script_of
from bench.estimators.temporaries.products import kept_workspaces
from bench.estimators.tensors import contiguous
from bench.launchers.faults import ALLOCATOR_WORDS
from bench.records import Case, Environment
from bench.sweep.estimates import estimate_key

CUDA, HIP, ANY = ALLOCATOR_VARIABLES
MIB, GIB = 1 << 20, 1 << 30
NEW = "2.15.0"
CASE = Case(parse_choice("dataset", "mnist"), parse_choice("model", "mlp"), parse_choice("optimizer", "adam"), 64)


@pytest.mark.parametrize(
    ("variables", "version", "holder", "text"),
    [
        ({CUDA: "a:1", ANY: "b:1"}, NEW, CUDA, "a:1"),
        ({CUDA: "a:1", ANY: "b:1"}, "2.6.0+cu124", CUDA, "a:1"),
        ({ANY: "b:1"}, NEW, ANY, "b:1"),
        ({ANY: "b:1"}, "2.6.0+cu124", None, ""),
        ({CUDA: "", ANY: "b:1"}, NEW, CUDA, ""),  # set to nothing is set
        ({HIP: "c:1", ANY: "b:1"}, "2.11.0", HIP, "c:1"),  # on builds for CUDA as well
        ({HIP: "c:1"}, "2.6.0", None, ""),
        ({ANY: "b:1"}, "2.9.1", None, ""),
        ({}, NEW, None, ""),
    ],
)
def test_the_first_variable_that_is_set_counts_alone(
    variables: dict[str, str], version: str, holder: str | None, text: str
) -> None:
    found = read_settings(variables, version)
    assert (found.variable, found.allocator) == (holder, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("expandable_segments:True,expandable_segments:False", {}),
        ("max_split_size_mb:64abc", {"max_split_bytes": 64 * MIB}),
        ("max_split_size_mb:+64", {"max_split_bytes": 64 * MIB}),
        ("garbage_collection_threshold:0.8x", {"garbage_collection_threshold": 0.8}),
        (
            "roundup_power2_divisions:2,roundup_power2_divisions:[2:8,>:1]",
            {"roundup_power2_divisions": (8, 8, *[1] * 14)},
        ),
        ("pinned_use_background_threads:True,release_lock_on_cudamalloc:True", {}),
        (" ", {}),
    ],
)
def test_text_is_read_as_torch_does(text: str, expected: dict[str, Any]) -> None:
    assert read_settings({CUDA: text}, NEW).allocator_config() == AllocatorConfig(**expected)


def test_what_torch_has_in_force_goes_before_what_the_text_says() -> None:
    settings = replace(
        read_settings({CUDA: "expandable_segments:True"}, NEW), in_force=(("expandable_segments", False),)
    )
    assert settings.allocator_config() == AllocatorConfig()


@pytest.mark.parametrize(("value", "old", "new"), [("1", True, True), ("0", True, False), ("", True, False)])
def test_without_a_cache_there_is_no_peak_to_estimate(value: str, old: bool, new: bool) -> None:
    for version, refused in (("2.6.0", old), (NEW, new)):
        settings = read_settings({"PYTORCH_NO_CUDA_MEMORY_CACHING": value}, version)
        if refused:
            with pytest.raises(
                Unsupported, match="PYTORCH_NO_CUDA_MEMORY_CACHING is set: torch allocates every tensor"
            ):
                settings.allocator_config()
        else:
            assert settings.allocator_config() == replace(AllocatorConfig(), ties=settings.allocator_config().ties)


def test_a_fault_names_the_variable_the_nearest_setting_and_torchs_words() -> None:
    settings = replace(read_settings({ANY: "expandable_segments:true"}, NEW), refusal="Expected 'True' or 'False'")
    with pytest.raises(ConfigError) as caught:
        settings.allocator_config()
    assert str(caught.value) == (
        f"{ANY}: expandable_segments:true: must be True or False. Nearest: expandable_segments:True; "
        "torch rejects it: Expected 'True' or 'False'"
    )
    with pytest.raises(ConfigError, match="Nearest: max_split_size_mb:128"):
        read_settings({CUDA: "max_split_size:128"}, NEW).allocator_config()
    with pytest.raises(ConfigError, match=r"separated by commas\. Nearest: expandable_segments:True, "):
        read_settings({CUDA: "expandable_segments=True"}, NEW).allocator_config()
    with pytest.raises(ConfigError, match=f"{CUDA}: torch 2.15.0 rejects it: no such thing"):
        replace(read_settings({CUDA: ""}, NEW), refusal="no such thing").allocator_config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":16:8", 16 * 8 << 10),
        (":4096:2:16:8", (8192 + 128) << 10),
        ("4096:8:16", 8 * 16 << 10),
        (":0:0", 0),
        ("", None),
        ("none", None),
        (":16", None),
        (":16:8, :8:1", (128 + 8) << 10),
    ],
)
def test_cublas_workspaces_are_summed_as_torch_does(text: str, expected: int | None) -> None:
    assert workspace_bytes(text) == expected


def machine(variables: dict[str, str], version: str = NEW) -> Machine:
    settings = read_settings(variables, version)
    return Machine(132, 2048, (9, 0), settings.version, settings.blas)


def product(operator: str) -> Call:
    """Of small matrices, the result not among its new storages; what is scaled is scaled by 1."""
    row, matrix = contiguous("float32", (4,)), contiguous("float32", (4, 4))
    return Call(operator, (row, matrix, matrix, 1, 1), (), Phase.FORWARD)


def transient(operator: str, *arguments: Any) -> list[int]:
    return [size for slot, size in script_of(product(operator), machine(*arguments)) if slot < 0 and size]


def test_settings_of_cublas_reach_the_products() -> None:
    small = {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert transient("aten::mm", {}) == [32 * MIB]
    assert transient("aten::mm", small) == [128 << 10]
    assert transient("aten::addmm", small) == [MIB]
    assert transient("aten::bmm", {"TORCH_BLAS_PREFER_CUBLASLT": "1", "CUBLASLT_WORKSPACE_SIZE": "2048"}) == [2 * MIB]
    assert transient("aten::addmm", {"DISABLE_ADDMM_CUDA_LT": "1"}) == [32 * MIB]
    assert transient("aten::mm", {"TORCH_BLAS_PREFER_CUBLASLT": "yes"}) == [32 * MIB]
    assert transient("aten::mm", {"TORCH_CUBLAS_WORKSPACE_CACHE": "1"}) == []
    assert transient("aten::mm", {"CUBLAS_WORKSPACE_CONFIG": ":0:0"}) == []


def test_workspaces_that_are_kept_are_those_of_the_version_and_the_settings() -> None:
    own = {"TORCH_CUBLAS_WORKSPACE_CACHE": "1", "TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0"}
    assert kept_workspaces(product("aten::addmm"), machine({"TORCH_CUBLAS_WORKSPACE_CACHE": "1"})) == [
        ("cublas", 32 * MIB)
    ]
    assert kept_workspaces(product("aten::addmm"), machine(own)) == [("cublaslt", MIB)]
    assert kept_workspaces(product("aten::addmm"), machine(own, "2.11.0")) == [("cublas", 32 * MIB), ("cublaslt", MIB)]
    small = {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert kept_workspaces(product("aten::addmm"), machine({}, "2.13.0")) == [("cublas", 32 * MIB)]
    assert kept_workspaces(product("aten::addmm"), machine({}, "2.11.0")) == [("cublas", 32 * MIB), ("cublaslt", MIB)]
    assert kept_workspaces(product("aten::addmm"), machine(small, "2.11.0")) == [
        ("cublas", 128 << 10),
        ("cublaslt", 128 << 10),
    ]
    assert kept_workspaces(product("aten::mm"), machine({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, "2.6.0")) == [
        ("cublas", 128 << 10)
    ]
    assert kept_workspaces(product("aten::mm"), machine({"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, "2.6.0")) == []


@pytest.mark.parametrize("name", MEMORY_VARIABLES)
def test_every_variable_that_is_read_is_part_of_the_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in MEMORY_VARIABLES:
        monkeypatch.delenv(each, raising=False)
    environment = Environment(**{field.name: None for field in fields(Environment)} | {"device": "cuda"})
    plain = estimate_key(environment)
    monkeypatch.setenv(name, "")
    empty = estimate_key(environment)
    monkeypatch.setenv(name, "1")
    assert len({plain, empty, estimate_key(environment)}) == 3
    monkeypatch.delenv(name)
    assert estimate_key(environment, variables={name: ""}) == empty  # what a run's protocol sets is as good as set


def settings(text: str) -> MemorySettings:
    import torch

    return MemorySettings(torch.__version__, variable=ANY, allocator=text)


def take(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for module in (memory, estimating):
        monkeypatch.setattr(module, "settings_in_force", lambda: settings(text))


def test_a_share_of_the_memory_is_one_of_the_device_files(monkeypatch: pytest.MonkeyPatch) -> None:
    device = load_device("h200")
    plain = memory.estimate_trace(CASE, memory.Target.of(device))
    take(monkeypatch, "per_process_memory_fraction:0.5,garbage_collection_threshold:0.8")
    assert memory.estimate_trace(CASE, memory.Target.of(device)) == plain
    take(monkeypatch, "per_process_memory_fraction:0.0001")  # 14 MiB: less than the workspace
    squeezed = memory.estimate_trace(CASE, memory.Target.of(device))
    assert squeezed["estimated_fit"] == "does not fit"
    assert squeezed["trace_peak_allocated_bytes"] == plain["trace_peak_allocated_bytes"]  # what it would need


def test_the_largest_batch_is_one_that_the_share_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    device = replace(
        load_device("h200"),
        memory_bytes=2 * GIB,
        context_bytes=GIB // 2,
        context_low_bytes=None,
        context_high_bytes=None,
    )
    case = replace(
        CASE, dataset=parse_choice("dataset", "imagenet"), image_size=28
    )  # MNIST has too few images to fill even a share
    whole = fitting.fit_batch(case, memory.Target.of(device))
    take(monkeypatch, "per_process_memory_fraction:0.25")
    part = fitting.fit_batch(case, memory.Target.of(device))
    assert whole.largest_batch_size and part.largest_batch_size
    assert part.largest_batch_size < whole.largest_batch_size / 2
    assert (
        memory.trace_peaks(replace(case, batch_size=part.largest_batch_size), memory.Target.of(device)).reserved_bytes
        <= GIB // 2
    )
    above = memory.trace_peaks(
        replace(case, batch_size=part.largest_batch_size + 1), memory.Target.of(device), capacity_bytes=GIB
    )
    assert above.replay.out_of_memory is not None


def test_a_share_of_an_unknown_memory_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [
        line
        for line in Path(memory.__file__).parents[1].joinpath("devices", "h200.toml").read_text().splitlines()
        if not line.startswith(("memory_bytes", "nvml_memory_bytes"))
    ]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    take(monkeypatch, "per_process_memory_fraction:0.5")
    (found,) = estimating.estimate_cases([CASE], str(path))
    assert found.trace_peak_allocated_bytes is not None
    assert found.estimate_note is not None
    assert f"{ANY}: per_process_memory_fraction:0.5 is ignored" in found.estimate_note


def test_settings_that_cannot_be_replayed_leave_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, "backend:cudaMallocAsync")
    (found,) = estimating.estimate_cases([CASE], "h200")
    assert found.formula_bytes is not None
    assert found.trace_peak_allocated_bytes is None
    assert found.estimate_note == f"{ANY}: backend:cudaMallocAsync: only the native backend can be simulated"


def test_words_that_are_offered_are_the_options_that_are_read() -> None:
    for word in ALLOCATOR_WORDS:
        if "_" in word:
            try:
                read_settings({CUDA: f"{word}:some"}, NEW).allocator_config()
            except BenchError as error:
                assert "unknown option" not in str(error)


IN_FORCE = """
import json, torch
from bench.estimators.memory_settings import settings_in_force
found = settings_in_force()
print(json.dumps([found.variable, found.allocator, found.refusal, torch.cuda.is_initialized()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {CUDA: "roundup_power2_divisions:2", ANY: "expandable_segments:True"},
        {CUDA: "", ANY: "max_split_size_mb:64"},
        {HIP: "max_split_size_mb:64", ANY: "expandable_segments:True"},
    ],
)
def test_the_documented_order_is_that_of_the_installed_torch(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.version.cuda is None:
        pytest.skip("this torch has no allocator for GPUs to ask")
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", IN_FORCE], capture_output=True, text=True, check=True)
    documented = read_settings(variables, torch.__version__)
    assert json.loads(done.stdout) == [documented.variable, documented.allocator, None, False]


def test_a_device_without_memory_is_never_asked_for_a_share() -> None:
    unknown = Device(name="x", gpu_name="X", kind="cuda")
    assert settings("").unknown_total(unknown.name) is None
    assert settings("per_process_memory_fraction:1").unknown_total(unknown.name) is None


@pytest.mark.parametrize(
    ("text", "room"),
    [("", 23 * GIB), ("per_process_memory_fraction:0.5", 12 * GIB), ("expandable_segments:True", 23 * GIB)],
)
def test_torch_has_the_room_of_the_smaller_card_that_is_played(text: str, room: int) -> None:
    # what `CudaMemory.play_card` sets on a GPU: the limit less the context, or the allocator's share of the limit
    card = with_memory(load_device("h200"), 24 * GIB)
    assert memory.Target(card, settings(text)).room_bytes(GIB) == room
