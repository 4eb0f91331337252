"""Recordings that no GPU made: from events, with the figures that the replay gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.estimators.allocator import Alloc, Event, Free, Mark, replay
from bench.recordings import FREE_COMPLETED, OOM, Facts, GpuFacts, Recording
from bench.recordings.files import MARK
from bench.records import Case, Choice

CASE = Case(Choice("mnist"), Choice("mlp"), Choice("adam"), 64, image_size=28)
GPU = GpuFacts(
    name="NVIDIA H200",
    multiprocessors=132,
    threads_per_multiprocessor=2048,
    compute_capability=[9, 0],
    total_bytes=150_110_011_392,
)


def stats_of(reading: Any) -> dict[str, int]:
    """A reading of the replay as torch names its figures."""
    figures = {
        f"{kind}_bytes.all.{when}": getattr(reading, kind if when == "current" else f"peak_{kind}")
        for kind in ("requested", "allocated", "active", "reserved")
        for when in ("current", "peak")
    }
    return {**figures, "num_alloc_retries": reading.num_alloc_retries, "num_ooms": reading.num_ooms}


def make_facts(case: Case = CASE, **fields: Any) -> Facts:
    """Facts of an ok recording, with some fields replaced."""
    values: dict[str, Any] = {
        "format": 1,
        "loop": "bench",
        "recording_key": "0" * 16,
        "case_key": case.key,
        "axes": case.axes,
        "status": "ok",
        "steps": 0,
        "memory_stats": [{}],
        "gpu": GPU,
        "versions": {"torch": "2.15.0"},
        "seed": 42,
    }
    return Facts(**{**values, **fields})


def make_recording(events: Sequence[Event], *, failed_bytes: int | None = None, **facts: Any) -> Recording:
    """A recording of these events; with `failed_bytes`, one that a request of so many bytes ended."""
    columns: list[tuple[int, int, int]] = []
    places: dict[int, tuple[int, int]] = {}
    for event in events:
        if isinstance(event, Alloc):
            places[event.id] = len(columns), event.size
            columns.append((0, len(columns), event.size))
        elif isinstance(event, Free):
            place, size = places.pop(event.id)
            columns += [(1, place, size), (FREE_COMPLETED, place, size)]
        elif isinstance(event, Mark):
            columns.append((MARK, 0, int(event.label)))
    if failed_bytes is not None:
        columns.append((OOM, 0, failed_bytes))
    marks = replay(events).marks
    given = {"steps": max(len(marks) - 1, 0), "memory_stats": [stats_of(mark) for mark in marks], **facts}
    actions, addresses, sizes = (list(column) for column in zip(*columns, strict=True))
    return Recording(make_facts(**given), actions, addresses, sizes, [])
