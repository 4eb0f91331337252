"""Progress of a sweep: a bar with rate and ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.units import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


def printable(text: str) -> str:
    """The text without characters that control a terminal (colours, cursor moves, text direction)."""
    return "".join(
        character if character.isprintable() and not _turns_text(character) else " " if character in "\t\n" else "�"
        for character in text
    )


def _turns_text(character: str) -> bool:
    return "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069" or character in "\u200e\u200f\u061c"


class Progress:
    """Lines on standard error about a sweep, with a live bar where that is a terminal."""

    def __init__(self, *, quiet: bool = False, bar: bool = True) -> None:
        """Prepare; with `quiet` nothing is ever printed, and without `bar` nothing but lines."""
        self._quiet, self._live = quiet, bar
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._total = self._done = 0
        self._started = 0.0
        self._scope = ""
        self.deadline = float("inf")
        """By `time.monotonic`: what is begun ends by then, so that no more time is left."""

    def __enter__(self) -> Self:
        """Nothing is shown before `start`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar; the lines stay."""
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int, scope: str = "") -> None:
        """Begin to count `total` runs, or `total` more.

        Args:
            total: How many runs to do.
            scope: What they belong to, if that is not the whole: `round 2`.
        """
        if not self._total:
            self._started = time.monotonic()
        self._total += total
        self._scope = f" in {scope}" if scope else ""
        if self._quiet or not self._live or not total or not sys.stderr.isatty():
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._total)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        screen = Console(stderr=True)
        texts = (TextColumn("{task.fields[left]}"), TextColumn("{task.description}"))
        self._bar = Progress(
            BarColumn(), MofNCompleteColumn(), *texts, console=screen, refresh_per_second=2, transient=True
        )
        self._task = self._bar.add_task("", total=self._total, completed=self._done, left="")
        self._bar.start()

    def say(self, line: str) -> None:
        """Print one line."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(f"{printable(line)}\n")
            sys.stderr.flush()

    def begin(self, what: str) -> None:
        """Show what runs now (on a terminal only)."""
        if self._bar is not None and self._task is not None:
            from rich.markup import escape

            self._bar.update(self._task, description=escape(printable(what)))

    def finish(self, what: str) -> None:
        """Count one run and print its line, with the time left at the rate so far."""
        self._done += 1
        width = len(str(self._total))
        self.say(f"[{self._done:>{width}}/{self._total}] {what}  ({format_duration(self._left_s)} left{self._scope})")
        self._show()

    def advance(self) -> None:
        """Count one without a line."""
        self._done += 1
        self._show()

    @property
    def _left_s(self) -> float:
        now = time.monotonic()
        return min((now - self._started) / self._done * (self._total - self._done), max(0.0, self.deadline - now))

    def _show(self) -> None:
        if self._bar is not None and self._task is not None:
            rate = f"{self._done / (time.monotonic() - self._started) * 60:.0f}/min"
            self._bar.update(self._task, advance=1, left=f"{rate}, {format_duration(self._left_s)} left{self._scope}")
