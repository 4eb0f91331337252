"""Which GPUs the NVIDIA driver shows, without torch and without touching CUDA.

GPUs are known by their UUID. NVML's index counts boards in PCI order; CUDA's counts what `CUDA_VISIBLE_DEVICES` leaves,
fastest first unless `CUDA_DEVICE_ORDER=PCI_BUS_ID`: the two differ on mixed machines, so hand a worker
`CUDA_VISIBLE_DEVICES=<uuid>` rather than a number (CUDA C Programming Guide, "CUDA Environment Variables").
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import DeviceError
from bench.probes.gpu_monitor import MEMORY_V2, GpuMonitor, GpuSnapshot, GpuStatic, shares_host_pids, window_fields
from bench.probes.nvml_session import NvmlSession, NvmlUnavailable

__all__ = [
    "Gpu",
    "GpuListing",
    "GpuMonitor",
    "GpuSnapshot",
    "GpuStatic",
    "count_other_processes",
    "find_gpu",
    "hash_uuid",
    "list_gpus",
    "pci_bus_ids",
    "read_gpu_listing",
    "visible_entries",
    "visible_gpus",
    "window_fields",
]


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG slice of one, as the driver shows it."""

    uuid: str  # GPU-... or MIG-...
    name: str | None = None
    index: int | None = None  # NVML's, in PCI order; of the board where this is a slice
    total_bytes: int | None = None
    driver_version: str | None = None
    capability: tuple[int, int] | None = None
    mig: bool | None = None  # a board whose MIG mode is on, or a slice of one
    board_uuid: str | None = None  # of the board that this slice is cut from; None for a board
    allowed_bytes: int | None = None  # of its memory, to this process: a control group may lower it


@dataclass(frozen=True, slots=True)
class GpuListing:
    """All that NVML says of a machine. `error` is why there is no listing; `absent` that there is no driver."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_driver_version: tuple[int, int] | None = None  # the newest CUDA that the driver runs
    error: str | None = None
    absent: bool = False


def hash_uuid(uuid: str) -> str:
    """12 hexadecimal digits for a GPU's UUID, the same with and without its `GPU-` prefix; results never hold UUIDs."""
    return hashlib.sha256(_bare(uuid).encode()).hexdigest()[:12]


def list_gpus(*, visible_only: bool = True, timeout_s: float | None = None) -> tuple[Gpu, ...]:
    """The GPUs of this machine; empty if there is no NVIDIA driver, or no `nvidia-ml-py` to ask it with.

    Args:
        visible_only: Leave out what `CUDA_VISIBLE_DEVICES` hides. The position in the tuple is then torch's index, as
            long as that variable or `CUDA_DEVICE_ORDER=PCI_BUS_ID` fixes the order.
        timeout_s: The longest wait for a driver that does not answer, in seconds; NvmlSession's where None.

    Raises:
        DeviceError: There is a driver and it gives no listing: it hangs, or its library and kernel module differ.
    """
    listing = read_gpu_listing(timeout_s)
    if listing.error and not listing.absent:
        raise DeviceError(
            f"GPUs: {listing.error}. Check that `nvidia-smi` works; an updated driver needs a reboot. "
            "To measure on the CPU instead: --device cpu"
        )
    return visible_gpus(listing.gpus) if visible_only else listing.gpus


def read_gpu_listing(timeout_s: float | None = None) -> GpuListing:
    """Every GPU and MIG slice, hidden ones too, with the driver's versions; `error` says what failed.

    Raises:
        DeviceError: `BENCH_NVML_TIMEOUT` holds no number of seconds. A driver that fails raises nothing.
    """
    try:
        session = NvmlSession(timeout_s)
    except NvmlUnavailable as error:
        return GpuListing(error=str(error), absent=error.absent)
    try:
        return session.call(lambda: _listing(session), "listing GPUs")
    except NvmlUnavailable as error:
        return GpuListing(error=str(error))
    finally:
        session.close()


def count_other_processes(uuid: str, timeout_s: float | None = None) -> int | None:
    """How many processes but this one compute on a GPU; None if that cannot be told: no NVML, or a container."""
    try:
        session = NvmlSession(timeout_s)
    except NvmlUnavailable:
        return None
    try:
        found = session.call(lambda: _compute_processes(session, uuid), "listing processes")
    except NvmlUnavailable:
        return None
    finally:
        session.close()
    if found is None:
        return None
    ids = {process.pid for process in found}
    return len(ids - {os.getpid()}) if not ids or shares_host_pids() else None


def _compute_processes(session: NvmlSession, uuid: str) -> Any:
    handle = session.read("nvmlDeviceGetHandleByUUID", uuid)
    return session.read("nvmlDeviceGetComputeRunningProcesses", handle) if handle is not None else None


def pci_bus_ids(uuids: Sequence[str], timeout_s: float | None = None) -> dict[str, str]:
    """Where GPUs are on the PCI bus, by UUID: `00000000:3B:00.0`; without those of which NVML does not tell."""
    try:
        session = NvmlSession(timeout_s)
    except NvmlUnavailable:
        return {}
    try:
        return session.call(lambda: _bus_ids(session, uuids), "reading places on the PCI bus")
    except NvmlUnavailable:
        return {}
    finally:
        session.close()


def _bus_ids(session: NvmlSession, uuids: Sequence[str]) -> dict[str, str]:
    found = {}
    for uuid in uuids:
        handle = session.read("nvmlDeviceGetHandleByUUID", uuid)
        place = session.read("nvmlDeviceGetPciInfo", handle) if handle is not None else None
        if place is not None:
            text = place.busId
            found[uuid] = text.decode() if isinstance(text, bytes) else str(text)
    return found


def _listing(session: NvmlSession) -> GpuListing:
    driver = session.read("nvmlSystemGetDriverVersion")
    cuda = session.read("nvmlSystemGetCudaDriverVersion_v2")  # 12040 is CUDA 12.4
    gpus: list[Gpu] = []
    for index in range(session.read("nvmlDeviceGetCount") or 0):
        gpus += _board_and_slices(session, index, driver)
    return GpuListing(
        tuple(gpus), driver, (cuda // 1000, cuda % 1000 // 10) if cuda else None, None if gpus else session.last_error
    )


def _board_and_slices(session: NvmlSession, index: int, driver: str | None) -> Iterator[Gpu]:
    handle = session.read("nvmlDeviceGetHandleByIndex", index)
    uuid = session.read("nvmlDeviceGetUUID", handle) if handle is not None else None
    if uuid is None:
        return  # of another user's cgroup, or fallen off the bus: `last_error` says which
    capability = session.read("nvmlDeviceGetCudaComputeCapability", handle)
    modes = session.read("nvmlDeviceGetMigMode", handle)
    mig = bool(modes[0]) if modes else None
    total, allowed = _memory_bytes(session, handle)
    board = Gpu(
        uuid,
        session.read("nvmlDeviceGetName", handle),
        index,
        total,
        driver,
        (int(capability[0]), int(capability[1])) if capability else None,
        mig,
        allowed_bytes=allowed,
    )
    yield board
    for position in range(session.read("nvmlDeviceGetMaxMigDeviceCount", handle) or 0) if mig else ():
        slice_handle = session.read("nvmlDeviceGetMigDeviceHandleByIndex", handle, position)
        slice_uuid = session.read("nvmlDeviceGetUUID", slice_handle) if slice_handle is not None else None
        if slice_uuid is not None:
            name = session.read("nvmlDeviceGetName", slice_handle) or board.name
            total, allowed = _memory_bytes(session, slice_handle)
            yield Gpu(slice_uuid, name, index, total, driver, board.capability, True, board.uuid, allowed)


def _memory_bytes(session: NvmlSession, handle: Any) -> tuple[int | None, int | None]:
    """A device's memory, and what this process may take of it; None where it has none of its own (or all zeros)."""
    whole = session.read("nvmlDeviceGetMemoryInfo", handle)
    allowed = session.read("nvmlDeviceGetMemoryInfo", handle, MEMORY_V2)
    total, limit = (int(each.total) or None if each is not None else None for each in (whole, allowed))
    return total or limit, limit


def visible_gpus(gpus: Sequence[Gpu], variable: str | None = None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA would show, in its order.

    The entries are those of `visible_entries`: numbers, or unique beginnings of UUIDs. Everything behind the first
    entry that names no device is hidden; a device named twice hides all. A board whose MIG mode is on shows its slices
    instead.

    Args:
        gpus: All of the machine, as `read_gpu_listing` gives them. Indices count the boards in this order.
        variable: The value of `CUDA_VISIBLE_DEVICES`; read from the environment where None.
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES") if variable is None else variable
    usable = [gpu for gpu in gpus if not (gpu.mig and gpu.board_uuid is None)]
    if variable is None:
        return tuple(usable)
    chosen: list[Gpu] = []
    for entry in visible_entries(variable):
        gpu = _named(entry, usable)
        if gpu is None:
            break
        if gpu in chosen:
            return ()
        chosen.append(gpu)
    return tuple(chosen)


def visible_entries(variable: str) -> tuple[str, ...]:
    """What `CUDA_VISIBLE_DEVICES`, or ROCm's variables of its kind, names, as torch reads it.

    If the text begins with `GPU-` or `MIG-`, these are the entries that do, up to the first that does not. Otherwise
    an entry is the number that it begins with, as C's `strtoul` reads it: `0 1`, `0;1`, `0x1` and `0a` are all the
    number 0. The first entry without a number, or with a negative one, ends the list. Naming one twice empties it
    (torch/cuda/__init__.py, `_parse_visible_devices`).
    """
    prefix = next((prefix for prefix in ("GPU-", "MIG-") if variable.startswith(prefix)), None)
    found: list[str] = []
    for part in variable.split(","):
        entry = _ordinal(part) if prefix is None else part if part.startswith(prefix) else None
        if entry is None:
            break
        if entry in found:
            return ()
        found.append(entry)
    return tuple(found)


def _ordinal(part: str) -> str | None:
    """The number that an entry begins with, without signs and zeros before it; None if it is negative or none."""
    digits = re.match(r"\+?0*(\d{1,9})(?!\d)|-0+(?!\d)", part.strip())
    return None if digits is None else str(int(digits[1] or 0))


def _named(entry: str, gpus: Sequence[Gpu]) -> Gpu | None:
    if not entry.startswith(("GPU-", "MIG-")):
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    matches = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def find_gpu(uuid: str, gpus: Sequence[Gpu]) -> Gpu | None:
    """The GPU of that UUID, with or without the prefix: torch writes UUIDs bare, NVML with `GPU-` or `MIG-`."""
    return next((gpu for gpu in gpus if _bare(gpu.uuid) == _bare(uuid)), None)


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")
