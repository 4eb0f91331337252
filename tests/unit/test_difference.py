"""A recording beside a trace: what is equal, and where, at which operator and with what effect it is not."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.estimators import temporaries
from bench.estimators.allocator import Alloc, Event, Free, Mark, replay
from bench.estimators.difference import Explanation, Kind, check_replay, compare
from bench.estimators.difference.alignment import longest_match
from bench.estimators.difference.explain import attribute_events
from bench.estimators.events import build_events
from bench.estimators.recording import Call, Entry, Freed, Output, Phase, StepEnd
from bench.estimators.recording import Recording as Trace
from bench.estimators.temporaries import Machine
from bench.estimators.tensors import contiguous
from bench.recordings import FREE_COMPLETED, Recording

from .made_recordings import make_facts, make_recording, stats_of

MACHINE = Machine(132, 2048, (9, 0), (2, 15))
WORKSPACE = 33_554_432
MIB = 1 << 20
MATRIX = contiguous("float32", (512, 512))


def call(operator: str, number: int, nbytes: int, phase: Phase) -> Call:
    return Call(operator, (MATRIX, MATRIX), (Output(number, nbytes, MATRIX),), phase)


def one_step(start: int, step: int) -> list[Entry]:
    """A product, an activation kept for the backward, another product; what it makes is dropped in two runs."""
    forward, backward = Phase.FORWARD, Phase.BACKWARD
    return [
        call("aten::mm", start, MIB, forward),
        call("aten::relu", start + 1, 3 * MIB, forward),
        Freed(start),
        call("aten::gelu", start + 2, 5 * MIB, forward),
        call("aten::mm", start + 3, 2 * MIB, backward),
        *map(Freed, (start + 2, start + 1, start + 3)),
        StepEnd(step),
    ]


TRACE = Trace(
    [call("aten::copy_", 1, 7 * MIB, Phase.SETUP), StepEnd(0), *one_step(10, 1), *one_step(20, 2)], {1: "parameters"}
)


def recorded_events() -> list[Event]:
    return attribute_events(TRACE, MACHINE)[0]


def explain(recording: Recording, trace: Trace = TRACE, **options: Any) -> Explanation:
    return compare(recording, trace, MACHINE, **options)


def index_of(events: list[Event], size: int, nth: int = 0) -> int:
    return [index for index, event in enumerate(events) if isinstance(event, Alloc) and event.size == size][nth]


def test_attributed_events_are_the_traces_own() -> None:
    events, origins = attribute_events(TRACE, MACHINE)
    plain = build_events(TRACE, MACHINE)
    assert [event for event in events if not isinstance(event, Mark)] == [
        event for event in plain if not isinstance(event, Mark)
    ]
    assert [event.label for event in events if isinstance(event, Mark)] == ["0", "1", "2"]
    for event, origin in zip(events, origins, strict=True):
        entry = TRACE.entries[origin]
        if isinstance(event, Alloc) and event.id >= 0:
            assert isinstance(entry, Call) and event.id == entry.outputs[0].storage
        elif isinstance(event, Alloc):
            assert isinstance(entry, Call) and entry.operator == "aten::mm"
        elif isinstance(event, Mark):
            assert isinstance(entry, StepEnd)


def test_a_recording_of_what_the_trace_says_has_no_difference() -> None:
    found = explain(make_recording(recorded_events()))
    assert found.replay.exact and found.replay.marks == 3
    assert (found.differences, found.partings) == (0, ())
    assert found.trace == found.recorded
    assert found.recorded_allocations == found.traced_allocations == 13


def test_the_order_within_a_run_of_frees_is_no_difference() -> None:
    events = recorded_events()
    frees = [
        index
        for index in range(len(events) - 1)
        if isinstance(events[index], Free) and isinstance(events[index + 1], Free)
    ]
    assert frees
    for index in frees:
        events[index], events[index + 1] = events[index + 1], events[index]
    assert explain(make_recording(events)).differences == 0


def test_a_temporary_dropped_from_the_trace_is_named_with_its_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = make_recording(recorded_events())
    monkeypatch.delitem(temporaries.RULES, "aten::mm")
    found = explain(recording, replace(TRACE, derived={}))
    forward, backward = found.partings
    assert found.differences == 4
    for parting, phase in ((forward, "forward"), (backward, "backward")):
        assert (parting.kind, parting.operator, parting.phase) == (Kind.MISSING, "aten::mm", phase)
        assert (parting.step, parting.count) == (1, 2)
        assert (parting.trace_bytes, parting.recorded_bytes) == (None, WORKSPACE)
    assert forward.operators == ("aten::mm", "aten::relu")
    assert found.trace is not None and found.recorded.allocated_bytes > found.trace.allocated_bytes
    # the peak lies in the backward: the forward's workspace alone comes close to it, the backward's makes it whole
    assert backward.effect_allocated_bytes == found.recorded.allocated_bytes - found.trace.allocated_bytes
    assert backward.effect_requested_bytes == found.recorded.requested_bytes - found.trace.requested_bytes
    assert 0 < forward.effect_allocated_bytes < backward.effect_allocated_bytes


def test_a_foreign_allocation_in_the_recording_is_named_by_what_lies_beside_it() -> None:
    events = recorded_events()
    at = index_of(events, 5 * MIB, nth=1)
    events.insert(at + 1, Alloc(999, 11 * MIB))
    found = explain(make_recording(events))
    (parting,) = found.partings
    assert (parting.kind, parting.operator, parting.operators) == (
        Kind.MISSING,
        "aten::gelu",
        ("aten::gelu", "aten::mm"),
    )
    assert (parting.step, parting.phase, parting.count, parting.recorded_bytes) == (2, "forward", 1, 11 * MIB)
    assert parting.effect_requested_bytes == 11 * MIB


def test_what_the_recording_lacks_is_named_with_the_operator_that_made_it() -> None:
    events = recorded_events()
    names = [event.id for event in events if isinstance(event, Alloc) and event.size == 5 * MIB]
    events = [event for event in events if not isinstance(event, Alloc | Free) or event.id not in names]
    (parting,) = explain(make_recording(events)).partings
    assert (parting.kind, parting.operator, parting.operators) == (Kind.EXTRA, "aten::gelu", ("aten::gelu",))
    assert (parting.step, parting.count, parting.trace_bytes, parting.recorded_bytes) == (1, 2, 5 * MIB, None)
    assert parting.effect_requested_bytes == -5 * MIB


def test_another_size_is_one_difference_and_not_two() -> None:
    events = recorded_events()
    at = index_of(events, 3 * MIB)
    events[at] = events[at]._replace(size=4 * MIB)
    found = explain(make_recording(events))
    (parting,) = found.partings
    assert (parting.kind, parting.operator, parting.step) == (Kind.SIZE, "aten::relu", 1)
    assert (parting.trace_bytes, parting.recorded_bytes) == (3 * MIB, 4 * MIB)
    assert parting.effect_requested_bytes == found.recorded.requested_bytes - found.trace.requested_bytes == MIB


def test_a_free_at_another_place_is_named_with_what_made_the_block() -> None:
    events = recorded_events()
    at = index_of(events, 3 * MIB)
    free = Free(events[at].id)
    events.remove(free)
    last = max(index for index, event in enumerate(events) if isinstance(event, Alloc))
    events.insert(last + 1, free)  # in the second step rather than the first
    found = explain(make_recording(events))
    (parting,) = found.partings
    assert (parting.kind, parting.operator, parting.step) == (Kind.LIFETIME, "aten::relu", 1)
    assert parting.effect_requested_bytes == found.recorded.requested_bytes - found.trace.requested_bytes == 3 * MIB


def test_only_so_many_operators_are_named_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = make_recording(recorded_events())
    monkeypatch.delitem(temporaries.RULES, "aten::mm")
    assert len(explain(recording, replace(TRACE, derived={}), most=1).partings) == 1


def test_a_recording_that_ran_out_of_memory_is_compared_up_to_there() -> None:
    events = recorded_events()
    cut = index_of(events, WORKSPACE)
    until = events[:cut]
    free = replay(until).final.reserved + MIB  # no room for a workspace
    recording = make_recording(until, failed_bytes=WORKSPACE, status="oom", memory={"free_after_context": free})
    found = explain(recording)
    assert found.replay.exact, found.replay
    assert found.differences == 0
    assert found.traced_allocations == found.recorded_allocations
    assert any("not kept" in note for note in found.notes)


def test_an_inexact_replay_names_the_first_figure_that_parts() -> None:
    recording = make_recording(recorded_events())
    stats = [dict(reading) for reading in recording.facts.memory_stats]
    stats[1]["reserved_bytes.all.peak"] += 512
    check = check_replay(replace(recording, facts=recording.facts.model_copy(update={"memory_stats": stats})))
    assert not check.exact
    assert check.parting is not None and check.parting.startswith("mark 1: reserved_bytes.all.peak is ")


def test_a_history_that_begins_too_late_is_said() -> None:
    recording = Recording(
        make_facts(memory_stats=[stats_of(replay([]).final)]), [1, FREE_COMPLETED], [3, 3], [512, 512], []
    )
    check = check_replay(recording)
    assert not check.exact
    assert check.parting == "history entry 0: a free of address 3, where nothing is allocated"


def longest_common(one: list[int], other: list[int]) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_alignment_finds_a_longest_common_subsequence(one: list[int], other: list[int]) -> None:
    pairs = longest_match(one, other)
    assert all(one[left] == other[right] for left, right in pairs)
    assert all(a < c and b < d for (a, b), (c, d) in pairwise(pairs))
    assert len(pairs) == longest_common(one, other)


def test_streams_with_nothing_in_common_are_given_up_rather_than_searched() -> None:
    chance = random.Random(1)
    one: list[int] = [1, *(chance.randrange(2, 1000) for _ in range(3000)), 1]
    other: list[int] = [1, *(chance.randrange(1000, 2000) for _ in range(3000)), 1]
    assert longest_match(one, other, max_edits=50) == [(0, 0), (3001, 3001)]
