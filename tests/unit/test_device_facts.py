"""What `bench env --device-file` derives of a GPU that no file describes, against the files that there are."""

from __future__ import annotations

from typing import Any

import pytest

from bench.devices import PRECISIONS, list_devices, load_device
from bench.probes.device_facts import _note_rates
from tests.each import each

CUT = ("h20",)
"""Chips whose tensor cores do less than their architecture's; nothing that a driver reports says so."""


@each("name", [name for name in list_devices() if name not in ("cpu", *CUT)])
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
