"""What the fork server imports for a sweep with models of timm: its import takes each run seconds otherwise.

A timm that cannot be imported is no reason to stop the server: the runs of its models fail, with the reason.
"""

from __future__ import annotations

import contextlib
import gc

with contextlib.suppress(Exception):
    import timm

    gc.collect()
    gc.freeze()

__all__ = ["timm"]
