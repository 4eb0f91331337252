"""Figures that an option of a command asks for: checked before the work, written after it with their numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.report.drawing import Drawing


def check_target(target: Path, option: str) -> None:
    """Check that the figure that an option asks for can be written, before it is drawn.

    Raises:
        BenchError: The suffix is not supported, or the folder is missing or not writable.
    """
    from bench.errors import BenchError
    from bench.report.drawing import SUFFIXES

    if target.suffix.lower() not in SUFFIXES:
        given = f'unsupported format "{target.suffix}"' if target.suffix else "the name has no suffix"
        raise BenchError(f"{option} {target}: {given}; use {', '.join(SUFFIXES)}")
    if target.is_dir():
        raise BenchError(f"{option} {target}: is a folder; name a file")
    folder = target.parent
    if not folder.is_dir():
        raise BenchError(f"{option} {target}: folder {folder} does not exist; create it: mkdir -p {folder}")
    for path in (target, numbers_path(target)):
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise BenchError(f"{option} {target}: {path} is not writable; choose another file")


def numbers_path(target: Path) -> Path:
    """The CSV file with the numbers of a figure."""
    return target.with_suffix(".csv")


def write_drawing(drawing: Drawing, target: Path, option: str) -> None:
    """Write a figure that an option asks for to a file that `check_target` has passed, and its numbers next to it.

    Raises:
        BenchError: A file cannot be written.
    """
    from bench.errors import BenchError
    from bench.report.drawing import render_drawing, to_csv

    try:
        target.write_bytes(render_drawing(drawing, target.suffix.lower()))
        numbers_path(target).write_text(to_csv(drawing.numbers), encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{option} {target}: cannot be written ({error.strerror or error})") from error
