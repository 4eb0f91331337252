"""Adam: two moments per parameter, three with amsgrad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.catalog.entries import OptimizerEntry
from bench.catalog.optimizer_state import (
    Amount,
    Betas,
    Settings,
    Shapes,
    copies_bytes,
    refuse_both,
    scalars_bytes,
    step_on_device,
)

if TYPE_CHECKING:
    import torch


def build(
    parameters: list[torch.nn.Parameter],
    *,
    lr: Amount = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Amount = 1e-8,
    weight_decay: Amount = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Build torch's Adam; settings and defaults are torch's."""
    import torch

    return torch.optim.Adam(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        capturable=capturable,
        foreach=foreach,
        fused=fused,
    )


def state_bytes(shapes: Shapes, element_bytes: int, settings: Settings) -> int:
    """Both moments, with amsgrad the largest second moment too; the step counter where it is on the device."""
    copies = 3 if settings.get("amsgrad") else 2
    return copies_bytes(copies, shapes, element_bytes) + scalars_bytes(step_on_device(settings), shapes)


ENTRIES = (OptimizerEntry("adam", build, "Adam; two moments per parameter", state_bytes, refuse_both),)
