"""What a step did, as plain values: the calls of kernels, the births and deaths of storages. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple


class Phase(IntEnum):
    """The part of the program that ran."""

    SETUP = 0
    ZERO_GRAD = 1
    FORWARD = 2
    BACKWARD = 3
    OPTIMIZER = 4


class Call(NamedTuple):
    """A kernel: its operator, arguments with tensors as `Spec`s, and the number and bytes of each new storage."""

    operator: str
    arguments: tuple[Any, ...]
    outputs: tuple[tuple[int, int], ...]
    phase: Phase


@dataclass
class Recording:
    """What happened, in order.

    Attributes:
        entries: A `Call`, the number of a storage that died, or None before the first step and after each.
        roles: What a storage is for, by its number, where it is none of a kernel's results that come and go.
    """

    entries: list[Call | int | None] = field(default_factory=list)
    roles: dict[int, str] = field(default_factory=dict)


def sorted_deaths(entries: list[Call | int | None]) -> list[Call | int | None]:
    """Deaths in a row, ordered by number: torch's own order follows addresses, and the allocator does not mind."""
    ordered: list[Call | int | None] = []
    deaths: list[int] = []
    for entry in entries:
        if isinstance(entry, int):
            deaths.append(entry)
            continue
        ordered += sorted(deaths)
        deaths.clear()
        ordered.append(entry)
    return ordered + sorted(deaths)
