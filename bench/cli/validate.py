"""`bench validate`: errors of the estimators against measurements in a CSV file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import json_option, models_option
from bench.terminal import printable
from bench.units import counted

if TYPE_CHECKING:
    from bench.validation import GroupScore, Score
    from bench.validation.estimating import Estimated


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.csv")
@click.option(
    "--device", metavar="NAME", help="Device of rows without one; rows of other devices are skipped [each row's own]."
)
@click.option(
    "--cudnn-workspaces",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Whether to include the workspaces of cuDNN's convolutions where the file's protocol does.",
)
@models_option
@json_option
def validate(file: Path, device: str | None, cudnn_workspaces: str, as_json: bool) -> None:
    """Compare the estimators with measurements in a CSV file.

    The first table has the trace's errors by device and family: median, 90th percentile, worst, bias (mean) and the
    number of exact estimates. The second has the formula and any estimates in the file. `below` counts estimates that
    are too low: a run with that much memory would have failed. `failed` counts rows without an estimate.

    The columns of the file decide how it is read: model, batch_size and one of peak_allocated_bytes,
    peak_reserved_bytes, device_used_bytes; optionally optimizer, dataset, image_size, classes, precision,
    memory_format, device, torch_version. The layouts of xMem's and SchedTune's files are also supported. For
    device_used_bytes, one constant per GPU (context and modules) is fitted, which makes one row per GPU exact by
    construction; `held out` fits it on the other families.

    \b
    Examples:
      bench validate measured.csv --device rtx3090
      bench validate peak_memory_xmem.csv --json
    """
    from bench.client import validate_in_child
    from bench.launchers import LocalLauncher
    from bench.validation import read_measurements, score, score_others

    rows, left_out = read_measurements(file, device)
    numbers = itertools.count(1)

    def heard(item: Estimated) -> None:
        if not as_json:
            click.echo(printable(f"{next(numbers)} of {len(rows)}: {item.case} on {item.device}"), err=True)

    estimated = validate_in_child(LocalLauncher(), rows, workspaces=cudnn_workspaces == "on", heard=heard)
    result, others = score(estimated), score_others(estimated)
    if as_json:
        _print_json(result, others, estimated, left_out)
    else:
        _print_table(result, others, estimated, left_out)


def _print_json(result: Score, others: dict[str, Score], rows: list[Estimated], left_out: int) -> None:
    from dataclasses import asdict

    from bench.cli.root import echo_json

    listed = [
        {
            **asdict(row),
            "published": dict(row.published),
            "relative_error": result.row_errors.get(row.line),
            "constant_bytes": result.constants.get(row.device) if row.quantity == "device" else None,
        }
        for row in rows
    ]
    echo_json(
        {
            "groups": [asdict(group) for group in result.groups],
            "other_estimators": [
                {"estimator": name, **asdict(group)} for name, table in others.items() for group in table.groups
            ],
            "left_out": left_out,
            "rows": listed,
        }
    )


def _print_table(result: Score, others: dict[str, Score], rows: list[Estimated], left_out: int) -> None:
    _print_groups("family", [(group.family, group) for group in result.groups])
    whole = [(name, group) for name, table in others.items() for group in table.groups if group.family == "all"]
    click.echo("\nother estimators on the same rows")
    _print_groups("estimator", sorted(whole, key=lambda item: (item[1].device == "all", item[1].device)))
    for note, count in _notes(rows).items():
        click.echo(printable(f"note: {note} ({counted(count, 'row')})"))
    if left_out:
        click.echo(f"skipped: {counted(left_out, 'row')} of unsupported cases or other devices")


def _print_groups(title: str, named: list[tuple[str, GroupScore]]) -> None:
    """A table of errors, one line per group; the second column distinguishes the groups of a device."""
    head = f"{'device':<14} {title:<14} {'n':>4} {'median':>8} {'p90':>8} {'worst':>9} {'bias':>9} {'exact':>7}"
    click.echo(click.style(f"{head} {'below':>6} {'failed':>6}  {'held out: median, p90':<22} constant", bold=True))
    for name, group in named:
        click.echo(_line(name, group))


def _line(name: str, group: GroupScore) -> str:
    from bench.units import format_bytes

    words = f"{printable(group.device):<14} {printable(name):<14}"
    errors, held = group.errors, group.held_out
    if errors is None:
        return f"{words} {0:>4} {'':>8} {'':>8} {'':>9} {'':>9} {'':>7} {'':>6} {group.failures:>6}"
    sizes = f"{errors.n:>4} {_percent(errors.median_abs):>8} {_percent(errors.p90_abs):>8}"
    signed = f"{_percent(errors.worst, True):>9} {_percent(errors.bias, True):>9}"
    counts = f"{f'{group.exact}/{errors.n}':>7} {group.below:>6} {group.failures:>6}"
    left = f"{_percent(held.median_abs)}, {_percent(held.p90_abs)}" if held else "none"
    constant = format_bytes(group.constant_bytes) if group.constant_bytes is not None else ""
    return f"{words} {sizes} {signed} {counts}  {left:<22} {constant}".rstrip()


def _percent(frac: float, signed: bool = False) -> str:
    return f"{frac * 100:+.2f} %" if signed else f"{frac * 100:.2f} %"


def _notes(rows: list[Estimated]) -> dict[str, int]:
    notes = [row.note for row in rows if row.note]
    return {note: notes.count(note) for note in dict.fromkeys(notes)}


GROUP = "Estimate"
COMMANDS = (validate,)
