"""Stochastic gradient descent, without state and with one momentum buffer per parameter."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bench.catalog.entries import OptimizerEntry, Setting, settings_of
from bench.catalog.optimizer_state import Amount, Settings, Shapes, copies_bytes, refuse_both

if TYPE_CHECKING:
    import torch

MOMENTUM = 0.9


def build(
    parameters: list[torch.nn.Parameter],
    *,
    lr: Amount = 1e-3,
    momentum: Amount = 0.0,
    dampening: float = 0.0,
    weight_decay: Amount = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Build torch's SGD; settings and defaults are torch's."""
    import torch

    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
        foreach=foreach,
        fused=fused,
    )


def state_bytes(momentum: float, shapes: Shapes, element_bytes: int, settings: Settings) -> int:
    """One buffer per parameter with momentum, nothing without; `momentum` is the entry's default."""
    return copies_bytes(1 if settings.get("momentum", momentum) else 0, shapes, element_bytes)


def refuse_reason(momentum: float, shapes: Shapes, settings: Settings) -> str | None:
    """Why these settings contradict each other, or `None`; `momentum` is the entry's default."""
    if settings.get("nesterov") and (not settings.get("momentum", momentum) or settings.get("dampening")):
        return "nesterov needs a momentum above 0 and no dampening"
    return refuse_both(shapes, settings)


def _entry(name: str, summary: str, momentum: float) -> OptimizerEntry:
    return OptimizerEntry(
        name,
        functools.partial(build, momentum=momentum),
        summary,
        functools.partial(state_bytes, momentum),
        functools.partial(refuse_reason, momentum),
        {**settings_of(build), "momentum": Setting(momentum, Amount)},
    )


ENTRIES = (
    _entry("sgd", "stochastic gradient descent; keeps no state", 0.0),
    _entry("sgd_momentum", f"SGD with momentum {MOMENTUM}; one buffer per parameter", MOMENTUM),
)
