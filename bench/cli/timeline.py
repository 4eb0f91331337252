"""`bench estimate --timeline`: a figure of memory over one step, its numbers as CSV, and the largest tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.terminal import printable
from bench.units import counted

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.estimators.timeline import Timeline
    from bench.records import Case


def check_target(target: Path) -> None:
    """Check that the figure can be written, before it is drawn.

    Raises:
        BenchError: The suffix is not supported, or the folder is missing or not writable.
    """
    from bench.errors import BenchError
    from bench.report.timeline import SUFFIXES

    if target.suffix.lower() not in SUFFIXES:
        given = f'unsupported format "{target.suffix}"' if target.suffix else "the name has no suffix"
        raise BenchError(f"--timeline {target}: {given}; use {', '.join(SUFFIXES)}")
    if target.is_dir():
        raise BenchError(f"--timeline {target}: is a folder; name a file")
    folder = target.parent
    if not folder.is_dir():
        raise BenchError(f"--timeline {target}: folder {folder} does not exist; create it: mkdir -p {folder}")
    for path in (target, numbers_path(target)):
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise BenchError(f"--timeline {target}: {path} is not writable; choose another file")


def check_single(cases: Sequence[Case], devices: Sequence[str]) -> None:
    """Check that there is one case and one device. Raises BenchError."""
    from bench.errors import BenchError

    if len(cases) != 1 or len(devices) != 1:
        raise BenchError(
            f"--timeline plots one case on one device; these axes give {counted(len(cases), 'case')} on "
            f"{counted(len(devices), 'device')}. Give each axis and --device once"
        )


def numbers_path(target: Path) -> Path:
    """The CSV file with the numbers of a figure."""
    return target.with_suffix(".csv")


def write_timeline(case: Case, device: Device, target: Path, *, workspaces: bool) -> dict[str, Any]:
    """Trace the case in a separate process, and write its figure to `target` and the numbers next to it.

    Args:
        case: The case; its input path does not matter.
        device: A GPU.
        target: A file that `check_target` has passed.
        workspaces: Whether to count cuDNN's workspaces.

    Returns:
        What `--json` prints: the files, the step, and the peak with its tensors, in bytes.

    Raises:
        BenchError: The case cannot be traced on that device, or a file cannot be written.
    """
    from bench.client import timeline_in_child
    from bench.errors import BenchError
    from bench.launchers import LocalLauncher
    from bench.report.drawing import to_csv
    from bench.report.timeline import draw_timeline, render_drawing

    try:
        timeline = timeline_in_child(LocalLauncher(), case, device, workspaces=workspaces)
    except BenchError as error:
        raise BenchError(f"--timeline: {error}") from error
    drawing = draw_timeline(timeline, _words(case), device.name)
    try:
        target.write_bytes(render_drawing(drawing, target.suffix.lower()))
        numbers_path(target).write_text(to_csv(drawing.numbers), encoding="utf-8")
    except OSError as error:
        raise BenchError(f"--timeline {target}: cannot be written ({error.strerror or error})") from error
    return _describe(timeline, target, drawing.alt)


def _words(case: Case) -> str:
    """The case, for the title of the figure."""
    words = [f"{case.model} on {case.dataset}", str(case.optimizer), f"batch {case.batch_size}", case.precision]
    words += ["channels last"] if case.memory_format == "channels_last" else []
    return ", ".join(words + ([f"{case.image_size} px"] if case.image_size else []))


def _describe(timeline: Timeline, target: Path, alt: str) -> dict[str, Any]:
    return {
        "picture": str(target),
        "numbers": str(numbers_path(target)),
        "alt": alt,
        "step": timeline.step,
        "events": timeline.event_count,
        "phases": dict(timeline.phases),
        "peak_event": timeline.peak_event,
        "peak_allocated_bytes": timeline.peak_allocated_bytes,
        "peak_reserved_bytes": timeline.peak_reserved_bytes,
        "tensors": [
            {
                "category": tensor.category,
                "name": tensor.name,
                "made_by": tensor.made_by or None,
                "shape": tensor.shape,
                "dtype": tensor.dtype,
                "size_bytes": tensor.size_bytes,
                "label": tensor.label,
            }
            for tensor in timeline.tensors
        ],
    }


def print_timeline(described: dict[str, Any]) -> None:
    """Print the largest tensors at the peak and the path of the figure; takes what `write_timeline` returns."""
    from bench.units import format_bytes

    click.echo(f"  largest tensors at the peak of step {described['step']}")
    for tensor in described["tensors"]:
        category = tensor["category"].replace("_", " ")
        click.echo(printable(f"    {format_bytes(tensor['size_bytes']):>10}  {category:<15}  {tensor['label']}"))
    click.echo(printable(f"  timeline: {described['picture']} (numbers: {described['numbers']})"))
