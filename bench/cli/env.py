"""`bench env`: is this machine fit to measure on, and if not, how to mend it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from bench.cli.options import json_option
from bench.terminal import printable

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command()
@json_option
@click.option(
    "--device-file", type=click.Path(path_type=Path, dir_okay=False), help="Write a device file for the GPU present."
)
def env(as_json: bool, device_file: Path | None) -> None:
    """Say what this machine is, what is wrong with it, and how to mend it.

    \b
    Examples:
      bench env
      bench env --json
      bench env --device-file mycard.toml

    Exit code 2 when something makes measuring impossible or wrong (a GPU that torch cannot use, say).
    """
    from dataclasses import asdict

    from bench.cli.root import echo_json
    from bench.errors import EXIT_USAGE, DeviceError
    from bench.launchers import LocalLauncher
    from bench.probes.diagnosis import diagnose
    from bench.probes.selection import usable_device
    from bench.sweep import read_device_file, read_environment

    if device_file is not None:
        text = read_device_file(LocalLauncher(), usable_device())
        try:
            device_file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DeviceError(f"--device-file: {device_file} cannot be written ({error.strerror or error})") from error
        click.echo(device_file)
        return
    findings = [asdict(finding) for finding in diagnose()]
    environment: dict[str, object] = {}
    with contextlib.suppress(DeviceError):  # what is wrong stands among the findings
        environment = asdict(read_environment(LocalLauncher(), usable_device())[0])
    if as_json:
        echo_json({"environment": environment, "findings": findings})
    else:
        for name, value in environment.items():
            click.echo(printable(f"{name:<22} {'unknown' if value is None else value}"))
        for finding in findings:
            mark = click.style(f"{finding['severity']}: ", fg=_COLOURS[finding["severity"]], bold=True)
            click.echo(f"{mark}{printable(finding['what'])}\n  {printable(finding['remedy'])}")
        if not findings:
            click.echo("nothing found that would spoil a measurement")
    if any(finding["severity"] == "error" for finding in findings):
        raise SystemExit(EXIT_USAGE)


COMMANDS = (env,)
