"""What the driver will show of a step, as an interval: torch's reserved bytes, the CUDA context and loaded modules.

Left out: what other processes hold on the device, and what libraries allocate past torch's allocator (NCCL, say). No
torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypedDict

from bench.devices import Device
from bench.devices.context import Context, context_of

Verdict = Literal["fits", "may not fit", "does not fit"]


class DeviceFields(TypedDict):
    """The fields of `Estimate` that speak of the device as a whole."""

    estimated_device_bytes: int
    estimated_device_low_bytes: int | None
    estimated_device_high_bytes: int | None
    estimated_device_basis: str


def device_interval(reserved_bytes: int, device: Device) -> DeviceFields:
    """What `nvidia-smi` will show of a process, in bytes, with the ends between which the context puts it.

    Args:
        reserved_bytes: Torch's peak, as estimated; an error of that estimate is not in the interval.
        device: A GPU. Where its file states no context, that of other GPUs is taken, and the basis says so.

    Returns:
        The ends are None if the file states a context and not its spread.

    Raises:
        ValueError: The device is not a GPU.
    """
    context = context_of(device)
    return {
        "estimated_device_bytes": reserved_bytes + context.point_bytes,
        "estimated_device_low_bytes": None if context.low_bytes is None else reserved_bytes + context.low_bytes,
        "estimated_device_high_bytes": None if context.high_bytes is None else reserved_bytes + context.high_bytes,
        "estimated_device_basis": context.basis,
    }


def judge_fit(fits: Callable[[int], bool], context: Context) -> Verdict:
    """Whether a step fits beside a context: `may not fit` where the ends of the context's interval disagree.

    Args:
        fits: Whether it does beside a context of so many bytes; what fits beside one fits beside a smaller one.
        context: Of the device.
    """
    if fits(context.point_bytes):
        return "fits" if context.high_bytes is None or fits(context.high_bytes) else "may not fit"
    return "may not fit" if context.low_bytes is not None and fits(context.low_bytes) else "does not fit"
