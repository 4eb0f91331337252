"""Readings of one GPU through NVML: what it is, and what it does at a moment.

Where to read, around a measured window: take `snapshot` while warm-up steps are still in flight (an idle GPU drops its
PCIe link and clocks within milliseconds), synchronise, read `energy_j`, measure, read `energy_j`, and take `snapshot`
again at once. One snapshot is about fifteen driver calls, 1 to 10 ms in all: never inside the window.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import DeviceError
from bench.probes.nvml_session import NvmlSession, NvmlUnavailable
from bench.probes.throttling import reason_names

_TEMPERATURE_GPU, _CLOCK_SM, _CLOCK_MEMORY = 0, 1, 2  # nvml.h: nvmlTemperatureSensors_t, nvmlClockType_t
_POLICY_POWER, _POLICY_THERMAL = 0, 1  # nvml.h: nvmlPerfPolicyType_t
_MEMORY_V2 = 0x02000028  # nvml.h: nvmlMemory_v2; its `used` leaves out what the driver reserves for itself
_HOST_PID_NAMESPACE = "pid:[4026531836]"  # Linux, include/linux/proc_ns.h: PROC_PID_INIT_INO


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStatic:
    """What does not change while a sweep runs; None is unknown."""

    uuid: str
    name: str | None = None
    total_bytes: int | None = None
    vbios: str | None = None
    driver_version: str | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence_mode: bool | None = None
    power_limit_w: float | None = None  # the limit enforced, of whoever set it
    power_limit_default_w: float | None = None
    max_sm_clock_hz: float | None = None
    max_memory_clock_hz: float | None = None
    max_pcie_generation: int | None = None
    max_pcie_width: int | None = None


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
    pcie_generation: int | None = None
    pcie_width: int | None = None
    used_total_bytes: int | None = None  # all processes of the device
    used_process_bytes: int | None = None  # of the process asked for
    other_process_count: int | None = None
    error: str | None = None  # why readings are missing, where it is more than "not supported"


class GpuMonitor:
    """NVML's view of one GPU, by UUID. Power and energy of a MIG slice are None: the board's cover every slice."""

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

    def static(self) -> GpuStatic:
        """What the GPU is; everything but the UUID is None if NVML does not answer in time."""
        try:
            return self._session.call(self._read_static, "reading the GPU's settings")
        except NvmlUnavailable:
            return GpuStatic(uuid=self.uuid)

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

    def _board_count(self, name: str) -> int | None:
        value = self._session.read(name, self._board)
        return int(value) if value else None  # a PCIe link of generation or width 0 is not an answer

    def _read_static(self) -> GpuStatic:
        read = self._session.read
        ecc, mig = read("nvmlDeviceGetEccMode", self._board), read("nvmlDeviceGetMigMode", self._board)
        persistence = read("nvmlDeviceGetPersistenceMode", self._board)
        memory = read("nvmlDeviceGetMemoryInfo", self._device)
        return GpuStatic(
            uuid=self.uuid,
            name=read("nvmlDeviceGetName", self._device) or read("nvmlDeviceGetName", self._board),
            total_bytes=None if memory is None else int(memory.total),
            vbios=read("nvmlDeviceGetVbiosVersion", self._board),
            driver_version=read("nvmlSystemGetDriverVersion"),
            ecc=bool(ecc[0]) if ecc else None,
            mig=bool(mig[0]) if mig else None,
            persistence_mode=None if persistence is None else bool(persistence),
            power_limit_w=self._board_read("nvmlDeviceGetEnforcedPowerLimit", scale=1e-3),
            power_limit_default_w=self._board_read("nvmlDeviceGetPowerManagementDefaultLimit", scale=1e-3),
            max_sm_clock_hz=self._board_read("nvmlDeviceGetMaxClockInfo", _CLOCK_SM, scale=1e6),
            max_memory_clock_hz=self._board_read("nvmlDeviceGetMaxClockInfo", _CLOCK_MEMORY, scale=1e6),
            max_pcie_generation=self._board_count("nvmlDeviceGetMaxPcieLinkGeneration"),
            max_pcie_width=self._board_count("nvmlDeviceGetMaxPcieLinkWidth"),
        )

    def _read_snapshot(self, process_id: int) -> GpuSnapshot:
        self._session.last_error = None
        process_bytes, others = self._read_processes(process_id)
        return GpuSnapshot(
            sm_clock_hz=self._board_read("nvmlDeviceGetClockInfo", _CLOCK_SM, scale=1e6),
            memory_clock_hz=self._board_read("nvmlDeviceGetClockInfo", _CLOCK_MEMORY, scale=1e6),
            temperature_c=self._read_temperature(),
            power_w=None if self._is_slice else self._board_read("nvmlDeviceGetPowerUsage", scale=1e-3),
            energy_j=self._energy_j(),
            throttle_reasons=self._read_reasons(),
            thermal_slowdown_s=self._read_slowdown(_POLICY_THERMAL),
            power_slowdown_s=self._read_slowdown(_POLICY_POWER),
            pcie_generation=self._board_count("nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_width=self._board_count("nvmlDeviceGetCurrPcieLinkWidth"),
            used_total_bytes=self._read_used_bytes(),
            used_process_bytes=process_bytes,
            other_process_count=others,
            error=self._session.last_error,
        )

    def _energy_j(self) -> float | None:
        return None if self._is_slice else self._board_read("nvmlDeviceGetTotalEnergyConsumption", scale=1e-3)

    def _read_temperature(self) -> float | None:
        # the second is deprecated from CUDA 13 on and is all that older drivers have
        newer = self._board_read("nvmlDeviceGetTemperatureV", _TEMPERATURE_GPU)
        return self._board_read("nvmlDeviceGetTemperature", _TEMPERATURE_GPU) if newer is None else newer

    def _read_reasons(self) -> tuple[str, ...] | None:
        mask = self._session.read("nvmlDeviceGetCurrentClocksEventReasons", self._board)
        if mask is None:  # drivers before 535
            mask = self._session.read("nvmlDeviceGetCurrentClocksThrottleReasons", self._board)
        return None if mask is None else reason_names(int(mask))

    def _read_slowdown(self, policy: int) -> float | None:
        violation = self._session.read("nvmlDeviceGetViolationStatus", self._board, policy)
        return None if violation is None else violation.violationTime * 1e-9

    def _read_used_bytes(self) -> int | None:
        memory = self._session.read("nvmlDeviceGetMemoryInfo", self._device, _MEMORY_V2)
        if memory is None:  # drivers before 510: `used` holds the driver's reserve, some hundred MiB, as well
            memory = self._session.read("nvmlDeviceGetMemoryInfo", self._device)
        return None if memory is None else int(memory.used)

    def _read_processes(self, process_id: int) -> tuple[int | None, int | None]:
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
        "pcie_generation": start.pcie_generation,
        "pcie_width": start.pcie_width,
        "device_used_bytes": end.used_process_bytes,
        "device_used_total_bytes": end.used_total_bytes,
        "other_process_count": end.other_process_count,
    }


def difference(start: float | None, end: float | None) -> float | None:
    """`end - start` of a counter; None if either is unknown or the counter went backwards."""
    return None if start is None or end is None or end < start else end - start
