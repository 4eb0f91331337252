"""What every kind of device must keep, run on each: the CPU itself, CUDA on the stub driver, the others on stand-ins."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

from bench.probes.backends import backend
from bench.probes.backends.contract import Backend
from bench.probes.environment import measure_environment
from bench.probes.in_force import precision_on
from bench.probes.step_timing import time_steps
from bench.probes.torch_facts import TorchFacts
from bench.probes.torch_memory import start_gpu
from bench.records import Case, Choice, Environment, Measurement, Precision, Protocol, columns

PEAKS = {"peak_allocated_bytes", "peak_requested_bytes", "peak_reserved_bytes"}
DEVICE_FIELDS = {"device_total_bytes", "alloc_retries", "context_bytes"}
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16", "fp16")
MAY_BE_ZERO = {
    *("alloc_retries", "other_process_count", "compilation_s", "final_loss"),
    *("host_others_window_frac", "stolen_window_s", "involuntary_switches", "quota_wait_window_s"),
}
"""Columns in which 0 is a count and not "unknown"."""


def check_backend(kind: str) -> dict[str, Any]:
    """Assert what every kind of device keeps, without and within a run; returns the run's columns and more."""
    from bench.workload.rounding import rounded_for

    device = backend(kind)
    assert device.kind == kind and device.available()
    _check_facts(device)
    device.see_only(None, 0)
    if kind != "cpu":
        start_gpu(None, kind)
    device.synchronize()
    _check_memory(device)
    _check_readings(device)
    times = time_steps(lambda: None, 4, kind)
    assert len(times.step_times_s) == 4 and all(math.isfinite(each) and each >= 0 for each in times.step_times_s)
    environment = measure_environment(kind)
    assert set(device.environment(None)) <= set(columns(Environment))
    assert environment.device == kind
    assert (environment.gpu_name is None) == (kind == "cpu") == (environment.device_memory_kind is None)
    for precision in PRECISIONS if kind != "cpu" else ("float32", "bf16", "fp16"):
        with rounded_for(precision):
            found, why = precision_on(kind, precision, {})
        assert found is None or found.removesuffix(", emulated") in PRECISIONS
        assert kind == "cpu" or (why is None) == (found in (None, precision)), (precision, found, why)
    return {**run_case(kind), "environment": {name: getattr(environment, name) for name in columns(Environment)}}


def run_case(kind: str, allocator: str = "default", **protocol: Any) -> dict[str, Any]:
    """A whole run of a small case; no column may say 0 for what is not known."""
    from bench.worker import MeasureTask, measure_case

    case = Case(Choice("mnist"), Choice("mlp"), Choice("adam"), 8, allocator=allocator)
    asked = Protocol(**{"warmup_steps": 2, "measured_steps": 3, "min_window_s": 0.0, **protocol})
    phases: list[Any] = []
    found = measure_case(MeasureTask(case, asked, kind), lambda news: phases.append(news.get("phase")))
    assert found["status"] == "ok", found["reason"]
    assert phases[:3] == ["build", "warm-up", "measure"]
    assert len(found["step_times_s"]) == 3
    assert not [name for name, value in found.items() if value == 0 and name not in MAY_BE_ZERO]
    return {**found, "flags": list(found["flags"])}


def _check_facts(device: Backend) -> None:
    found = device.facts()
    assert set(found) <= {each.name for each in fields(TorchFacts)}
    for name in ("device_names", "unified", "total_bytes") if found else ():
        assert len(found[name]) == found["device_count"]
    assert len(found.get("uuids", ())) in (0, found.get("device_count"))


def _check_memory(device: Backend) -> None:
    memory = device.memory()
    if memory is None:
        assert device.kind == "cpu"
        return
    memory.reset()
    peaks, about = memory.peaks(), memory.device_fields()
    assert (set(peaks), set(about)) == (PEAKS, DEVICE_FIELDS)
    assert all(value is None or value > 0 for value in peaks.values())
    assert not memory.is_exhausted()
    assert not memory.unified or about["device_total_bytes"] is None


def _check_readings(device: Backend) -> None:
    readings = device.readings(None, None)
    readings.used_bytes()
    readings.start()
    readings.open_window()
    assert set(readings.close_window()) <= set(columns(Measurement))
    silent = device.readings(None, "NVML gave no answer")
    assert (silent.error, silent.open) == ("NVML gave no answer", False)


def print_contract(kind: str) -> None:
    """`check_backend` for a process of its own: the columns as JSON."""
    print(json.dumps(check_backend(kind), default=str))
