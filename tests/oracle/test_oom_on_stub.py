"""Memory that runs out wherever a driver or a library lacks it first: what the real worker makes of it, on the stub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.oracle.stub import StubDriver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TASK = Path(__file__).with_name("worker_task.py")
CONVOLUTIONS = {"model": "resnet18", "dataset": "cifar10"}
NO_ENGINE = "RuntimeError: GET was unable to find an engine to execute this computation (resnet.py:"

FAULTS: tuple[tuple[dict[str, Any], str, str], ...] = (
    # settings of the stub, status, the beginning of the reason
    ({}, "ok", "None"),
    ({"MEMORY_BYTES": 30 << 20}, "oom", "CUDA out of memory. Tried to allocate"),  # cudaMalloc
    ({"CALL_FAULT": "launch:10"}, "oom", "CUDA error: out of memory"),  # a kernel's module is loaded as it first runs
    ({"CALL_FAULT": "cublasCreate_v2:1:3"}, "oom", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCre"),
    ({"CALL_FAULT": "cublasCreate_v2:1:1"}, "failed", "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"),
    (
        {**CONVOLUTIONS, "CALL_FAULT": "cudnnCreate:1:4003"},
        "oom",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    ),
    (
        {**CONVOLUTIONS, "CALL_FAULT": "cudnnCreate:1:4004"},
        "oom",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ),
    (
        {**CONVOLUTIONS, "CALL_FAULT": "cudnnCreate:1:4000"},
        "failed",
        "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL",
    ),
    # every plan needs more workspace than there is, and torch passes over each: its error does not say memory
    ({**CONVOLUTIONS, "WORKSPACE_BYTES": 1 << 50}, "oom", NO_ENGINE),
    ({**CONVOLUTIONS, "CALL_FAULT": "cudnnBackendExecute:1:3000"}, "failed", NO_ENGINE),
)


def test_lack_of_memory_is_oom_whoever_says_it_and_nothing_else_is(
    stub_driver: StubDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    tasks = [settings for settings, *_ in FAULTS]
    found = json.loads(stub_driver.run_script(TASK, [json.dumps(tasks)]).splitlines()[-1])
    assert [row["status"] for row in found] == [status for _, status, _ in FAULTS], [row["reason"] for row in found]
    for row, (_, status, said) in zip(found, FAULTS, strict=True):
        assert str(row["reason"]).startswith(said)
        assert (row["peak_allocated_bytes"] is None) == (status == "failed")


def test_a_context_for_which_there_is_no_memory_is_not_the_cases_fault(
    stub_driver: StubDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no row: the sweep tries again, then stops and says what others hold."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    tasks = [{"CALL_FAULT": "cudaDeviceSynchronize:1"}]
    (found,) = json.loads(stub_driver.run_script(TASK, [json.dumps(tasks)]).splitlines()[-1])
    assert found["raised"] == "DeviceError: the GPU cannot be initialised: CUDA error: out of memory"
