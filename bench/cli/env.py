"""`bench env`: whether this machine is ready to measure, and how to fix what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import json_option
from bench.terminal import printable

if TYPE_CHECKING:
    from bench.records import Environment

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
    from bench.sweep import read_environment

    if device_file is not None:
        _write_device_file(device_file)
        return
    findings = [asdict(finding) for finding in diagnose()]
    environment: dict[str, object] = {}
    noise: dict[str, Any] | None = None
    if not any(finding["code"] in ("bad_variable", "torch_unusable") for finding in findings):
        try:
            found = read_environment(LocalLauncher(), usable_device())[0]
            environment, noise = asdict(found), _kept_noise(found)
        except DeviceError:  # the findings name the problem
            pass
        except InfrastructureError as error:
            remedy = "Runs need one: `python -c 'import torch'` shows the whole error."
            findings.insert(0, asdict(Diagnosis("error", "no_worker", str(error), remedy)))
    if as_json:
        echo_json({"environment": environment, "findings": findings, "noise": noise})
    else:
        _print(environment, findings, noise)
    if any(finding["severity"] == "error" for finding in findings):
        raise SystemExit(EXIT_USAGE)


def _kept_noise(environment: Environment) -> dict[str, Any] | None:
    """What `bench noise` found here, and what has changed since; None if it was not run."""
    from bench.devices.kept_noise import find_noise

    kept = find_noise(environment)
    if kept is None:
        return None
    return {**kept.note, "sentence": kept.sentence, "out_of_date": kept.changes(environment)}


def _print(
    environment: Mapping[str, object], findings: Sequence[Mapping[str, str]], noise: Mapping[str, Any] | None
) -> None:
    from bench.records import FIELDS

    for name, value in environment.items():
        click.echo(printable(f"{name:<22} {FIELDS[name].absent if value is None else value}"))
    if noise:
        click.echo(printable(f"noise: {noise['sentence']}"))
        if noise["out_of_date"]:
            click.echo(printable(f"  out of date ({', '.join(noise['out_of_date'])}): run bench noise again"))
    for finding in findings:
        mark = click.style(f"{finding['severity']}: ", fg=_COLOURS[finding["severity"]], bold=True)
        click.echo(f"{mark}{printable(finding['what'])}\n  {printable(finding['remedy'])}")
    if not findings:
        click.echo("no problems found")


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
