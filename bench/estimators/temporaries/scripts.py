"""Pieces that scripts are put together from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Script = list[tuple[int, int]]

WORKSPACE = -8
"""The slot of a library's workspace: done without where there is no room for it."""


class Workspaces(NamedTuple):
    """Bytes that the calls of a convolution ask cuDNN for, behind the call's own arguments; zeros where none.

    Attributes:
        image: Of the forward's call, or of that for the image's gradient.
        weight: Of the call for the weight's gradient.
    """

    image: int
    weight: int = 0


def workspaces_of(arguments: tuple[object, ...]) -> Workspaces:
    """The workspaces that stand behind a call's own arguments; none where nobody put any there."""
    last = arguments[-1]
    return last if isinstance(last, Workspaces) else Workspaces(0)


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
