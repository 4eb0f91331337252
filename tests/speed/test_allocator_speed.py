"""How long the replay takes: 10,000 events within 50 ms is what a sweep of a thousand cases needs."""

from __future__ import annotations

import random
from typing import Any

from bench.estimators.allocator import Alloc, AllocatorConfig, Event, Free, replay


def training_like_events(count: int) -> list[Event]:
    """`count` events: activations pile up and go in reverse, temporaries come and go in between."""
    chance, events, live, name = random.Random(42), [], [], 0
    while len(events) < count:
        for _ in range(150):
            for size in (int(2 ** chance.uniform(9, 26)), int(2 ** chance.uniform(4, 12))):
                events.append(Alloc(name, size, category="activations"))
                live.append(name)
                name += 1
            events += [Alloc(name, 4096), Free(name)]
            name += 1
        while live:
            events += [Free(live.pop()), Alloc(name, int(2 ** chance.uniform(9, 22))), Free(name)]
            name += 1
    return events[:count]


def test_ten_thousand_events(benchmark: Any) -> None:
    events = training_like_events(10_000)
    assert benchmark(replay, events).peak_allocated_bytes > 0


def test_ten_thousand_events_in_expandable_segments(benchmark: Any) -> None:
    events = training_like_events(10_000)
    assert benchmark(replay, events, AllocatorConfig(expandable_segments=True)).peak_allocated_bytes > 0
