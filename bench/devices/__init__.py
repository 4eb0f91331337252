"""Devices as files: the properties of each GPU, finding one by name, and reading a user's own file.

This folder has one TOML file per device; a new device is a new file. Nothing here imports torch or queries the machine:
a device without a description is an error or None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from bench.devices.schema import (
    CHECKS,
    PRECISIONS,
    Device,
    device_from_mapping,
    device_toml,
    parse_device_toml,
    render_device_toml,
)
from bench.errors import DeviceError, UnknownNameError, nearest
from bench.units import exact_bytes, format_bytes

__all__ = [
    "PRECISIONS",
    "DescribedGpu",
    "Device",
    "card_name",
    "describe_gpu",
    "describes",
    "device_from_mapping",
    "device_toml",
    "differences",
    "list_devices",
    "load_device",
    "load_device_file",
    "match_device",
    "parse_device_toml",
    "refuse_larger",
    "render_device_toml",
    "with_memory",
]

SUFFIX = ".toml"
MAX_FILE_BYTES = 1 << 20
MEMORY_TOLERANCE_FRAC = 0.15
"""How far the GPU's memory may differ from a file's: CUDA's and NVML's totals differ by 3 %, ECC switched by 9 %."""

READ = "(read from the GPU)"
"""Suffix of the name of a device without a file: all of its values were read from the GPU."""

_MEASURED = "measured:"
"""Prefix of the source of a value that the GPU reported. Others are derived from these or from documents."""

_BRANDS = {"nvidia", "geforce", "tesla"}
_DECIDING = ("multiprocessors", "compute_capability", "max_threads_per_multiprocessor")
"""What distinguishes GPUs of the same name besides memory; the peak rates depend on it."""


def list_devices() -> list[str]:
    """The names of all devices that come with the package, sorted."""
    return sorted(entry.name.removesuffix(SUFFIX) for entry in files(__name__).iterdir() if entry.name.endswith(SUFFIX))


def load_device(name: str | Device) -> Device:
    """Load a device by its name, by the name that the driver prints, or from a file of the user.

    Args:
        name: `rtx4090`, `RTX-4090`, `NVIDIA GeForce RTX 4090`, or a path that ends in `.toml`; a device is returned.

    Raises:
        UnknownNameError: No device has this name, or several do (`a100` is 40 or 80 GB).
        DeviceError: The path is not a readable file.
        ConfigError: The file has errors; all of them are in the message.
    """
    if isinstance(name, Device):
        return name
    if name.endswith(SUFFIX):
        return load_device_file(Path(name))
    names = list_devices()
    wanted = name.strip().casefold().replace("-", "_")
    if wanted in names:
        return _load_packaged(wanted)
    device = match_device(name)
    if device is None:
        raise UnknownDeviceError(name)
    return device


class UnknownDeviceError(UnknownNameError):
    """A name without a device file; the message explains how to create one."""

    def __init__(self, given: str) -> None:
        """Build the message: the nearest devices, and what to do for another GPU."""
        meant = {name: name for name in list_devices()}
        for device in map(_load_packaged, list_devices()):
            meant |= dict.fromkeys(_comparable_names(device), device.name)
        wanted = _comparable(given)
        variants = [device for name, device in meant.items() if wanted and wanted in name]
        near = dict.fromkeys([*variants, *(meant[name] for name in nearest(wanted, meant, count=6))])
        remedy = "For another GPU, run bench env --device-file mine.toml on a machine that has it, then use mine.toml"
        super().__init__("device", given, [], matches=list(near)[:3], remedy=remedy)


def match_device(gpu_name: str, total_memory_bytes: int | None = None) -> Device | None:
    """Find the device with a driver's name.

    Names are compared as a whole, so that an `RTX 4060 Ti`, a laptop GPU or a MIG slice is not mistaken for an `RTX
    4060` or the full GPU; case, punctuation and the words NVIDIA, GeForce and Tesla do not count.

    Args:
        gpu_name: The name from NVML or torch.
        total_memory_bytes: As either reports it. Distinguishes variants of one name, and keeps a GPU of another size
            (a virtual one, an 8 GB RTX 3060) from matching.

    Returns:
        The device, or None if none matches or more than one does. Of several, the one that is called so goes before
        those that have the name as an alias: without its memory, an RTX 3080 is the one with 10 GB.
    """
    found = [
        device for device in map(_load_packaged, list_devices()) if describes(device, gpu_name, total_memory_bytes)
    ]
    if len(found) > 1:  # a rarer board of the same name has that name among its aliases only
        found = [device for device in found if _comparable(device.gpu_name) == _comparable(gpu_name)]
    return found[0] if len(found) == 1 else None


def describes(device: Device, gpu_name: str, total_memory_bytes: int | None = None) -> bool:
    """Whether a device has a driver's name; see `match_device`."""
    if _comparable(gpu_name) not in _comparable_names(device):
        return False
    return total_memory_bytes is None or _has_about(device, total_memory_bytes)


@dataclass(frozen=True, slots=True)
class DescribedGpu:
    """A GPU of this machine, as estimates use it.

    Attributes:
        device: The values that the GPU reports, and others from the file that describes it. Without a file, its name is
            the GPU's and ends with `READ`.
        found: The values that the GPU reports, alone.
        remark: What a reader should know about that, in a sentence; None if a file describes the GPU.
    """

    device: Device
    found: Device
    remark: str | None = None


def with_memory(device: Device, limit_bytes: int | None) -> Device:
    """The device as a smaller card: with that much memory and all else unchanged; its name says so.

    Args:
        device: A GPU. If its memory is unknown, any limit is accepted.
        limit_bytes: Memory of the card, CUDA's context included; None for the device itself.

    Raises:
        DeviceError: The device is not a GPU, or has less memory than that.
    """
    if limit_bytes is None:
        return device
    if not device.is_gpu:
        raise DeviceError(f"the memory limit is for GPUs, and {device.name} is a CPU. Remove it, or choose a GPU")
    memory = device.memory_bytes
    refuse_larger(limit_bytes, memory, device.name)
    of = f" of {exact_bytes(memory)} ({device.source('memory_bytes')})" if memory is not None else ""
    sources = dict(device.sources) | {"memory_bytes": f"limited to {exact_bytes(limit_bytes)}{of}"}
    return replace(
        device,
        name=card_name(device.name, limit_bytes),
        memory_bytes=limit_bytes,
        sources=tuple((key, sources[key]) for key in CHECKS if key in sources),
    )


def card_name(name: str, limit_bytes: int) -> str:
    """What a device is called as a card of that much memory: `h200 as a card of 24 GiB`."""
    return f"{name} as a card of {exact_bytes(limit_bytes)}"


def refuse_larger(limit_bytes: int, memory_bytes: int | None, name: str) -> None:
    """Raise DeviceError if a memory limit exceeds the memory of the device called `name`, where that is known."""
    if memory_bytes is not None and limit_bytes > memory_bytes:
        raise DeviceError(
            f"the memory limit of {exact_bytes(limit_bytes)} is above the {format_bytes(memory_bytes)} "
            f"({memory_bytes:,} B) of {name}: a device can only play a smaller one. Lower the limit, or remove it"
        )


def describe_gpu(found: Device, given: Sequence[Device] = ()) -> DescribedGpu:
    """Describe a GPU of this machine: the values it reports take precedence over those of a file.

    A file adds what a driver does not report (rated peaks, a measured context) if it describes the same GPU: name,
    memory, multiprocessors and compute capability all agree. A GPU of the same name that differs in one of them (an
    RTX 3060 with 8 GB, a slice of an A100) also has other rates, so nothing is taken from the file.

    Args:
        found: As `bench.probes.device_facts` read it. Values whose source begins with `measured:` are the GPU's own.
        given: Files of the user; they take precedence over those of the package.

    Raises:
        DeviceError: None of the files given is for this GPU, or several are.
    """
    own = [device for device in given if describes(device, found.gpu_name)]
    if given and not own:
        meant = ", ".join(f"{device.name} is for {device.gpu_name}" for device in given)
        raise DeviceError(
            f"--device-file: the GPU here is {found.gpu_name}, but {meant}. Remove the option, or write a file for "
            "this GPU: bench env --device-file mine.toml"
        )
    fitting = [device for device in own if not differences(device, found)]
    if len(fitting) > 1:
        names = " and ".join(device.name for device in fitting)
        raise DeviceError(f"--device-file: {names} both describe {found.gpu_name}. Use one of them")
    packaged = [device for device in map(_load_packaged, list_devices()) if describes(device, found.gpu_name)]
    fitting = fitting or [device for device in packaged if not differences(device, found)]
    other = "; ".join(
        f"{device.name} has {words}" for device in (*own, *packaged) if (words := differences(device, found))
    )
    if len(fitting) == 1:
        unfit = [device.name for device in own if device not in fitting]
        remark = f"{', '.join(unfit)} was not used for {found.gpu_name}: {other}" if unfit else None
        return DescribedGpu(_with_own(fitting[0], found), found, remark)
    why = f"the device file of that name is for another GPU ({other})" if other else "there is no device file for it"
    remark = (
        f"{found.gpu_name}: {why}. The estimates use what the GPU reports: {_properties(found)}; its peak "
        "rates are derived from these if possible. For rated ones: run bench env --device-file mine.toml, complete "
        "that file, and use --device-file mine.toml"
    )
    return DescribedGpu(replace(found, name=f"{found.gpu_name} {READ}"), found, remark)


def _with_own(device: Device, found: Device) -> Device:
    """A device from its file, with every value that the GPU reports."""
    told = [key for key, source in found.sources if source.startswith(_MEASURED)]
    sources = dict(device.sources) | {key: source for key, source in found.sources if key in told}
    ordered = tuple((key, sources[key]) for key in CHECKS if key in sources)
    return replace(device, gpu_name=found.gpu_name, sources=ordered, **{key: getattr(found, key) for key in told})


def differences(device: Device, found: Device) -> str:
    """How a file with the GPU's name differs from that GPU, as text; empty if it does not."""
    words = []
    if found.memory_bytes is not None and not _has_about(device, found.memory_bytes):
        words.append(f"{format_bytes(device.memory_bytes)} but the GPU has {format_bytes(found.memory_bytes)}")
    for key in _DECIDING:
        said, has = getattr(device, key), getattr(found, key)
        if None not in (said, has) and said != has:
            words.append(f"{_key_words(key, said)} but the GPU has {_key_words(key, has)}")
    return ", ".join(words)


def _properties(device: Device) -> str:
    """What decides a trace, as text."""
    known = [format_bytes(device.memory_bytes)] if device.memory_bytes else []
    known += [_key_words(key, value) for key in _DECIDING if (value := getattr(device, key)) is not None]
    return ", ".join(known)


def _key_words(key: str, value: object) -> str:
    if isinstance(value, tuple):
        return f"compute capability {'.'.join(map(str, value))}"
    return f"{value} {key.replace('_per_', ' a ').replace('max_', '').replace('_', ' ')}"


@cache
def _load_packaged(name: str) -> Device:
    entry = files(__name__) / f"{name}{SUFFIX}"
    return parse_device_toml(name, entry.read_text(encoding="utf-8"), f"bench/devices/{name}{SUFFIX}")


def load_device_file(path: Path) -> Device:
    """Load a device from a file of the user, whatever its suffix; it goes by the file's name without `.toml`.

    Raises:
        DeviceError: The file cannot be read.
        ConfigError: The file has faults; all of them are in the message.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise DeviceError(f"{path}: no such device file. Write one: bench env --device-file {path}") from None
    except OSError as error:
        raise DeviceError(f"{path}: cannot be read as a device file: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DeviceError(
            f"{path}: cannot be read as a device file: byte {error.start} is not text in UTF-8"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise DeviceError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, the limit for a device file")
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
