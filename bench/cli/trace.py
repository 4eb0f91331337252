"""`bench trace`: from a number in a report back to the runs and parts that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import json_option
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.report.tracing import Traced

_PLACES_SHOWN = 4


@click.command()
@click.argument("number", metavar="NUMBER|CASE")
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@json_option
def trace(number: str, results: tuple[Path, ...], as_json: bool) -> None:
    """Say where a number of a report stands, how it was computed, and from which Parquet parts.

    NUMBER is a number as the report prints it or as its CSV files have it, CASE a case key, a run key, the name of a
    part, or words of a case. RESULTS are folders or bundles [reports].

    \b
    Examples:
      bench trace '12,300 samples/s' reports/mine
      bench trace '244 MiB' reports/mine --json
      bench trace 'resnet18 batch 64' reports/mine
      bench trace f28011d15ecfb5d8
      bench trace -- '-12.3 %' reports/mine    a number that begins with a minus
    """
    from dataclasses import asdict

    from bench.bundles import open_results
    from bench.cli.root import echo_json
    from bench.report.tracing import trace_back

    results = results or (Path("reports"),)
    with open_results(results) as folders:
        found = trace_back(number, folders)
        given = dict(zip(folders, results, strict=True))
    found = [_told(one, given) for one in found]
    if as_json:
        echo_json([asdict(one) for one in found])
        return
    for one in found:
        for line in _lines(one):
            click.echo(printable(line))


def _told(one: Traced, given: Mapping[Path, Path]) -> Traced:
    """The same with the names that results were given by: a bundle was open in another place."""
    from dataclasses import replace

    def told(part: str | None) -> str | None:
        for opened, named in given.items():
            if part is not None and Path(part).is_relative_to(opened):
                return str(named / Path(part).relative_to(opened))
        return part

    sources = [replace(source, part=told(source.part)) for source in one.sources]
    return replace(one, sources=sources, estimate_parts=[str(told(part)) for part in one.estimate_parts])


def _lines(one: Traced) -> list[str]:
    """One number: where, how, from what."""
    value = "unknown" if one.value is None else f"{one.value:.10g}"
    where = f' (table "All cases", column "{one.title}")' if one.title else " (table.csv)"
    lines = [f"{one.case}  {one.case_key}", f"  {one.column} = {value}{where}", f"  how: {one.how}"]
    for source in one.sources:
        turn = f"repeat {source.repeat}, attempt {source.attempt}: {source.status}"
        own = "" if source.value is None else f", {source.value:.10g}"
        left = "" if source.counts else " (does not count)"
        lines.append(f"  run {source.run_key or 'none'}  {turn}{own}{left}  {source.part or 'no part'}")
    lines += [f"  estimate  {part}" for part in one.estimate_parts]
    lines += [f"  stands in {place}" for place in one.places[:_PLACES_SHOWN]]
    more = len(one.places) - _PLACES_SHOWN
    lines += [f"  and in {more} more places; --json has them"] if more > 0 else []
    return lines


GROUP = "Publish"
COMMANDS = (trace,)
