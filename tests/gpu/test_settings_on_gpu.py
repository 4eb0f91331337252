"""NVML's successors and settings on a real GPU: each answers what the call before it answers, or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from bench.probes import gpu_monitor
from bench.probes.cuda_mps import mps_state
from bench.probes.diagnosis import diagnose
from bench.probes.environment import measure_environment
from bench.probes.gpu_monitor import GpuMonitor
from bench.probes.machine_facts import read_machine_facts
from bench.probes.nvml_session import Way
from bench.records import FIELDS, Environment, key_fields

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu


@pytest.fixture
def monitor() -> Iterator[GpuMonitor]:
    with GpuMonitor(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)) as opened:
        yield opened


def read_by_each(monitor: GpuMonitor, ways: tuple[Way, ...]) -> list[float]:
    """What each way answers that the driver knows, in the reading's unit."""
    answers = monitor._session.call(lambda: [monitor._session.first(monitor._board, [way]) for way in ways])
    known = [answer for answer in answers if answer is not None]
    if len(known) < 2:
        pytest.skip(f"this driver knows {len(known)} of {len(ways)} ways: {answers}")
    return known


def work() -> None:
    square = torch.randn(4096, 4096, device="cuda")
    for _ in range(200):
        square @ square
    torch.cuda.synchronize()


@pytest.mark.parametrize(
    ("ways", "apart"),  # how far two readings, one behind the other, may be from each other
    [(gpu_monitor._TEMPERATURE, 5.0), (gpu_monitor._PERFORMANCE_STATE, 0.0), (gpu_monitor._POWER, 300.0)],
    ids=["temperature", "performance_state", "power"],
)
def test_ways_to_the_same_reading_agree(monitor: GpuMonitor, ways: tuple[Way, ...], apart: float) -> None:
    work()
    known = read_by_each(monitor, ways)
    assert max(known) - min(known) <= apart, known


@pytest.mark.parametrize(
    ("ways", "apart"),
    [(gpu_monitor._THERMAL_SLOWDOWN, 0.25), (gpu_monitor._POWER_SLOWDOWN, 0.25), (gpu_monitor._ENERGY, 500.0)],
    ids=["thermal_slowdown", "power_slowdown", "energy"],
)
def test_ways_to_the_same_counter_grow_alike_and_in_the_same_unit(
    monitor: GpuMonitor, ways: tuple[Way, ...], apart: float
) -> None:
    before = read_by_each(monitor, ways)
    work()
    after = read_by_each(monitor, ways)
    grown = [end - start for start, end in zip(before, after, strict=True)]
    assert max(grown) - min(grown) <= apart, (before, after)
    assert min(after) == 0 or max(after) / min(after) < 300, after  # a thousandth is another unit


def test_both_names_of_the_clocks_reasons_answer_a_mask(monitor: GpuMonitor) -> None:
    ways = gpu_monitor._EVENT_REASONS
    answers = monitor._session.call(lambda: [monitor._session.first(monitor._board, [way]) for way in ways])
    assert [answer for answer in answers if answer is not None and not 0 <= answer < 1 << 32] == []


def test_settings_are_read_or_named_in_the_note_with_a_reason(monitor: GpuMonitor) -> None:
    settings = monitor.static().settings
    for name, value in dataclasses.asdict(settings).items():
        if name == "note" or (name == "adaptive_tgp_limit_w" and settings.adaptive_tgp is not None):
            continue
        assert (value is None) == (name.removesuffix("_limit_w") in (settings.note or "")), (name, settings)
    assert settings.edpp_multiplier_frac is None or 0 < settings.edpp_multiplier_frac < 10
    assert settings.adaptive_tgp_limit_w is None or 5 < settings.adaptive_tgp_limit_w < 5000


def test_mps_is_known_on_a_driver_of_cuda_12_or_newer() -> None:
    torch.cuda.init()
    used, why = mps_state(torch.cuda.current_device())
    assert (used is None) == (why is not None)


def test_the_environment_has_the_settings_and_bench_env_names_those_that_were_changed() -> None:
    found: Environment = measure_environment("cuda")
    changed = {
        name
        for name, field in FIELDS.items()
        if field.usual is not None and getattr(found, name) not in (None, field.usual)
    }
    assert changed <= set(key_fields(found))
    codes = {finding.code for finding in diagnose(read_machine_facts(ask_settings=True))}
    told = {"ecc": "ecc_off", "workload_power_profiles": "power_profile", "mps": "cuda_mps"}
    assert {told.get(name, name.removesuffix("_frac")) for name in changed} <= codes
    assert ("persistence_off" in codes) == (found.persistence_mode is False)
