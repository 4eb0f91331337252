"""`bench report`: results become a report."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the report [RESULTS].")
@click.option(
    "--baseline",
    metavar="NAME",
    help="The machine that the others are held against: its name, a part of it, or its results folder [the first].",
)
def report(results: tuple[Path, ...], out: Path | None, baseline: str | None) -> None:
    """Render a report from results; the same results give the same bytes.

    Results of several machines become a comparison of hardware: speed-ups over a baseline, throughput with its knee and
    the edge of memory, headroom, energy, and what differs between the machines.

    \b
    Examples:
      bench report reports/default
      bench report reports/h200 reports/a100 --out reports/both
      bench report reports/h200 reports/a100 --out reports/both --baseline a100
    """
    from bench.bundles import open_results
    from bench.report import render_report

    if len(results) > 1 and out is None:
        raise click.UsageError("several results need --out, the folder of the report that joins them")
    if results[0].is_file() and out is None:
        raise click.UsageError("a bundle needs --out, the folder of the report; the archive itself is only read")
    with open_results(results) as folders:
        click.echo(render_report(folders, out or _report_folder(results[0]), baseline=baseline))


def _report_folder(results: Path) -> Path:
    """The folder that holds the data, whichever of the two was named."""
    from bench.store import DATA_FOLDER

    return results.parent if results.name == DATA_FOLDER else results


GROUP = "Publish"
COMMANDS = (report,)
