"""What bench asks of a kind of device. Each vendor's answers are one file beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bench.records import Precision

InForce = tuple[str | None, str | None]
"""What products are computed in, None if unknown, and why that is not what was asked for, None if it is."""


class TorchMemory(Protocol):
    """What torch knows of a device's memory, in bytes. What it does not count is None, and never 0."""

    @property
    def unified(self) -> bool:
        """Whether the device takes host memory."""

    def reset(self) -> None:
        """Let the peaks start again from what is held now."""

    def peaks(self) -> dict[str, int | None]:
        """The columns `peak_allocated_bytes`, `peak_requested_bytes` and `peak_reserved_bytes`."""

    def device_fields(self, used_before_bytes: int | None = None) -> dict[str, int | None]:
        """The columns `device_total_bytes`, `alloc_retries` and `context_bytes`."""

    def is_exhausted(self) -> bool:
        """Whether memory was refused so far, or none is left."""

    def play_card(self, limit_bytes: int, used_before_bytes: int | None = None) -> int:
        """Keep to the memory of a smaller card; returns what torch may take of it.

        Raises:
            DeviceError: This torch cannot.
        """

    def share_host(self, limit_bytes: int, resident_bytes: int) -> int | None:
        """Keep to a limit on host memory, beside the process; returns what torch may take of it, None if it cannot."""

    def read_allowed(self) -> int | None:
        """What torch may take, read back; None if it cannot tell."""


class DeviceEvent(Protocol):
    """A mark in the device's queue."""

    def record(self) -> None:
        """Put the mark behind all work so far."""

    def elapsed_time(self, end: Any, /) -> float:
        """Milliseconds from this mark to a later one, once the device has passed both. For each `end` once."""


class DeviceReadings(Protocol):
    """What the driver says of a device round a measured window; see `bench.probes.gpu_monitor.Readings`."""

    error: str | None

    @property
    def open(self) -> bool:
        """Whether there is anything to read with."""

    def used_bytes(self) -> int | None:
        """What all processes together hold of the device now."""

    def start(self) -> None:
        """Read the device, while steps are in flight."""

    def open_window(self) -> None:
        """Read the energy; the window begins at once."""

    def close_window(self) -> dict[str, Any]:
        """Read it and the device again; columns of `Measurement`."""


class Backend(Protocol):
    """A kind of device, in the process that uses it.

    Attributes:
        kind: As torch calls it, and the column `device`.
        records_first: Whether an event is made when it is first recorded, and may be recorded twice.
    """

    kind: str
    records_first: bool

    def available(self) -> bool:
        """Whether torch is built for such devices and sees one; does not fail."""

    def facts(self) -> dict[str, Any]:
        """Fields of `TorchFacts`: every device by name, memory and UUID, and what will not be read. Touches them.

        Raises:
            RuntimeError: The devices cannot be used; also AssertionError and ValueError, as torch's functions do.
        """

    def see_only(self, gpu_uuid: str | None, gpu_index: int | None) -> None:
        """Let this process use one device, before any is touched: by UUID, or by its place among the visible.

        Raises:
            DeviceError: There is no such device.
        """

    def synchronize(self) -> None:
        """Wait until the current device has done all its work."""

    def event(self) -> DeviceEvent | None:
        """An event that knows its time; None where the host does the work itself and its clock will do."""

    def memory(self) -> TorchMemory | None:
        """The memory of the current device; None where it is the host's and torch's allocator is not a cache."""

    def readings(self, gpu_uuid: str | None, error: str | None) -> DeviceReadings:
        """The driver's readings of the current device.

        Args:
            gpu_uuid: The device in NVML; None where that does not know it.
            error: Why the driver is not to be asked, where it is known not to answer.
        """

    def environment(self, index: int | None) -> dict[str, Any]:
        """Columns of `Environment`, of the device at torch's `index` (the current one where None)."""

    def precision(self, precision: Precision, variables: Mapping[str, str]) -> InForce | None:
        """What the current device computes a precision in; None where torch's switches for float32 decide."""
