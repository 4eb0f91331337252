"""`bench trace`: from a number in a report back to the runs and Parquet files it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import ResultsType, json_option
from bench.terminal import printable
from bench.units import counted

if TYPE_CHECKING:
    from bench.report.tracing import Traced

_PLACES_SHOWN = 4


@click.command()
@click.argument("number", metavar="NUMBER|CASE")
@click.argument("results", nargs=-1, type=ResultsType())
@json_option
def trace(number: str, results: tuple[Path | str, ...], as_json: bool) -> None:
    """Show where a number in a report comes from.

    Prints where the number appears, how it was computed, and from which runs and Parquet files. NUMBER is a number as
    printed in the report or its CSV files; CASE is a case key, a run key, the name of a Parquet file, or words from the
    name of a case. RESULTS are folders, bundles or addresses of either [reports].

    \b
    Examples:
      bench trace '12,300 samples/s' reports/mine
      bench trace '244 MiB' reports/mine --json
      bench trace 'resnet18 batch 64' reports/mine
      bench trace f28011d15ecfb5d8
      bench trace -- '-12.3 %' reports/mine    a negative number
    """
    from dataclasses import asdict

    from bench.bundles import open_results
    from bench.cli.root import echo_json
    from bench.report.tracing import trace_back

    results = results or (Path("reports"),)
    with open_results(results) as folders:
        found = trace_back(number, folders)
        given = dict(zip(folders, results, strict=True))
    found = [_renamed(one, given) for one in found]
    if as_json:
        echo_json([asdict(one) for one in found])
        return
    for one in found:
        for line in _lines(one):
            click.echo(printable(line))


def _renamed(one: Traced, given: Mapping[Path, Path | str]) -> Traced:
    """The same with the paths as the user gave them: a bundle was opened in a temporary folder."""
    from dataclasses import replace

    def renamed(part: str | None) -> str | None:
        for opened, named in given.items():
            if part is not None and Path(part).is_relative_to(opened):
                return f"{named}/{Path(part).relative_to(opened).as_posix()}"
        return part

    sources = [replace(source, part=renamed(source.part)) for source in one.sources]
    return replace(one, sources=sources, estimate_parts=[str(renamed(part)) for part in one.estimate_parts])


def _lines(one: Traced) -> list[str]:
    """One number: where it appears, how it was computed, and its sources."""
    value = "unknown" if one.value is None else f"{one.value:.10g}"
    where = f' (table "All cases", column "{one.title}")' if one.title else " (table.csv)"
    lines = [f"{one.case}  {one.case_key}", f"  {one.column} = {value}{where}", f"  how: {one.how}"]
    for source in one.sources:
        turn = f"repeat {source.repeat}, attempt {source.attempt}: {source.status}"
        own = "" if source.value is None else f", {source.value:.10g}"
        left = "" if source.counts else " (does not count)"
        lines.append(f"  run {source.run_key or 'none'}  {turn}{own}{left}  {source.part or 'no file'}")
    lines += [f"  estimate  {part}" for part in one.estimate_parts]
    lines += [f"  appears in {place}" for place in one.places[:_PLACES_SHOWN]]
    more = len(one.places) - _PLACES_SHOWN
    lines += [f"  and in {counted(more, 'more place')}; --json lists them"] if more > 0 else []
    return lines


GROUP = "Publish"
COMMANDS = (trace,)
