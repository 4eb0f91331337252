"""A training that goes on: its last recorded step, repeated as often as a run does before it measures.

Steps that are alike ask for the same blocks in the same order, but not of the same free memory: what is cached breaks
up further in the next steps, which moves `allocated` by what is not split off and `reserved` by whole segments, and
near capacity decides whether a step fits. And blocks that outlive a step change places, so that peaks may differ from
one step to the next and be back after two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.estimators.allocator.blocks import Block
from bench.estimators.allocator.caching import OutOfMemoryError
from bench.estimators.allocator.config import AllocatorConfig
from bench.estimators.allocator.events import Alloc, Event, Free, Mark
from bench.estimators.allocator.replay import OutOfMemory, ReplayResult, Run

_FIRST_ID = 1 << 50
"""Of the blocks that are added; a recording's own are far below."""


def replay_onward(
    events: Sequence[Event], config: AllocatorConfig | None, *, unmeasured_steps: int, measured_steps: int
) -> ReplayResult:
    """Replay events whose marks stand between steps, then go on as the last step did.

    Peaks start again before the measured steps, so that those of the last mark are theirs. Where the last two steps
    differ in what they ask for, or the last one frees something older, nothing is added.

    Args:
        events: As for `replay`, with a mark before the first step and after each.
        config: As for `replay`.
        unmeasured_steps: Steps before the measured ones, those of `events` included; there are as many as these at
            least.
        measured_steps: Steps after which to stop.
    """
    stream, run = list(events), Run(config)
    failed = _apply(run, stream, 0)
    step = None if failed else _last_step(stream)
    if step is None:
        return run.result(stream, failed)
    done = sum(type(event) is Mark for event in stream) - 1
    added = 0
    if unmeasured_steps > done:
        added, failed = 1, _skip(run, stream, step, unmeasured_steps - done)
        stream.append(Mark(str(unmeasured_steps)))
        failed = failed or _apply(run, stream, len(stream) - 1)
    run.reset_peaks(len(stream) - 1)
    for number in range(1, measured_steps + 1):
        if failed is None:
            start = len(stream)
            stream += [*step.at(added + number), Mark(str(max(done, unmeasured_steps) + number))]
            failed = _apply(run, stream, start)
    return run.result(stream, failed)


def _apply(run: Run, stream: Sequence[Event], start: int) -> OutOfMemory | None:
    for index in range(start, len(stream)):
        try:
            run.apply(index, stream[index])
        except OutOfMemoryError as failure:
            return OutOfMemory(index, failure.requested_bytes, failure.segment_size_bytes)
    return None


def _skip(run: Run, stream: list[Event], step: _Step, count: int) -> OutOfMemory | None:
    """Let the allocator go through `count` steps of which nothing is noted; the stream gets the last of them only."""
    blocks = [run.live.pop(number, None) for number in step.ids]
    for _ in range(count):
        try:
            blocks = _go(run, step, blocks)
        except OutOfMemoryError as failure:
            return OutOfMemory(len(stream), failure.requested_bytes, failure.segment_size_bytes)
    first, left = step.first(1), set(step.left.values())
    for event in step.at(1):
        if isinstance(event, Alloc) and event.id - first in left:
            block = run.live[event.id] = blocks[event.id - first]
            if block is not None:
                run.granted[len(stream)] = block.size
        stream.append(event)
    return None


def _go(run: Run, step: _Step, older: Sequence[Block | None]) -> list[Block | None]:
    """One step, straight through the allocator; what lives on, by the places of its births."""
    allocator = run.allocator
    blocks: list[Block | None] = []
    for event in step.events:
        if isinstance(event, Alloc):
            try:
                blocks.append(allocator.allocate(event.size, event.stream) if event.size > 0 else None)
            except OutOfMemoryError:
                if not event.optional:
                    raise
                blocks.append(None)
            continue
        block = older[~event.id] if event.id < 0 else blocks[event.id]
        if block is not None:
            allocator.free(block)
        if event.id >= 0:
            blocks[event.id] = None
    return blocks


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

    def first(self, added: int) -> int:
        """The first id of the step that is the `added`-th after the recorded ones, from 1."""
        return _FIRST_ID + added * len(self.ids)

    def at(self, added: int) -> list[Event]:
        """The events of that step."""
        start = self.first(added)
        older = self.ids if added == 1 else range(self.first(added - 1), start)
        return [event._replace(id=start + event.id if event.id >= 0 else older[~event.id]) for event in self.events]


def _last_step(stream: Sequence[Event]) -> _Step | None:
    """The last step; None if the one before asks for other blocks or leaves others behind."""
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
