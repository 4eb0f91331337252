"""From torch's own history of the allocator to the columns of a recording."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bench.recordings.files import ADDRESS_UNIT, MARK, OOM, OTHER

ACTIONS = {"alloc": 0, "free_requested": 1, "free_completed": 2, "segment_alloc": 3, "segment_free": 4, "oom": OOM}
"""Codes of the actions of `torch.cuda.memory._snapshot()["device_traces"]` (c10/cuda/CUDACachingAllocator.h)."""

STATISTICS = (
    *(
        f"{kind}_bytes.all.{when}"
        for kind in ("requested", "allocated", "active", "reserved")
        for when in ("current", "peak")
    ),
    "num_alloc_retries",
    "num_ooms",
)
"""The figures of `torch.cuda.memory_stats` that a recording keeps."""

MAX_FRAMES = 16
_PACKAGES = re.compile(r".*/(?:site|dist)-packages/")


def pack_history(
    trace: Sequence[Mapping[str, Any]], marks: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[str]]:
    """Columns of a history.

    Args:
        trace: Entries of one device, oldest first.
        marks: For each mark the number of entries before it.

    Returns:
        Actions, addresses (in units of 512 B above the lowest), sizes in bytes (at a mark its number), and stacks:
        empty if none were recorded, else innermost frame first, without where packages lie on the machine.
    """
    low = min((entry["addr"] for entry in trace if entry["action"] in ACTIONS and "addr" in entry), default=0)
    actions, addresses, sizes, stacks = list[int](), list[int](), list[int](), list[str]()
    waiting = list(enumerate(marks))
    for index in range(len(trace) + 1):
        while waiting and waiting[0][1] <= index:
            actions.append(MARK)
            addresses.append(0)
            sizes.append(waiting.pop(0)[0])
            stacks.append("")
        if index < len(trace):
            entry = trace[index]
            actions.append(ACTIONS.get(entry["action"], OTHER))
            addresses.append(max(entry.get("addr", low) - low, 0) // ADDRESS_UNIT)  # a snapshot is noted at address 0
            sizes.append(entry.get("size", 0))
            stacks.append(describe_frames(entry.get("frames", ())))
    return actions, addresses, sizes, stacks


def describe_frames(frames: Sequence[Mapping[str, Any]]) -> str:
    """A stack as lines `file:line function`, innermost first."""
    kept = [frame for frame in frames if frame.get("filename")][:MAX_FRAMES]
    return "\n".join(f"{_shorten(frame['filename'])}:{frame['line']} {frame['name']}" for frame in kept)


def _shorten(path: str) -> str:
    """A path from its package on, or its last two parts."""
    shorter = _PACKAGES.sub("", path)
    return shorter if shorter != path else "/".join(path.split("/")[-2:])
