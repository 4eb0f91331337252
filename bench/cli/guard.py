"""`bench guard`: the memory of training steps compared with a baseline in the repository, without a GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.axes import batch_size_option, read_cases, with_axes_but_update
from bench.cli.options import complete_devices, config_argument, device_file_option, json_option, set_option
from bench.errors import EXIT_FAILED_CASES, EXIT_REGRESSION, BenchError
from bench.terminal import printable
from bench.units import counted, format_bytes, format_rate

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.guard import Change, Guarded
    from bench.records import Case

_FORMATS = ("text", "markdown", "github", "json")
_FAILS = {"grew": EXIT_REGRESSION, "no baseline": EXIT_FAILED_CASES, "cannot be traced": EXIT_FAILED_CASES}
"""Exit codes of what becomes of a case; the largest counts."""


@click.command()
@config_argument
@set_option
@with_axes_but_update
@batch_size_option
@click.option(
    "--device",
    "devices",
    multiple=True,
    shell_complete=complete_devices,
    help="GPU, by name or file (bench list devices) [h100_sxm]. Repeatable.",
)
@device_file_option
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE.json",
    help="File of baselines, kept in the repository.",
)
@click.option("--update", is_flag=True, help="Write the baseline anew instead of comparing with it.")
@click.option(
    "--allow", default="0 B", show_default=True, metavar="SIZE", help="Growth of a peak to let through: 16 MiB or 1 %."
)
@click.option(
    "--explain",
    is_flag=True,
    help="Where versions differ from the baseline's, trace with those too if an environment here has them.",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="PATH",
    help="For --explain: the Python of such an environment [found below this folder].",
)
@click.option("--partings", type=click.IntRange(1), default=3, show_default=True, help="Operators to name of a case.")
@click.option(
    "--cudnn-workspaces",
    "workspaces",
    type=click.Choice(["on", "off"]),
    default="off",
    show_default=True,
    help="Whether to count the workspaces of cuDNN's convolutions; torch for the CPU alone has no cuDNN to ask.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="text",
    show_default=True,
    help="What is printed; github: annotations.",
)
@click.option(
    "--summary",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.md",
    help="Append the Markdown to this file too, such as $GITHUB_STEP_SUMMARY.",
)
@json_option
def guard(
    config: Path | None,
    overrides: tuple[str, ...],
    devices: tuple[str, ...],
    device_files: dict[str, Device],
    baseline: Path,
    update: bool,
    allow: str,
    explain: bool,
    python: Path | None,
    partings: int,
    workspaces: str,
    form: str,
    summary: Path | None,
    as_json: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Compare the memory of steps with a baseline, without a GPU.

    The trace is exact, so any growth is found; the operators are named at which a step parts from the baseline's. Exit
    code: 3 if a peak grew by more than --allow, 1 if a case has no baseline or cannot be traced, else 0. Speed is
    estimated for information only. docs/guard.md shows it in CI, and as a pytest fixture.

    \b
    Examples:
      bench guard configs/gpu.toml --baseline memory.json --update
      bench guard configs/gpu.toml --baseline memory.json
      bench guard --models model.py --model model.py:build --dataset cifar10 --optimizer adamw --baseline memory.json
      bench guard configs/gpu.toml --baseline memory.json --allow '1 %' --format github
      bench guard configs/gpu.toml --baseline memory.json --explain --json
    """
    from bench.guard import Allowed, Change, read_baselines, update_baselines

    form = "json" if as_json else form
    if python is not None and not explain:
        raise click.UsageError("--python goes with --explain")
    allowed, held = Allowed.parse(allow), read_baselines(baseline)
    if not (held or update):
        raise BenchError(f"{baseline}: no such file yet. Write it with --update, and commit it")
    traced = _trace(config, overrides, axes, devices, device_files, workspaces == "on", held, quiet=form == "json")
    changes = [Change.of(name, held.get(name), after, allowed) for name, after in traced.items()]
    if update:
        refused = [change for change in changes if change.after is None]
        kept = {change.name: change.after for change in changes if change.after is not None}
        written = update_baselines(baseline, kept, only=traced)
        for change in refused:
            click.echo(printable(f"{change.name}: cannot be traced: {change.reason}"), err=True)
        state = "written" if written else "unchanged"
        click.echo(printable(f"{baseline}: {counted(len(kept), 'case')}, {state}"), err=form == "json")
        if form == "json":
            _print(changes, "json", partings, [])
        click.get_current_context().exit(EXIT_FAILED_CASES if refused else 0)
    notes = [f"{name}: in the baseline, and not a case of this any more" for name in held if name not in traced]
    if explain:
        notes += list(_explained(changes, python))
    _print(changes, form, partings, notes)
    if summary is not None:
        _append(summary, "\n".join(markdown_lines(changes, partings, notes)) + "\n")
    click.get_current_context().exit(max(_FAILS.get(change.status.value, 0) for change in changes) if changes else 0)


def _trace(
    config: Path | None,
    overrides: tuple[str, ...],
    axes: dict[str, tuple[Any, ...]],
    devices: Sequence[str],
    device_files: Mapping[str, Device],
    workspaces: bool,
    held: Collection[str],
    *,
    quiet: bool,
) -> dict[str, Guarded | str]:
    """Every case by its name, or the reason why it cannot be traced: of those skipped, only what `held` has.

    Raises BenchError.
    """
    from bench.client import guarded_in_child
    from bench.devices import load_device
    from bench.devices.vendors import FORMULA_THERE, no_trace
    from bench.guard.tracing import name_cases_on
    from bench.launchers import LocalLauncher
    from bench.terminal import Progress

    names = devices or (() if device_files else ("h100_sxm",))
    gpus = [*map(load_device, names), *device_files.values()]
    for gpu in gpus:
        if not gpu.is_gpu:
            raise BenchError(f"--device {gpu.name}: guard traces steps on GPUs. See bench list devices")
        if reason := no_trace(gpu):
            raise BenchError(f"--device {gpu.name}: {reason}. Name a GPU of NVIDIA. {FORMULA_THERE} {gpu.name}")
    skipped: dict[Case, str] = {}
    cases = read_cases(config, overrides, axes, skipped)
    found: dict[str, Guarded | str] = {}
    with Progress(quiet=quiet) as progress:
        for gpu in gpus:
            named = name_cases_on(cases, gpu)
            traced = guarded_in_child(
                LocalLauncher(),
                list(named.values()),
                gpu,
                workspaces=workspaces,
                begin=lambda count: progress.start(count, scope="trace"),
                heard=progress.advance,
            )
            found |= {name: traced[case] for name, case in named.items()}
            found |= {name: skipped[case] for name, case in name_cases_on(skipped, gpu).items() if name in held}
    return found


def _explained(changes: Sequence[Change], python: Path | None) -> Iterator[str]:
    """For each case that changed, and whose versions are not the baseline's, what the versions do and what the code."""
    from bench.guard.changes import format_difference
    from bench.guard.environments import find_python, retrace

    for change in changes:
        if not (change.difference_bytes and change.environment_differs and change.before and change.after):
            continue
        found = python or find_python(change.before.environment)
        if found is None:
            yield (
                f"{change.name}: no environment below this folder has the baseline's versions "
                f"({', '.join(change.environment_differs)}); name one with --python, or renew the baseline on the code "
                "before the change"
            )
            continue
        again = retrace(found, change.name, change.before.environment)
        if isinstance(again, str):
            yield f"{change.name}: not traced with the baseline's versions: {again}"
            continue
        model = again.outline.peak_allocated_bytes - change.before.outline.peak_allocated_bytes
        rest = change.difference_bytes - model
        yield (
            f"{change.name}: of {format_difference(change.difference_bytes)}, the code makes "
            f"{format_difference(model)} and the versions {format_difference(rest)}"
        )


def _print(changes: Sequence[Change], form: str, partings: int, notes: Sequence[str]) -> None:
    from bench.cli.root import echo_json
    from bench.guard import change_fields

    if form == "json":
        echo_json({"cases": [change_fields(change, partings) for change in changes], "notes": list(notes)})
        return
    lines = {"text": text_lines, "markdown": markdown_lines, "github": github_lines}[form]
    for line in lines(changes, partings, notes):
        click.echo(line)


def summary_line(changes: Sequence[Change]) -> str:
    """`20 cases: 2 grew, 18 unchanged`."""
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.status.value] = counts.get(change.status.value, 0) + 1
    words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"{counted(len(changes), 'case')}: {words or 'none'}"


def _cells(change: Change) -> list[str]:
    from bench.guard import format_difference

    speed = None if change.after is None else change.after.samples_per_s
    difference = change.difference_bytes
    return [
        change.name,
        format_bytes(change.before_bytes),
        format_bytes(change.after_bytes),
        "–" if difference is None else format_difference(difference),
        change.status.value,
        format_rate(speed),
    ]


_HEAD = ("case", "before", "after", "difference", "", "samples/s (est.)")


def text_lines(changes: Sequence[Change], partings: int, notes: Sequence[str]) -> Iterator[str]:
    """A table, and below it where each changed case parts from its baseline."""
    from bench.guard import change_lines

    rows = [_HEAD, *map(_cells, changes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:{'<' if place in (0, 4) else '>'}{widths[place]}}" for place, cell in enumerate(row)]
        yield printable("  ".join(cells).rstrip())
    for change in changes:
        if lines := list(change_lines(change, partings)):
            yield ""
            yield click.style(printable(change.name), bold=True)
            yield from (printable(f"  {line}") for line in lines)
    yield ""
    yield from (printable(f"note: {note}") for note in notes)
    yield click.style(printable(summary_line(changes)), bold=True)


def markdown_lines(changes: Sequence[Change], partings: int, notes: Sequence[str]) -> Iterator[str]:
    """The same as Markdown, for a pull request."""
    from bench.guard import change_lines
    from bench.report.escape import markdown

    yield f"**Training memory: {markdown(summary_line(changes))}**"
    yield ""
    yield f"| {' | '.join(_HEAD)} |"
    yield "|---|---:|---:|---:|---|---:|"
    yield from (f"| {' | '.join(map(markdown, _cells(change)))} |" for change in changes)
    for change in changes:
        if lines := list(change_lines(change, partings)):
            yield ""
            yield f"{markdown(change.name)}:"
            yield ""
            yield from (f"- {markdown(line.strip(), 2000)}" for line in lines)
    yield ""
    yield from (f"- {markdown(note, 2000)}" for note in notes)


def github_lines(changes: Sequence[Change], partings: int, notes: Sequence[str]) -> Iterator[str]:
    """Workflow commands that GitHub shows as annotations: an error, a notice or a warning for a case.

    Source: docs.github.com, workflow commands for GitHub Actions.
    """
    from bench.guard import change_lines
    from bench.guard.changes import format_change

    for change in changes:
        kind = "error" if _FAILS.get(change.status.value) else "notice"
        lines = list(change_lines(change, partings))
        if not lines and kind == "notice":
            continue
        peak = format_change(change.before_bytes, change.after_bytes)
        head = f"peak {peak}" if peak else "" if lines else change.status.value
        text = "\n".join(filter(None, [head, *lines]))
        yield f"::{kind} title={_property('Training memory')}::{_data(f'{change.name}: {text}')}"
    yield from (f"::warning title={_property('Training memory')}::{_data(note)}" for note in notes)
    yield printable(summary_line(changes))


def _data(text: str) -> str:
    """Text in a workflow command."""
    clean = "".join(character if character == "\n" or character.isprintable() else "?" for character in text)
    return clean.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BenchError(f"--summary {path}: cannot be written: {error.strerror or error}") from error


GROUP = "Estimate"
COMMANDS = (guard,)
