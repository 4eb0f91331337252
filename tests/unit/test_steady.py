"""A step repeated: what is added to a short stream is what a long one holds."""

from __future__ import annotations

import itertools
import random

import pytest

from bench.estimators.allocator import Alloc, AllocatorConfig, Event, Free, Mark, ReplayResult, replay, replay_onward

MIB = 1 << 20


def training(seed: int, steps: int, reset_after: int = 99) -> list[Event]:
    """A made-up training: state and gradients from the first step on, activations, an output that the next step frees.

    Peaks start anew after the step `reset_after`.
    """
    sizes = random.Random(seed).choices([300, 5000, MIB // 3, MIB + 512, 3 * MIB, 11 * MIB], k=24)
    numbers = itertools.count()
    events: list[Event] = [Mark("0")]
    gradients: list[int] = []
    output: int | None = None

    def take(size: int) -> int:
        number = next(numbers)
        events.append(Alloc(number, size))
        return number

    for step in range(1, steps + 1):
        events += [Free(number) for number in gradients]
        activations = [take(size) for size in sizes]
        new = take(7 * MIB)
        scratch = take(sizes[0] * 2)
        events.append(Free(scratch))
        gradients = []
        for number, size in reversed(list(zip(activations, sizes, strict=True))):
            gradients.append(take(size // 2 + 512))
            events.append(Free(number))
        if step == 1:
            take(64)
        events += [Free(output)] if output is not None else []
        output = new
        events.append(Mark(str(step), reset_peaks=step == reset_after))
    return events


def onward(events: list[Event], config: AllocatorConfig | None = None, unmeasured: int = 5) -> ReplayResult:
    return replay_onward(events, config, unmeasured_steps=unmeasured, measured_steps=2)


@pytest.mark.parametrize("unmeasured", [3, 4, 5, 9])
@pytest.mark.parametrize("seed", range(10))
def test_added_steps_are_those_of_a_longer_training(seed: int, unmeasured: int) -> None:
    found = onward(training(seed, 3), None, unmeasured)
    truth = replay(training(seed, unmeasured + 2, reset_after=unmeasured))
    assert found.marks[-1] == truth.marks[-1]
    assert [mark.label for mark in found.marks[-2:]] == [str(unmeasured + 1), str(unmeasured + 2)]
    assert found.final.peak_reserved == truth.final.peak_reserved
    assert [(view.size, view.allocated) for view in found.segments] == [
        (view.size, view.allocated) for view in truth.segments
    ]
    assert found.categories == truth.categories
    assert sum(share.allocated_bytes for share in found.categories) == found.marks[-1].peak_allocated


@pytest.mark.parametrize("recorded", [6, 7, 9])
def test_peaks_of_recorded_steps_count_from_the_first_measured_one(recorded: int) -> None:
    for seed in range(10):
        found = onward(training(seed, recorded))
        truth = replay(training(seed, max(recorded, 7), reset_after=5))
        assert found.marks == truth.marks


def test_steps_that_differ_are_not_gone_on_with() -> None:
    events = training(0, 3)
    last = max(index for index, event in enumerate(events) if isinstance(event, Mark))
    other = [*events[:last], Alloc(10**6, 512), events[last]]
    assert onward(other) == replay(other)


def test_a_step_that_frees_what_an_older_one_made_is_not_gone_on_with() -> None:
    steps = [[Alloc(9, 512), Alloc(1, 512)], [Alloc(2, 512)], [Alloc(3, 512), Free(9)]]
    events: list[Event] = [Mark("0")]
    for index, step in enumerate(steps):
        events += [*step, Mark(str(index + 1))]
    assert onward(events) == replay(events)


def shuffled(seed: int, steps: int) -> list[Event]:
    """A made-up training whose backward frees in no order at all."""
    some = random.Random(seed)
    sizes = [
        some.randint(1, some.choice([2, 12, 40])) * MIB + some.choice([0, 512, 700_000])
        for _ in range(some.randint(4, 30))
    ]
    order = list(range(len(sizes)))
    some.shuffle(order)
    numbers = itertools.count()
    events, kept = list[Event](), list[int]()
    for _ in range(steps):
        events += [Mark("step"), *(Free(number) for number in kept[1:])]
        born = [Alloc(next(numbers), size) for size in sizes]
        output = Alloc(next(numbers), sizes[-1] + MIB)
        gradients = {index: Alloc(next(numbers), sizes[index]) for index in order if index % 2}
        events += [*born, output]
        for index in order:
            events += [gradients[index]] if index in gradients else []
            events.append(Free(born[index].id))
        events += [Free(number) for number in kept[:1]]
        kept = [output.id, *(gradient.id for gradient in gradients.values())]
    return [*events, Mark("end")]


def test_memory_may_run_out_in_a_step_that_was_not_recorded() -> None:
    """The free memory that the fourth step finds is more broken up than the third's."""
    grown = 0
    for seed in range(60):
        events = shuffled(seed, 3)
        recorded = replay(events).final.peak_reserved
        config = AllocatorConfig(capacity_bytes=recorded)
        assert replay(events, config).out_of_memory is None
        if onward(events, None, 14).final.peak_reserved > recorded:
            failure = onward(events, config, 14).out_of_memory
            grown += failure is not None and failure.event_index >= len(events)
            truth = replay(shuffled(seed, 16), config).out_of_memory
            assert (truth is None) == (failure is None)
    assert grown
