"""`bench estimate --timeline`: one case's step as a picture, its numbers beside it and its biggest tensors in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.terminal import printable

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.estimators.timeline import Timeline
    from bench.records import Case


def check_target(target: Path) -> None:
    """Refuse a picture that could not be written once it is drawn.

    Raises:
        BenchError: The suffix is none of a picture, or the folder is not there or not to be written to.
    """
    from bench.errors import BenchError
    from bench.report.timeline import SUFFIXES

    if target.suffix.lower() not in SUFFIXES:
        given = f'"{target.suffix}"' if target.suffix else "a name without suffix"
        raise BenchError(f"--timeline {target}: {given} is no picture that can be drawn; use {', '.join(SUFFIXES)}")
    if target.is_dir():
        raise BenchError(f"--timeline {target}: a folder of that name is in the way; name a file")
    folder = target.parent
    if not folder.is_dir():
        raise BenchError(f"--timeline {target}: there is no folder {folder}; make it first: mkdir -p {folder}")
    for path in (target, numbers_path(target)):
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise BenchError(f"--timeline {target}: {path} cannot be written; name a file elsewhere")


def check_single(cases: Sequence[Case], devices: Sequence[str]) -> None:
    """Refuse anything but one case on one device. Raises BenchError."""
    from bench.errors import BenchError

    if len(cases) != 1 or len(devices) != 1:
        raise BenchError(
            f"--timeline draws one case on one device; these axes give {len(cases)} cases on {len(devices)} devices. "
            "Give each axis and --device once"
        )


def numbers_path(target: Path) -> Path:
    """Where the numbers of a picture stand."""
    return target.with_suffix(".csv")


def write_timeline(case: Case, device: Device, target: Path, *, workspaces: bool) -> dict[str, Any]:
    """Trace the case in a process of its own, and write its picture to `target` and the numbers beside it.

    Args:
        case: Its input path makes no difference.
        device: A GPU.
        target: A file that `check_target` has passed.
        workspaces: Whether to count cuDNN's workspaces.

    Returns:
        What `--json` says of it: the files, the step, and the peak with its tensors, in bytes.

    Raises:
        BenchError: The case cannot be traced on that device, or a file cannot be written.
    """
    from bench.client import timeline_in_child
    from bench.errors import BenchError
    from bench.launchers import LocalLauncher
    from bench.report.numbers import to_csv
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
    """The case for the picture's title."""
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
    """The peak's biggest tensors, and where the picture is; takes what `write_timeline` returns."""
    from bench.units import format_bytes

    click.echo(f"  biggest tensors at the peak of step {described['step']}")
    for tensor in described["tensors"]:
        category = tensor["category"].replace("_", " ")
        click.echo(printable(f"    {format_bytes(tensor['size_bytes']):>10}  {category:<15}  {tensor['label']}"))
    click.echo(printable(f"  timeline: {described['picture']} (its numbers: {described['numbers']})"))
