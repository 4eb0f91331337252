"""Whether the replay of a recording matches what torch reported at every mark; without torch."""

from __future__ import annotations

from dataclasses import dataclass

from bench.errors import StoreError
from bench.estimators.allocator import (
    Alloc,
    AllocatorConfig,
    Event,
    Reading,
    ReplayError,
    events_from_history,
    replay,
    segments_of_history,
)
from bench.estimators.memory_settings import MemorySettings, read_settings
from bench.recordings import ADDRESS_UNIT, OOM, Facts, Recording

_ALLOC = 0
_FIGURES = {
    f"{kind}_bytes.all.{when}": kind if when == "current" else f"peak_{kind}"
    for kind in ("requested", "allocated", "active", "reserved")
    for when in ("current", "peak")
}
"""For each figure of `torch.cuda.memory_stats`, the field of `Reading`."""
_COUNTS = {"num_alloc_retries": "num_alloc_retries", "num_ooms": "num_ooms"}


@dataclass(frozen=True, slots=True)
class ReplayCheck:
    """Whether a recording's replay is exact.

    Attributes:
        exact: Every figure at every mark is equal to the byte.
        marks: Marks that were compared.
        parting: The first figure that differs, as text; None if all are equal.
    """

    exact: bool
    marks: int
    parting: str | None


def version_of(facts: Facts) -> tuple[int, int]:
    """Major and minor of the recording's torch. Raises StoreError if it names none."""
    try:
        major, minor = (facts.versions.get("torch") or "").split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        raise StoreError(f"the recording has no valid version of torch: {facts.versions.get('torch')!r:.80}") from None


def settings_of(facts: Facts) -> MemorySettings:
    """What of the recording's environment decided its memory. Raises StoreError if it names no version of torch."""
    return read_settings(facts.variables, "{}.{}".format(*version_of(facts)))


def allocator_config(facts: Facts, *, limited: bool) -> AllocatorConfig:
    """The allocator's settings under which a recording was made.

    Args:
        facts: Of the recording.
        limited: Whether memory ends at what was free after the context, rather than nowhere.

    Raises:
        StoreError: The recording names no version of torch.
        ConfigError: Its settings are invalid or cannot be simulated.
    """
    free = facts.memory.get("free_after_context") if limited else None
    return settings_of(facts).allocator_config(facts.gpu.total_bytes, free)


def recorded_events(recording: Recording) -> list[Event]:
    """The events of a recording up to where memory ran out for good, which is its last event then.

    A request that failed and was done without (a workspace of cuDNN's) is optional.

    Raises:
        ReplayError: The history begins too late, or is invalid.
    """
    actions, addresses, sizes = recording.actions, recording.addresses, recording.sizes
    failures = [index for index, action in enumerate(actions) if action == OOM]
    fatal = failures[-1] if failures and recording.facts.status == "oom" else None
    end = len(actions) if fatal is None else fatal + 1
    actions, addresses = actions[:end], addresses[:end]
    for number, index in enumerate(failures):
        actions[index], addresses[index] = _ALLOC, -1 - number  # an address that nothing else has
    events = events_from_history(actions, addresses, sizes[:end])
    optional = {
        sum(action == _ALLOC for action in actions[:index]) for index in failures if index != fatal
    }  # ids count allocations
    return [
        event._replace(optional=True) if isinstance(event, Alloc) and event.id in optional else event
        for event in events
    ]


def check_replay(recording: Recording) -> ReplayCheck:
    """Replay a recording, with its segments where they lay, and compare with what torch reported.

    Raises:
        StoreError: The recording names no version of torch.
        ConfigError: Its allocator settings cannot be replayed.
    """
    facts = recording.facts
    limited = facts.status == "oom" or bool(facts.last_stats.get("num_alloc_retries"))
    try:
        events = recorded_events(recording)
        columns = recording.actions, recording.addresses, recording.sizes
        result = replay(
            events, allocator_config(facts, limited=limited), segments_of_history(*columns, unit=ADDRESS_UNIT)
        )
    except ReplayError as error:
        return ReplayCheck(False, 0, str(error))
    for number, stats in enumerate(facts.memory_stats):
        if number >= len(result.marks):
            return ReplayCheck(False, number, f"the replay ends before mark {number}: {_end(result.out_of_memory)}")
        if parting := _parting(f"mark {number}", result.marks[number], stats, {**_FIGURES, **_COUNTS}):
            return ReplayCheck(False, number, parting)
    marks = len(facts.memory_stats)
    if facts.status == "oom" and OOM in recording.actions:
        if result.out_of_memory is None:
            return ReplayCheck(False, marks, "the recording ran out of memory, but its replay does not")
        peaks = {name: field for name, field in _FIGURES.items() if name.endswith("peak")}
        parting = _parting("out of memory", result.final, facts.at_failure or {}, {**peaks, **_COUNTS})
        return ReplayCheck(parting is None, marks + 1, parting)
    return ReplayCheck(True, marks, None)


def _parting(where: str, reading: Reading, stats: dict[str, int], figures: dict[str, str]) -> str | None:
    for name, field in figures.items():
        mine = getattr(reading, field)
        if name in stats and stats[name] != mine:
            return f"{where}: {name} is {mine:,} in the replay and {stats[name]:,} as torch reported it"
    return None


def _end(failure: object) -> str:
    return "it runs out of memory" if failure is not None else "the events have too few marks"
