"""Adagrad: one sum of squares per parameter, there from the first moment on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.catalog.entries import OptimizerEntry
from bench.catalog.optimizer_state import (
    Amount,
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
    lr: Amount = 1e-2,
    lr_decay: Amount = 0.0,
    weight_decay: Amount = 0.0,
    initial_accumulator_value: Amount = 0.0,
    eps: Amount = 1e-10,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Build torch's Adagrad; settings and defaults are torch's."""
    import torch

    return torch.optim.Adagrad(
        parameters,
        lr=lr,
        lr_decay=lr_decay,
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
        foreach=foreach,
        initial_accumulator_value=initial_accumulator_value,
        fused=fused,
    )


def state_bytes(shapes: Shapes, element_bytes: int, settings: Settings) -> int:
    """The sum of squares; the step counter where it is on the device."""
    return copies_bytes(1, shapes, element_bytes) + scalars_bytes(step_on_device(settings), shapes)


ENTRIES = (OptimizerEntry("adagrad", build, "Adagrad; one sum of squares per parameter", state_bytes, refuse_both),)
