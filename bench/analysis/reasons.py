"""Counting in words: how many of how many, and which reasons how often."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd


def counted(count: int, of: int, what: str) -> str:
    """`all 12 runs`, `3 of 12 runs`."""
    noun = what if of == 1 else f"{what}s"
    return f"all {of} {noun}" if count == of and of > 1 else f"{count} of {of} {noun}"


def tally(series: pd.Series) -> str:
    """`oom 3, failed 1`, the commonest first."""
    counts = series.value_counts()
    return ", ".join(f"{name} {counts[name]}" for name in tally_names(series))


def tally_names(series: pd.Series) -> list[str]:
    """The values of a series, the commonest first."""
    counts = series.value_counts()
    return sorted(counts.index, key=lambda name: (-counts[name], str(name)))


@dataclass(frozen=True, slots=True)
class Reason:
    """Why some of many things went wrong: those whose reasons say the same.

    Attributes:
        text: The reason of the first of them, as it stands.
        places: Which they are, by their position, in order.
    """

    text: str
    places: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.places)


_VARIABLE = re.compile(
    r"""
    (?P<kept>\b(?:code|codes|errno|error|signal|status|version|rank)[\s=:]+-?\d+\b)  # another one is another cause
    | \b0x[0-9a-f]+\b | \b(?=[a-f]*\d)[0-9a-f]{8,}\b                               # addresses, keys
    | (?:(?<=[\s"'(=:])|^)(?:~|\.{1,2}|[a-z]:)?[/\\][^\s"'(),;:]+                    # paths
    | (?<![\w.])[-+]?\d+(?:[,_]\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?                       # amounts and shapes, not conv2d
      (?:\s?x\s?\d+)*(?:\s?(?:[kmgt]i?b|b|bytes|[mu]?s|min|h|%)(?!\w))?(?![\w])
    """,
    re.VERBOSE | re.IGNORECASE,
)


_COMPARED_CHARACTERS = 2000
"""A reason is a sentence; of a whole log the beginning decides."""


def alike(reason: str) -> str:
    """What two reasons have in common that differ in amounts, addresses and paths only: the text without these.

    The numbers of exit codes, signals and errors stay, as another one is another cause.
    """
    plain = _VARIABLE.sub(lambda match: match["kept"] or "#", " ".join(reason[:_COMPARED_CHARACTERS].split()))
    return re.sub(r"#(?:, ?#)+", "#", plain)  # lists of sizes, whatever their length


def group_reasons(reasons: Iterable[object]) -> list[Reason]:
    """Reasons that say the same together, the commonest first, then by their text.

    Args:
        reasons: One a thing; what is no text (null) is `reason unknown`.
    """
    groups: dict[str, list[int]] = {}
    texts = [reason if isinstance(reason, str) and reason.strip() else "reason unknown" for reason in reasons]
    for place, text in enumerate(texts):
        groups.setdefault(alike(text), []).append(place)
    found = [Reason(texts[places[0]], tuple(places)) for places in groups.values()]
    return sorted(found, key=lambda reason: (-reason.count, reason.text))


def counted_reasons(reasons: Sequence[Reason], limit: int, where: str) -> str:
    """`3 x this; 1 x that; and 4 more reasons: see table.csv`; a single reason goes without its count."""
    if len(reasons) == 1:
        return reasons[0].text
    words = [f"{reason.count} x {reason.text}" for reason in reasons[:limit]]
    return "; ".join([*words, *more_reasons(len(reasons) - limit, where)])


def more_reasons(count: int, where: str) -> list[str]:
    """`and 4 more reasons: see table.csv`, or nothing."""
    return [f"and {count} more reason{'s' if count > 1 else ''}: see {where}"] if count > 0 else []
