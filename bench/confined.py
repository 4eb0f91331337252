"""Tasks that read files of others, in a child with limits: what crashes or fills the child leaves its caller unharmed.

A Parquet file of a few KiB can make its reader take gigabytes, work for hours or crash: readers follow the sizes in a
file, and their own checks cannot be relied on. It is not a sandbox: the child may do what its user may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.launchers import LocalLauncher, Outcome, Send, Task

MEMORY_BYTES = 2 << 30
"""What the child may take on top of what it has when it starts.

A plan of 200,000 runs, the largest part there is, takes 0.4 GiB, and Arrow's allocator reserves 1 GiB at once.
"""

FILE_S = 60.0
"""For each file; that plan takes 20 s on a busy machine."""


def run_confined(task: Task, argument: Any, *, timeout_s: float = FILE_S) -> dict[str, Any]:
    """What a task answers in a child that may take `MEMORY_BYTES` more memory than a new process has.

    The limit is RLIMIT_DATA, which only Linux enforces for all allocations; elsewhere the time limit remains.

    Args:
        task: It sends `{"file": path}` before each file that it reads.
        argument: Of the task.
        timeout_s: For each file.

    Raises:
        StoreError: The task refused a file, or did not survive it; the message begins with the file.
        InfrastructureError: No process can be started.
    """
    answer = LocalLauncher().run(_confine, (task, argument), timeout_s=timeout_s, from_last_word=True, bare=True)
    if answer.outcome is Outcome.ANSWERED:
        return answer.value
    if answer.outcome is Outcome.REFUSED:
        raise StoreError(answer.reason)
    raise StoreError(
        f"{answer.news.get('file', 'no file')}: cannot be read within {MEMORY_BYTES >> 30} GiB and {timeout_s:.0f} s "
        f"({answer.reason}); nothing of it was used. Ask its author for an intact copy"
    )


def _confine(argument: tuple[Task, Any], send: Send) -> dict[str, Any]:
    task, its_argument = argument
    present = read_data_bytes()
    if present is not None:
        limit_data(present + MEMORY_BYTES)
    send({"phase": "reading"})
    return task(its_argument, send)


def limit_data(limit_bytes: int) -> None:
    """Set RLIMIT_DATA of this process: larger allocations fail as errors. Never above a limit that it has already."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes if hard < 0 else min(limit_bytes, hard), hard))


def read_data_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """The private writable memory of this process in bytes, as RLIMIT_DATA counts it; None if there is no /proc."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
