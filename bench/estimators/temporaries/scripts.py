"""Pieces that scripts are put together from."""

from __future__ import annotations

from collections.abc import Iterable

Script = list[tuple[int, int]]

WORKSPACE = -8
"""The slot of a library's workspace: done without where there is no room for it."""


def workspace(size: int) -> Script:
    """One workspace, allocated and freed."""
    return [(WORKSPACE, size), (WORKSPACE, 0)] if size else []


def results(outputs: Iterable[int]) -> Script:
    """All results in order."""
    return list(enumerate(outputs))


def around(*sizes: int, first: int = -1, within: Script | None = None) -> Script:
    """Temporaries that live during one kernel: allocated in order, freed in reverse; zeros are left out.

    What is `within` happens between.
    """
    slots = [(first - index, size) for index, size in enumerate(sizes) if size]
    return slots + (within or []) + [(slot, 0) for slot, _ in reversed(slots)]
