"""One contract for every kind of device: the CPU itself, and stand-ins for AMD's, Intel's and Apple's GPUs.

CUDA keeps it on the stub driver: `tests/oracle/test_backends_on_stub.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import DeviceError
from bench.probes.backends import accelerator, backend
from bench.probes.backends.mps import NO_PEAKS
from bench.probes.backends.rocm import NO_AMDSMI, AmdReadings
from bench.probes.in_force import precision_on
from bench.probes.torch_memory import start_gpu
from tests.backend_contract import check_backend, run_case
from tests.stand_ins import GIB, STATS, play_mps, play_rocm, play_xpu, tensors_of


@pytest.fixture(autouse=True)
def no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "HIPBLASLT_ALLOW_TF32"):
        monkeypatch.delenv(name, raising=False)


def test_the_cpu_keeps_the_contract() -> None:
    found = check_backend("cpu")
    assert found["peak_allocated_bytes"] > 0
    assert found["peak_reserved_bytes"] is None


def _old_xpu(patch: pytest.MonkeyPatch) -> None:
    play_xpu(patch, newest=False)


def _old_mps(patch: pytest.MonkeyPatch) -> None:
    play_mps(patch, newest=False)


def _bare_rocm(patch: pytest.MonkeyPatch) -> None:
    play_rocm(patch, smi=False)


@pytest.mark.parametrize(
    ("kind", "play", "peak", "note"),
    [
        ("cuda", play_rocm, STATS["allocated_bytes.all.peak"], None),
        ("cuda", _bare_rocm, STATS["allocated_bytes.all.peak"], None),
        ("xpu", play_xpu, STATS["allocated_bytes.all.peak"], "all processes together"),
        ("xpu", _old_xpu, STATS["allocated_bytes.all.peak"], "all processes together"),
        ("mps", play_mps, STATS["allocated_bytes.all.peak"], "host memory"),
        ("mps", _old_mps, None, NO_PEAKS),
    ],
    ids=["rocm", "rocm without amdsmi", "xpu", "xpu of torch 2.6", "mps", "mps of torch 2.6"],
)
def test_stand_ins_of_other_vendors_keep_the_contract_and_run_a_case(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    play: Callable[[pytest.MonkeyPatch], Any],
    peak: int | None,
    note: str | None,
) -> None:
    play(monkeypatch)
    with tensors_of(kind):
        found = check_backend(kind)
    assert found["peak_allocated_bytes"] == found["cold_peak_allocated_bytes"] == peak
    assert found["host_rss_peak_bytes"] > 0
    assert note is None or note in found["environment"]["device_memory_note"]


def test_the_device_is_waited_for_at_both_ends_of_a_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.probes.step_timing import time_steps

    log = play_mps(monkeypatch)
    time_steps(lambda: log.append("step"), 2, "mps")
    assert log == ["synchronize", "record", "step", "record", "step", "record", "synchronize"]


# ROCm


def test_amd_smi_is_asked_for_the_card_that_torch_uses_in_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    play_rocm(monkeypatch)
    readings = AmdReadings()
    assert readings.used_bytes() == 3 * GIB
    readings.start()
    readings.open_window()
    monkeypatch.setattr("bench.probes.backends.rocm.LEAST_WINDOW_S", 0.0)
    found = readings.close_window()
    assert (found["sm_clock_end_hz"], found["memory_clock_end_hz"]) == (2.1e9, 1.3e9)
    assert (found["power_end_w"], found["temperature_end_c"]) == (612, 64)
    assert found["energy_window_j"] == pytest.approx(100_000 * 15.26e-6)
    assert found["throttle_reasons_end"] is None
    known = backend("cuda").environment(0)
    assert (known["driver_version"], known["vbios"], known["cudnn_version"]) == ("6.12.12", None, None)
    assert (known["power_limit_w"], known["power_limit_default_w"]) == (700, 750)


def test_what_amd_smi_cannot_read_is_null_and_never_another_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    played = play_rocm(monkeypatch)
    played.smi.refused |= {"amdsmi_get_clock_info", "amdsmi_get_energy_count"}
    monkeypatch.setattr(played.smi, "amdsmi_get_temp_metric", lambda *_: 0xFFFF)
    readings = AmdReadings()
    readings.open_window()
    found = readings.close_window()
    assert (found["sm_clock_end_hz"], found["energy_window_j"], found["temperature_end_c"]) == (None, None, None)
    play_rocm(monkeypatch, pci_bus_id=0x55)  # of a card that AMD SMI does not list
    assert "which of its GPUs" in str(AmdReadings().error)
    play_rocm(monkeypatch, pci_bus_id=None)  # an older torch, and two cards
    assert AmdReadings().used_bytes() is None


def test_rocm_says_what_it_lacks_without_amd_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    play_rocm(monkeypatch, smi=False)
    assert backend("cuda").facts()["silence"] == NO_AMDSMI
    assert not AmdReadings().open
    assert AmdReadings().close_window() == {}


def test_a_card_of_rocm_goes_by_place_as_hip_takes_no_uuid_of_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    play_rocm(monkeypatch)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    backend("cuda").see_only("31323334", 1)
    assert os.environ["HIP_VISIBLE_DEVICES"] == "6"


@pytest.mark.parametrize(("value", "found"), [(None, "float32"), ("1", "tf32")])
def test_tf32_on_rocm_needs_the_variable_where_torch_reads_it(
    monkeypatch: pytest.MonkeyPatch, value: str | None, found: str
) -> None:
    import torch

    play_rocm(monkeypatch)
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=False))
    variables = {} if value is None else {"HIPBLASLT_ALLOW_TF32": value}
    told = backend("cuda").precision("tf32", variables)
    assert told is None if found == "tf32" else told == ("float32", told[1])  # type: ignore[index]


@pytest.mark.parametrize("has", [True, False])
def test_expandable_segments_that_rocms_torch_does_not_have_are_not_in_force(
    monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    import torch

    play_rocm(monkeypatch)
    settings = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    snapshot = {"allocator_settings": settings, "segments": [{"is_expandable": has}]}
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda *_: snapshot)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
    with tensors_of("cuda"):
        found = run_case("cuda", allocator="expandable")
    assert found["allocator_in_force"] == "expandable_segments:True"
    assert (found["not_in_force"] or "").startswith("allocator: ") is not has


def test_an_apu_of_amds_takes_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    play_rocm(monkeypatch, name="AMD Instinct MI300A", is_integrated=1)
    assert backend("cuda").facts()["unified"] == (True, True)
    assert backend("cuda").memory().unified  # type: ignore[union-attr]


# XPU


def test_an_intel_gpu_is_chosen_by_torchs_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    log = play_xpu(monkeypatch)
    backend("xpu").see_only(None, 1)
    assert log == ["set 1"]
    with pytest.raises(DeviceError, match=r"xpu:2: torch sees 2 GPU"):
        backend("xpu").see_only(None, 2)


def test_an_intel_gpu_plays_a_smaller_card_where_torch_can_limit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    play_xpu(monkeypatch)
    memory = backend("xpu").memory()
    assert memory is not None
    context = memory.device_fields()["context_bytes"]
    assert context == GIB - STATS["reserved_bytes.all.current"]
    assert memory.play_card(8 * GIB) == memory.read_allowed() == 8 * GIB - context
    play_xpu(monkeypatch, newest=False)
    old = backend("xpu").memory()
    assert old is not None
    assert old.device_fields() == {"device_total_bytes": None, "alloc_retries": None, "context_bytes": None}
    with pytest.raises(DeviceError, match="cannot limit memory"):
        old.play_card(8 * GIB)
    assert old.share_host(8 * GIB, GIB) is None


def test_an_integrated_gpu_takes_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    play_xpu(monkeypatch, is_integrated_gpu=True, name="Intel(R) Arc(TM) Graphics")
    known = backend("xpu").environment(0)
    assert (known["device_memory_kind"], known["gpu_total_bytes"]) == ("unified", None)


@pytest.mark.parametrize(
    ("changes", "precision", "found"),
    [
        ({}, "bf16", "bf16"),
        ({"has_bfloat16_conversions": False}, "bf16", "bf16, emulated"),
        ({"has_fp16": False}, "fp16", "fp16, emulated"),
        ({}, "float32", "float32"),
        ({}, "tf32", "float32"),
    ],
)
def test_what_an_intel_gpu_computes_in_is_its_properties_word(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], precision: Any, found: str
) -> None:
    play_xpu(monkeypatch, **changes)
    name, why = precision_on("xpu", precision, {})
    assert (name, why is None) == (found, name == precision)


def test_readings_that_torch_cannot_take_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    play_xpu(monkeypatch)

    def refuse(*_: object) -> float:
        raise RuntimeError("GPU temperature querying is not available. Try running with elevated privileges")

    monkeypatch.setattr(torch.xpu, "temperature", refuse)
    readings = backend("xpu").readings(None, None)
    readings.start()
    found = readings.close_window()
    assert (found["sm_clock_end_hz"], found["temperature_end_c"]) == (1.6e9, None)


# MPS


def test_a_limit_on_host_memory_is_a_share_of_what_metal_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    log = play_mps(monkeypatch)
    memory = backend("mps").memory()
    assert memory is not None
    assert memory.share_host(13 * GIB, GIB) == 12 * GIB
    assert log == ["share 0.250000"]
    assert memory.share_host(GIB, 2 * GIB) == 1  # a share of 0 would be no limit
    assert memory.read_allowed() is None


def test_an_allocator_that_does_not_answer_the_accelerator_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse() -> None:
        raise RuntimeError("device_allocator INTERNAL ASSERT FAILED: Allocator for mps is not a DeviceAllocator.")

    play_mps(monkeypatch)
    monkeypatch.setattr(torch.accelerator, "memory_stats", refuse, raising=False)
    memory = backend("mps").memory()
    assert memory is not None
    memory.reset()
    assert set(memory.peaks().values()) == {None}
    assert NO_PEAKS in backend("mps").facts()["silence"]


def test_deterministic_runs_elsewhere_have_no_workspaces_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    play_mps(monkeypatch)
    with tensors_of("mps"):
        assert run_case("mps", deterministic=True)["cublas_workspace_config"] is None


# Which it is


def test_the_kind_of_gpu_is_the_one_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert accelerator() is None
    play_mps(monkeypatch)
    assert accelerator().kind == "mps"  # type: ignore[union-attr]
    play_xpu(monkeypatch)
    assert accelerator().kind == "xpu"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="unknown kind of device: npu"):
        backend("npu")


def test_a_gpu_that_does_not_start_is_said_for_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse() -> None:
        raise RuntimeError("UR_RESULT_ERROR_DEVICE_LOST\nmore")

    monkeypatch.setattr(torch.xpu, "synchronize", refuse)
    with pytest.raises(DeviceError, match=r"the GPU cannot be initialised: UR_RESULT_ERROR_DEVICE_LOST$"):
        start_gpu(None, "xpu")
