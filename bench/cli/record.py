"""`bench record`: torch's allocator history for a few steps of each case, as files to compare anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.axes import batch_size_option, read_cases, with_axes
from bench.cli.options import config_argument, json_option, memory_limit, memory_option, set_option
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.sweep.record import Recorded


def _check_gpu(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from bench.probes.selection import check_request

    return check_request(value)


@click.command()
@config_argument
@set_option
@with_axes
@batch_size_option
@memory_option
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cuda|cuda:N",
    callback=_check_gpu,
    help="GPU to record on (not a CPU).",
)
@click.option("--steps", type=click.IntRange(1, 20), default=3, show_default=True, help="Training steps per case.")
@click.option(
    "--stacks", is_flag=True, help="Keep Python's call stack at each event; files become several times larger."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the files [recordings/GPU].")
@json_option
def record(
    config: Path | None,
    overrides: tuple[str, ...],
    memory_bytes: int | None,
    device: str,
    steps: int,
    stacks: bool,
    out: Path | None,
    as_json: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Record the history of torch's allocator on a GPU.

    Runs a few steps of each case in a fresh process and writes one Parquet file per case. Existing recordings are kept;
    the same command resumes where it stopped. A case that runs out of memory is recorded too. Any machine can compare a
    recording with the estimate: bench estimate --explain-difference FILE.

    \b
    Examples:
      bench record --model resnet50 --optimizer adam --batch-size 64
      bench record configs/gpu.toml --device cuda:1 --out recordings/h200
      bench record --model mlp --dataset mnist --stacks --json

    \b
    Exit codes: 0 all recorded, 1 some cases failed, 2 wrong usage or configuration, or no GPU, 130 interrupted.
    """
    from bench.errors import EXIT_FAILED_CASES
    from bench.sweep.record import RecordOptions, record_cases, refuse_cpu
    from bench.terminal import Progress

    refuse_cpu(device)
    cases = read_cases(config, overrides, axes)
    limit_bytes = memory_limit(config, overrides, memory_bytes)
    options = RecordOptions(out=out, device=device, steps=steps, stacks=stacks, limit_bytes=limit_bytes)
    with Progress(quiet=as_json) as progress:
        recorded = record_cases(cases, options, progress)
    _print(recorded, as_json=as_json)
    if recorded.failed:
        raise SystemExit(EXIT_FAILED_CASES)


def _print(recorded: Recorded, *, as_json: bool) -> None:
    from bench.cli.root import echo_json

    if not as_json:
        counts = ", ".join(f"{count} {status}" for status, count in recorded.counts.items())
        click.echo(printable(f"{counts or 'no cases'}: {recorded.folder}"))
        return
    rows = [
        {
            **row["case"].axes,
            "case_key": row["case"].key,
            **{name: value for name, value in row.items() if name != "case"},
            "file": str(row["file"]) if row["file"] else None,
        }
        for row in recorded.rows
    ]
    echo_json({"folder": str(recorded.folder), "counts": recorded.counts, "cases": rows})


GROUP = "Measure"
COMMANDS = (record,)
