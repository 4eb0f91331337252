"""NVML's old calls, what succeeds them and its settings, through the real binding, with the stub as the driver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.oracle.stub import StubDriver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UUID = "GPU-11111111-2222-3333-4444-555555555555"
SCRIPT = """
import dataclasses, json, sys
from bench.probes.cuda_mps import mps_state
from bench.probes.gpu_monitor import GpuMonitor
with GpuMonitor(sys.argv[1]) as monitor:
    read = [dataclasses.asdict(monitor.snapshot()) for _ in range(2)]
    print(json.dumps({"read": read, "settings": dataclasses.asdict(monitor.static().settings), "mps": mps_state(0)}))
"""


@pytest.fixture
def ask(stub_driver: StubDriver, tmp_path: Path) -> Any:
    """What the probes say in a process under the stub, with the settings given."""
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT, encoding="utf-8")

    def run(**settings: int | str) -> dict[str, Any]:
        variables = {"PYTHONPATH": str(Path(__file__).parents[2])}
        found: dict[str, Any] = json.loads(
            stub_driver.run_script(script, [UUID], uuid=UUID, nvml=1, variables=variables, **settings)
        )
        return found

    return run


@pytest.mark.parametrize("calls", ["old", "new", "both"])
def test_every_reading_comes_by_the_calls_that_the_driver_has(ask: Any, calls: str) -> None:
    first, second = ask(nvml_calls=calls)["read"]
    assert (first["temperature_c"], first["throttle_reasons"], first["performance_state"]) == (55.0, [], 0)
    assert (first["thermal_slowdown_s"], second["thermal_slowdown_s"]) == (5.0, 5.0)
    assert second["power_slowdown_s"] - first["power_slowdown_s"] == pytest.approx(0.01)
    assert first["power_slowdown_s"] == pytest.approx(9.01)
    assert (first["power_w"], first["error"]) == (512.0, None)


@pytest.mark.parametrize("function", ["nvmlDeviceGetTemperatureV", "nvmlDeviceGetFieldValues"])
def test_a_successor_that_is_not_supported_leaves_it_to_the_old_call(ask: Any, function: str) -> None:
    first, _ = ask(nvml_fault=f"{function}:3")["read"]
    assert (first["temperature_c"], first["thermal_slowdown_s"], first["error"]) == (55.0, 5.0, None)


def test_settings_of_a_new_driver_are_read_through_the_bindings_structures(ask: Any) -> None:
    usual = ask(driver="615.43.02")
    assert usual["settings"] == {
        "ecc": True,
        "persistence_mode": True,
        "workload_power_profiles": "none",
        "edpp_multiplier_frac": 1.0,
        "adaptive_tgp": False,
        "adaptive_tgp_limit_w": None,
        "power_smoothing": False,
        "application_clocks": "default",
        "confidential_computing": "off",
        "note": None,
    }
    assert usual["mps"] == [False, None]
    changed = ask(driver="615.43.02", settings=1, mps=1)
    assert changed["settings"] == {
        "ecc": False,
        "persistence_mode": False,
        "workload_power_profiles": "llm_training",
        "edpp_multiplier_frac": 0.8,
        "adaptive_tgp": True,
        "adaptive_tgp_limit_w": 650.0,
        "power_smoothing": True,
        "application_clocks": "1200 MHz, memory 3201 MHz",
        "confidential_computing": "on, protected PCIe",
        "note": None,
    }
    assert changed["mps"] == [True, None]


def test_settings_that_a_board_or_a_driver_has_not_are_unknown_with_the_reason(ask: Any) -> None:
    of_board = ask(driver="615.43.02", settings=2)["settings"]
    assert of_board["note"] == (
        "workload_power_profiles, edpp_multiplier_frac, power_smoothing, application_clocks, confidential_computing, "
        "adaptive_tgp: not supported by this GPU or driver"
    )
    of_driver = ask(nvml_calls="old")["settings"]
    assert of_driver["note"] == (
        "workload_power_profiles, edpp_multiplier_frac, adaptive_tgp: the driver has no such query; "
        "power_smoothing: drivers 575 to 589 do not agree on the number of its field"
    )
    assert of_driver["application_clocks"] == "default"
    gone = ask(driver="700.10", nvml_calls="new")["settings"]
    assert gone["note"] == "application_clocks: the driver has no such query"
