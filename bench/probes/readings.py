"""NVML's readings around one run: a driver that does not answer costs the run these figures and nothing else."""

from __future__ import annotations

from typing import Any

from bench.errors import DeviceError
from bench.probes.gpu_monitor import GpuMonitor, GpuSnapshot, difference, window_fields

SILENT = "nvml_silent"
"""The flag of a run whose readings are missing although its GPU was to be read."""


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

    def close_window(self) -> dict[str, Any]:
        """Read the counter and the device again; returns columns of `Measurement`, none where nothing is read."""
        if self._monitor is None:
            return {}
        energy_j = self._monitor.energy_j()
        fields = window_fields(self._start, self._snapshot())
        return {**fields, "energy_window_j": difference(self._energy_j, energy_j)}

    def _snapshot(self) -> GpuSnapshot:
        if self._monitor is None:
            return GpuSnapshot()
        read = self._monitor.snapshot()
        self.error = self.error or read.error
        return read
