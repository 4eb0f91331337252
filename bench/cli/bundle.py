"""`bench bundle` and `bench verify`: results as one archive, and a check that nothing in it changed."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import ResultsType, json_option
from bench.terminal import printable


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Archive to write [RESULTS.zip].")
@click.option(
    "--baseline", metavar="NAME", help="Baseline machine of a report on several, as for bench report [the first]."
)
@click.option(
    "--author",
    "authors",
    multiple=True,
    metavar="'NAME <ORCID>'",
    help="Who made the results, with an ORCID or a URL if there is one. Repeatable.",
)
@click.option("--license", "licence", metavar="SPDX|URL", help="Licence of the results, such as CC-BY-4.0.")
@click.option("--force", is_flag=True, help="Replace an existing archive.")
@json_option
def bundle(
    results: Path,
    out: Path | None,
    baseline: str | None,
    authors: tuple[str, ...],
    licence: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Pack results into one archive to publish.

    It contains the data, the report, the environment, instructions to reproduce the results, a manifest, and metadata
    for archives (RO-Crate). The report is rendered again from the data. With the same versions of bench and its
    libraries, the same results give the same archive, to the byte. Run logs (data/logs) are not included.

    \b
    Examples:
      bench bundle reports/mine
      bench bundle reports/mine -o mine.zip --force
      bench bundle reports/mine --author 'Ada Lovelace <0000-0002-1825-0097>' --license CC-BY-4.0
      bench verify reports/mine.zip            what recipients run
    """
    import tempfile

    from bench import __version__
    from bench.bundles import Credits, bundle_files, default_target, safe_name, write_bundle
    from bench.cli.root import echo_json
    from bench.report import render_report
    from bench.units import counted, format_bytes

    target, credit = out or default_target(results), Credits(authors, licence)
    name = safe_name(default_target(results).stem)
    with tempfile.TemporaryDirectory(prefix="bench-report-") as made:
        report = Path(made) / name
        render_report([results], report, baseline=baseline)
        written = write_bundle(target, name, bundle_files(results, report, __version__, credit), force=force)
    if as_json:
        sizes = {"files": written.files, "size_bytes": written.size_bytes, "digest": written.digest}
        echo_json({"bundle": str(written.path), **sizes})
        return
    click.echo(printable(f"{written.path}: {counted(written.files, 'file')}, {format_bytes(written.size_bytes)}"))
    click.echo(f"digest {written.digest}")
    click.echo("Publish the digest next to the archive; readers check it with bench verify --digest.")


@click.command()
@click.argument("bundle", type=ResultsType(), metavar="BUNDLE|FOLDER|ADDRESS")
@click.option("--digest", metavar="SHA256", help="The published digest that the bundle must have.")
@json_option
def verify(bundle: Path | str, digest: str | None, as_json: bool) -> None:
    """Check that no file in a bundle has changed.

    Compares every file of the bundle, or of the folder it was unpacked to, with the manifest, and lists every
    difference. Nothing is unpacked, run or written. The manifest shows that nothing changed since the bundle was
    written; --digest shows that it is the bundle that was published.

    \b
    Examples:
      bench verify mine.zip
      bench verify mine/ --digest 2f0c...
      bench verify https://example.org/mine.zip --json

    Exit codes: 0 nothing changed, 1 something differs, 2 not a bundle.
    """
    from contextlib import nullcontext
    from dataclasses import asdict

    from bench.bundles import fetched
    from bench.bundles import verify as verify_bundle
    from bench.cli.root import echo_json
    from bench.errors import EXIT_FAILED_CASES
    from bench.units import counted

    with fetched(bundle) if isinstance(bundle, str) else nullcontext(bundle) as place:
        found = verify_bundle(place)
    differences = [asdict(item) for item in found.differences]
    if digest is not None and found.digest != digest.strip().lower():
        detail = f"its digest is {found.digest or 'unknown'}, not {digest}"
        differences.append({"path": "manifest.json", "what": "changed", "detail": detail})
    if as_json:
        about = {"name": found.name, "files": found.files, "digest": found.digest, "differences": differences}
        echo_json({"same": not differences, **about})
    else:
        for item in differences:
            detail = f" ({item['detail']})" if item["detail"] else ""
            click.echo(printable(f"{item['what']}: {item['path']}{detail}"))
        state = counted(len(differences), "difference") if differences else "nothing changed"
        digested = f"digest {found.digest or 'unknown'}"
        click.echo(printable(f"{bundle}: {counted(found.files, 'file')}, {state}; {digested}"))
    if differences:
        raise SystemExit(EXIT_FAILED_CASES)


GROUP = "Publish"
COMMANDS = (bundle, verify)
