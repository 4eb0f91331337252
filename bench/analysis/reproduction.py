"""Results that were measured again: what a folder says of the results that it reproduces, and the key of results.

`bench reproduce` notes it with the plan, under `NOTE`. The note travels with the data, so that a report, `bench check`
and a site can say which results are reproduced, and by how many others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd

from bench.analysis.findings import Finding, found_elsewhere
from bench.records import stable_hash
from bench.store import Notes
from bench.units import counted

NOTE, ANSWERS = "reproduces", "reproduction"
Answer = Literal["same", "different", "unclear"]
_LONGEST_REASON, _MOST_ANSWERS, _MOST_DIFFERENCES = 1000, 200_000, 40
_KEY = re.compile(r"[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Reproduced:
    """The results that others measure again.

    Attributes:
        key: Their `results_key`: what identifies them as a folder, as a bundle and unpacked.
        name: Of their folder or bundle.
        digest: Of the bundle that they were read from; `None` if it was a folder without a manifest.
    """

    key: str
    name: str
    digest: str | None = None

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> Reproduced | None:
        """What the notes of a plan say; `None` where they say nothing, or nothing that `bench reproduce` writes."""
        found = notes.get(NOTE)
        if not isinstance(found, Mapping) or not _KEY.fullmatch(str(found.get("key"))):
            return None
        digest = str(found.get("digest"))
        name = str(found.get("name"))[:_LONGEST_NAME]
        return cls(str(found["key"]), name, digest if _DIGEST.fullmatch(digest) else None)


def results_key(frame: pd.DataFrame) -> str:
    """16 digits for the runs that count and what they measured, wherever they are stored.

    Args:
        frame: From `bench.load`.
    """
    runs = frame[frame["planned"].astype(bool) & frame["run_key"].notna()]
    told = runs[["run_key", "status", "started_unix_s", "wall_window_s"]].astype(object)
    return stable_hash(sorted(list(map(str, row)) for row in told.where(told.notna(), None).to_numpy().tolist()))


def reproductions(notes: Iterable[Notes]) -> dict[str, Reproduced]:
    """The results that some results reproduce, each once, by their keys."""
    found = (Reproduced.of(note.values) for note in notes)
    return {item.key: item for item in found if item is not None}


@dataclass(frozen=True, slots=True)
class ToldAnswer:
    """What a plan notes of one case that was measured again; the texts may be anybody's.

    Attributes:
        label: The case in words.
        answer: Whether it came out as in the original.
        reason: Why, in words without a full stop.
    """

    label: str
    answer: Answer
    reason: str


def told_answers(notes: Mapping[str, Any]) -> list[ToldAnswer]:
    """The answers that `bench reproduce` noted with a plan; none where the note is not as it writes it."""
    found = notes.get(ANSWERS)
    rows = found.get("cases") if isinstance(found, Mapping) and Reproduced.of(notes) else None
    return [
        ToldAnswer(str(row.get("label"))[:_LONGEST_NAME], row["answer"], str(row.get("reason"))[:_LONGEST_REASON])
        for row in (rows[:_MOST_ANSWERS] if isinstance(rows, list) else ())
        if isinstance(row, Mapping) and row.get("answer") in get_args(Answer)
    ]


def told_differences(notes: Mapping[str, Any]) -> list[str]:
    """What differed from the original in words, as `bench reproduce` noted it; these may be anybody's."""
    found = notes.get(ANSWERS)
    texts = found.get("differs") if isinstance(found, Mapping) else None
    return [str(text)[:_LONGEST_REASON] for text in (texts[:_MOST_DIFFERENCES] if isinstance(texts, list) else ())]


def told_reproductions(notes: Iterable[Notes]) -> list[Finding]:
    """The finding that these results reproduce others, if they do."""
    known = list(reproductions(notes).values())
    if not known:
        return []
    named = [f"{item.name} ({f'bundle {item.digest[:16]}' if item.digest else f'key {item.key}'})" for item in known]
    more = f" and {counted(len(named) - 3, 'more', 'more')}" if len(named) > 3 else ""
    return [found_elsewhere("reproduction", originals=", ".join(named[:3]) + more)]
