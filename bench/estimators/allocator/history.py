"""Recorded histories of the allocator as events to replay; free of torch.

A history is what `torch.cuda.memory._snapshot()["device_traces"]` holds (`TraceEntry` in
`c10/cuda/CUDACachingAllocator.h`), packed as three columns of equal length: actions as numbers, addresses in any unit,
and bytes. An allocation's bytes are those asked for, not those handed out (`record_trace` in `alloc_found_block`).
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.estimators.allocator.events import Alloc, Complete, Event, Free, Mark, ReplayError

ALLOC, FREE_REQUESTED, FREE_COMPLETED, SEGMENT_ALLOC, SEGMENT_FREE, MARK = range(6)


def events_from_history(
    actions: Sequence[int], addresses: Sequence[int], sizes: Sequence[int], *, reset_peaks: bool = False
) -> list[Event]:
    """Turn a recorded history into events; segments are left out, for the replay makes its own.

    Args:
        actions: ALLOC, FREE_REQUESTED, FREE_COMPLETED or MARK; all others are skipped.
        addresses: What identifies a block while it is live.
        sizes: Bytes asked for; at a mark its number.
        reset_peaks: Whether the peaks start again at every mark.

    Returns:
        Events with ids counted from 0 in order of allocation. Frees that completed at once are plain ones.

    Raises:
        ReplayError: A free of an address that holds nothing, as when the recording began too late.
    """
    events: list[Event] = []
    live: dict[int, int] = {}
    pending: dict[int, int] = {}
    count = 0
    following = [*actions[1:], -1]
    for index, (action, address, size) in enumerate(zip(actions, addresses, sizes, strict=True)):
        if action == ALLOC:
            live[address] = count
            events.append(Alloc(count, size))
            count += 1
        elif action == FREE_REQUESTED:
            if address not in live:
                raise ReplayError(f"history entry {index}: a free of address {address}, where nothing is allocated")
            name = live.pop(address)
            at_once = following[index] == FREE_COMPLETED and addresses[index + 1] == address
            events.append(Free(name, pending=not at_once))
            if not at_once:
                pending[address] = name
        elif action == FREE_COMPLETED and address in pending:
            events.append(Complete(pending.pop(address)))
        elif action == MARK:
            events.append(Mark(str(size), reset_peaks))
    return events
