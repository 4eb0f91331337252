"""Calibrations: device files that `bench calibrate` wrote, and how estimates on a machine find and use theirs.

A calibration is a device file with `calibrated_` values: rates that the roofline reckons with in place of the rated
ones, and what was measured beside them. It is found by the GPU's name and, where there are several, by the hash of its
UUID; a CPU's by the name of its model and the number of cores that a process may use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from bench.devices import Device, describes, differences, load_device_file
from bench.devices.schema import CALIBRATED, CHECKS, PRECISIONS, device_toml
from bench.errors import BenchError, DeviceError
from bench.folders import calibrations_folder

MEASURED_KEYS = (
    *("context_bytes", "context_low_bytes", "context_high_bytes", "launch_overhead_s", "host_dispatch_s"),
    *(key.name for key in fields(Device) if key.name.startswith("reachable_")),
)
"""What a calibration adds to a device beside its `calibrated_` values."""

CALIBRATED_KEYS = tuple(key.name for key in fields(Device) if key.name.startswith(CALIBRATED))


@dataclass(frozen=True, slots=True)
class Calibrations:
    """Which calibrations estimates may use.

    Attributes:
        given: Files that were named; each must describe a device of the estimates.
        search: Whether those of this account are looked up where none is given.
    """

    given: tuple[Device, ...] = ()
    search: bool = True

    def apply(self, device: Device, known_as: Device | None = None, uuid_hash: str | None = None) -> Device:
        """The device with its calibration; unchanged where it has one already, or there is none for it.

        Args:
            device: Any.
            known_as: What the calibration must describe; the device itself unless given.
            uuid_hash: Of the GPU that is meant, if one is.
        """
        if device.calibration:
            return device
        candidates = self.given or (tuple(_kept()) if self.search else ())
        wanted = known_as or device
        fitting = [item for item in candidates if item.calibration and fits(item, wanted)]
        own = [item for item in fitting if uuid_hash is not None and item.gpu_uuid_hash == uuid_hash]
        found = next(iter(own or fitting), None)
        return device if found is None else with_calibration(device, found)

    def refuse_unused(self, devices: Sequence[Device]) -> None:
        """Raise DeviceError if a calibration that was named describes none of the devices."""
        for item in self.given:
            if not any(fits(item, device) for device in devices):
                meant = ", ".join(dict.fromkeys(device.gpu_name for device in devices))
                raise DeviceError(
                    f"--calibration: {item.name} is for {item.gpu_name}, and the estimates are for {meant}. Remove it, "
                    "or choose its device with --device"
                )


NONE = Calibrations(search=False)
"""Devices as their files describe them."""


def fits(calibration: Device, device: Device) -> bool:
    """Whether a calibration is of such a device: its name, and as far as both state them its memory and cores."""
    return describes(calibration, device.gpu_name, device.memory_bytes) and not differences(calibration, device)


def with_calibration(device: Device, calibration: Device) -> Device:
    """The device with what was measured and fitted on one like it."""
    known = (*MEASURED_KEYS, *CALIBRATED_KEYS, *(("multiprocessors",) if device.kind == "cpu" else ()))
    taken = {key: value for key in known if (value := getattr(calibration, key)) is not None}
    if "context_bytes" in taken:  # never the figure of one with the interval of another
        taken |= {key: getattr(calibration, key) for key in ("context_low_bytes", "context_high_bytes")}
    made = replace(device, **taken)
    sources = dict(device.sources) | {key: text for key, text in calibration.sources if key in taken}
    ordered = tuple((key, sources[key]) for key in CHECKS if key in sources and getattr(made, key) is not None)
    return replace(made, sources=ordered)


def reckoned(device: Device) -> Device:
    """The device as the roofline takes it: calibrated rates in place of the rated ones, where there are any.

    On a CPU, who asks for an operator also computes it, so that its time per operator counts as a launch.
    """
    rates = {
        "memory_bandwidth_bytes_per_s": device.calibrated_bandwidth_bytes_per_s,
        **{f"peak_{name}_flop_per_s": getattr(device, f"{CALIBRATED}{name}_flop_per_s") for name in PRECISIONS},
        "launch_overhead_s": device.calibrated_dispatch_s if device.kind == "cpu" else None,
    }
    known = {key: value for key, value in rates.items() if value is not None}
    return replace(device, **known) if known else device


def keep_calibration(device: Device) -> Path | None:
    """Write a calibration to this account's folder; returns the file, or None where the folder is switched off.

    Raises:
        DeviceError: The file cannot be written.
    """
    folder = calibrations_folder()
    if folder is None:
        return None
    which = (device.gpu_uuid_hash or f"{device.multiprocessors or 0}-cores")[:8]
    return write_kept(folder / f"{slug(device.gpu_name)}-{which}.toml", device_toml(device))


def write_kept(path: Path, text: str) -> Path:
    """Write a file of this account's folder whole or not at all; returns its path. Raises DeviceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise DeviceError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def slug(text: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:60] or "device"


def _kept() -> list[Device]:
    """The account's calibrations, the newest first; files that are none are passed over."""
    folder = calibrations_folder()
    if folder is None:
        return []
    found = []
    for path in folder.glob("*.toml"):
        try:
            found.append((path.stat().st_mtime, path.name, load_device_file(path)))
        except (BenchError, OSError):
            continue
    return [device for *_, device in sorted(found, key=lambda item: item[:2], reverse=True)]
