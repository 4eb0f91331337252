"""`bench merge`: the results of many hosts in one folder."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.cli.options import json_option
from bench.terminal import printable


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def merge(out: Path, results: tuple[Path, ...], as_json: bool) -> None:
    """Join RESULTS, folders or bundles, into the new folder OUT.

    OUT loads, reports, compares and bundles like any results. A run that is in several of them is kept once; two
    different runs under one key are refused. RESULTS are only read.

    \b
    Examples:
      bench merge reports/both reports/host-a reports/host-b
      bench merge reports/all reports/host-a.zip reports/host-b.zip
      bench report reports/both
    """
    from dataclasses import asdict

    from bench.bundles import merge_results, open_results
    from bench.cli.root import echo_json

    with open_results(results) as folders:
        merged = merge_results(out, folders, _show if sys.stderr.isatty() and not as_json else _keep_quiet)
    if as_json:
        echo_json({**asdict(merged), "folder": str(merged.folder)})
        return
    twice = (
        _counted(merged.duplicates - merged.duplicate_estimates, "run", "runs"),
        _counted(merged.duplicate_estimates, "part of estimates", "parts of estimates"),
    )
    named = " and ".join(text for text in twice if not text.startswith("0 "))
    kept = f" ({named} in several of them, kept once)" if named else ""
    made = f"{_counted(merged.runs, 'run', 'runs')} and {_counted(merged.plans, 'plan', 'plans')}"
    sources = _counted(merged.sources, "results folder", "results folders")
    click.echo(printable(f"{merged.folder}: {made} from {sources}{kept}. Next: bench report {merged.folder}"))


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _show(done: int, of: int) -> None:
    """Count parts on one line of a terminal."""
    if done == of or done % 100 == 0:
        sys.stderr.write(f"\rread {done:,} of {of:,} runs{chr(10) if done == of else ''}")
        sys.stderr.flush()


def _keep_quiet(done: int, of: int) -> None:
    """Say nothing."""


GROUP = "Publish"
COMMANDS = (merge,)
