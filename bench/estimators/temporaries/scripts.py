"""Pieces that scripts are put together from."""

from __future__ import annotations

from collections.abc import Iterable

Script = list[tuple[int, int]]


def results(outputs: Iterable[int]) -> Script:
    """All results in order."""
    return list(enumerate(outputs))


def around(*sizes: int, first: int = -1) -> Script:
    """Temporaries that live during one kernel: allocated in order, freed in reverse; zeros are left out."""
    slots = [(first - index, size) for index, size in enumerate(sizes) if size]
    return slots + [(slot, 0) for slot, _ in reversed(slots)]
