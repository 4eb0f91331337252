"""Parts that loading leaves out because they cannot be read, as findings."""

from __future__ import annotations

from pathlib import Path

from bench.analysis.findings import Finding
from bench.store import DATA_FOLDER, Loaded


def damaged_parts(loaded: Loaded) -> list[Finding]:
    """A finding for each part that was left out.

    Files are named below their results folder, and that folder too where there are several, so that no finding depends
    on where the results lie.
    """
    many = len(loaded.folders) > 1
    found = []
    for part in loaded.damaged:
        folder = next(folder for folder in loaded.folders if part.path.is_relative_to(folder))
        place = part.path.relative_to(folder).as_posix()
        name = f"{_name(folder)}/{place}" if many else place
        found.append(Finding("damaged_part", True, f"A part was left out: {name}: {part.reason}."))
    return found


def _name(folder: Path) -> str:
    """The name of a results folder, as reports call it."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == DATA_FOLDER else whole.name
