"""One column of a grid from two traces: everything that operators see is affine in the batch size. No torch here.

Two recordings of the same case at different batch sizes are laid beside each other; where they differ, they differ in
whole numbers that grow by a fixed amount a sample. What kernels allocate for themselves is not affine and is worked out
from the operators' arguments afterwards, batch by batch (`trace_events`). Batch 1 has a structure of its own and is
recorded by itself, as is every batch below `LEAST_BATCH`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import Unsupported
from bench.estimators.tensors import Spec

LEAST_BATCH = 4
"""Smallest batch that a column serves: operators take other paths where a dimension has size 1 or 2."""

TRACED_BATCHES = (16, 48)
"""Batches at which a column is recorded."""


class NotAffine(Unsupported):
    """Two recordings that say nothing of other batch sizes: each of those needs one of its own."""


@dataclass(frozen=True, slots=True)
class Affine:
    """`start + slope * (batch - first)`."""

    start: int
    slope: int


@dataclass(frozen=True, slots=True)
class Column:
    """Two recordings as one.

    Attributes:
        first: The batch size that `start` values are of.
        entries: As a recording's, with `Affine` where numbers grow with the batch.
        varying: Positions of the entries that hold any.
        roles: As a recording's.
    """

    first: int
    entries: list[Any]
    varying: list[int]
    roles: dict[int, str]

    def at(self, batch_size: int) -> list[Any]:
        """The entries at a batch size.

        Raises:
            Unsupported: The batch is smaller than a column serves.
        """
        if batch_size < LEAST_BATCH:
            raise Unsupported(
                f"a column of traces serves batches from {LEAST_BATCH} up; {batch_size} needs a trace of its own"
            )
        entries, distance = list(self.entries), batch_size - self.first
        known: dict[int, Any] = {}
        for index in self.varying:
            entries[index] = _evaluate(entries[index], distance, known)
        return entries


def join_column(first: int, one: Any, second: int, other: Any) -> Column:
    """Join two recordings.

    Args:
        first: Batch size of `one`.
        one: A `Recording`.
        second: Batch size of `other`, larger.
        other: A `Recording` of the same case.

    Raises:
        NotAffine: The two differ in structure, so that nothing can be said of other batch sizes.
    """
    if len(one.entries) != len(other.entries) or one.roles != other.roles:
        raise NotAffine("the step takes another course at another batch size; each needs a trace of its own")
    shared: dict[Any, Any] = {}
    entries = [_join(a, b, second - first, shared) for a, b in zip(one.entries, other.entries, strict=True)]
    varying = [index for index, (entry, old) in enumerate(zip(entries, one.entries, strict=True)) if entry is not old]
    return Column(first, entries, varying, dict(one.roles))


def _join(one: Any, other: Any, distance: int, shared: dict[Any, Any]) -> Any:
    """One value from two; equal parts become one object, so that each is evaluated once for a batch size."""
    if one == other and type(one) is type(other):
        return one
    if isinstance(one, tuple) and type(one) is type(other) and len(one) == len(other):
        joined: Any = _like(one, [_join(a, b, distance, shared) for a, b in zip(one, other, strict=True)])
    elif type(one) is int and type(other) is int and (other - one) % distance == 0:
        joined = Affine(one, (other - one) // distance)
    else:
        raise NotAffine(
            f"the step is not affine in the batch size: {one!r} beside {other!r}; each needs a trace of its own"
        )
    return shared.setdefault((type(joined), joined), joined)


def _evaluate(value: Any, distance: int, known: dict[int, Any]) -> Any:
    """A value at a batch size; `known` holds what was evaluated, by identity."""
    kind = type(value)
    if kind is Affine:
        return value.start + value.slope * distance
    if kind is not tuple and kind is not Spec and not isinstance(value, tuple):
        return value
    found = known.get(id(value))
    if found is None:
        found = known[id(value)] = _like(value, [_evaluate(item, distance, known) for item in value])
    return found


def _like(value: tuple[Any, ...], items: Sequence[Any]) -> tuple[Any, ...]:
    """A tuple of the kind of `value`."""
    return tuple(items) if type(value) is tuple else type(value)(*items)
