"""RMSprop: one to three moving averages per parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.catalog.entries import OptimizerEntry
from bench.catalog.optimizer_state import Amount, Settings, Shapes, copies_bytes, scalars_bytes, step_on_device

if TYPE_CHECKING:
    import torch


def build(
    parameters: list[torch.nn.Parameter],
    *,
    lr: Amount = 1e-2,
    alpha: Amount = 0.99,
    eps: Amount = 1e-8,
    weight_decay: Amount = 0.0,
    momentum: Amount = 0.0,
    centered: bool = False,
    maximize: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
) -> torch.optim.Optimizer:
    """Build torch's RMSprop; settings and defaults are torch's, which has no fused form of it."""
    import torch

    return torch.optim.RMSprop(
        parameters,
        lr=lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        centered=centered,
        maximize=maximize,
        capturable=capturable,
        foreach=foreach,
    )


def state_bytes(shapes: Shapes, element_bytes: int, settings: Settings) -> int:
    """The squares' average, momentum's buffer, with centered the gradients' average; the step where on the device."""
    copies = 1 + bool(settings.get("momentum")) + bool(settings.get("centered"))
    return copies_bytes(copies, shapes, element_bytes) + scalars_bytes(step_on_device(settings), shapes)


ENTRIES = (OptimizerEntry("rmsprop", build, "RMSprop; one or more moving averages per parameter", state_bytes),)
