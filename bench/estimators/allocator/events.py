"""What can happen to an allocator: the events that a replay takes; free of torch.

Named tuples rather than dataclasses: a trace makes ten thousand of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Alloc(NamedTuple):
    """`size` bytes are asked for and known as `id` from then on; 0 bytes allocate nothing.

    What is `optional` is done without where there is no room for it: torch catches the failure and goes another way.
    """

    id: int
    size: int
    stream: int = 0
    category: str | None = None
    optional: bool = False


class Free(NamedTuple):
    """What is known as `id` is freed; with `pending`, another stream still uses it until `Complete`."""

    id: int
    pending: bool = False


class Complete(NamedTuple):
    """The other streams are done with what was freed as `id` and pending."""

    id: int


class Mark(NamedTuple):
    """A point at which the figures are noted; with `reset_peaks` the peaks start again behind it."""

    label: str
    reset_peaks: bool = False


class EmptyCache(NamedTuple):
    """`torch.cuda.empty_cache()`."""


Event = Alloc | Free | Complete | Mark | EmptyCache


class ReplayError(ValueError):
    """A stream of events that no program could have produced."""
