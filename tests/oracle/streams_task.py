"""Random streams of requests, for the real allocator and the replay alike."""

from __future__ import annotations

import random

ALLOCATE, FREE, EMPTY_CACHE = 0, 1, 2
MIB = 1 << 20
EDGES = (0, 1, 511, 512, 513, MIB - 1, MIB, MIB + 1, 2 * MIB, 10 * MIB - 1, 10 * MIB, 10 * MIB + 1, 20 * MIB)


def random_operations(
    chance: random.Random, count: int, streams: int, largest_bytes: int, empty_share: float, live_target: int = 300
) -> list[list[int]]:
    """Operations `[kind, id, bytes, stream]`: sizes log-uniform with the rules' edges mixed in."""
    operations: list[list[int]] = []
    live: list[int] = []
    for name in range(count):
        if chance.random() < empty_share:
            operations.append([EMPTY_CACHE, 0, 0, 0])
        elif live and chance.random() < (0.35, 0.5, 0.6)[min(2 * len(live) // live_target, 2)]:
            operations.append([FREE, live.pop(chance.randrange(len(live))), 0, 0])
        else:
            size = chance.choice(EDGES) if chance.random() < 0.05 else int(largest_bytes ** chance.random())
            operations.append([ALLOCATE, name, size, chance.randrange(streams)])
            live.append(name)
    return operations
