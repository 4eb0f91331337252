"""Operators whose results come in another order than they are returned, and those that copy an operand."""

from __future__ import annotations

from typing import Any

from bench.estimators.temporaries.machine import Machine
from bench.estimators.temporaries.scripts import Script


def _dropout(arguments: tuple[Any, ...], outputs: list[int], machine: Machine) -> Script:
    """The mask goes first (aten/src/ATen/native/cuda/Dropout.cu)."""
    return [(1, outputs[1]), (0, outputs[0])]


RULES = {"aten::native_dropout": _dropout}
