"""NVML probes against a stand-in for pynvml: units, unknown values, visibility, hanging drivers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from bench.errors import DeviceError
from bench.probes import gpu_monitor
from bench.probes.gpu_monitor import (
    GpuMonitor,
    GpuSnapshot,
    Readings,
    is_power_capped,
    is_unconfirmed,
    reason_names,
    throttled_by,
    window_fields,
)
from bench.probes.nvml import (
    Gpu,
    count_other_processes,
    find_gpu,
    hash_uuid,
    list_gpus,
    pci_bus_ids,
    read_gpu_listing,
    visible_gpus,
)
from bench.probes.nvml_session import DEFAULT_TIMEOUT_S
from bench.records import Measurement, Status, columns
from tests.unit.fake_nvml import (
    DRIVER_NOT_LOADED,
    FIELDS,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    LIBRARY_NOT_FOUND,
    OTHER_UUID,
    UUID,
    VERSION_MISMATCH,
    FakeNvml,
    Fault,
    a100,
    install,
)

MIG_UUID = "MIG-77777777-2222-3333-4444-555555555555"


def snapshot_of(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> GpuSnapshot:
    install(monkeypatch, FakeNvml(a100(**changes)))
    with GpuMonitor(UUID) as monitor:
        return monitor.snapshot()


@pytest.mark.parametrize("code", [LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED])
def test_no_driver_means_no_gpus(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    install(monkeypatch, FakeNvml(start_error=code))
    assert list_gpus() == ()
    assert read_gpu_listing().absent


def test_missing_binding_means_no_gpus_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert list_gpus() == ()
    assert "nvidia-ml-py is not installed" in str(read_gpu_listing().error)


def test_driver_and_library_of_different_versions_are_an_error_not_an_empty_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, FakeNvml(start_error=VERSION_MISMATCH))
    with pytest.raises(DeviceError, match=r"NVML does not start: NVML error 18.*reboot.*--device cpu"):
        list_gpus()


def test_listing_carries_what_the_driver_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(a100()))
    expected = Gpu(UUID, "NVIDIA A100-SXM4-80GB", 0, 80 << 30, "550.54.15", (8, 0), False, None, 80 << 30)
    assert list_gpus() == (expected,)
    assert read_gpu_listing().cuda_driver_version == (12, 4)


def test_unsupported_queries_of_a_board_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({"nvmlDeviceGetUUID": UUID}))
    assert list_gpus() == (Gpu(UUID, None, 0, None, "550.54.15", None, None, None),)


def test_mig_board_shows_its_slices_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    board = a100(nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetMaxMigDeviceCount=7)
    mig = {"nvmlDeviceGetUUID": MIG_UUID, "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=10 << 30)}
    install(monkeypatch, FakeNvml(board, slices=(mig,)))
    (seen,) = list_gpus()
    assert (seen.uuid, seen.total_bytes, seen.board_uuid, seen.mig) == (MIG_UUID, 10 << 30, UUID, True)
    assert [gpu.uuid for gpu in list_gpus(visible_only=False)] == [UUID, MIG_UUID]


BOARDS = tuple(Gpu(uuid, index=index) for index, uuid in enumerate((UUID, OTHER_UUID)))


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("0", [0]),
        ("1,0", [1, 0]),
        (" 1 ", [1]),
        ("", []),
        ("-1", []),
        ("7", []),
        ("1,7,0", [1]),  # what stands behind an entry that names nothing is hidden
        ("0,0", []),  # CUDA shows nothing when a device is named twice
        (UUID, [0]),
        ("GPU-9999", [1]),
        ("GPU-", []),  # ambiguous
        ("gpu-9999", []),
        (f"{OTHER_UUID},{UUID}", [1, 0]),
    ],
)
def test_visible_devices_follow_cudas_rules(variable: str, expected: list[int]) -> None:
    assert [gpu.index for gpu in visible_gpus(BOARDS, variable)] == expected


def test_visible_devices_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(a100(), a100(nvmlDeviceGetUUID=OTHER_UUID)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.uuid for gpu in list_gpus()] == [OTHER_UUID]
    assert len(list_gpus(visible_only=False)) == 2


def test_torchs_bare_uuid_finds_and_hashes_like_nvmls() -> None:
    bare = UUID.removeprefix("GPU-")
    assert find_gpu(bare, BOARDS) is BOARDS[0]
    assert find_gpu("nothing", BOARDS) is None
    assert hash_uuid(bare) == hash_uuid(UUID) != hash_uuid(OTHER_UUID)
    assert bare[:8] not in hash_uuid(UUID)


def test_snapshot_is_in_hertz_watts_joules_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert snapshot_of(monkeypatch) == GpuSnapshot(
        sm_clock_hz=1.2e9,
        memory_clock_hz=1.2e9,
        temperature_c=61.0,
        power_w=287.5,
        energy_j=5000.0,
        throttle_reasons=("sw_power_cap",),
        thermal_slowdown_s=2.5,
        power_slowdown_s=2.5,
        pcie_generation=4,
        pcie_width=16,
        used_total_bytes=3 << 30,
        used_process_bytes=None,
        other_process_count=0 if gpu_monitor.shares_host_pids() else None,
        error=None,
    )


def test_static_is_in_watts_and_hertz(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(a100()))
    with GpuMonitor(UUID.removeprefix("GPU-")) as monitor:
        static = monitor.static()
    assert (static.uuid, static.power_limit_w, static.power_limit_default_w) == (UUID, 300.0, 400.0)
    assert (static.settings.ecc, static.mig, static.settings.persistence_mode) == (True, False, True)
    assert static.max_sm_clock_hz == 1.41e9
    assert static.vbios == "92.00.45.00.03"


def test_what_a_board_does_not_support_is_none_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({"nvmlDeviceGetUUID": UUID}))
    with GpuMonitor(UUID) as monitor:
        assert monitor.snapshot() == GpuSnapshot()
        assert monitor.energy_j() is None
        static = monitor.static()
    known = {field.name for field in fields(static) if getattr(static, field.name) is not None}
    assert known == {"uuid", "driver_version", "is_slice", "settings"}
    assert {field.name for field in fields(static.settings) if getattr(static.settings, field.name) is not None} == {
        "note"
    }
    assert not static.is_slice


def test_functions_that_an_older_binding_lacks_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(FakeNvml):
        def __getattr__(self, name: str) -> Any:
            if name == "nvmlDeviceGetCurrentClocksEventReasons":
                raise AttributeError(name)
            return super().__getattr__(name)

    install(monkeypatch, Older(a100(nvmlDeviceGetCurrentClocksThrottleReasons=0x20)))
    with GpuMonitor(UUID) as monitor:
        assert monitor.snapshot().throttle_reasons == ("sw_thermal_slowdown",)


DROPPED = {  # in CUDA 14
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
    "nvmlDeviceGetPowerState": 2,
    "nvmlDeviceGetViolationStatus": SimpleNamespace(referenceTime=1, violationTime=9_000_000_000),
}
CAME = {
    "nvmlDeviceGetTemperatureV": 61,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetPerformanceState": 2,
    FIELDS: {74: 9_000_000_000, 75: 9_000_000_000, 83: 5_000_000, 185: 287_500},  # above what 32 bits hold
}


@pytest.mark.parametrize("absent", ["driver", "binding", "board", "field"])
@pytest.mark.parametrize("there", ["old", "new", "both"])
def test_readings_are_the_same_by_old_calls_and_by_what_succeeds_them(
    monkeypatch: pytest.MonkeyPatch, there: str, absent: str
) -> None:
    code = {"driver": FUNCTION_NOT_FOUND, "binding": FUNCTION_NOT_FOUND, "board": 3, "field": 3}[absent]
    old = DROPPED if there != "new" else dict.fromkeys(DROPPED, Fault(code))
    new: dict[str, Any] = CAME if there != "old" else dict.fromkeys(CAME, Fault(code))
    if absent == "field" and there == "old":
        new[FIELDS] = {}  # a driver that has the call and not these fields
    without = {"old": CAME, "new": DROPPED, "both": {}}[there] if absent == "binding" else ()
    fake = install(monkeypatch, FakeNvml(a100(**{**old, **new}), absent=tuple(without)))
    with GpuMonitor(UUID) as monitor:
        read = monitor.snapshot()
    assert (read.temperature_c, read.throttle_reasons, read.performance_state) == (61.0, ("sw_power_cap",), 2)
    assert (read.thermal_slowdown_s, read.power_slowdown_s) == (9.0, 9.0)
    assert (read.power_w, read.energy_j, read.error) == (287.5, 5000.0, None)
    if there == "both":
        assert not set(DROPPED) & set(fake.calls)


def test_power_and_energy_come_from_fields_where_their_calls_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"nvmlDeviceGetPowerUsage": Fault(26), "nvmlDeviceGetTotalEnergyConsumption": Fault(26)}
    read = snapshot_of(monkeypatch, **gone, **CAME)
    assert (read.power_w, read.energy_j, read.error) == (287.5, 5000.0, None)


def test_a_field_of_a_type_that_is_not_known_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = pynvml.c_nvmlFieldValue_t(valueType=17)
    strange.value.ullVal = 5
    board = a100(nvmlDeviceGetViolationStatus=Fault(13))
    fake = install(monkeypatch, FakeNvml(board, absent=()))
    monkeypatch.setattr(fake, "nvmlDeviceGetFieldValues", lambda handle, ids: [strange], raising=False)
    with GpuMonitor(UUID) as monitor:
        assert monitor.snapshot().power_slowdown_s is None


def test_a_signed_or_double_field_is_read_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    value = pynvml.c_nvmlFieldValue_t(valueType=pynvml.NVML_VALUE_TYPE_DOUBLE)
    value.value.dVal = 2.5e9
    fake = install(monkeypatch, FakeNvml(a100()))
    monkeypatch.setattr(fake, "nvmlDeviceGetFieldValues", lambda handle, ids: [value], raising=False)
    with GpuMonitor(UUID) as monitor:
        assert monitor.snapshot().power_slowdown_s == 2.5


def test_a_field_of_a_gpu_that_is_lost_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {FIELDS: {75: Fault(GPU_IS_LOST)}, "nvmlDeviceGetViolationStatus": Fault(13)}
    read = snapshot_of(monkeypatch, **lost)
    assert (read.thermal_slowdown_s, read.error) == (None, "field 75: NVML error 15")


def test_an_unknown_performance_state_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert snapshot_of(monkeypatch, nvmlDeviceGetPerformanceState=32).performance_state is None


def test_a_lost_gpu_is_told_apart_from_an_unsupported_query(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snapshot_of(monkeypatch, nvmlDeviceGetPowerUsage=Fault(GPU_IS_LOST))
    assert snapshot.power_w is None
    assert snapshot.error == "nvmlDeviceGetPowerUsage: NVML error 15"


def test_own_memory_and_other_processes_are_found_by_process_id(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=2 << 30)
    other = SimpleNamespace(pid=1, usedGpuMemory=1 << 30)
    listed = {"nvmlDeviceGetComputeRunningProcesses": [mine, other], "nvmlDeviceGetGraphicsRunningProcesses": [mine]}
    snapshot = snapshot_of(monkeypatch, **listed)
    assert (snapshot.used_process_bytes, snapshot.other_process_count) == (2 << 30, 1)


def test_process_list_of_another_namespace_gives_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_monitor, "shares_host_pids", lambda: False)
    for listed in ([], [SimpleNamespace(pid=2**22 + 1, usedGpuMemory=1 << 30)]):
        snapshot = snapshot_of(monkeypatch, nvmlDeviceGetComputeRunningProcesses=listed)
        assert (snapshot.used_process_bytes, snapshot.other_process_count) == (None, None)


def test_process_without_a_memory_figure_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)
    assert snapshot_of(monkeypatch, nvmlDeviceGetComputeRunningProcesses=[mine]).used_process_bytes is None


def test_power_and_energy_of_a_slice_are_unknown_and_clocks_are_the_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    mig = {"nvmlDeviceGetUUID": MIG_UUID, "nvmlDeviceIsMigDeviceHandle": 1}
    install(monkeypatch, FakeNvml(a100(), slices=(mig,)))
    with GpuMonitor(MIG_UUID) as monitor:
        snapshot = monitor.snapshot()
        assert monitor.energy_j() is None
    assert (snapshot.power_w, snapshot.energy_j, snapshot.sm_clock_hz) == (None, None, 1.2e9)
    assert snapshot.used_total_bytes is None  # the slice's own, not the board's


def test_figures_of_a_board_that_is_cut_into_slices_are_not_those_of_what_cuda_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = SimpleNamespace(pid=os.getpid(), usedGpuMemory=5)
    install(monkeypatch, FakeNvml(a100(nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetComputeRunningProcesses=[process])))
    with GpuMonitor(UUID) as monitor:
        snapshot, static = monitor.snapshot(), monitor.static()
    assert (snapshot.used_total_bytes, snapshot.used_process_bytes, snapshot.other_process_count) == (None, None, None)
    assert (snapshot.power_w, snapshot.energy_j, snapshot.temperature_c) == (None, None, 61)
    assert (static.total_bytes, static.allowed_bytes, static.mig, static.is_slice) == (None, None, True, False)


def test_a_slice_is_of_a_board_in_mig_mode_whatever_nvml_hides_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=5 << 30, used=1 << 30)
    mig = {"nvmlDeviceGetUUID": MIG_UUID, "nvmlDeviceIsMigDeviceHandle": 1, "nvmlDeviceGetMemoryInfo": memory}
    install(monkeypatch, FakeNvml(a100(nvmlDeviceGetMigMode=Fault(4)), slices=(mig,)))
    with GpuMonitor(MIG_UUID) as monitor:
        static = monitor.static()
        assert monitor.snapshot().used_total_bytes == 1 << 30
    assert (static.total_bytes, static.allowed_bytes, static.mig, static.is_slice) == (5 << 30, 5 << 30, True, True)


@pytest.mark.parametrize("memory", [Fault(3), SimpleNamespace(total=0, used=0, free=0)])
def test_memory_of_a_gpu_without_its_own_is_unknown_and_never_zero(
    monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    assert snapshot_of(monkeypatch, nvmlDeviceGetMemoryInfo=memory).used_total_bytes is None
    (listed,) = list_gpus()
    assert (listed.total_bytes, listed.allowed_bytes) == (None, None)
    with GpuMonitor(UUID) as monitor:
        assert (monitor.static().total_bytes, monitor.static().allowed_bytes) == (None, None)


def test_an_unknown_uuid_is_an_error_that_keeps_it_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(a100()))
    with pytest.raises(DeviceError, match=r"^NVML has no GPU with this UUID$"):
        GpuMonitor(OTHER_UUID)


def test_a_driver_that_hangs_at_the_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeNvml(a100(), hang="nvmlInit"))
    listing = read_gpu_listing(timeout_s=0.05)
    fake.released.set()
    assert listing.error == "NVML gave no answer to nvmlInit within 0.05 s"
    assert not listing.absent


@pytest.mark.parametrize("given", ["abc", "nan", "0", "-1", "1e300", "99999999999", "3601"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    install(monkeypatch, FakeNvml(a100()))
    monkeypatch.setenv("BENCH_NVML_TIMEOUT", given)
    with pytest.raises(
        DeviceError, match=f'^BENCH_NVML_TIMEOUT: "{given}" must be a number of seconds above 0 and up to 36'
    ):
        GpuMonitor(UUID)


def test_the_wait_for_a_driver_is_30_seconds_or_what_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeNvml(a100(), hang="nvmlInit"))
    assert DEFAULT_TIMEOUT_S == 30
    monkeypatch.setenv("BENCH_NVML_TIMEOUT", "0.05")
    assert read_gpu_listing().error == "NVML gave no answer to nvmlInit within 0.05 s"
    fake.released.set()


def test_readings_of_a_driver_known_not_to_answer_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeNvml(a100()))
    readings = Readings(UUID, "NVML gave no answer before")
    assert (readings.open, readings.used_bytes(), readings.close_window()) == (False, None, {})
    assert readings.error == "NVML gave no answer before"
    assert fake.calls == []


def test_after_one_hang_every_reading_is_empty_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeNvml(a100(), hang="nvmlDeviceGetPowerUsage"))
    monitor = GpuMonitor(UUID)
    monitor._session.timeout_s = 0.3  # not before it is open, which a busy machine may take longer for
    first = monitor.snapshot()
    started = time.monotonic()
    second = [monitor.snapshot() for _ in range(20)]
    waited_s = time.monotonic() - started
    monitor.close()
    fake.released.set()
    assert first == GpuSnapshot(error="NVML gave no answer to reading the GPU within 0.3 s")
    assert {each.error for each in second} == {"NVML gave no answer to reading the GPU; it is not queried again"}
    assert waited_s < 0.3 * 20  # twenty waits would take that long


def test_looks_at_neighbours_do_not_wait_for_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    board = a100(nvmlDeviceGetPciInfo=SimpleNamespace(busId="00000000:3B:00.0"))
    fake = install(monkeypatch, FakeNvml(board))
    assert (count_other_processes(UUID), pci_bus_ids([UUID])) == (0, {UUID: "00000000:3B:00.0"})
    fake.hang = "nvmlDeviceGetHandleByUUID"
    assert (count_other_processes(UUID, 0.5), pci_bus_ids([UUID], 0.5)) == (None, {})
    fake.released.set()


def test_a_hanging_driver_does_not_keep_the_process_alive() -> None:
    program = (
        "import sys, threading, types\n"
        "fake = types.ModuleType('pynvml'); fake.NVMLError = Exception\n"
        "fake.nvmlInit = lambda: threading.Event().wait()\n"
        "sys.modules['pynvml'] = fake\n"
        "from bench.probes.nvml import read_gpu_listing\n"
        "print(read_gpu_listing(0.05).error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "no answer to nvmlInit" in done.stdout


def test_listing_gpus_needs_no_torch() -> None:
    program = "import sys; from bench.probes.nvml import list_gpus; list_gpus(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_window_fields_are_columns_and_differences_of_counters() -> None:
    start = GpuSnapshot(energy_j=100.0, thermal_slowdown_s=1.0, pcie_generation=5, sm_clock_hz=1.0)
    end = GpuSnapshot(energy_j=160.0, thermal_slowdown_s=1.25, pcie_generation=1, sm_clock_hz=2.0, used_total_bytes=7)
    found = window_fields(start, end)
    assert set(found) <= set(columns(Measurement))
    assert (found["energy_window_j"], found["thermal_slowdown_window_s"]) == (60.0, 0.25)
    assert found["pcie_generation"] == 5  # under load, not after it
    assert (found["sm_clock_start_hz"], found["sm_clock_end_hz"], found["device_used_total_bytes"]) == (1.0, 2.0, 7)
    assert found["power_slowdown_window_s"] is None


def test_reasons_that_nvml_did_not_say_are_unknown_and_not_none_active() -> None:
    found = window_fields(GpuSnapshot(throttle_reasons=()), GpuSnapshot())
    assert (found["throttle_reasons_start"], found["throttle_reasons_end"]) == ((), None)
    assert Measurement(status=Status.OK).throttle_reasons_end is None


def test_a_run_without_reasons_is_judged_by_the_counter_of_heat() -> None:
    from bench.worker import _mark_throttled

    for slowed_s, status in ((None, Status.OK), (0.05, Status.THROTTLED)):
        found = {**window_fields(GpuSnapshot(), GpuSnapshot()), "status": Status.OK, "wall_window_s": 1.0}
        _mark_throttled(found := {**found, "thermal_slowdown_window_s": slowed_s})
        assert found["status"] is status


def test_counter_that_went_backwards_is_unknown() -> None:
    assert window_fields(GpuSnapshot(energy_j=9.0), GpuSnapshot(energy_j=1.0))["energy_window_j"] is None


def test_reasons_are_named_and_unknown_bits_kept() -> None:
    assert reason_names(0) == ()
    assert reason_names(0x4 | 0x40) == ("sw_power_cap", "hw_thermal_slowdown")
    assert reason_names(1 << 20) == ("unknown_0x100000",)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ((), ()),
        (("sw_power_cap", "gpu_idle", "application_clocks", "sync_boost"), ()),  # normal at full load, or a setting
        (("sw_thermal_slowdown",), ("thermal",)),
        (("hw_thermal_slowdown", "hw_slowdown"), ("thermal",)),
        (("hw_power_brake_slowdown", "hw_slowdown"), ("power_brake",)),
        (("hw_slowdown",), ("hardware",)),
        (("hw_power_brake_slowdown", "sw_thermal_slowdown"), ("power_brake", "thermal")),
    ],
)
def test_heat_and_the_power_brake_throttle_and_the_power_cap_does_not(
    reasons: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert throttled_by(reasons) == expected


def test_heat_between_the_readings_shows_in_the_drivers_counter() -> None:
    assert throttled_by((), thermal_slowdown_s=0.05, window_s=1.0) == ("thermal",)
    assert throttled_by((), thermal_slowdown_s=0.005, window_s=1.0) == ()
    assert throttled_by((), thermal_slowdown_s=None, window_s=1.0) == ()


def test_power_limit_below_the_default_is_a_cap() -> None:
    assert is_power_capped(300.0, 400.0) is True
    assert is_power_capped(400.0, 400.0) is False
    assert is_power_capped(None, 400.0) is None


@pytest.mark.parametrize(
    ("energy_j", "power_w", "count", "unconfirmed"),
    [
        (187.4, 65.4, 50, True),  # as published: ml-energy/zeus #181, whose window was 5 s
        (326.9, 65.4, 50, False),
        (5 * 65.4 * 0.79, 65.4, 50, True),
        (5 * 65.4 * 0.81, 65.4, 50, False),
        (5 * 65.4 * 1.21, 65.4, 50, True),
        (187.4, 65.4, 4, False),
        (None, 65.4, 50, False),
        (187.4, None, None, False),
        (187.4, 0.0, 50, False),
    ],
)
def test_a_counter_is_compared_with_the_samples_of_power(
    energy_j: float | None, power_w: float | None, count: int | None, unconfirmed: bool
) -> None:
    fields = {"energy_window_j": energy_j, "power_window_w": power_w, "power_sample_count": count}
    assert is_unconfirmed(fields, 5.0) is unconfirmed


def test_samples_of_power_are_those_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [
        SimpleNamespace(timeStamp=second * 1_000_000, sampleValue=SimpleNamespace(uiVal=second * 1000))
        for second in range(10, 15)
    ]
    install(monkeypatch, FakeNvml(a100(nvmlDeviceGetSamples=(1, samples))))
    with GpuMonitor(UUID) as monitor:
        assert monitor.power_samples(11.0, 13.0) == (12.0, 13.0)
        assert monitor.power_samples(20.0, 30.0) == ()
    cut = a100(nvmlDeviceGetSamples=(1, samples), nvmlDeviceGetMigMode=[1, 1])  # of which CUDA shows a slice
    for board in (a100(), cut):
        install(monkeypatch, FakeNvml(board))
        with GpuMonitor(UUID) as monitor:
            assert monitor.power_samples(11.0, 13.0) is None


def test_energy_of_a_window_shorter_than_the_counters_steps_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(a100()))
    now = [100.0]
    monkeypatch.setattr(gpu_monitor.time, "time", lambda: now[0])
    readings = Readings(UUID)
    for window_s, energy_j in ((0.49, None), (0.51, 0.0)):
        readings.start()
        readings.open_window()
        now[0] += window_s
        assert readings.close_window()["energy_window_j"] == energy_j
