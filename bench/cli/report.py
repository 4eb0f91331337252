"""`bench report`: render a report from results."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import ResultsType


@click.command()
@click.argument("results", nargs=-1, required=True, type=ResultsType())
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the report [RESULTS].")
@click.option(
    "--baseline",
    metavar="NAME",
    help="Machine that the others are compared with: its name, part of it, or its results folder [the first].",
)
def report(results: tuple[Path | str, ...], out: Path | None, baseline: str | None) -> None:
    """Render a report from results.

    The same results give the same report, to the byte. Results of several machines give a comparison of hardware:
    speed-ups over a baseline, throughput with its knee and memory limit, headroom, energy, and what differs between the
    machines. RESULTS are folders, bundles, or addresses of either that fsspec reads (docs/publishing.md).

    \b
    Examples:
      bench report reports/default
      bench report reports/h200 reports/a100 --out reports/both
      bench report reports/h200 reports/a100 --out reports/both --baseline a100
      bench report https://example.org/h200.zip --out reports/h200
    """
    from bench.bundles import open_results
    from bench.report import render_report

    if len(results) > 1 and out is None:
        raise click.UsageError("several results need --out, a folder for the joint report")
    target = out or _report_folder(results[0])
    with open_results(results) as folders:
        click.echo(render_report(folders, target, baseline=baseline))


def _report_folder(results: Path | str) -> Path:
    """The folder that holds the data, given either of the two."""
    from bench.store import DATA_FOLDER

    if isinstance(results, str) or results.is_file():
        what, place = ("an address", "what is there") if isinstance(results, str) else ("a bundle", "the archive")
        raise click.UsageError(f"{what} needs --out, a folder for the report; {place} is only read")
    return results.parent if results.name == DATA_FOLDER else results


GROUP = "Publish"
COMMANDS = (report,)
