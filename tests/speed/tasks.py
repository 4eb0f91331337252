"""Tasks for the launcher, in a module that costs a child nothing to import."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Send = Callable[[dict[str, Any]], None]


def does_nothing(argument: Any, send: Send) -> dict[str, Any]:
    """Answer at once."""
    return {}


def busy(argument: Any, send: Send) -> dict[str, Any]:
    """Keep a core busy for `argument` seconds."""
    end = time.monotonic() + argument
    while time.monotonic() < end:
        pass
    return {}
