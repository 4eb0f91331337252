"""Parts that loading leaves out because they cannot be read, as findings."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.analysis.findings import Finding
from bench.store import DATA_FOLDER
from bench.store.load import results_folders

_LEFT_OUT = "left out: "
"""How `bench.load` begins its warning of a part that it cannot read; the rest is `PATH: WHY`."""


@contextlib.contextmanager
def damaged_parts(paths: Sequence[Path], *, warn: bool = True) -> Iterator[list[Finding]]:
    """Turn what is loaded within the context and left out into findings, one a part; parts are loaded several times.

    Args:
        paths: Where it is loaded from.
        warn: Whether each part is also warned of, once, when the context ends. Other warnings always are.

    Yields:
        A list that holds the findings once the context has ended. Files are named below their results folder, and
        that one too where there are several, so that no finding depends on where the results lie.
    """
    found: list[Finding] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:  # a refusal to load the rest does not swallow what was said before it
        said = _pass_on(caught, warn)
    if said:
        found.extend(_findings(said, results_folders(paths)))


def _pass_on(caught: Sequence[warnings.WarningMessage], warn: bool) -> list[str]:
    """Give warnings to whoever else listens, those of parts once each or not at all; returns the texts of these."""
    said: dict[str, None] = {}
    for item in caught:
        text = str(item.message)
        of_part = text.startswith(_LEFT_OUT)
        if not of_part or (warn and text not in said):
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
        if of_part:
            said[text] = None
    return list(said)


def _findings(said: Iterable[str], folders: Sequence[Path]) -> list[Finding]:
    names = {f"{folder}/": f"{_name(folder)}/" if len(folders) > 1 else "" for folder in folders}
    found = []
    for text in said:
        part = text.removeprefix(_LEFT_OUT)
        place = max((place for place in names if part.startswith(place)), key=len, default="")
        named = names.get(place, "") + part.removeprefix(place)
        found.append(Finding("damaged_part", True, f"A part was left out: {named}."))
    return found


def _name(folder: Path) -> str:
    """The name of a results folder, as reports call it."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == DATA_FOLDER else whole.name
