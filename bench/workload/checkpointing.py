"""Activation checkpointing of a model's blocks: what they save for the backward is dropped and computed again.

A model with timm's switch (`set_grad_checkpointing`) uses that. Of any other model the blocks are found by one rule: a
block is an instance of a class that is not torch's own, that occurs at least twice in the model and never inside an
instance of another such class, and that holds at least two layers with parameters. ResNet's bottlenecks, the encoder
layers of a vision transformer and the inverted residuals of MobileNet are blocks; the convolutions inside them and the
stem are not.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from bench.errors import Unsupported

_OWN_SWITCH = "set_grad_checkpointing"
"""timm's method; source: timm's models, `set_grad_checkpointing(self, enable=True)`."""


def has_own_switch(model: nn.Module) -> bool:
    """Whether the model knows by itself what to compute again."""
    return callable(getattr(model, _OWN_SWITCH, None))


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model by their names, in its order; empty where the rule finds none."""
    repeated = {kind for kind, count in Counter(map(type, _parts(model))).items() if count > 1}
    inside = {
        type(inner)
        for outer in _parts(model)
        if type(outer) in repeated
        for inner in _parts(outer)
        if type(inner) is not type(outer)
    }
    kinds, found = repeated - inside, dict[str, nn.Module]()
    for name, module in model.named_modules():
        outermost = not any(name.startswith(f"{block}.") for block in found)
        if type(module) in kinds and outermost and _layer_count(module) > 1:
            found[name] = module
    return found


def _layer_count(module: nn.Module) -> int:
    """How many modules in it own parameters."""
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules below `model` whose classes are not torch's own."""
    for module in model.modules():
        if module is not model and not type(module).__module__.startswith("torch."):
            yield module


def checkpoint_blocks(model: nn.Module) -> None:
    """Have a model compute its blocks again in the backward (`torch.utils.checkpoint`, `use_reentrant=False`).

    Raises:
        Unsupported: The model has no blocks, or its own switch says that it cannot.
    """
    if has_own_switch(model):
        try:
            getattr(model, _OWN_SWITCH)(True)
        except (AssertionError, NotImplementedError) as error:
            raise Unsupported(f"checkpointing blocks: {type(model).__name__} refuses it ({error})") from error
        return
    blocks = find_blocks(model)
    if not blocks:
        raise Unsupported(
            f"checkpointing blocks: {type(model).__name__} has no repeated blocks; use checkpointing none for it"
        )
    for block in blocks.values():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
