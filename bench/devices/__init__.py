"""Devices as files: what each GPU has, how it is found by name, and how a user's own file is read.

One TOML file a device lies in this folder, and a new device is one more file. Nothing here imports torch or asks the
machine what it has: a device that is not described is an error or None, never a guess.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from bench.devices.schema import PRECISIONS, Device, device_from_mapping, parse_device_toml, render_device_toml
from bench.errors import DeviceError, UnknownNameError

__all__ = [
    "PRECISIONS",
    "Device",
    "describes",
    "device_from_mapping",
    "list_devices",
    "load_device",
    "match_device",
    "parse_device_toml",
    "render_device_toml",
]

SUFFIX = ".toml"
MAX_FILE_BYTES = 1 << 20
MEMORY_TOLERANCE_FRAC = 0.15
"""How far the memory found may be from a file's: CUDA's and NVML's totals differ by 3 %, ECC switched by 9 %."""

_BRANDS = {"nvidia", "geforce", "tesla"}


def list_devices() -> list[str]:
    """The names of all devices that come with the package, sorted."""
    return sorted(entry.name.removesuffix(SUFFIX) for entry in files(__name__).iterdir() if entry.name.endswith(SUFFIX))


def load_device(name: str) -> Device:
    """Load a device by its name, by the name that the driver prints, or from a file of the user's own.

    Args:
        name: `rtx4090`, `RTX-4090`, `NVIDIA GeForce RTX 4090`, or a path that ends in `.toml`.

    Raises:
        UnknownNameError: No device goes by this name, or several do (`a100` is 40 or 80 GB).
        DeviceError: The path names no readable file.
        ConfigError: The file has faults; all of them are in the message.
    """
    if name.endswith(SUFFIX):
        return _load_file(Path(name))
    names = list_devices()
    wanted = name.strip().casefold().replace("-", "_")
    if wanted in names:
        return _load_packaged(wanted)
    device = match_device(name)
    if device is None:
        raise UnknownNameError("device", name, names)
    return device


def match_device(gpu_name: str, total_memory_bytes: int | None = None) -> Device | None:
    """Find the device that a driver's name means.

    Names are compared whole, so that an `RTX 4060 Ti`, a laptop's GPU or a MIG slice is not taken for the `RTX 4060`
    or the GPU that it is not; case, punctuation and the words NVIDIA, GeForce and Tesla do not count.

    Args:
        gpu_name: As NVML or torch print it.
        total_memory_bytes: As either reports it. Tells variants of one name apart, and keeps a GPU of another size
            (a virtual one, an 8 GB RTX 3060) from matching.

    Returns:
        The device, or None where none matches or more than one does.
    """
    found = [device for device in map(_load_packaged, list_devices())
             if describes(device, gpu_name, total_memory_bytes)]  # fmt: skip
    return found[0] if len(found) == 1 else None


def describes(device: Device, gpu_name: str, total_memory_bytes: int | None = None) -> bool:
    """Whether a device is the one that a driver's name means; see `match_device`."""
    if _comparable(gpu_name) not in _comparable_names(device):
        return False
    return total_memory_bytes is None or _has_about(device, total_memory_bytes)


@cache
def _load_packaged(name: str) -> Device:
    entry = files(__name__) / f"{name}{SUFFIX}"
    return parse_device_toml(name, entry.read_text(encoding="utf-8"), f"bench/devices/{name}{SUFFIX}")


def _load_file(path: Path) -> Device:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise DeviceError(f"{path}: no such device file. Write one: bench env --device-file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"{path}: cannot be read as a device file: {error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise DeviceError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; no device file is")
    return parse_device_toml(path.name.removesuffix(SUFFIX), text, str(path))


def _comparable(gpu_name: str) -> str:
    words = re.split(r"[\s_()\-]+", gpu_name.casefold())
    return " ".join(word for word in words if word and word not in _BRANDS)


def _comparable_names(device: Device) -> set[str]:
    return {_comparable(name) for name in (device.gpu_name, *device.aliases)}


def _has_about(device: Device, total_memory_bytes: int) -> bool:
    """Whether the memory is the device's, by either of its two totals; a device that states none matches any."""
    totals = [total for total in (device.memory_bytes, device.nvml_memory_bytes) if total is not None]
    return not totals or any(abs(total_memory_bytes - total) <= MEMORY_TOLERANCE_FRAC * total for total in totals)
