"""What a CUDA context and loaded modules take of a GPU: as its file says, or as other GPUs were found to need.

They depend on the GPU, the driver and the build of torch, and modules on the workload too: each kernel that runs first
brings its own, so that no constant is right for every model. A GPU that is at hand is measured instead: `bench env
--device-file` takes one reading, and the report of a sweep gives median and range over its runs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.devices.schema import Device


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What was found on one GPU.

    Attributes:
        device: Name of its file.
        context_bytes: One constant, fitted to the rows of a file.
        rows: How many rows that file has of this GPU.
        what: What the figure holds, and under which torch.
    """

    device: str
    context_bytes: int
    rows: int
    what: str


MEASURED_ELSEWHERE = (
    Elsewhere("rtx3060", 10_485_760, 41, "torch 2.6: modules alone, as what stood before the run was taken off"),
    Elsewhere("rtx4060", 75_497_472, 17, "torch 2.6: modules alone, as what stood before the run was taken off"),
    Elsewhere("v100_32gb", 1_383_071_744, 48, "a torch of 2021, which loaded all modules: context and modules"),
    Elsewhere("rtx3090", 1_448_083_456, 48, "a torch of 2021, which loaded all modules: context and modules"),
)
"""What `bench validate` fits: measurements of NVML's less the trace's reserved bytes, one constant per GPU.

`bench validate peak_memory_xmem.csv --json` gives the first two (measurements of Stone-ResearchLife/xMem) and `bench
validate peak_memory_schedtune.csv --json` the others (of hadeelalbahar/SchedTune), as `constant_bytes`; found in
November 2026 with torch 2.15. The first two are too low for a context, and the others too high for a torch that loads
modules when they are needed, as it does from CUDA 11.7 on: one of today's lies between them.
"""

ELSEWHERE_BASIS = f"CUDA context size extrapolated from {len(MEASURED_ELSEWHERE)} other GPUs"


@dataclass(frozen=True, slots=True)
class Context:
    """The context and loaded modules of one GPU in bytes.

    Attributes:
        point_bytes: The one figure to reckon with.
        low_bytes: It may be as small as this; None if the spread is not known.
        high_bytes: It may be as large as this; None if the spread is not known.
        basis: Where the figures come from, in a few words.
    """

    point_bytes: int
    low_bytes: int | None
    high_bytes: int | None
    basis: str


def context_of(device: Device) -> Context:
    """The device file's own figure with its stated spread, else the median and the range over `MEASURED_ELSEWHERE`.

    Raises:
        ValueError: The device is not a GPU of NVIDIA, and has no CUDA context.
    """
    if device.vendor != "nvidia":
        raise ValueError(f"{device.name} has no CUDA context")
    if device.context_bytes is not None:
        low, high = device.context_low_bytes, device.context_high_bytes
        spread = "CUDA context size measured on this GPU"
        spread += ", its spread unknown" if low is None or high is None else ""
        return Context(device.context_bytes, low, high, spread)
    found = [gpu.context_bytes for gpu in MEASURED_ELSEWHERE]
    return Context(round(statistics.median(found)), min(found), max(found), ELSEWHERE_BASIS)
