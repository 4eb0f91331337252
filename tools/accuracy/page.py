"""Pieces of the page: goals, tables, numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Goal:
    """What was asked for beside what was reached; `met` is None where it was not tried."""

    what: str
    asked: str
    reached: str
    met: bool | None


@dataclass
class Part:
    """One part of the page.

    Attributes:
        title: Its heading.
        lines: Its Markdown.
        goals: What it says about the goals.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        """Add a paragraph."""
        self.lines += [*lines, ""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def share(part: int, whole: int) -> str:
    """`n/N (x %)`."""
    return f"{part}/{whole} ({100 * part / whole:.1f} %)" if whole else "none"


def percent(value: float, *, signed: bool = False) -> str:
    """Of a fraction; small ones keep two significant digits."""
    size = abs(100 * value)
    digits = 1 if size >= 1 or size == 0 else 2 if size >= 0.1 else 4
    return f"{100 * value:{'+' if signed else ''}.{digits}f} %"


def verdict(met: bool | None) -> str:
    """In one word."""
    return "not run" if met is None else "met" if met else "**missed**"


def goals_table(goals: Iterable[Goal]) -> list[str]:
    """Every goal beside what was reached."""
    return table(
        ["goal", "asked", "reached", ""], ([goal.what, goal.asked, goal.reached, verdict(goal.met)] for goal in goals)
    )
