"""What is estimated on whose GPUs: the formula on every device, trace and roofline where their rules were checked.

The trace follows torch's allocator for CUDA and what NVIDIA's libraries ask of it; the roofline was fitted to steps on
NVIDIA's GPUs. On others either might come out wrong, and nobody would notice: they are refused, with a reason.
"""

from __future__ import annotations

from bench.devices.schema import Device

_UNCHECKED = {
    "amd": "torch has CUDA's allocator there, but the workspaces of hipBLASLt and MIOpen were not checked",
    "intel": "torch has another allocator there, and neither it nor the memory of oneDNN was checked",
    "apple": "torch has another allocator there, which keeps heaps of Metal and was not checked",
}
"""Why the trace is not to be trusted, by vendor: c10/cuda, c10/xpu and aten/src/ATen/mps of torch."""


FORMULA_THERE = "For the formula's estimate: bench estimate --device"
"""What to do instead, before the name of a device."""


def no_trace(device: Device) -> str | None:
    """Why there is no memory trace, and nothing that follows from it, on a device; None on NVIDIA's GPUs."""
    if device.vendor == "nvidia":
        return None
    reason = _UNCHECKED.get(device.vendor or "", "it needs torch's CUDA allocator")
    return f"no memory trace for {device.name}: {reason}"


def no_speed(device: Device) -> str | None:
    """Why there is no estimate of speed on a device; None on NVIDIA's GPUs and on a calibrated CPU."""
    if device.vendor == "nvidia" or (device.calibration and not device.is_gpu):
        return None
    reason = f"no speed estimate for {device.name}: the constants were fitted on NVIDIA GPUs only"
    return (
        reason
        if device.is_gpu
        else f"{reason}. To calibrate the roofline on this machine: bench calibrate --device cpu"
    )


_FIRST_WORDS = {"amd": "cuda", "radeon": "cuda", "intel(r)": "xpu", "apple": "mps"}


def unlisted(gpu_name: str) -> Device | None:
    """A GPU that no file describes, by its name as torch has it; None where the name is none of another vendor's."""
    kind = _FIRST_WORDS.get(gpu_name.partition(" ")[0].casefold())
    return Device(gpu_name, gpu_name, kind) if kind else None


def formula_alone(device: Device) -> str | None:
    """Why the formula is all that there is on a GPU; None on NVIDIA's, and on a CPU."""
    if not device.is_gpu or device.vendor == "nvidia":
        return None
    return f"{no_trace(device)}; {no_speed(device)}"
