"""`bench bundle` and `bench verify`: results as one archive, and whether one is as it was written."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import json_option
from bench.terminal import printable


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The archive [RESULTS.zip].")
@click.option(
    "--baseline", metavar="NAME", help="Baseline of a report of several machines, as for bench report [the first]."
)
@click.option("--force", is_flag=True, help="Replace an archive of that name.")
@json_option
def bundle(results: Path, out: Path | None, baseline: str | None, force: bool, as_json: bool) -> None:
    """Pack results into one archive to publish.

    It contains the data, the report, the environment, how to reproduce the results, and a manifest. The report is
    rendered again from the data. The same results give the same archive, to the byte, with the same versions of the
    harness and its libraries. Run logs (data/logs) are not included.

    \b
    Examples:
      bench bundle reports/mine
      bench bundle reports/mine -o mine.zip --force
      bench verify reports/mine.zip            what recipients run
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
        sizes = {"files": written.files, "size_bytes": written.size_bytes, "digest": written.digest}
        echo_json({"bundle": str(written.path), **sizes})
        return
    click.echo(printable(f"{written.path}: {written.files} files, {format_bytes(written.size_bytes)}"))
    click.echo(f"digest {written.digest}")
    click.echo("Publish the digest beside the archive; readers check it with bench verify --digest.")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE|FOLDER")
@click.option("--digest", metavar="SHA256", help="The digest that the bundle must have, as published.")
@json_option
def verify(bundle: Path, digest: str | None, as_json: bool) -> None:
    """Check that no file of a bundle changed.

    Every file of the bundle, or of the folder that it was unpacked to, is compared with the manifest, and everything
    that differs is named. Nothing is unpacked, run or written. The manifest shows that nothing changed since it was
    written, --digest that it is the one that was published.

    \b
    Examples:
      bench verify mine.zip
      bench verify mine/ --digest 2f0c...
      bench verify mine.zip --json

    Exit code 0 when every byte is as it was, 1 when any differs, 2 when there is no bundle.
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
        said = {"name": found.name, "files": found.files, "digest": found.digest, "differences": differences}
        echo_json({"same": not differences, **said})
    else:
        for item in differences:
            detail = f" ({item['detail']})" if item["detail"] else ""
            click.echo(printable(f"{item['what']}: {item['path']}{detail}"))
        changed = f"{len(differences)} difference{'s' if len(differences) > 1 else ''}"
        state = f"{changed if differences else 'every byte is as it was bundled'}; digest {found.digest or 'unknown'}"
        click.echo(printable(f"{bundle}: {found.files} file{'' if found.files == 1 else 's'}, {state}"))
    if differences:
        raise SystemExit(EXIT_FAILED_CASES)


GROUP = "Publish"
COMMANDS = (bundle, verify)
