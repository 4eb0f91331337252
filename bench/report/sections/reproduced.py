"""Results that were measured again: whether each case came out as in the original."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bench.analysis import Reproduced, told_answers, told_differences
from bench.analysis.reproduction import Answer
from bench.report.blocks import Block, Paragraph, Table
from bench.report.contents import Contents, Section
from bench.units import counted

_ORDER: tuple[Answer, ...] = ("different", "unclear", "same")
_MAX_ROWS = 200


def build(contents: Contents) -> Sequence[Block]:
    """A sentence and a table for each reproduction; nothing for other results."""
    return [block for notes in contents.notes for block in _build(notes)]


def _build(notes: Mapping[str, Any]) -> list[Block]:
    original, answers = Reproduced.of(notes), told_answers(notes)
    if original is None or not answers:
        return []
    counts = Counter(each.answer for each in answers)
    words = ", ".join(f"{counts[word]} {word}" for word in _ORDER if counts[word])
    named = f"bundle {original.digest[:16]}" if original.digest else f"key {original.key}"
    found = f"Against {original.name} ({named}), bench reproduce found {counted(len(answers), 'case')}: {words}."
    shown = sorted(answers, key=lambda each: _ORDER.index(each.answer))[:_MAX_ROWS]
    more = len(answers) - len(shown)
    caption = f"{counted(more, 'case')} more: bench compare has all." if more else ""
    rows = [[each.label, each.answer, each.reason] for each in shown]
    levels = ["warning" if each.answer == "different" else "" for each in shown]
    differs = told_differences(notes)
    what = (
        f"What differs: {'; '.join(differs)}." if differs else "Nothing that is recorded of machine and code differs."
    )
    return [Paragraph(found), Paragraph(what), Table(["case", "answer", "why"], rows, frozenset(), caption, levels)]


SECTION = Section(order=22, title="Measured again", build=build)
"""Behind validity: whether the numbers are those of the original."""
