"""Random streams of requests through torch's real allocator: `python streams.py TASK.json OUT.npz`, under the stub.

The task names the operations; what is written are the allocator's figures after every one of them. It knows nothing of
the project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

ALLOCATE, FREE, EMPTY_CACHE = 0, 1, 2
FIGURES = ("requested_bytes", "allocated_bytes", "active_bytes", "reserved_bytes")


def read_figures() -> list[int]:
    """Current and peak of each figure in bytes, then retries and failures."""
    nested = torch._C._cuda_memoryStats(0)
    figures = [nested[name]["all"][kind] for kind in ("current", "peak") for name in FIGURES]
    return [*figures, nested["num_alloc_retries"], nested["num_ooms"]]


def main() -> None:
    """Run the operations: `[ALLOCATE, id, bytes, stream]`, `[FREE, id, 0, 0]`, `[EMPTY_CACHE, 0, 0, 0]`."""
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.cuda.init()
    if task["memory_fraction"] < 1:
        torch.cuda.set_per_process_memory_fraction(task["memory_fraction"])
    streams = [0] + [torch.cuda.Stream().cuda_stream for _ in range(task["streams"] - 1)]
    allocate, free = torch._C._cuda_cudaCachingAllocator_raw_alloc, torch._C._cuda_cudaCachingAllocator_raw_delete
    pointers: dict[int, int] = {}
    rows = []
    for operation, name, size, stream in task["operations"]:
        if operation == ALLOCATE:
            try:
                pointers[name] = allocate(size, streams[stream])
            except torch.cuda.OutOfMemoryError:
                pointers[name] = 0
        elif operation == FREE:
            pointer = pointers.pop(name)
            if pointer:
                free(pointer)
        else:
            torch.cuda.empty_cache()
        rows.append(read_figures())
    np.savez_compressed(sys.argv[2], figures=np.array(rows, "i8"), torch=torch.__version__, streams=np.array(streams))


if __name__ == "__main__":
    main()
