"""Which names files of a bundle may have: those that mean the same on every system and lead nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_NAME = 200
"""Characters of a whole path, the bundle's own folder included."""

MAX_DEPTH = 6

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def fault_of(name: str) -> str | None:
    """Why a file of a bundle may not be called `name`, or None where it may.

    Refused are absolute names, `..`, backslashes, drives, hidden files, names that a system reserves for devices, and
    everything outside plain ASCII: what is left is one place below the bundle's folder on every system.
    """
    if len(name) > MAX_NAME:
        return f"longer than {MAX_NAME} characters"
    if name.count("/") >= MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders deep"
    if not _NAME.fullmatch(name):
        return "not made of letters, digits and . _ - below the bundle's folder"
    if any(_DEVICES.fullmatch(part) for part in name.split("/")):
        return "the name of a device on some systems"
    return None


def clashes(names: Iterable[str]) -> list[str]:
    """Names that would be one file on some system, or a file where another needs a folder; sorted."""
    seen: dict[str, str] = {}
    bad = set()
    names = list(names)
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other is not name:
            bad.add(name)
    for name in names:
        parts = name.casefold().split("/")
        if any("/".join(parts[:depth]) in seen for depth in range(1, len(parts))):
            bad.add(name)
    return sorted(bad)


def safe_name(text: str) -> str:
    """A folder's name as one that a bundle may have: other characters become `-`."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:60].strip("._-")
    return short if short and fault_of(short) is None else "results"
