"""A training that goes on: its last recorded step, repeated until the allocator's figures have settled.

Steps that are alike ask for the same blocks in the same order, but not of the same free memory: what is cached breaks
up further for a step or two, which moves `allocated` by what is not split off and `reserved` by whole segments, and
near capacity decides whether a step fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.estimators.allocator.caching import OutOfMemoryError
from bench.estimators.allocator.config import AllocatorConfig
from bench.estimators.allocator.events import Alloc, Event, Free, Mark
from bench.estimators.allocator.replay import OutOfMemory, ReplayResult, Run

_FIRST_ID = 1 << 50
"""Of the blocks that are added; a recording's own are far below."""


def replay_until_steady(events: Sequence[Event], config: AllocatorConfig | None, most_steps: int) -> ReplayResult:
    """Replay events whose marks stand between steps, then go on as the last step did until two in a row peak alike.

    Peaks start anew before each step that is added, so that those of the last mark are those of a settled step. Where
    the last two steps differ in what they ask for, or the last one frees something older, nothing is added.

    Args:
        events: As for `replay`, with a mark before the first step and after each.
        config: As for `replay`.
        most_steps: Steps after which to stop in any case.
    """
    stream, run = list(events), Run(config)
    failed = _apply(run, stream, 0)
    step = _last_step(stream)
    added, done = 0, sum(type(event) is Mark for event in stream) - 1
    while step is not None and failed is None and done < most_steps and not (added > 1 and _is_settled(run)):
        run.reset_peaks(len(stream) - 1)
        added, done, start = added + 1, done + 1, len(stream)
        stream += [*step.at(added), Mark(str(done))]
        failed = _apply(run, stream, start)
    return run.result(stream, failed)


def _apply(run: Run, stream: Sequence[Event], start: int) -> OutOfMemory | None:
    for index in range(start, len(stream)):
        try:
            run.apply(index, stream[index])
        except OutOfMemoryError as failure:
            return OutOfMemory(index, failure.requested_bytes, failure.segment_size_bytes)
    return None


def _is_settled(run: Run) -> bool:
    one, other = run.marks[-2:]
    return (one.peak_allocated, one.peak_reserved) == (other.peak_allocated, other.peak_reserved)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step without its mark, its blocks named by the places of their births.

    Attributes:
        events: An id from 0 up is the place of an allocation of this step; ~id is that of one of the step before.
        ids: Of its allocations, as they were recorded.
        left: The places of those that outlive the step, by id.
        whole: Whether it frees nothing older than the step before.
    """

    events: list[Alloc | Free]
    ids: list[int]
    left: dict[int, int]
    whole: bool

    @property
    def asked(self) -> list[tuple[int, int]]:
        """Bytes and stream of its allocations."""
        return [(event.size, event.stream) for event in self.events if isinstance(event, Alloc)]

    def at(self, added: int) -> list[Event]:
        """The events of the step that is the `added`-th after the recorded ones, from 1."""
        count = len(self.ids)
        start = _FIRST_ID + added * count
        older = self.ids if added == 1 else range(start - count, start)
        return [event._replace(id=start + event.id if event.id >= 0 else older[~event.id]) for event in self.events]


def _last_step(stream: Sequence[Event]) -> _Step | None:
    """The last step; None where the one before asks for other blocks or leaves others behind."""
    marks = [index for index, event in enumerate(stream) if type(event) is Mark]
    if len(marks) < 3:
        return None
    before = _placed(stream[marks[-3] + 1 : marks[-2]], {})
    last = _placed(stream[marks[-2] + 1 : marks[-1]], before.left)
    alike = last.asked == before.asked and set(last.left.values()) == set(before.left.values())
    return last if last.whole and alike else None


def _placed(step: Sequence[Event], older: Mapping[int, int]) -> _Step:
    """A step of a stream; `older` has the places of what the step before left behind."""
    events, ids, left, whole = list[Alloc | Free](), list[int](), dict[int, int](), True
    for event in step:
        if isinstance(event, Alloc):
            left[event.id] = len(ids)
            events.append(event._replace(id=len(ids)))
            ids.append(event.id)
        elif isinstance(event, Free) and event.id in left:
            events.append(event._replace(id=left.pop(event.id)))
        elif isinstance(event, Free) and event.id in older:
            events.append(event._replace(id=~older[event.id]))
        else:
            whole = False
    return _Step(events, ids, left, whole)
