"""Settings that change speed or energy: each is right, or unknown with its reason; which keep results apart."""

from __future__ import annotations

import ctypes
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from bench.probes import cuda_mps, environment
from bench.probes.cuda_mps import mps_state
from bench.probes.gpu_monitor import GpuMonitor
from bench.probes.gpu_settings import NO_NVML, PROFILES, GpuSettings
from bench.records import Environment, key_fields
from tests.results import GPU
from tests.unit.fake_nvml import FIELDS, NOT_SUPPORTED, UUID, FakeNvml, Fault, a100, install, mask

PROFILE, TGP = "nvmlDeviceWorkloadPowerProfileGetCurrentProfiles", "nvmlDeviceGetAdaptiveTgpModeInfo_v1"
CC, CC_BEFORE = "nvmlSystemGetConfComputeSettings", "nvmlSystemGetConfComputeState"
CLOCK, DEFAULT_CLOCK = "nvmlDeviceGetApplicationsClock", "nvmlDeviceGetDefaultApplicationsClock"
USUAL: dict[str, Any] = {
    PROFILE: {"perfProfilesMask": mask(0, 1, 7), "requestedProfilesMask": mask(), "enforcedProfilesMask": mask()},
    FIELDS: {274: 100, 251: 0},
    TGP: {"enablementStatus": 0, "adjustedLimitMw": 0},
    CC: {"ccFeature": 0, "multiGpuMode": 0, "devToolsMode": 0},
    CLOCK: 1410,
    DEFAULT_CLOCK: 1410,
}
CHANGED: dict[str, Any] = {
    "nvmlDeviceGetEccMode": [0, 1],
    "nvmlDeviceGetPersistenceMode": 0,
    PROFILE: {"requestedProfilesMask": mask(1, 7), "enforcedProfilesMask": mask(7, 40)},
    FIELDS: {274: 80, 251: 1},
    TGP: {"enablementStatus": 1, "adjustedLimitMw": 950_000},
    CC: {"ccFeature": 1, "multiGpuMode": 1, "devToolsMode": 0},
    DEFAULT_CLOCK: 1980,
}


def settings_of(monkeypatch: pytest.MonkeyPatch, driver: str = "615.43.02", **changes: Any) -> GpuSettings:
    install(monkeypatch, FakeNvml(a100(**{**USUAL, **changes}), driver=driver))
    with GpuMonitor(UUID) as monitor:
        return monitor.static().settings


def test_settings_that_nobody_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch) == GpuSettings(
        ecc=True,
        persistence_mode=True,
        workload_power_profiles="none",
        edpp_multiplier_frac=1.0,
        adaptive_tgp=False,
        power_smoothing=False,
        application_clocks="default",
        confidential_computing="off",
    )


def test_settings_that_were_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, **CHANGED) == GpuSettings(
        ecc=False,
        persistence_mode=False,
        workload_power_profiles="llm_training, profile 40",
        edpp_multiplier_frac=0.8,
        adaptive_tgp=True,
        adaptive_tgp_limit_w=950.0,
        power_smoothing=True,
        application_clocks="1410 MHz, memory 1410 MHz",
        confidential_computing="on, protected PCIe",
    )


def test_what_is_unknown_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {PROFILE: Fault(3), TGP: Fault(13), CC: Fault(13), CC_BEFORE: Fault(4), CLOCK: Fault(26), FIELDS: {}}
    found = settings_of(monkeypatch, **{**changes, "nvmlDeviceGetEccMode": Fault(NOT_SUPPORTED)})
    unknown = {name for name, value in dataclasses.asdict(found).items() if value is None}
    assert unknown == {field.name for field in dataclasses.fields(GpuSettings)} - {"persistence_mode", "note"}
    assert (found.note or "").split("; ") == [
        "ecc, workload_power_profiles, edpp_multiplier_frac, power_smoothing: not supported by this GPU or driver",
        "application_clocks, adaptive_tgp: the driver has no such query",
        "confidential_computing: no permission to ask",
    ]


@pytest.mark.parametrize("driver", ["575.57.08", "580.159.04"])
def test_power_smoothing_is_not_asked_of_drivers_that_number_its_field_otherwise(
    monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    found = settings_of(monkeypatch, driver, **{FIELDS: {251: 1, 274: 100}})  # 1 ns slowed for heat, on some of them
    assert found.power_smoothing is None
    assert found.note == "power_smoothing: drivers 575 to 589 do not agree on the number of its field"
    assert settings_of(monkeypatch, "570.86.10", **{FIELDS: {251: 1}}).power_smoothing is True


def test_a_binding_without_the_structures_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t", "c_nvmlAdaptiveTgpModeInfo_v1_t")
    install(monkeypatch, FakeNvml(a100(**USUAL), driver="615.1", absent=(*absent, CC, CC_BEFORE)))
    with GpuMonitor(UUID) as monitor:
        found = monitor.static().settings
    assert (found.workload_power_profiles, found.adaptive_tgp, found.confidential_computing) == (None, None, None)
    assert found.note == (
        "workload_power_profiles, confidential_computing, adaptive_tgp: nvidia-ml-py has no such query"
    )


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ((0, 0, 0), "off"),
        ((1, 0, 0), "on"),
        ((0, 2, 0), "NVLink encryption"),
        ((1, 9, 1), "on, multi-GPU mode 9, developer tools"),
    ],
)
def test_confidential_computing_says_what_is_on(
    monkeypatch: pytest.MonkeyPatch, told: tuple[int, int, int], words: str
) -> None:
    feature, multi, tools = told
    settings = {"ccFeature": feature, "multiGpuMode": multi, "devToolsMode": tools}
    assert settings_of(monkeypatch, **{CC: settings}).confidential_computing == words


def test_confidential_computing_of_a_driver_before_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(environment=0, ccFeature=1, devToolsMode=0)
    assert settings_of(monkeypatch, **{CC: Fault(13), CC_BEFORE: state}).confidential_computing == "on"


def test_values_that_cannot_be_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings_of(monkeypatch, **{FIELDS: {274: 0, 251: 7}})
    assert (found.edpp_multiplier_frac, found.power_smoothing) == (None, None)
    assert found.note == (
        "edpp_multiplier_frac: NVML answers 0 %; power_smoothing: NVML answers 7, which is neither 0 nor 1"
    )


def test_profiles_have_the_numbers_of_the_binding() -> None:
    import pynvml

    known = {name: number for name, number in vars(pynvml).items() if name.startswith("NVML_POWER_PROFILE_")}
    names = {f"NVML_POWER_PROFILE_{name.upper()}": number for number, name in enumerate(PROFILES)}
    assert {name: known[name] for name in names} == names
    assert known["NVML_POWER_PROFILE_MAX"] == len(PROFILES)


def test_settings_of_a_driver_that_hangs_are_unknown_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeNvml(a100(**USUAL), hang="nvmlDeviceGetEccMode"))
    with GpuMonitor(UUID) as monitor:
        monitor._session.timeout_s = 0.3
        assert monitor.static().settings == GpuSettings(note=NO_NVML)
        fake.released.set()


@pytest.mark.parametrize(
    ("column", "usual", "changed"),
    [
        ("ecc", True, False),
        ("workload_power_profiles", "none", "max_q"),
        ("edpp_multiplier_frac", 1.0, 0.8),
        ("adaptive_tgp", False, True),
        ("power_smoothing", False, True),
        ("application_clocks", "default", "1200 MHz, memory 3201 MHz"),
        ("confidential_computing", "off", "on"),
        ("mps", False, True),
    ],
)
def test_a_setting_that_was_changed_keeps_results_apart(column: str, usual: object, changed: object) -> None:
    before = dataclasses.replace(GPU, **{column: None})
    untouched, other = (dataclasses.replace(GPU, **{column: value}) for value in (usual, changed))
    assert untouched.key == before.key != other.key  # what older parts do not have is no other machine
    assert key_fields(other)[column] == changed
    assert untouched.changes_since(dataclasses.asdict(before)) == []
    assert other.changes_since(dataclasses.asdict(untouched)) == [f"{column} {usual} -> {changed}"]


def test_what_only_costs_the_start_or_moves_by_itself_does_not() -> None:
    moved = dataclasses.replace(GPU, persistence_mode=False, adaptive_tgp_limit_w=650.0, gpu_settings_note="why")
    assert moved.key == GPU.key


class Driver:
    """A CUDA driver, as ctypes loads it, that answers the attribute with `value`, or with an error."""

    def __init__(self, value: int, code: int = 0) -> None:
        self.value, self.code = value, code

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal + 10
        return 0

    def cuDeviceGetAttribute(self, answer: Any, which: int, device: ctypes.c_int) -> int:
        assert (which, device.value) == (133, 12)
        answer._obj.value = self.value
        return self.code


def test_mps_is_the_cuda_drivers_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver, expected in (
        (Driver(1), (True, None)),
        (Driver(0), (False, None)),
        (Driver(0, code=1), (None, "the CUDA driver does not tell (CUresult 1)")),
    ):
        monkeypatch.setattr(cuda_mps.ctypes, "CDLL", lambda name, driver=driver: driver)
        assert mps_state(2) == expected


def test_without_a_cuda_driver_mps_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(cuda_mps.ctypes, "CDLL", fail)
    assert mps_state(0) == (None, "there is no CUDA driver to ask")


def test_the_environment_has_the_settings_with_one_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.test_environment import fake_cuda

    fake_cuda(monkeypatch)
    monkeypatch.setattr(environment, "mps_state", lambda index: (None, "why"))
    install(monkeypatch, FakeNvml(a100(**{**USUAL, **CHANGED, TGP: Fault(13)}), driver="615.1"))
    found: Environment = environment.measure_environment("cuda")
    assert (found.ecc, found.edpp_multiplier_frac, found.confidential_computing) == (False, 0.8, "on, protected PCIe")
    assert (found.adaptive_tgp, found.mps) == (None, None)
    assert found.gpu_settings_note == "adaptive_tgp: the driver has no such query; mps: why"
    install(monkeypatch, FakeNvml(start_error=12))
    assert environment.measure_environment("cuda").gpu_settings_note == f"{NO_NVML}; mps: why"
