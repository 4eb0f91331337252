"""`bench bundle` and `bench verify`: results as one archive, and whether one is what it says."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import json_option
from bench.terminal import printable


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The archive [RESULTS.zip].")
@click.option(
    "--baseline", metavar="NAME", help="Of the report of several machines, as bench report takes it [the first]."
)
@click.option("--force", is_flag=True, help="Replace an archive of that name.")
@json_option
def bundle(results: Path, out: Path | None, baseline: str | None, force: bool, as_json: bool) -> None:
    """Pack results into one archive to publish: data, report, manifest, environment and how to reproduce.

    The report is rendered for it, so that it is what the data make. The same results give the same archive, to the
    byte, with the same versions of the harness and its libraries. What runs printed (data/logs) stays at home.

    \b
    Examples:
      bench bundle reports/mine
      bench bundle reports/mine -o mine.zip --force
      bench verify reports/mine.zip            whoever gets it
    """
    import tempfile

    from bench import __version__
    from bench.bundles import bundle_files, default_target, safe_name, write_bundle
    from bench.cli.root import echo_json
    from bench.report import render_report
    from bench.units import format_bytes

    target = out or default_target(results)
    name = safe_name(default_target(results).stem)
    with tempfile.TemporaryDirectory(prefix="bench-report-") as made:
        report = Path(made) / name
        render_report([results], report, baseline=baseline)
        written = write_bundle(target, name, bundle_files(results, report, __version__), force=force)
    if as_json:
        echo_json({"bundle": str(written.path), "files": written.files, "size_bytes": written.size_bytes,
                   "digest": written.digest})  # fmt: skip
        return
    click.echo(printable(f"{written.path}: {written.files} files, {format_bytes(written.size_bytes)}"))
    click.echo(f"digest {written.digest}")
    click.echo("Publish the digest beside the archive; bench verify --digest holds the two together.")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE|FOLDER")
@click.option("--digest", metavar="SHA256", help="What the bundle's digest must be, as its publisher says.")
@json_option
def verify(bundle: Path, digest: str | None, as_json: bool) -> None:
    """Hold a bundle, or the folder that one was unpacked to, against its manifest; name everything that differs.

    Nothing is unpacked, run or written. A manifest says that nothing changed since it was made; --digest says that it
    is the one that was published.

    \b
    Examples:
      bench verify mine.zip
      bench verify mine/ --digest 2f0c...
      bench verify mine.zip --json

    Exit code 0 when every byte is as it was, 1 when any differs, 2 when there is no bundle there.
    """
    from dataclasses import asdict

    from bench.bundles import verify as verify_bundle
    from bench.cli.root import echo_json
    from bench.errors import EXIT_FAILED_CASES

    found = verify_bundle(bundle)
    differences = [asdict(item) for item in found.differences]
    if digest is not None and found.digest != digest.strip().lower():
        detail = f"its digest is {found.digest or 'unknown'}, not {digest}"
        differences.append({"path": "manifest.json", "what": "changed", "detail": detail})
    if as_json:
        echo_json({"same": not differences, "name": found.name, "files": found.files, "digest": found.digest,
                   "differences": differences})  # fmt: skip
    else:
        for item in differences:
            detail = f" ({item['detail']})" if item["detail"] else ""
            click.echo(printable(f"{item['what']}: {item['path']}{detail}"))
        state = f"{len(differences)} differ" if differences else "every byte as it was bundled"
        click.echo(printable(f"{bundle}: {found.files} files, {state}; digest {found.digest or 'unknown'}"))
    if differences:
        raise SystemExit(EXIT_FAILED_CASES)


COMMANDS = (bundle, verify)
