"""AdamW, which decays weights apart from the gradient: two moments per parameter, three with amsgrad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.catalog.entries import OptimizerEntry
from bench.catalog.optimizer_state import Amount, Betas, refuse_both
from bench.catalog.optimizers.adam import state_bytes

if TYPE_CHECKING:
    import torch


def build(
    parameters: list[torch.nn.Parameter],
    *,
    lr: Amount = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Amount = 1e-8,
    weight_decay: Amount = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Build torch's AdamW; settings and defaults are torch's."""
    import torch

    return torch.optim.AdamW(
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


SUMMARY = "Adam with decoupled weight decay; two moments per parameter"

ENTRIES = (OptimizerEntry("adamw", build, SUMMARY, state_bytes, refuse_both),)
