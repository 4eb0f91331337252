"""What kernels' host code allocates for itself: unseen by the dispatcher, computed here from operators' arguments.

`script_of` says for one call in which order its results and its temporaries are allocated and freed. A rule is a
function of the `Call` and the `Machine`; rules lie in the modules of this package, by kind of operator. An operator
without a rule allocates its results in order and nothing else.

Left out: cuDNN's workspaces and the reserves of its batch norm.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.estimators.recording import Call
from bench.estimators.temporaries.machine import Machine

__all__ = ["RULES", "Machine", "Script", "has_rule", "script_of"]

Script = list[tuple[int, int]]
"""`(slot, nbytes)`: slot 0 and above is the result of that number; below 0 a temporary, freed where `nbytes` is 0."""

Rule = Callable[[Call, Machine], Script]


def script_of(call: Call, machine: Machine) -> Script:
    """The allocations of one call, in order."""
    rule = _rule_of(call.operator)
    return list(enumerate(call.sizes)) if rule is None else rule(call, machine)


def has_rule(operator: str) -> bool:
    """Whether an operator does more than allocate its results in order."""
    return _rule_of(operator) is not None


def _rule_of(operator: str) -> Rule | None:
    return RULES.get(operator) or RULES.get(operator.partition(".")[0])


def _collect() -> dict[str, Rule]:
    from bench.estimators.temporaries import attention, convolutions, normalization, pointwise, products, sums

    rules: dict[str, Rule] = {}
    for module in (attention, convolutions, normalization, pointwise, products, sums):
        rules |= module.RULES
    return rules


RULES: dict[str, Rule] = _collect()
"""By the operator's name with or without overload; the former goes first."""
