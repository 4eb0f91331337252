"""Adafactor: the second moment as one row and one column, so that its state is a small part of the parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from bench.catalog.entries import OptimizerEntry, Within
from bench.catalog.optimizer_state import Amount, Settings, Shapes

if TYPE_CHECKING:
    import torch

Decay = Annotated[float, Within(le=0)]
Threshold = Annotated[float, Within(ge=1)]


def build(
    parameters: list[torch.nn.Parameter],
    *,
    lr: Amount = 1e-2,
    beta2_decay: Decay = -0.8,
    eps: tuple[Amount | None, Amount] = (None, 1e-3),
    d: Threshold = 1.0,
    weight_decay: Amount = 0.0,
    maximize: bool = False,
    foreach: bool | None = None,
) -> torch.optim.Optimizer:
    """Build torch's Adafactor; settings and defaults are torch's (the first `eps` is the smallest step of the type)."""
    import torch

    return torch.optim.Adafactor(
        parameters,
        lr=lr,
        beta2_decay=beta2_decay,
        eps=eps,
        d=d,
        weight_decay=weight_decay,
        maximize=maximize,
        foreach=foreach,
    )


def state_bytes(shapes: Shapes, element_bytes: int, settings: Settings) -> int:
    """A parameter `(..., R, C)` keeps `(..., R, 1)` and `(..., 1, C)`; one of fewer dimensions keeps its own shape.

    A convolution's last two dimensions are its kernel's, so that little is saved there. The step counter stays on
    the CPU.
    """
    return sum(_moment_elements(shape) for shape in shapes) * element_bytes


def _moment_elements(shape: tuple[int, ...]) -> int:
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape[:-2]) * (shape[-2] + shape[-1])


ENTRIES = (OptimizerEntry("adafactor", build, "Adafactor; one row and one column per matrix", state_bytes),)
