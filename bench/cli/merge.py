"""`bench merge`: results of several hosts in one folder."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.cli.options import ResultsType, json_option
from bench.terminal import printable


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("results", nargs=-1, required=True, type=ResultsType())
@json_option
def merge(out: Path, results: tuple[Path | str, ...], as_json: bool) -> None:
    """Join the results of several hosts into one folder.

    RESULTS are folders, bundles or addresses of either, and are only read. OUT is a new folder that can be loaded,
    reported, compared and bundled like any results. A run found in several of them is kept once; two different runs
    under one key are an error.

    \b
    Examples:
      bench merge reports/both reports/host-a reports/host-b
      bench merge reports/all reports/host-a.zip reports/host-b.zip
      bench report reports/both
    """
    from dataclasses import asdict

    from bench.bundles import merge_results, open_results
    from bench.cli.root import echo_json
    from bench.units import counted

    with open_results(results) as folders:
        merged = merge_results(out, folders, _show if sys.stderr.isatty() and not as_json else _keep_quiet)
    if as_json:
        echo_json({**asdict(merged), "folder": str(merged.folder)})
        return
    twice = (
        counted(merged.duplicates - merged.duplicate_estimates, "run"),
        counted(merged.duplicate_estimates, "part of estimates", "parts of estimates"),
    )
    named = " and ".join(text for text in twice if not text.startswith("0 "))
    kept = f" ({named} found more than once, kept once)" if named else ""
    made = f"{counted(merged.runs, 'run')} and {counted(merged.plans, 'plan')}"
    sources = counted(merged.sources, "results folder")
    click.echo(printable(f"{merged.folder}: {made} from {sources}{kept}. Next: bench report {merged.folder}"))


def _show(done: int, of: int) -> None:
    """Show progress on one line of the terminal."""
    if done == of or done % 100 == 0:
        sys.stderr.write(f"\rread {done:,} of {of:,} runs{chr(10) if done == of else ''}")
        sys.stderr.flush()


def _keep_quiet(done: int, of: int) -> None:
    """Show no progress."""


GROUP = "Publish"
COMMANDS = (merge,)
