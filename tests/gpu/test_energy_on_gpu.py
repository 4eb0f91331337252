"""The energy counter of a real GPU against the driver's samples of its power, over a window of load."""

from __future__ import annotations

import time

import pytest

from bench.probes.gpu_monitor import ENERGY_TOLERANCE_FRAC, LEAST_SAMPLES, Readings, is_unconfirmed

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu

WINDOW_S = 3.0


def load(seconds: float) -> None:
    square = torch.randn(4096, 4096, device="cuda")
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(20):
            square @ square
        torch.cuda.synchronize()


def test_the_counter_and_the_samples_of_power_agree_over_a_window_of_load() -> None:
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    readings = Readings(uuid)
    assert readings.open, readings.error
    load(1.5)  # samples of power are means of up to a second
    readings.start()
    readings.open_window()
    begun = time.perf_counter()
    load(WINDOW_S)
    window_s = time.perf_counter() - begun
    found = readings.close_window()
    if found["energy_window_j"] is None:
        pytest.skip("this GPU has no energy counter of its own")
    mean_w = found["energy_window_j"] / window_s
    print(f"{mean_w:.1f} W by the counter, {found['power_window_w']} W of {found['power_sample_count']} samples")
    assert mean_w > 30
    if (found["power_sample_count"] or 0) < LEAST_SAMPLES:
        pytest.skip(f"the driver gave {found['power_sample_count']} samples of power")
    assert mean_w == pytest.approx(found["power_window_w"], rel=ENERGY_TOLERANCE_FRAC)
    assert not is_unconfirmed(found, window_s)
    assert is_unconfirmed({**found, "energy_window_j": found["energy_window_j"] / 2}, window_s)


def test_a_window_shorter_than_the_counter_moves_has_no_energy() -> None:
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    readings = Readings(uuid)
    readings.start()
    readings.open_window()
    assert readings.close_window()["energy_window_j"] is None
