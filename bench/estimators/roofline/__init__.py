"""The roofline: how long a training step takes at the least that such kernels usually need. A first estimate.

It reads the recording that the memory's estimate reads too: each call is a kernel or a few with FLOPs and bytes
(`kernels`), and each kernel takes the longer of its arithmetic and its traffic on the device, by the efficiencies of
`constants` (`timing`). The host takes time for each kernel too: a step of small kernels takes as long as the host needs
to ask for them.

How far off it is stands in `constants`, and in every estimate's `basis`. What it leaves out:

* the data path: decoding and the copy to the device (inputs other than `synthetic`);
* which kernel cuDNN and cuBLAS choose: winners of `cudnn.benchmark`, poor choices for odd sizes, Winograd by case;
* caches between kernels: every tensor comes from memory and goes there, which overestimates small ones on chips with a
  large L2, but for batch norm, whose images stay on the chip between statistics and result;
* clocks: the device file's peaks hold at a rated clock; cards with little power (T4, L4) stay far below theirs;
* `torch.compile`, and allocations that make the step wait;
* how far the host is ahead of the device: the step takes the longer of the two, as if either always hid the other; the
  gradient scaler of fp16 makes the host wait once per step;
* the host's own speed, which no device file holds: its time per kernel is one constant. A step of small convolutions
  took 15 us per kernel, one of a small MLP 5 us, on one core of a server's CPU without a GPU; published profiles say 5
  to 25 us.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.devices import Device
from bench.errors import Unsupported
from bench.estimators.recording import Recording, StepEnd, calls_of
from bench.estimators.roofline.constants import CONSTANTS, FITTED_ON, Constants
from bench.estimators.roofline.kernels import Kernels, step_kernels
from bench.estimators.roofline.timing import kernel_times_s
from bench.records import Case

__all__ = ["CONSTANTS", "Constants", "SpeedEstimate", "estimate_speed", "kernels_of"]


@dataclass(frozen=True, slots=True)
class SpeedEstimate:
    """How fast a case is thought to run on a device.

    Attributes:
        step_time_s: Of one optimizer step: the longer of the device's time and the host's.
        samples_per_s: Batch size over step time.
        basis: What it is, what it was fitted on and how far off that was; to be shown beside the number.
        device_time_s: Of all kernels, one after another.
        host_time_s: Of the host to ask for them.
        flops: Of the step's products.
        moved_bytes: Between the chip and its memory.
        kernel_count: How many kernels a step launches.
        class_times_s: `(class of operators, seconds)` of the device's time, the longest first.
        phase_times_s: `(forward | backward | optimizer, seconds)`, in this order.
    """

    step_time_s: float
    samples_per_s: float
    basis: str
    device_time_s: float
    host_time_s: float
    flops: float
    moved_bytes: float
    kernel_count: int
    class_times_s: tuple[tuple[str, float], ...]
    phase_times_s: tuple[tuple[str, float], ...]

    @property
    def host_bound(self) -> bool:
        """Whether the host, not the device, decides the step's time."""
        return self.host_time_s > self.device_time_s


def estimate_speed(recording: Recording, case: Case, device: Device, constants: Constants = CONSTANTS) -> SpeedEstimate:
    """The roofline of one case on one device.

    Args:
        recording: Of the case, at its batch size.
        case: Its input path makes no difference.
        device: From a device file.
        constants: The efficiencies.

    Raises:
        Unsupported: The device file lacks what is needed (a peak rate, the bandwidth).
    """
    if device.kind != "cuda":
        raise Unsupported(f"no speed estimate for {device.name}: the constants were fitted on NVIDIA GPUs only")
    kernels = kernels_of(recording)
    times = kernel_times_s(kernels, device, case.precision, case.memory_format, constants)
    device_time, launches = float(times.sum()), float(kernels.column("launches").sum())
    host_time = launches * constants.host_dispatch_s
    step_time = max(device_time, host_time)
    classes = _sums(kernels.kind, times)
    phases = _sums(kernels.phase, times)
    return SpeedEstimate(
        step_time_s=step_time,
        samples_per_s=case.batch_size / step_time,
        basis=_basis(case, device, host_time > device_time),
        device_time_s=device_time,
        host_time_s=host_time,
        flops=float(kernels.column("flops").sum()),
        moved_bytes=float(kernels.column("nbytes").sum()),
        kernel_count=round(launches),
        class_times_s=tuple(sorted(classes.items(), key=lambda item: -item[1])),
        phase_times_s=tuple((phase, phases.get(phase, 0.0)) for phase in ("forward", "backward", "optimizer")),
    )


def kernels_of(recording: Recording) -> Kernels:
    """All kernels of the last recorded step: the first makes the optimizer's state and has no gradients to drop."""
    last = max(entry.step for entry in recording.entries if type(entry) is StepEnd)
    return step_kernels(calls_of(recording, last))


def _sums(names: np.ndarray, times: np.ndarray) -> dict[str, float]:
    return {name: float(times[names == name].sum()) for name in sorted(set(names))}


def _basis(case: Case, device: Device, host_bound: bool) -> str:
    words = [f"roofline of recorded kernels on {device.name}, {FITTED_ON}"]
    if case.precision not in ("fp16", "bf16"):
        words.append(f"not validated for {case.precision}")
    if host_bound:
        words.append("limited by the host, at a constant time per kernel that was not fitted")
    return "; ".join(words)
