"""After how many steps an optimizer asks for the same memory in each, for those of torch that change their way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.errors import Unsupported

if TYPE_CHECKING:
    import torch

LATEST_CHANGE = 40
"""A change after this step is not waited for: no sweep measures it by default."""

Group = Mapping[str, Any]
"""One of an optimizer's `param_groups`."""


def parts_of(optimizer: Any) -> Sequence[torch.optim.Optimizer]:
    """The optimizers of which it is made, where it is made of several (`UpdateInBackward`); else itself."""
    return getattr(optimizer, "optimizers", None) or [optimizer]


def settles_after(optimizer: torch.optim.Optimizer) -> int:
    """How many steps an optimizer takes before it has settled: 1, which makes its state, unless it has a rule here."""
    rule = _RULES.get(type(optimizer).__name__)
    return max(map(rule, optimizer.param_groups), default=1) if rule else 1


def _steps_before(changed: Callable[[int], bool]) -> int:
    """How many steps pass before the first in which `changed` holds; 1 where it never does."""
    return next((step - 1 for step in range(2, LATEST_CHANGE) if changed(step)), 1)


def _radam(group: Group) -> int:
    """One tensor at a time, it takes the adaptive step, with its temporaries, once the variance can be rectified.

    Source: `rho_t > 5.0` in `_single_tensor_radam`, torch/optim/radam.py.
    """
    if group["foreach"] is not False or group["capturable"]:
        return 1
    decay = group["betas"][1]
    longest = 2 / (1 - decay) - 1
    return _steps_before(lambda step: longest - 2 * step * decay**step / (1 - decay**step) > 5)


def _asgd(group: Group) -> int:
    """One tensor at a time, it averages, with a temporary, from the second step after `t0` on.

    Source: `mu.item() != 1` in `_single_tensor_asgd`, torch/optim/asgd.py.
    """
    if group["foreach"] is not False or group["capturable"]:
        return 1
    start = group["t0"]
    return _steps_before(lambda step: step - 1 - start > 1)


def _lbfgs(group: Group) -> int:
    """It keeps one more pair of vectors after each iteration but the first, until the history is full.

    Source: `LBFGS.step`, torch/optim/lbfgs.py. Values decide how many there are; see `take_every_iteration`.
    """
    iterations = min(group["max_iter"], max(1, group["max_eval"] - 1))
    return int(min(math.ceil((group["history_size"] + 1) / iterations), LATEST_CHANGE))


def take_every_iteration(optimizer: torch.optim.Optimizer) -> None:
    """Have LBFGS end no step before `max_iter` or `max_eval`, as it does while training makes progress.

    Where values are not known, a loss seems not to change from one iteration to the next.

    Raises:
        Unsupported: A line search, which evaluates the model as often as values ask for.
    """
    if type(optimizer).__name__ != "LBFGS":
        return
    for group in optimizer.param_groups:
        group["tolerance_change"] = 0
        if group["line_search_fn"] is not None:
            raise Unsupported(
                f"LBFGS with line_search_fn={group['line_search_fn']} evaluates the model as often as values ask for, "
                "which cannot be traced; without a line search, its memory is estimated"
            )


LBFGS_CURVATURE = 1e-10
"""LBFGS keeps a pair with a curvature above this, as is assumed of all. Source: torch/optim/lbfgs.py."""


_RULES: Mapping[str, Callable[[Group], int]] = {"ASGD": _asgd, "LBFGS": _lbfgs, "RAdam": _radam}
