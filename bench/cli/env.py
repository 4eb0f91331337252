"""`bench env`: whether this machine is ready to measure, and how to fix what is not."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import json_option
from bench.terminal import printable

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command()
@json_option
@click.option(
    "--device-file", type=click.Path(path_type=Path, dir_okay=False), help="Write a device file for this machine's GPU."
)
def env(as_json: bool, device_file: Path | None) -> None:
    """Show this machine, its problems and how to fix them.

    \b
    Examples:
      bench env
      bench env --json
      bench env --device-file mycard.toml

    Exit code 2 if a problem makes measurements impossible or wrong (for example, a GPU that torch cannot use).
    """
    from dataclasses import asdict

    from bench.cli.root import echo_json
    from bench.errors import EXIT_USAGE, DeviceError, InfrastructureError
    from bench.launchers import LocalLauncher
    from bench.probes.diagnosis import Diagnosis, diagnose
    from bench.probes.selection import usable_device
    from bench.records import FIELDS
    from bench.sweep import read_environment

    if device_file is not None:
        _write_device_file(device_file)
        return
    findings = [asdict(finding) for finding in diagnose()]
    environment: dict[str, object] = {}
    if not any(finding["code"] in ("bad_variable", "torch_unusable") for finding in findings):
        try:
            environment = asdict(read_environment(LocalLauncher(), usable_device())[0])
        except DeviceError:  # the findings name the problem
            pass
        except InfrastructureError as error:
            remedy = "Runs need one: `python -c 'import torch'` shows the whole error."
            findings.insert(0, asdict(Diagnosis("error", "no_worker", str(error), remedy)))
    if as_json:
        echo_json({"environment": environment, "findings": findings})
    else:
        for name, value in environment.items():
            click.echo(printable(f"{name:<22} {FIELDS[name].absent if value is None else value}"))
        for finding in findings:
            mark = click.style(f"{finding['severity']}: ", fg=_COLOURS[finding["severity"]], bold=True)
            click.echo(f"{mark}{printable(finding['what'])}\n  {printable(finding['remedy'])}")
        if not findings:
            click.echo("no problems found")
    if any(finding["severity"] == "error" for finding in findings):
        raise SystemExit(EXIT_USAGE)


def _write_device_file(target: Path) -> None:
    from bench.errors import DeviceError
    from bench.launchers import LocalLauncher
    from bench.probes.selection import usable_device
    from bench.sweep import read_device_file

    text = read_device_file(LocalLauncher(), usable_device())
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DeviceError(f"--device-file: {target} cannot be written ({error.strerror or error})") from error
    click.echo(target)


GROUP = "Measure"
COMMANDS = (env,)
