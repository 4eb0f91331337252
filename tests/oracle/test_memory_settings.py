"""Variables that change memory: the trace equals torch's real allocator under the stub driver, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .stub import Case, StubDriver
from .test_trace import CIFAR, IMAGENET, MNIST, trace_peaks

CASES: list[Case] = [
    ("mlp", MNIST, "sgd", {}, 64, "float32", "contiguous"),
    ("resnet18", CIFAR, "sgd", {"momentum": 0.9}, 16, "float32", "contiguous"),
    ("vit_b_16", IMAGENET, "sgd", {}, 2, "float32", "contiguous"),
]
CUDA, ANY, HIP = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"

ALLOCATOR = [
    {CUDA: "roundup_power2_divisions:2", ANY: "expandable_segments:True"},
    {CUDA: "", ANY: "expandable_segments:True"},
    {HIP: "roundup_power2_divisions:4", ANY: "expandable_segments:True"},
    {ANY: " expandable_segments : True , max_split_size_mb: 64"},
    {CUDA: "expandable_segments:True,roundup_power2_divisions:[1:8,4:4,>:2],expandable_segments:False"},
    {CUDA: "max_split_size_mb:64abc,max_non_split_rounding_mb:32"},
    {ANY: "per_process_memory_fraction:0.0056,garbage_collection_threshold:0.5"},
    {CUDA: "pinned_use_background_threads:True,release_lock_on_cudamalloc:True,garbage_collection_threshold:0.8"},
]
BLAS = [
    {"CUBLAS_WORKSPACE_CONFIG": ":16:8"},
    {"CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8"},
    {"CUBLAS_WORKSPACE_CONFIG": "4096:8:16"},
    {"CUBLAS_WORKSPACE_CONFIG": ":0:0"},
    {"CUBLAS_WORKSPACE_CONFIG": "none"},
    {"CUBLASLT_WORKSPACE_SIZE": "65536"},
    {"CUBLASLT_WORKSPACE_SIZE": "12 MB"},
    {"TORCH_BLAS_PREFER_CUBLASLT": "1", "CUBLASLT_WORKSPACE_SIZE": "16384"},
    {"TORCH_BLAS_PREFER_CUBLASLT": "true"},
    {"TORCH_CUBLAS_WORKSPACE_CACHE": "1"},
    {"TORCH_CUBLAS_WORKSPACE_CACHE": "1", "TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0"},
    {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0"},
    {"DISABLE_ADDMM_CUDA_LT": "1"},
]


def parameters() -> Iterator[Any]:
    """Each of them, all but a few marked slow."""
    for number, variables in enumerate(ALLOCATOR + BLAS):
        name = " ".join(f"{variable}={value}" for variable, value in variables.items())
        yield pytest.param(variables, id=name, marks=[pytest.mark.slow] if number not in (0, 8, 15) else [])


@pytest.mark.parametrize("variables", parameters())
def test_the_trace_is_right_under_whatever_the_user_has_set(
    stub_driver: StubDriver, tmp_path: Path, variables: dict[str, str]
) -> None:
    truths = stub_driver.run_cases(CASES, history=False, variables=variables)
    for case, truth, found in zip(
        CASES, truths, trace_peaks(CASES, "h200", tmp_path, variables=variables), strict=True
    ):
        last = truth.memory_stats[3]
        expected = {name: last[f"{name}_bytes.all.peak"] for name in ("requested", "allocated", "reserved")}
        assert found == {**expected, "initialised": False}, case
