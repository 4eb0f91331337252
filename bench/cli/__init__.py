"""The command line: parse, print, exit codes; nothing else.

One file a command, each with a light head: `bench --help` starts without torch, pandas or matplotlib. Commands import
what they need when they run.
"""

from __future__ import annotations

import warnings
from typing import TextIO

import click

from bench.cli.root import cli
from bench.interpreters import leave_current_folder
from bench.terminal import printable

__all__ = ["cli", "main", "show_warnings"]


def show_warnings() -> None:
    """Print warnings as lines for people from now on, each once: no file of the harness, no line of its code."""
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if str(message) not in said:
            click.echo(f"{click.style('warning: ', fg='yellow')}{printable(str(message))}", err=True)
        said.add(str(message))

    warnings.showwarning = show


def main() -> None:
    """Run the command line; leaves with the exit code of what happened."""
    leave_current_folder()
    show_warnings()
    cli(prog_name="bench")
