"""What changed between two traces of a case: by how much, at which operators first, and whether by the model at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from bench.errors import BenchError
from bench.estimators.difference.alignment import longest_match
from bench.guard.baselines import Guarded
from bench.guard.outline import KEPT, Line, Outline
from bench.units import format_bytes, parse_bytes

FIRST = 3
"""Operators that are named of a case."""


class How(StrEnum):
    """How a line changed."""

    NEW = "new"
    GONE = "gone"
    SIZE = "other size"
    FREED = "freed elsewhere"


@dataclass(frozen=True, slots=True)
class Moved:
    """One line of an outline that changed.

    Attributes:
        how: In what way.
        before: The line of the baseline; None if it is new.
        after: The line now; None if it is gone.
    """

    how: How
    before: Line | None
    after: Line | None

    @property
    def line(self) -> Line:
        """The newer of both."""
        found = self.after or self.before
        assert found is not None
        return found

    def __str__(self) -> str:
        """`forward block.2 add: new, 16.00 MiB`."""
        if self.how is How.FREED:
            assert self.before and self.after
            ends = (_end(line) for line in (self.before, self.after))
            return f"{self.line}: {format_bytes(self.line.size_bytes)} freed {' -> '.join(ends)}"
        if self.how is How.SIZE:
            assert self.before and self.after
            return f"{self.line}: {format_change(self.before.size_bytes, self.after.size_bytes)}"
        return f"{self.line}: {self.how}, {format_bytes(self.line.size_bytes)}"


def _end(line: Line) -> str:
    return "after the step" if line.until == KEPT else f"in {line.until or f'{line.phase} {line.module}'}"


def format_change(before: int | None, after: int | None) -> str:
    """`1.50 GiB -> 1.62 GiB (+125 MiB)`; empty where either is unknown."""
    if before is None or after is None:
        return ""
    return f"{format_bytes(before)} -> {format_bytes(after)} ({format_difference(after - before)})"


def format_difference(size_bytes: int) -> str:
    """A difference with its sign; 0 is `0 B`."""
    return f"{'+' if size_bytes > 0 else '-' if size_bytes < 0 else ''}{format_bytes(abs(size_bytes))}"


def changed_lines(before: Outline, after: Outline) -> list[Moved]:
    """The lines that differ, in the order of the program: what the setup made, the step, then what it left behind."""
    one, other = ({(*line.place, line.until): line for line in outline.standing} for outline in (before, after))
    standing = [_moved(one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other])]
    setup = [moved for moved in standing if moved and moved.line.until == KEPT]
    left = [moved for moved in standing if moved and moved.line.until != KEPT]
    return [*setup, *_changed_steps(before.step, after.step), *left]


def _changed_steps(before: Sequence[Line], after: Sequence[Line]) -> Iterator[Moved]:
    pairs = longest_match([line[:5] for line in before], [line[:5] for line in after])
    for (left, right), (next_left, next_right) in pairwise([(-1, -1), *pairs, (len(before), len(after))]):
        yield from _changed_between(before[left + 1 : next_left], after[right + 1 : next_right])
        if next_left < len(before) and (moved := _moved(before[next_left], after[next_right])):
            yield moved


def _changed_between(before: Sequence[Line], after: Sequence[Line]) -> Iterator[Moved]:
    """Lines of which none is alike on both sides: those of one operator are the same at other sizes."""
    pairs = longest_match([line.place for line in before], [line.place for line in after])
    for (left, right), (next_left, next_right) in pairwise([(-1, -1), *pairs, (len(before), len(after))]):
        yield from (Moved(How.GONE, line, None) for line in before[left + 1 : next_left])
        yield from (Moved(How.NEW, None, line) for line in after[right + 1 : next_right])
        if next_left < len(before) and (moved := _moved(before[next_left], after[next_right])):
            yield moved


def _moved(before: Line | None, after: Line | None) -> Moved | None:
    """How one line became another of the same operator; None if it is the same."""
    if before is None or after is None:
        return Moved(How.GONE if after is None else How.NEW, before, after)
    if (before.size_bytes, before.blocks) != (after.size_bytes, after.blocks):
        return Moved(How.SIZE, before, after)
    return None if before == after else Moved(How.FREED, before, after)


class Course(StrEnum):
    """What became of a case."""

    SAME = "unchanged"
    GREW = "grew"
    ALLOWED = "grew within what is allowed"
    SHRANK = "shrank"
    NEW = "no baseline"
    REFUSED = "cannot be traced"


@dataclass(frozen=True, slots=True)
class Allowed:
    """Growth of a peak that is let through.

    Attributes:
        size_bytes: As bytes; None if it is a fraction.
        fraction: Of the baseline's peak.
    """

    size_bytes: int | None = 0
    fraction: float = 0.0

    @classmethod
    def parse(cls, given: str | float) -> Allowed:
        """From `0 B`, `16 MiB`, a whole number of bytes, or `1 %`. Raises BenchError."""
        text = str(given).strip()
        try:
            if text.endswith("%"):
                fraction = float(text[:-1]) / 100
                if 0 <= fraction < float("inf"):
                    return cls(None, fraction)
                raise ValueError
            return cls(parse_bytes(text))
        except ValueError:
            raise BenchError(
                f"allow {given!r}: a size such as 16 MiB, or a percentage such as 1 %, is needed"
            ) from None

    def covers(self, before: int, after: int) -> bool:
        """Whether the growth is let through."""
        most = before * self.fraction if self.size_bytes is None else self.size_bytes
        return after - before <= most


@dataclass(frozen=True, slots=True)
class Change:
    """One case beside its baseline.

    Attributes:
        name: Of the case.
        status: See there.
        before: The baseline; None if there is none.
        after: As traced now; None where that was refused.
        reason: Why it was refused; else empty.
    """

    name: str
    status: Course
    before: Guarded | None
    after: Guarded | None
    reason: str = ""

    @classmethod
    def of(cls, name: str, before: Guarded | None, after: Guarded | str, allowed: Allowed) -> Change:
        """Compare; `after` is a reason where the case was refused."""
        if isinstance(after, str):
            return cls(name, Course.REFUSED, before, None, after)
        if before is None:
            return cls(name, Course.NEW, None, after)
        old, new = (item.outline.peak_allocated_bytes for item in (before, after))
        if old == new:
            status = Course.SAME
        elif new < old:
            status = Course.SHRANK
        else:
            status = Course.ALLOWED if allowed.covers(old, new) else Course.GREW
        return cls(name, status, before, after)

    @property
    def before_bytes(self) -> int | None:
        """The baseline's allocated peak."""
        return None if self.before is None else self.before.outline.peak_allocated_bytes

    @property
    def after_bytes(self) -> int | None:
        """The allocated peak now."""
        return None if self.after is None else self.after.outline.peak_allocated_bytes

    @property
    def difference_bytes(self) -> int | None:
        """By how much it grew; None if either is unknown."""
        before, after = self.before_bytes, self.after_bytes
        return None if before is None or after is None else after - before

    @property
    def moved(self) -> list[Moved]:
        """The lines at which the two traces part; empty where the peak did not change."""
        if not self.difference_bytes or self.before is None or self.after is None:
            return []
        return changed_lines(self.before.outline, self.after.outline)

    @property
    def environment_differs(self) -> list[str]:
        """`torch 2.9.0 -> 2.13.0`, for all that differs."""
        if self.before is None or self.after is None:
            return []
        return differing(self.before.environment, self.after.environment)

    @property
    def case_differs(self) -> list[str]:
        """`batch_size 8 -> 16`, for all that differs: then the two are not of the same case."""
        return [] if self.before is None or self.after is None else differing(self.before.case, self.after.case)

    @property
    def cause(self) -> str:
        """Whether the model changed or what it was traced with, in a sentence; empty where that is no question."""
        if not self.difference_bytes or self.before is None or self.after is None:
            return ""
        if self.case_differs:
            return f"the case is another one than the baseline's ({', '.join(self.case_differs)})"
        if not (differs := ", ".join(self.environment_differs)):
            return ""
        if self.before.code == self.after.code:
            return f"the model's code is the baseline's: the change comes from the environment ({differs})"
        return (
            f"the environment differs from the baseline's ({differs}), and so does the code: renew the baseline on the "
            "code before this change, or install the baseline's versions, to see what the code alone does"
        )


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What two mappings hold differently, in words."""
    names = dict.fromkeys([*before, *after])
    return [
        f"{name} {before.get(name) or 'none'} -> {after.get(name) or 'none'}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def change_lines(change: Change, first: int = FIRST) -> Iterator[str]:
    """What a change comes to, for people: where the traces part, where the peak is, and what changed it."""
    if change.status is Course.REFUSED:
        yield f"cannot be traced: {change.reason}"
        return
    moved = change.moved
    if moved:
        yield "the traces part at:"
        yield from (f"  {number}. {item}" for number, item in enumerate(moved[:first], start=1))
        if len(moved) > first:
            yield f"  and {len(moved) - first} more"
    elif change.difference_bytes:
        yield "the same allocations, in another order"
    if change.difference_bytes and change.before and change.after:
        before, after = change.before.outline, change.after.outline
        grown = [
            f"{part.replace('_', ' ')} {format_difference(after.parts[part] - before.parts.get(part, 0))}"
            for part in after.parts
            if after.parts[part] != before.parts.get(part, 0)
        ]
        at = after.peak_at if after.peak_at == before.peak_at else f"{after.peak_at} (was at {before.peak_at})"
        yield f"the peak lies at {at}" + (f": {', '.join(grown)}" if grown else "")
    if change.cause:
        yield change.cause


def change_fields(change: Change, first: int = FIRST) -> dict[str, Any]:
    """The same for scripts."""
    moved = change.moved
    return {
        "name": change.name,
        "status": change.status.value,
        "before_bytes": change.before_bytes,
        "after_bytes": change.after_bytes,
        "difference_bytes": change.difference_bytes,
        "before_reserved_bytes": change.before and change.before.outline.peak_reserved_bytes,
        "after_reserved_bytes": change.after and change.after.outline.peak_reserved_bytes,
        "estimated_samples_per_s": change.after and change.after.samples_per_s,
        "changed_lines": len(moved),
        "partings": [
            {
                "how": item.how.value,
                "phase": item.line.phase,
                "module": item.line.module,
                "operator": item.line.operator,
                "before_bytes": item.before and item.before.size_bytes,
                "after_bytes": item.after and item.after.size_bytes,
                "text": str(item),
            }
            for item in moved[:first]
        ],
        "cause": change.cause or None,
        "environment_differs": change.environment_differs,
        "reason": change.reason or None,
    }
