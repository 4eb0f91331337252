"""`bench site`: a static site from many results."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import ResultsType, Share, json_option
from bench.terminal import printable


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("results", nargs=-1, type=ResultsType())
@click.option("--title", help="Title of the site [that of the last time].")
@click.option("--url", metavar="URL", help="Where it will be published; feeds then have absolute addresses.")
@click.option(
    "--margin",
    type=Share(),
    help="How far apart two hosts may be that agree, such as 5% [that of the last time, or 5 %].",
)
@click.option("--only", is_flag=True, help="Remove bundles that the site has and RESULTS does not name.")
@click.option("--whole", is_flag=True, help="Read every bundle again, whatever was kept.")
@json_option
def site(
    out: Path,
    results: tuple[Path | str, ...],
    title: str | None,
    url: str | None,
    margin: float | None,
    only: bool,
    whole: bool,
    as_json: bool,
) -> None:
    """Build a static site from many results, or add results to it.

    RESULTS are bundles, folders that bench sweep wrote (each is bundled, as bench bundle does), or addresses of either,
    of any number of machines and people. OUT is a new folder, or a site to which they are added. The site has a page
    for each model, each device and each bundle, and says of every number how far to trust it: reproduced by other
    hosts, reported by one, or not publishable, and why. It needs no server: open OUT/index.html, or publish the folder.

    \b
    Examples:
      bench site site reports/host-a.zip reports/host-b.zip
      bench site site https://example.org/new.zip         one more bundle takes seconds
      bench site site --title "Our GPUs" --url https://example.org/bench/
      bench site site results/*.zip --only --json         exactly these
    """
    from dataclasses import asdict

    from bench.cli.root import echo_json
    from bench.site import build_site
    from bench.units import counted

    built = build_site(
        out,
        results,
        title=title,
        url=url,
        margin=margin,
        only=only,
        whole=whole,
        progress=lambda line: click.echo(printable(line), err=True),
    )
    if as_json:
        echo_json({**asdict(built), "page": str(built.page)})
        return
    for names, what in ((built.left_out, "replaced by a later state of the same results"), (built.removed, "removed")):
        for name in names:
            click.echo(printable(f"{what}: {name}"))
    told = ", ".join(f"{count:,} {name}" for name, count in built.tiers.items())
    changed = f"{counted(len(built.read), 'bundle')} read, {counted(built.written, 'file')} written"
    click.echo(f"{counted(built.bundles, 'bundle')}, {counted(built.pages, 'page')} ({changed}); throughputs: {told}")
    click.echo(printable(str(built.page)))


GROUP = "Publish"
COMMANDS = (site,)
