"""Python's garbage collector, kept out of the way: traces are hundreds of thousands of small tuples that stay.

A full collection with torch imported takes 0.2 s, as long as the recording of a step.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


def collected_before() -> None:
    """Collect what is garbage now, and leave out of all later collections what is not; for processes that end soon."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep the collector from running, and so from freeing storages in the middle of a step."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
