"""The imports of the fork server, so that no run needs them; CUDA stays untouched.

Their objects are excluded from garbage collection, whose passes around each measured window then take a millisecond
rather than most of a second, and do not touch the pages that children share with the server.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def _silent_where_fatal() -> Iterator[None]:
    """Buffer standard error, of C++ too, and write it at the end unless that is an exception or an abort.

    Whoever started the server asks again what is wrong and says it in one line (`launchers.faults`), in a
    process that is no server and lets everything out.
    """
    if "multiprocessing.forkserver" not in sys.modules:
        yield
        return
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        yield
        os.dup2(kept, 2)
        os.close(kept)
        held.seek(0)
        os.write(2, held.read())


with _silent_where_fatal():
    import torch._dynamo
    import torchvision

    import bench.worker
    from bench import catalog

__all__ = [
    "bench",
    "torch",
    "torchvision",
]  # torch._dynamo: the first optimizer of a process would import it, for seconds


def _end_descendants() -> None:
    """Kill everything that still runs below the server: it exits early only if the sweep was killed.

    The kernel ends a run with its server, but not what that run started (workers of a DataLoader).
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


for kind in catalog.KINDS:
    catalog.entries(kind)
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # the server's own end is to be as tidy as if nothing had been put aside
atexit.register(_end_descendants)
