"""What `bench env --device-file` derives of a GPU that no file describes, against the files that there are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.devices import PRECISIONS, list_devices, load_device
from bench.probes import device_facts
from bench.probes.device_facts import _note_rates, measure_device_facts
from tests.each import each
from tests.unit.fake_nvml import UUID, FakeNvml, a100, install

CUT = ("h20",)
"""Chips whose tensor cores do less than their architecture's; nothing that a driver reports says so."""


@each("name", [name for name in list_devices() if load_device(name).vendor == "nvidia" and name not in CUT])
def test_derived_rates_are_those_of_the_file(name: str) -> None:
    """Rated figures lie up to 14 % below what the boost clock gives."""
    device = load_device(name)
    told = ("gpu_name", "memory_bus_bits", "memory_clock_hz", "compute_capability", "multiprocessors", "boost_clock_hz")
    found: dict[str, Any] = {key: getattr(device, key) for key in told}

    def note(key: str, value: Any, source: str) -> None:
        assert source
        found.setdefault(key, value)

    _note_rates(note, found)
    assert found["fp32_cores_per_multiprocessor"] == device.fp32_cores_per_multiprocessor
    assert found["memory_bandwidth_bytes_per_s"] == pytest.approx(device.memory_bandwidth_bytes_per_s, rel=0.03)
    for precision in PRECISIONS:
        derived, rated = found.get(f"peak_{precision}_flop_per_s"), device.peak_flop_per_s(precision)
        assert (derived is None) == (rated is None)
        assert derived is None or rated is None or 0.86 < rated / derived < 1.02


@pytest.mark.parametrize(
    ("properties", "nvml", "context_bytes", "power_limit_w"),
    [
        ({"name": "NVIDIA A100-SXM4-80GB", "is_integrated": 0}, {}, 300 << 20, 400.0),
        ({"name": "NVIDIA A100 MIG 1g.5gb", "is_integrated": 0}, {"nvmlDeviceIsMigDeviceHandle": 1}, 300 << 20, None),
        ({"name": "NVIDIA GB10", "is_integrated": 1}, {}, None, 400.0),  # in use by CUDA's count is the host's memory
    ],
    ids=("dedicated", "slice", "unified"),
)
def test_figures_of_the_board_or_the_host_are_not_the_devices(
    monkeypatch: pytest.MonkeyPatch,
    properties: dict[str, Any],
    nvml: dict[str, Any],
    context_bytes: int | None,
    power_limit_w: float | None,
) -> None:
    known = {"total_memory": 80 << 30, "multi_processor_count": 108, "major": 8, "minor": 0, **properties}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**known))
    monkeypatch.setattr(device_facts, "_measure_context_bytes", lambda: 300 << 20)
    install(monkeypatch, FakeNvml(a100(**nvml)))
    values, _ = measure_device_facts(UUID)
    assert (values.get("context_bytes"), values.get("power_limit_w")) == (context_bytes, power_limit_w)


def test_rates_of_nvidias_generations_are_not_those_of_an_amd_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"name": "AMD Instinct MI250X", "total_memory": 64 << 30, "multi_processor_count": 110}
    clocks = {"major": 9, "minor": 0, "clock_rate": 1_700_000, "is_integrated": 0}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**known, **clocks))
    monkeypatch.setattr(torch.version, "hip", "6.4.43482")
    values, sources = measure_device_facts(None, context=False)
    assert (values["vendor"], values["multiprocessors"]) == ("amd", 110)
    assert not [key for key in values if key.startswith("peak_") or key == "compute_capability"]
    assert "HIP 6.4.43482" in sources["memory_bytes"]
