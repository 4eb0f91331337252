"""How many bytes an optimizer keeps between steps, and the kinds of settings that optimizers share.

Counted is what lives on the parameters' device after the first step (for L-BFGS: once its history is full) when that
device is a GPU, as the sum of the tensors' own bytes (the allocator's rounding to 512 B is not in it). Scalars are the
fine point: torch keeps the step counter of most optimizers on the CPU, because launching a kernel for it costs more
than it saves, and has it on the parameters' device with `capturable` or `fused` only. So it counts, 4 B per parameter
tensor, with those settings only. On the CPU, where all state lives on one device, the true sum is larger by that
counter.

Source: `_init_group` of the classes in torch/optim/*.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from bench.catalog.entries import Within
from bench.records import SettingValue

Shapes = Sequence[tuple[int, ...]]
Settings = Mapping[str, SettingValue]

Amount = Annotated[float, Within(ge=0, allow_inf_nan=False)]
"""A learning rate, a weight decay, an epsilon: 0 or more."""
Share = Annotated[float, Within(ge=0, lt=1)]
"""A decay rate of a moving average: at least 0 and below 1."""
Betas = tuple[Share, Share]

SCALAR_BYTES = 4
"""A step counter is a float32 tensor without dimensions, whatever the parameters' type."""


def element_count(shapes: Shapes) -> int:
    """How many numbers the parameters have."""
    return sum(math.prod(shape) for shape in shapes)


def copies_bytes(copies: int, shapes: Shapes, element_bytes: int) -> int:
    """Bytes of state tensors of the parameters' own shape and type, `copies` for each parameter."""
    return copies * element_count(shapes) * element_bytes


def scalars_bytes(scalars: int, shapes: Shapes) -> int:
    """Bytes of scalars on the parameters' device, `scalars` for each parameter tensor."""
    return scalars * len(shapes) * SCALAR_BYTES


def step_on_device(settings: Settings) -> int:
    """1 where the step counters live on the parameters' device, else 0."""
    return int(bool(settings.get("capturable") or settings.get("fused")))


def refuse_both(shapes: Shapes, settings: Settings) -> str | None:
    """Why `foreach` and `fused` cannot go together, where both are set; else `None`."""
    if settings.get("foreach") and settings.get("fused"):
        return "foreach and fused are two ways to run the same step; set one of them"
    return None


def refuse_device(settings: Settings, device: str) -> str | None:
    """Why an optimizer with these settings cannot run on a kind of device (`cpu` or `cuda`), or `None`.

    Torch's optimizers assert it at their first step (`_get_capturable_supported_devices` in torch/optim/optimizer.py);
    fused ones do not, since their kernel takes the same step with it and without.
    """
    if settings.get("capturable") and not settings.get("fused") and device == "cpu":
        return "capturable = true is for CUDA graphs; torch's optimizers refuse it on the CPU"
    return None
