"""`bench report`: results become a report."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the report [RESULTS].")
def report(results: tuple[Path, ...], out: Path | None) -> None:
    """Render a report from results; the same results give the same bytes.

    \b
    Examples:
      bench report reports/default
      bench report reports/host-a reports/host-b --out reports/both
    """
    from bench.report import render_report

    if len(results) > 1 and out is None:
        raise click.UsageError("several results need --out, the folder of the report that joins them")
    click.echo(render_report(results, out or _report_folder(results[0])))


def _report_folder(results: Path) -> Path:
    """The folder that holds the data, whichever of the two was named."""
    from bench.store import DATA_FOLDER

    return results.parent if results.name == DATA_FOLDER else results


COMMANDS = (report,)
