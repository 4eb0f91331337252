"""Readings of one GPU through NVML: what it is, and what it does at a moment.

Where to read, around a measured window: take `snapshot` while warm-up steps are still in flight (an idle GPU drops its
PCIe link and clocks within milliseconds), synchronise, read `energy_j`, measure, read `energy_j`, and take `snapshot`
again at once. One snapshot is about fifteen driver calls, 1 to 10 ms in all: never inside the window. The driver keeps
samples of the board's power of its own; those of the window are fetched after it, to check the counter.

`Readings` takes them around one run: a driver that does not answer costs the run these figures and nothing else.

What NVML's clock event reasons say about a run: a reason is a bit of `nvmlDeviceGetCurrentClocksEventReasons` (called
throttle reasons before driver 535). Bits and meanings: NVML API Reference, "NvmlClocksEventReasons"; nvml.h. Which of
them spoil a measurement:

- Thermal slowdown, by software or hardware: the clocks depend on the cooling. Throttled.
- Hardware power brake: the power supply or the chassis pulled the brake, clocks at half or less. Throttled.
- Hardware slowdown: the umbrella bit over both, also set by fast over-current protection. Throttled.
- Board or reliability limit: voltage or current limits that every board of the kind meets at full load. Not throttled.
- Software power cap: the normal state of a data-centre GPU at full load under its own limit. Not throttled; a limit
  below the board's default is another matter and shows in `power_limit_w` against `power_limit_default_w`.
- Idle, application clocks, display clocks, sync boost: settings, recorded. Not throttled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.errors import DeviceError
from bench.probes.gpu_settings import NO_NVML, GpuSettings, read_settings
from bench.probes.nvml_session import NvmlSession, NvmlUnavailable, Way

SILENT = "nvml_silent"
"""The flag of a run whose readings are missing although its GPU was to be read."""

UNCONFIRMED = "energy_unconfirmed"
"""The flag of a run whose energy counter and whose samples of power disagree by more than `ENERGY_TOLERANCE_FRAC`."""

ENERGY_TOLERANCE_FRAC = 0.2
"""Where both work they differ by 1 % (ml-energy/zeus #12); where the counter did not, by 43 % (#181). On A100 and H100
the driver sees power in a quarter of the time only (Yang, Adamek and Armour, "Part-time Power Measurements", 2023)."""

LEAST_WINDOW_S = 0.5
"""Of a reading of energy. On an H200 (204 runs, driver 580; docs/h200.md) counter and samples of power differ by up to
41 % in windows of less than 0.5 s (median 13 %), and by at most 15 % in longer ones (median 3 %): both lag."""

LEAST_SAMPLES = 5
"""Of power in a window, below which they neither confirm nor contradict the counter."""


class Readings:
    """What NVML says of a GPU before, at the start of and at the end of a measured window; never raises."""

    def __init__(self, gpu_uuid: str | None, error: str | None = None) -> None:
        """Open NVML.

        Args:
            gpu_uuid: Which GPU, as NVML names it; None on a CPU, or where NVML is not there: nothing is read then.
            error: Why it is not to be asked, where it is known not to answer.
        """
        self.error = error
        self._monitor: GpuMonitor | None = None
        self._start = GpuSnapshot()
        self._energy_j: float | None = None
        self._opened_unix_s = 0.0
        if gpu_uuid is not None and error is None:
            try:
                self._monitor = GpuMonitor(gpu_uuid)
            except DeviceError as fault:
                self.error = str(fault)

    @property
    def open(self) -> bool:
        """Whether there is anything to read with."""
        return self._monitor is not None

    def used_bytes(self) -> int | None:
        """What all processes together hold of the device now, in bytes."""
        return self._snapshot().used_total_bytes

    def start(self) -> None:
        """Read the device, while steps are in flight."""
        self._start = self._snapshot()

    def open_window(self) -> None:
        """Read the energy counter; the window begins at once."""
        self._energy_j = self._monitor.energy_j() if self._monitor is not None else None
        self._opened_unix_s = time.time()

    def close_window(self) -> dict[str, Any]:
        """Read the counter and the device again; returns columns of `Measurement`, none where nothing is read."""
        if self._monitor is None:
            return {}
        closed_unix_s = time.time()
        long = closed_unix_s - self._opened_unix_s >= LEAST_WINDOW_S
        energy_j = self._monitor.energy_j()
        fields = window_fields(self._start, self._snapshot())
        samples = self._monitor.power_samples(self._opened_unix_s, closed_unix_s)
        return {
            **fields,
            "energy_window_j": difference(self._energy_j, energy_j) if long else None,
            "power_window_w": sum(samples) / len(samples) if samples else None,
            "power_sample_count": None if samples is None else len(samples),
        }

    def _snapshot(self) -> GpuSnapshot:
        if self._monitor is None:
            return GpuSnapshot()
        read = self._monitor.snapshot()
        self.error = self.error or read.error
        return read


def is_unconfirmed(fields: Mapping[str, Any], window_s: float) -> bool:
    """Whether the samples of power are enough to say that the energy counter is wrong, or that they are.

    Args:
        fields: As `Readings.close_window` returns them.
        window_s: The length of the window in seconds.
    """
    energy_j, power_w = fields.get("energy_window_j"), fields.get("power_window_w")
    if energy_j is None or not power_w or (fields.get("power_sample_count") or 0) < LEAST_SAMPLES:
        return False
    return bool(abs(energy_j / window_s - power_w) > ENERGY_TOLERANCE_FRAC * power_w)


Cause = Literal["thermal", "power_brake", "hardware"]

REASON_BITS: dict[int, str] = {
    0x001: "gpu_idle",
    0x002: "application_clocks",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}

_CAUSES: dict[str, Cause] = {
    "sw_thermal_slowdown": "thermal",
    "hw_thermal_slowdown": "thermal",
    "hw_power_brake_slowdown": "power_brake",
    "hw_slowdown": "hardware",
}

THERMAL_SHARE_FRAC = 0.01
"""A window of which more than this share was slowed for heat, by the driver's own counter, counts as throttled."""


def reason_names(mask: int) -> tuple[str, ...]:
    """The names of the bits set, in the order of the bits; a bit that this table lacks reads `unknown_0x...`."""
    bits = [1 << position for position in range(mask.bit_length()) if mask >> position & 1]
    return tuple(REASON_BITS.get(bit, f"unknown_{bit:#x}") for bit in bits)


def throttled_by(
    reasons: Iterable[str], *, thermal_slowdown_s: float | None = None, window_s: float | None = None
) -> tuple[Cause, ...]:
    """Why a run counts as throttled; empty if it does not.

    Args:
        reasons: Names from the readings around (and within) the window.
        thermal_slowdown_s: Seconds of the window slowed for heat, from the driver's counter; None if there is none.
            It sees what the readings at both ends miss.
        window_s: The length of the window in seconds.
    """
    found = {_CAUSES[reason] for reason in reasons if reason in _CAUSES}
    if thermal_slowdown_s and window_s and thermal_slowdown_s > THERMAL_SHARE_FRAC * window_s:
        found.add("thermal")
    if len(found) > 1:
        found.discard("hardware")  # the umbrella over the causes that are named
    return tuple(sorted(found))


def is_power_capped(power_limit_w: float | None, power_limit_default_w: float | None) -> bool | None:
    """Whether the board runs under a limit below its default by more than half a watt; None if either is unknown."""
    if power_limit_w is None or power_limit_default_w is None:
        return None
    return power_limit_w < power_limit_default_w - 0.5


_CLOCK_SM, _CLOCK_MEMORY = 1, 2  # nvml.h: nvmlClockType_t
_POWER_SAMPLES = 0  # nvml.h: nvmlSamplingType_t; milliwatts as unsigned int, at the CPU's time in microseconds
MEMORY_V2 = 0x02000028  # nvml.h: nvmlMemory_v2; its `used` leaves out what the driver reserves for itself, and
# its `total` is that of the control group from driver 615 on (nvmlSetMemoryLimits_v1_t)
_HOST_PID_NAMESPACE = "pid:[4026531836]"  # Linux, include/linux/proc_ns.h: PROC_PID_INIT_INO


_TEMPERATURE = (Way("nvmlDeviceGetTemperatureV", (0,)), Way("nvmlDeviceGetTemperature", (0,)))  # sensor 0: the GPU's
_EVENT_REASONS = (Way("nvmlDeviceGetCurrentClocksEventReasons"), Way("nvmlDeviceGetCurrentClocksThrottleReasons"))
_PERFORMANCE_STATE = (Way("nvmlDeviceGetPerformanceState"), Way("nvmlDeviceGetPowerState"))
_THERMAL_SLOWDOWN = (
    Way(75, scale=1e-9),  # NVML_FI_DEV_PERF_POLICY_THERMAL
    Way("nvmlDeviceGetViolationStatus", (1,), "violationTime", 1e-9),
)
_POWER_SLOWDOWN = (
    Way(74, scale=1e-9),  # NVML_FI_DEV_PERF_POLICY_POWER
    Way("nvmlDeviceGetViolationStatus", (0,), "violationTime", 1e-9),
)
_ENERGY = (Way("nvmlDeviceGetTotalEnergyConsumption", scale=1e-3), Way(83, scale=1e-3))
_POWER = (Way("nvmlDeviceGetPowerUsage", scale=1e-3), Way(185, scale=1e-3))  # NVML_FI_DEV_POWER_AVERAGE
"""How to ask for readings that NVML has renamed or will drop: what succeeds comes first, what it replaces behind it.

Of the first five, what stands behind is deprecated in CUDA 13 and gone in 14 (NVML API Reference, "Change Log", v580).
NVML counts in nanoseconds, millijoules and milliwatts. The counters of single reasons, fields 269 to 271, are left
alone: drivers 575 to 580 do not agree on their numbers, and answer under those of others."""

_UNKNOWN_STATE = 32  # nvml.h: NVML_PSTATE_UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStatic:
    """What does not change while a sweep runs; None is unknown."""

    uuid: str
    name: str | None = None
    total_bytes: int | None = None
    allowed_bytes: int | None = None  # the total that NVML shows this process: a control group may lower it
    is_slice: bool = False  # of a board, by MIG
    vbios: str | None = None
    driver_version: str | None = None
    mig: bool | None = None
    power_limit_w: float | None = None  # the limit enforced, of whoever set it
    power_limit_default_w: float | None = None
    max_sm_clock_hz: float | None = None
    max_memory_clock_hz: float | None = None
    max_pcie_generation: int | None = None
    max_pcie_width: int | None = None
    settings: GpuSettings = field(default_factory=GpuSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSnapshot:
    """One reading; None is unknown, and a snapshot of a GPU that does not answer is None throughout."""

    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None  # of the board, averaged by the driver over up to 1 s on Ampere and newer
    energy_j: float | None = None  # a counter since the driver was loaded; only differences mean anything
    throttle_reasons: tuple[str, ...] | None = None  # names of `throttling.REASON_BITS`; empty: none active
    thermal_slowdown_s: float | None = None  # a counter of time slowed for heat
    power_slowdown_s: float | None = None  # a counter of time slowed for the power limit
    performance_state: int | None = None  # P0, the fastest, to P15
    pcie_generation: int | None = None
    pcie_width: int | None = None
    used_total_bytes: int | None = None  # all processes of the device
    used_process_bytes: int | None = None  # of the process asked for
    other_process_count: int | None = None
    error: str | None = None  # why readings are missing, where it is more than "not supported"


class GpuMonitor:
    """NVML's view of one GPU, by UUID.

    Power and energy of a MIG slice are None: the board's cover every slice. So are memory and processes where NVML
    shows the board that is cut into slices and not the slice, as CUDA before 12 and some containers have it: the
    board's are not the slice's. Clocks, temperature, limits and settings are the board's, which the slice shares.
    """

    def __init__(self, uuid: str, timeout_s: float | None = None) -> None:
        """Open the GPU.

        Args:
            uuid: As NVML or torch write it, with or without `GPU-` or `MIG-`.
            timeout_s: The longest wait for any one reading, in seconds; NvmlSession's where None. After a reading that
                took longer, every later one is empty at once, with the reason in `error`.

        Raises:
            DeviceError: NVML does not start, or knows no such GPU; the message does not name it, as UUIDs stay out of
                results.
        """
        try:
            self._session = NvmlSession(timeout_s)
        except NvmlUnavailable as error:
            raise DeviceError(str(error)) from error
        try:
            self._session.call(lambda: self._open(uuid), "opening the GPU")
        except NvmlUnavailable as error:
            self._session.close()
            raise DeviceError(str(error)) from error

    def _open(self, uuid: str) -> None:
        self._device: Any
        prefixed = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
        handles = ((name, self._session.read("nvmlDeviceGetHandleByUUID", name)) for name in prefixed)
        self.uuid, self._device = next(((name, found) for name, found in handles if found is not None), (uuid, None))
        if self._device is None:
            raise NvmlUnavailable(self._session.last_error or "NVML has no GPU with this UUID")
        self._is_slice = bool(self._session.read("nvmlDeviceIsMigDeviceHandle", self._device))
        board = self._session.read("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", self._device)
        self._board = board if self._is_slice and board is not None else self._device
        modes = self._session.read("nvmlDeviceGetMigMode", self._board)
        self._is_mig = True if self._is_slice else bool(modes[0]) if modes else None
        self._is_cut = self._is_mig is True and not self._is_slice  # a board of which CUDA shows a slice

    def static(self) -> GpuStatic:
        """What the GPU is; everything but the UUID is None if NVML does not answer in time."""
        try:
            return self._session.call(self._read_static, "reading the GPU's settings")
        except NvmlUnavailable:
            return GpuStatic(uuid=self.uuid, settings=GpuSettings(note=NO_NVML))

    def snapshot(self, process_id: int | None = None) -> GpuSnapshot:
        """What the GPU does now.

        Args:
            process_id: Whose memory to look up; this process where None. A container sees the host's process ids or an
                empty list: memory and count are None then, not 0.
        """
        wanted = os.getpid() if process_id is None else process_id
        try:
            return self._session.call(lambda: self._read_snapshot(wanted), "reading the GPU")
        except NvmlUnavailable as error:
            return GpuSnapshot(error=str(error))

    def energy_j(self) -> float | None:
        """The board's energy counter in joules, one driver call; None on a slice and before Volta.

        The counter moves every 20 to 100 ms, so a window of 0.3 s is known to about a fifth and one of 5 s to 2 %.
        """
        try:
            return self._session.call(self._energy_j, "reading the energy counter")
        except NvmlUnavailable:
            return None

    def power_samples(self, start_unix_s: float, end_unix_s: float) -> tuple[float, ...] | None:
        """The board's power in watts, as the driver sampled it between two times; None on a slice, or without samples.

        The driver keeps about the last hundred; of a longer window they are the end.
        """
        try:
            return self._session.call(lambda: self._power_samples(start_unix_s, end_unix_s), "reading samples of power")
        except NvmlUnavailable:
            return None

    def _power_samples(self, start_unix_s: float, end_unix_s: float) -> tuple[float, ...] | None:
        if self._is_mig:
            return None
        read = self._session.read("nvmlDeviceGetSamples", self._board, _POWER_SAMPLES, int(start_unix_s * 1e6))
        if read is None:
            return None
        return tuple(
            sample.sampleValue.uiVal * 1e-3
            for sample in read[1]
            if start_unix_s < sample.timeStamp * 1e-6 <= end_unix_s
        )

    def close(self) -> None:
        """Let go of NVML."""
        self._session.close()

    def __enter__(self) -> GpuMonitor:
        """The monitor itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _board_read(self, name: str, *arguments: Any, scale: float = 1.0) -> float | None:
        value = self._session.read(name, self._board, *arguments)
        return None if value is None else value * scale

    def _board_first(self, ways: Sequence[Way]) -> float | None:
        return self._session.first(self._board, ways)

    def _board_count(self, name: str) -> int | None:
        value = self._session.read(name, self._board)
        return int(value) if value else None  # a PCIe link of generation or width 0 is not an answer

    def _read_static(self) -> GpuStatic:
        read = self._session.read
        memory = None if self._is_cut else read("nvmlDeviceGetMemoryInfo", self._device)
        return GpuStatic(
            uuid=self.uuid,
            name=read("nvmlDeviceGetName", self._device) or read("nvmlDeviceGetName", self._board),
            total_bytes=(int(memory.total) or None) if memory is not None else None,
            allowed_bytes=self._read_memory("total"),
            is_slice=self._is_slice,
            vbios=read("nvmlDeviceGetVbiosVersion", self._board),
            driver_version=read("nvmlSystemGetDriverVersion"),
            mig=self._is_mig,
            power_limit_w=self._board_read("nvmlDeviceGetEnforcedPowerLimit", scale=1e-3),
            power_limit_default_w=self._board_read("nvmlDeviceGetPowerManagementDefaultLimit", scale=1e-3),
            max_sm_clock_hz=self._board_read("nvmlDeviceGetMaxClockInfo", _CLOCK_SM, scale=1e6),
            max_memory_clock_hz=self._board_read("nvmlDeviceGetMaxClockInfo", _CLOCK_MEMORY, scale=1e6),
            max_pcie_generation=self._board_count("nvmlDeviceGetMaxPcieLinkGeneration"),
            max_pcie_width=self._board_count("nvmlDeviceGetMaxPcieLinkWidth"),
            settings=read_settings(self._session, self._board),
        )

    def _read_snapshot(self, process_id: int) -> GpuSnapshot:
        self._session.last_error = None
        process_bytes, others = self._read_processes(process_id)
        return GpuSnapshot(
            sm_clock_hz=self._board_read("nvmlDeviceGetClockInfo", _CLOCK_SM, scale=1e6),
            memory_clock_hz=self._board_read("nvmlDeviceGetClockInfo", _CLOCK_MEMORY, scale=1e6),
            temperature_c=self._board_first(_TEMPERATURE),
            power_w=None if self._is_mig else self._board_first(_POWER),
            energy_j=self._energy_j(),
            throttle_reasons=self._read_reasons(),
            thermal_slowdown_s=self._board_first(_THERMAL_SLOWDOWN),
            power_slowdown_s=self._board_first(_POWER_SLOWDOWN),
            performance_state=self._read_performance_state(),
            pcie_generation=self._board_count("nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_width=self._board_count("nvmlDeviceGetCurrPcieLinkWidth"),
            used_total_bytes=self._read_memory("used"),
            used_process_bytes=process_bytes,
            other_process_count=others,
            error=self._session.last_error,
        )

    def _energy_j(self) -> float | None:
        return None if self._is_mig else self._board_first(_ENERGY)

    def _read_reasons(self) -> tuple[str, ...] | None:
        mask = self._board_first(_EVENT_REASONS)
        return None if mask is None else reason_names(int(mask))

    def _read_performance_state(self) -> int | None:
        state = self._board_first(_PERFORMANCE_STATE)
        return None if state is None or state == _UNKNOWN_STATE else int(state)

    def _read_memory(self, what: Literal["total", "used"]) -> int | None:
        if self._is_cut:
            return None
        memory = self._session.read("nvmlDeviceGetMemoryInfo", self._device, MEMORY_V2)
        if memory is None:  # drivers before 510: `used` holds the driver's reserve, some hundred MiB, as well
            memory = self._session.read("nvmlDeviceGetMemoryInfo", self._device)
        if memory is None or not memory.total:  # unified memory: not supported, or all zeros
            return None
        return int(getattr(memory, what))

    def _read_processes(self, process_id: int) -> tuple[int | None, int | None]:
        if self._is_cut:
            return None, None
        compute = self._session.read("nvmlDeviceGetComputeRunningProcesses", self._device)
        graphics = self._session.read("nvmlDeviceGetGraphicsRunningProcesses", self._device)
        if compute is None:
            return None, None
        used: dict[int, int | None] = {}
        for process in (*compute, *(graphics or ())):
            known = used.get(process.pid)
            used[process.pid] = process.usedGpuMemory if known is None else known
        if process_id in used:
            return used[process_id], len(used) - 1
        return None, len(used) if shares_host_pids() else None


def shares_host_pids() -> bool:
    """Whether process ids here are the host's, as NVML reports them; false if that cannot be told."""
    try:
        return Path("/proc/self/ns/pid").readlink().name == _HOST_PID_NAMESPACE
    except OSError:
        return False


def window_fields(start: GpuSnapshot, end: GpuSnapshot) -> dict[str, Any]:
    """The columns of `Measurement` that the readings at both ends of a window give, by name.

    The energy is the difference of the two counters: pass snapshots that hug the window, or put `energy_window_j` of
    two `energy_j` readings in its place. A counter that went backwards (the driver was reloaded) gives None.
    """
    return {
        "sm_clock_start_hz": start.sm_clock_hz,
        "sm_clock_end_hz": end.sm_clock_hz,
        "memory_clock_start_hz": start.memory_clock_hz,
        "memory_clock_end_hz": end.memory_clock_hz,
        "temperature_start_c": start.temperature_c,
        "temperature_end_c": end.temperature_c,
        "power_end_w": end.power_w,
        "energy_window_j": difference(start.energy_j, end.energy_j),
        "throttle_reasons_start": start.throttle_reasons,
        "throttle_reasons_end": end.throttle_reasons,
        "thermal_slowdown_window_s": difference(start.thermal_slowdown_s, end.thermal_slowdown_s),
        "power_slowdown_window_s": difference(start.power_slowdown_s, end.power_slowdown_s),
        "performance_state_end": end.performance_state,
        "pcie_generation": start.pcie_generation,
        "pcie_width": start.pcie_width,
        "device_used_bytes": end.used_process_bytes,
        "device_used_total_bytes": end.used_total_bytes,
        "other_process_count": end.other_process_count,
    }


def difference(start: float | None, end: float | None) -> float | None:
    """`end - start` of a counter; None if either is unknown or the counter went backwards."""
    return None if start is None or end is None or end < start else end - start
