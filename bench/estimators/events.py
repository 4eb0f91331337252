"""The events that a step asks of the allocator: what the trace makes and the replay consumes. No torch here."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Category(IntEnum):
    """What an allocation is for."""

    PARAMETER = 0  # parameters and buffers of the model
    GRADIENT = 1  # what `.grad` of a parameter ends up holding
    OPTIMIZER_STATE = 2
    BATCH = 3  # images and labels
    ACTIVATION = 4  # made by the forward and alive at its end
    TEMPORARY = 5
    WORKSPACE = 6  # of cuBLAS, cublasLt and cuDNN


class Phase(IntEnum):
    """The part of the program that asked."""

    SETUP = 0
    ZERO_GRAD = 1
    FORWARD = 2
    BACKWARD = 3
    OPTIMIZER = 4


MARK = -1
"""`Event.block` of a mark; its `nbytes` is the number of steps that have ended, 0 before the first."""


class Event(NamedTuple):
    """One request, in order.

    Attributes:
        block: The number of the block, unique over the stream of events, or MARK.
        nbytes: Bytes that are asked for; 0 where the block is freed.
        category: A `Category`.
        phase: A `Phase`.
        operator: Position of the operator's name in `Events.operators`.
    """

    block: int
    nbytes: int
    category: int
    phase: int
    operator: int


class Events(NamedTuple):
    """The events of some steps, and the names of the operators that asked."""

    events: list[Event]
    operators: list[str]
