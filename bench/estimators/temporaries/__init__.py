"""What kernels' host code allocates for itself: unseen by the dispatcher, computed here from operators' arguments.

`script_of` says for one call in which order its results and its temporaries are allocated and freed. A rule is a
function of the call's arguments (tensors as `Spec`s, in the order of the operator's schema), the bytes of its new
storages and the `Machine`; rules lie in the modules of this package, by kind of operator. An operator without a rule
allocates its results in order and nothing else.

Left out: cuDNN's workspaces and the reserves of its batch norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.estimators.temporaries.machine import Machine

__all__ = ["RULES", "Machine", "Script", "script_of"]

Script = list[tuple[int, int]]
"""`(slot, nbytes)`: slot 0 and above is the result of that number; below 0 a temporary, freed where `nbytes` is 0."""

Rule = Callable[[tuple[Any, ...], list[int], Machine], Script]


def script_of(operator: str, arguments: tuple[Any, ...], outputs: list[int], machine: Machine) -> Script:
    """The allocations of one call, in order.

    Args:
        operator: Such as `aten::sum.dim_IntList`.
        arguments: As in the operator's schema, with tensors as `Spec`s.
        outputs: Bytes of each new storage.
        machine: The GPU.
    """
    rule = RULES.get(operator) or RULES.get(operator.partition(".")[0])
    return list(enumerate(outputs)) if rule is None else rule(arguments, outputs, machine)


def _collect() -> dict[str, Rule]:
    from bench.estimators.temporaries import attention, convolutions, normalization, pointwise, products, sums

    rules: dict[str, Rule] = {}
    for module in (attention, convolutions, normalization, pointwise, products, sums):
        rules |= module.RULES
    return rules


RULES: dict[str, Rule] = _collect()
"""By the operator's name with or without overload; the former goes first."""
