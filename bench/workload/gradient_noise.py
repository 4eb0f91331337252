"""The gradient noise scale of a case: beyond which batch size more samples stop helping. Imports torch.

The simple noise scale of McCandlish, Kaplan, Amodei and the OpenAI Dota team, "An Empirical Model of Large-Batch
Training" (arXiv 1812.06162, appendix A.1): tr(Sigma) / |G|^2, where G is the gradient of the loss over all data and
Sigma the covariance of one sample's gradient. The squared norm of a gradient over b samples has the expectation
|G|^2 + tr(Sigma) / b, so norms at two batch sizes give both without bias. A step here splits one batch of B samples
into k microbatches of b: the small norm is the mean over the microbatches, the large one that of their mean gradient.
The estimates are averaged over the steps before the ratio is taken, since a mean of ratios is biased.

What the number is of, and is not:

* The weights are those after `LEAD_STEPS` optimizer steps from the seed, and stand still meanwhile, so that the steps
  are independent draws. The noise scale grows by orders of magnitude in the course of a training.
* Batch norm makes a sample's gradient depend on the batch that it is in. Both norms come from microbatches here, so
  they belong together, but to a loss with statistics over b samples, not over B.
* Dropout draws again for each microbatch; its noise counts, as in training. So does the rounding of bf16 and fp16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import Unsupported
from bench.workload.inputs import Batch
from bench.workload.step import Workload

LEAD_STEPS = 32
STEPS = 20
MICROBATCHES = 8
FEWEST_STEPS = 2

Gradients = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""The gradient of the mean loss over samples and labels, one tensor per parameter."""


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """What the steps said; both are in the unit of the squared gradient.

    Attributes:
        g2_values: The estimate of |G|^2 of each step; single ones may be negative.
        trace_values: The estimate of tr(Sigma) of each step.
        microbatch: The size of the small batch, in samples.
    """

    g2_values: tuple[float, ...]
    trace_values: tuple[float, ...]
    microbatch: int

    def fields(self, notes: Iterable[str]) -> dict[str, Any]:
        """The fields of a `Measurement`, `notes` among them; the scale is `None` with a note where it cannot be had."""
        found: dict[str, Any] = {
            "gradient_noise_microbatch": self.microbatch,
            "gradient_noise_steps": len(self.g2_values),
            "gradient_noise_g2_values": self.g2_values,
            "gradient_noise_trace_values": self.trace_values,
        }
        notes = list(notes)
        if len(self.g2_values) < FEWEST_STEPS:
            notes.append(f"only {len(self.g2_values)} of {STEPS} steps had finite gradients")
        else:
            g2, trace = (math.fsum(values) / len(values) for values in (self.g2_values, self.trace_values))
            found |= {"gradient_noise_g2": g2, "gradient_noise_trace": trace}
            if g2 <= 0:
                notes.append("no scale: the estimate of |G|^2 is not positive: the noise exceeds the gradient")
            elif trace < 0:
                notes.append("no scale: the estimate of tr(Sigma) is negative")
            else:
                found["gradient_noise_scale"] = trace / g2
        return {**found, "gradient_noise_note": "; ".join(notes) or None}


def measure_gradient_noise(workload: Workload, batches: Iterable[Batch], batch_size: int) -> GradientNoise:
    """Train `LEAD_STEPS` steps, then measure over `STEPS` batches; steps with gradients that overflow are left out.

    Args:
        workload: Fresh; it is trained by this.
        batches: On the device, each with images `(B, C, H, W)` and labels `(B,)`, of new samples every time.
        batch_size: B, in samples.

    Raises:
        Unsupported: The batch is too small to be split, or training diverged before anything was measured.
    """
    count = microbatch_count(batch_size)
    source = iter(batches)
    for _ in range(LEAD_STEPS):
        workload.step(source)
    if not math.isfinite(workload.loss or 0.0):
        raise Unsupported(f"the loss is {workload.loss} after {LEAD_STEPS} steps")
    workload.optimizer.zero_grad(set_to_none=True)
    workload.kept = None
    return noise_of(lambda images, labels: _gradients(workload, images, labels), source, count, STEPS)


def microbatch_count(batch_size: int) -> int:
    """Into how many microbatches a batch is split: up to `MICROBATCHES`, of two samples or more where there are four.

    Raises:
        Unsupported: A batch of one sample.
    """
    if batch_size < 2:
        raise Unsupported("a batch of 1 cannot be split into smaller ones")
    return max(2, min(MICROBATCHES, batch_size // 2))


def noise_of(gradients: Gradients, batches: Iterable[Batch], count: int, steps: int) -> GradientNoise:
    """The estimates of `steps` batches, each split into `count` microbatches; what is left over by it is not used.

    Args:
        gradients: At the same weights every time.
        batches: At least `steps` of them.
        count: At least 2.
        steps: How many batches to take.
    """
    found: list[tuple[float, float]] = []
    size = 0
    for _, (images, labels) in zip(range(steps), batches, strict=False):
        size = len(labels) // count
        norms = _squared_norms(gradients, images, labels, count)
        if all(map(math.isfinite, norms)):
            found.append(_unbiased(*norms, size, size * count))
    return GradientNoise(tuple(g2 for g2, _ in found), tuple(trace for _, trace in found), size)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a sample's gradient depends on the batch that it is in."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _unbiased(small: float, large: float, small_size: int, large_size: int) -> tuple[float, float]:
    """|G|^2 and tr(Sigma) from the squared norms at two batch sizes."""
    g2 = (large_size * large - small_size * small) / (large_size - small_size)
    trace = (small - large) / (1 / small_size - 1 / large_size)
    return g2, trace


def _squared_norms(gradients: Gradients, images: Tensor, labels: Tensor, count: int) -> tuple[float, float]:
    """The mean squared norm of the microbatches' gradients, and that of their mean."""
    size = len(labels) // count
    small, totals = 0.0, None
    for part in range(count):
        span = slice(part * size, (part + 1) * size)
        found = gradients(images[span], labels[span])
        small += _squared_norm(found) / count
        if totals is None:
            totals = [gradient.float() for gradient in found]
        else:
            for total, gradient in zip(totals, found, strict=True):
                total.add_(gradient)
    return small, _squared_norm(totals or []) / count**2


def _squared_norm(gradients: Sequence[Tensor]) -> float:
    """Summed in double precision: the difference of two such sums must stand out."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    return float(torch.stack(norms).square().sum()) if norms else 0.0


def _gradients(workload: Workload, images: Tensor, labels: Tensor) -> Sequence[Tensor]:
    """As the training step has them, unscaled; parameters that the loss does not reach are left out."""
    parameters = [parameter for parameter in workload.model.parameters() if parameter.requires_grad]
    with workload.autocast():
        loss = workload.criterion(workload.model(images), labels)
    if workload.scaler is None:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [gradient for gradient in found if gradient is not None]
    found = torch.autograd.grad(workload.scaler.scale(loss), parameters, allow_unused=True)
    scale = workload.scaler.get_scale()
    return [gradient / scale for gradient in found if gradient is not None]
