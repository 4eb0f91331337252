"""What NVML's clock event reasons say about a run.

A reason is a bit of `nvmlDeviceGetCurrentClocksEventReasons` (called throttle reasons before driver 535). Bits and
meanings: NVML API Reference, "NvmlClocksEventReasons"; nvml.h. Which of them spoil a measurement:

- Thermal slowdown, by software or hardware: the clocks depend on the weather in the machine. Throttled.
- Hardware power brake: the power supply or the chassis pulled the brake, clocks at half or less. Throttled.
- Hardware slowdown: the umbrella bit over both, also set by fast over-current protection. Throttled.
- Board or reliability limit: voltage or current limits that every board of the kind meets at full load. Not throttled.
- Software power cap: the normal state of a data-centre GPU at full load under its own limit. Not throttled; a limit
  below the board's default is another matter and shows in `power_limit_w` against `power_limit_default_w`.
- Idle, application clocks, display clocks, sync boost: settings, recorded. Not throttled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

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
